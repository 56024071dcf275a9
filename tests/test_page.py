"""The page without a server: what is seen in photos, how pictures are made, what is said of mistakes."""

import stat
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from generating import astronaut
from paging import STEPS, Photos, made_of, made_portraits, wish
from PIL import Image, ImageEnhance, ImageFilter

from idgen.blocklist import Blocklist
from idgen.encoders.thresholds import threshold_at
from idgen.errors import ConfigError, FaceNotFoundError, IdgenError, ImageError, RefusedPersonError
from idgen.faces.photo import face_crop, find_faces
from idgen.metrics.consistency import measure_likeness
from idgen.page.callbacks import Callbacks
from idgen.page.keeping import Keeping
from idgen.page.looking import (
    MAX_PHOTOS,
    doubts_about,
    eyes_for,
    look_at_photos,
    open_photo,
    person_in,
    sharpness,
)
from idgen.page.making import Progress, Workshop, clean_latents
from idgen.page.markup import caption, framed, photos_html, progress_html, sentence, verdict_html
from idgen.page.portrait import NO_CONSENT, packed, read_person
from idgen.page.sentences import in_words
from idgen.provenance import read_provenance
from idgen.reference import read_reference

# --- looking at photos ------------------------------------------------------------------------------------


def test_the_person_of_a_photo_is_the_one_that_the_command_sees(photos: Photos, shop: Workshop) -> None:
    kit = shop.kit
    sights = look_at_photos([photos.person], kit.detector)
    seen = person_in(sights, kit.encoders)
    known = read_reference([photos.person], kit.detector, kit.encoders)
    for encoder in kit.encoders:
        ours, theirs = (p.identities[encoder.id].face_vector.value for p in (seen, known))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert sights[0].doubts == ()
    assert sights[0].problem is None
    html = photos_html(seen.sights)
    assert html.count("<img") == html.count("Good to use.") == 1
    assert str(photos.person) not in html


def test_the_face_that_was_found_is_drawn_where_it_is(photos: Photos, shop: Workshop) -> None:
    (sight,) = look_at_photos([photos.person], shop.kit.detector)
    assert sight.image is not None
    assert sight.chosen is not None
    drawn, plain = np.asarray(framed(sight)).astype(int), np.asarray(sight.image).astype(int)
    changed = np.argwhere(np.abs(drawn - plain).sum(axis=2) > 0)  # the photo is small enough to stay its size
    left, top, right, bottom = sight.chosen.box
    assert np.abs(changed.min(axis=0) - [top - 1, left - 1]).max() <= 2
    assert np.abs(changed.max(axis=0) - [bottom + 1, right + 1]).max() <= 2
    assert len(changed) < 0.05 * plain[..., 0].size


def test_of_two_people_somebody_must_be_named(photos: Photos, shop: Workshop) -> None:
    (sight,) = look_at_photos([photos.two_people], shop.kit.detector)
    assert str(sight.problem) == "the photo (two.png) shows 2 faces. Say who is meant, or cut the others off"
    with pytest.raises(IdgenError, match="shows 2 faces"):
        person_in([sight], shop.kit.encoders)
    boxes = []
    for who in ("the left one", "the right one"):
        (sight,) = look_at_photos([photos.two_people], shop.kit.detector, who=who)
        assert sight.doubts == ("it shows 2 people; the one in the frame is taken",)
        assert sight.chosen is not None
        boxes.append(sight.chosen.box[0])
    assert boxes[0] < 260 < boxes[1]
    with pytest.raises(ConfigError, match="must be one of the only one, the largest"):
        look_at_photos([photos.two_people], shop.kit.detector, who="somebody")


def test_what_cannot_be_used_says_so_without_a_path(photos: Photos, shop: Workshop) -> None:
    paths = [photos.nobody, photos.no_picture, photos.person.with_name("missing.png")]
    sights = look_at_photos(paths, shop.kit.detector)
    words = [str(sight.problem) for sight in sights]
    assert words[0] == (
        "no face was found in photo 1 (nobody.png). Use a sharper photo that shows the face from the front"
    )
    assert isinstance(sights[0].problem, FaceNotFoundError)
    assert words[1].startswith("photo 2 (text.png) is not a picture that can be read")
    assert words[2] == (
        "no such file: photo 3 (missing.png). Uploads are deleted after an hour: add it again"
    )
    assert str(photos.nobody.parent) not in "".join(words) + photos_html(sights)


def test_photos_are_counted(photos: Photos, shop: Workshop) -> None:
    with pytest.raises(ImageError, match="there is no photo yet"):
        look_at_photos([], shop.kit.detector)
    with pytest.raises(ImageError, match=f"that is 13 photos; at most {MAX_PHOTOS}"):
        look_at_photos([photos.person] * 13, shop.kit.detector)


def test_a_bomb_and_a_program_are_not_opened(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (9000, 8000)).save(bomb, compress_level=9)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ImageError, match="9000 x 8000 pixels; at most 50 megapixels are opened here"):
        open_photo(bomb, "it")
    drawing = tmp_path / "drawing.png"
    Image.new("RGB", (30, 30)).save(drawing, "EPS")
    with pytest.raises(ImageError, match="it is EPS; give a JPEG, PNG, WebP or HEIC picture"):
        open_photo(drawing, "it")


def test_doubts_are_said_of_poor_photos_alone(shop: Workshop) -> None:
    def doubts(image: Image.Image) -> str:
        face = find_faces(image, shop.kit.detector).faces[0]
        return " ".join(doubts_about(face, face_crop(image, face), 1))

    image = astronaut().crop((100, 0, 360, 260))
    assert doubts(image) == ""
    assert doubts(image.filter(ImageFilter.GaussianBlur(5))) == (
        "the face is blurred; a sharper photo keeps more of the person"
    )
    assert "very dark" in doubts(ImageEnhance.Brightness(image).enhance(0.15))
    assert "pixels wide; a larger one" in doubts(image.resize((90, 90)))


def test_sharpness_is_the_laplacian_over_the_spread() -> None:
    luma = np.random.default_rng(0).uniform(0, 255, (12, 9)).astype(np.float32)
    laplacian = [
        luma[y, x - 1] + luma[y, x + 1] + luma[y - 1, x] + luma[y + 1, x] - 4 * luma[y, x]
        for y in range(1, 11)
        for x in range(1, 8)
    ]
    assert sharpness(luma) == pytest.approx(np.std(laplacian) / np.std(luma), rel=1e-5)
    assert sharpness(np.full((12, 9), 7.0, np.float32)) == 0


def test_a_photo_of_somebody_else_is_left_out(faces_test: Any, tmp_path: Path, shop: Workshop) -> None:
    one, other = [rows for rows in faces_test.people().values() if len(rows) >= 4][:2]
    rows = [*one[:3], other[0]]
    paths = []
    for number, row in enumerate(rows):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(faces_test.images[row]).resize((384, 384)).save(paths[-1])
    sights = look_at_photos(paths, shop.kit.detector)
    assert [sight.problem for sight in sights] == [None] * 4
    person = person_in(sights, shop.kit.encoders)
    assert [sight.kept for sight in person.sights] == [True, True, True, False]
    assert "looks like somebody else" in photos_html(person.sights)
    pair = person_in([sights[0], sights[3]], shop.kit.encoders)
    assert all("is it the same person?" in sight.doubts[-1] for sight in pair.sights)


# --- making -----------------------------------------------------------------------------------------------


def test_a_click_gives_pictures_that_say_how_they_were_made(
    photos: Photos, shop: Workshop, keeping: Keeping
) -> None:
    asked = wish(count=2, seed=5, strength=1.2, negative="blurred")
    news = list(made_portraits(asked, [str(photos.person)], "the only one", shop, keeping, consent=True))
    steps = [item.step for item in news if isinstance(item, Progress)]
    assert steps == sorted(steps)
    assert steps[-1] == STEPS
    made = news[-1]
    assert isinstance(made, list)
    assert [m.row.seed for m in made] == [5, 6]
    person = read_person([str(photos.person)], "the only one", shop, consent=True)
    eyes = eyes_for(person.identities, shop.kit.encoders)
    for one in made:
        said = read_provenance(one.path)
        assert (said.prompt, said.negative_prompt) == ("a photo of a woman", "blurred")
        assert (said.seed, said.steps, said.id_scale) == (one.row.seed, STEPS, 1.2)
        assert said.model == "mini"
        with Image.open(one.path) as image:
            again = measure_likeness(image, shop.kit.detector, eyes)
        assert said.similarity == one.likeness.similarity
        assert again.similarity == pytest.approx(one.likeness.similarity, abs=1e-6)
    with zipfile.ZipFile(packed(made)) as archive:
        assert archive.namelist() == [m.path.name for m in made]
        assert all(archive.read(m.path.name) == m.path.read_bytes() for m in made)
    assert stat.S_IMODE(made[0].path.parent.stat().st_mode) == 0o700
    assert len(made[0].path.parent.name) == 24


def test_a_picture_depends_on_its_seed_alone(photos: Photos, shop: Workshop, keeping: Keeping) -> None:
    def pixels(**changes: Any) -> list[np.ndarray]:
        asked = wish(**changes)
        made = made_of(
            made_portraits(asked, [str(photos.person)], "the only one", shop, keeping, consent=True)
        )
        return [np.asarray(Image.open(m.path)).astype(int) for m in made]

    both, alone = pixels(count=2, seed=3), pixels(count=1, seed=4)
    assert np.abs(both[1] - alone[0]).max() <= 1  # one level: another micro-batch
    assert np.abs(both[0] - alone[0]).max() > 20
    assert np.abs(pixels(seed=4, strength=0)[0] - alone[0]).max() > 20


def test_any_seed_is_another_one_each_time(photos: Photos, shop: Workshop, keeping: Keeping) -> None:
    seeds = {
        made_of(made_portraits(wish(seed=-1, steps=1), [str(photos.person)], "the only one", shop, keeping,
                               consent=True))[0].row.seed
        for _ in range(2)
    }  # fmt: skip
    assert len(seeds) == 2


def test_previews_come_and_time_is_told(photos: Photos, shop: Workshop, keeping: Keeping) -> None:
    asked = wish(steps=6)
    news = list(made_portraits(asked, [str(photos.person)], "the only one", shop, keeping, consent=True))
    drawn = [item for item in news if isinstance(item, Progress) and item.previews]
    assert drawn
    assert drawn[0].previews[0][8:12] == b"WEBP"
    html = progress_html(drawn[0])
    assert f'aria-valuenow="{drawn[0].step}"' in html
    assert "s left" in html
    assert html.count("<img") == 1


def test_whoever_stops_asking_stops_the_work(photos: Photos, shop: Workshop, keeping: Keeping) -> None:
    news = made_portraits(wish(steps=100), [str(photos.person)], "the only one", shop, keeping, consent=True)
    assert isinstance(next(news), Progress)
    began = time.monotonic()
    news.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert time.monotonic() - began < 5
    assert "pictures" not in {thread.name for thread in threading.enumerate()}
    assert len(made_of(made_portraits(wish(), [str(photos.person)], "the only one", shop, keeping,
                                      consent=True))) == 1  # fmt: skip


def test_the_clean_latents_are_those_of_the_scheduler() -> None:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    earlier, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    for step in (0, 4, 8):
        t, then = scheduler.timesteps[step : step + 2].tolist()
        after = scheduler.step(noise, t, earlier)  # pyright: ignore[reportArgumentType]
        levels = scheduler.alphas_cumprod
        clean = clean_latents(earlier, after.prev_sample, float(levels[t]), float(levels[then]))  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(clean, after.pred_original_sample, atol=2e-3, rtol=2e-3)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": " "}, "there is no prompt yet"),
        ({"prompt": "x" * 1001}, "at most 1000 characters, this has 1001"),
        ({"negative": "x" * 1001}, "at most 1000 characters"),
        ({"count": 0}, "the number of pictures must be between 1 and 8, got 0"),
        ({"count": 9}, "the number of pictures must be between 1 and 8, got 9"),
        ({"seed": -2}, "the seed must be between -1"),
        ({"seed": None}, "the seed must be between -1"),
        ({"strength": float("nan")}, "the strength must be between 0 and 3, got nan"),
        ({"strength": "1"}, "the strength must be between 0 and 3, got '1'"),
        ({"start": 1}, "the start must be between 0 and 0.95, got 1"),
        ({"steps": 101}, "the number of steps must be between 1 and 100, got 101"),
        ({"guidance": 99}, "the guidance must be between 1 and 20, got 99"),
    ],
)
def test_wishes_are_checked_before_any_work(
    photos: Photos, shop: Workshop, keeping: Keeping, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        next(
            made_portraits(wish(**changes), [str(photos.person)], "the only one", shop, keeping, consent=True)
        )


def test_nothing_is_looked_at_without_consent(shop: Workshop) -> None:
    for consent in (False, None, "yes"):
        with pytest.raises(ConfigError, match="confirm first that you have the right"):
            read_person(["/no/such/photo"], "the only one", shop, consent=consent)  # pyright: ignore[reportArgumentType]
    assert NO_CONSENT[0].islower()


def test_somebody_who_refused_is_not_drawn_and_not_named(
    photos: Photos, shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDGEN_BLOCKLIST", str(tmp_path / "list.safetensors"))
    reference = read_reference([photos.person], shop.kit.detector, shop.kit.encoders)
    listed = Blocklist.load(may_be_missing=True)
    listed.add(reference.identities[shop.kit.encoder.id], "Ann Example")
    listed.save()
    with pytest.raises(RefusedPersonError) as refused:
        read_person([str(photos.person)], "the only one", shop, consent=True)
    assert "refused to be shown" in str(refused.value)
    assert "Ann" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


# --- what is said -----------------------------------------------------------------------------------------


def test_words_of_users_are_escaped(photos: Photos, shop: Workshop, tmp_path: Path) -> None:
    nasty = tmp_path / "<img src=x onerror=alert(1)>.png"
    nasty.write_bytes(photos.person.read_bytes())
    html = photos_html(look_at_photos([nasty, nasty.with_name("<b>.png")], shop.kit.detector))
    assert "<img src=x" not in html
    assert "<b>.png" not in html
    assert "&lt;b&gt;.png" in html


def test_the_verdict_counts_by_the_thresholds_of_the_cards(
    photos: Photos, shop: Workshop, keeping: Keeping
) -> None:
    made = made_of(
        made_portraits(wish(count=2), [str(photos.person)], "the only one", shop, keeping, consent=True)
    )
    limits = [threshold_at(encoder, "1e-3") for encoder in shop.kit.encoders]
    html = verdict_html(made, shop.kit.encoders)
    for encoder, limit in zip(shop.kit.encoders, limits, strict=True):
        passed = sum(m.likeness.face_found and m.likeness.similarity[encoder.id] >= limit for m in made)
        assert f"takes {passed} of 2 for this person" in html
        assert f"at {limit:.2f} for {encoder.name}" in html
    values = [made[0].likeness.similarity[encoder.id] for encoder in shop.kit.encoders]
    shown = f"similarity {values[0]:.2f} · second eye {values[1]:.2f}"
    assert caption(made[0], shop.kit.encoders) in (shown, "no face found")


def test_a_sentence_begins_and_ends_as_one() -> None:
    assert sentence("no face") == "No face."
    assert sentence("is it? ") == "Is it?"


def test_errors_become_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        in_words(ConfigError("no such thing in /a/b"), hide=Path("/a/b"))
        == "No such thing in the page's folder."
    )
    assert capsys.readouterr().err == ""
    assert in_words(MemoryError()).startswith("There is not enough memory")
    assert in_words(RuntimeError("CUDA out of memory. Tried")).startswith("There is not enough memory")
    crash = in_words(KeyError("/secret/path"))
    assert "(KeyError)" in crash
    assert "/secret" not in crash
    assert "/secret" in capsys.readouterr().err  # for whoever runs the page


def test_a_crash_of_the_model_leaves_the_page_alive(
    photos: Photos, shop: Workshop, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr

    callbacks = Callbacks(shop, keeping)
    asked: dict[str, Any] = {"photos": [str(photos.person)], "prompt": "a woman", "count": 1, "consent": True}
    with monkeypatch.context() as broken:
        broken.setattr(shop.pipe.scheduler, "alphas_cumprod", None)
        with pytest.raises(gr.Error, match="The program failed at that"):
            list(callbacks.portrait(**asked))
    status, pictures, archive, numbers = list(callbacks.portrait(**asked))[-1]
    assert "verdict" in status
    assert len(pictures) == len(numbers) == 1
    assert Path(archive).is_file()
    with pytest.raises(gr.Error, match="Please confirm first"):
        list(callbacks.portrait(**{**asked, "consent": False}))
    assert callbacks.look(None, "the only one") == ""
