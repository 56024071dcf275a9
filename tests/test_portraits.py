"""Photos as training pictures: framing, the cache, and who does not belong."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from generating import astronaut
from PIL import Image

from idgen import mini
from idgen.data.pictures import Picture, read_pictures
from idgen.diffusion.latents import decode_latents
from idgen.encoders.arcface import load_encoder
from idgen.errors import ConfigError, FaceNotFoundError
from idgen.faces.align import ARCFACE_TEMPLATE
from idgen.faces.detect import load_detector
from idgen.faces.framing import Framing
from idgen.faces.photo import choose_face, find_faces
from idgen.pixels import to_tensor
from idgen.portraits import Studio, find_second_person, read_portraits

NOWHERE = np.full((5, 2), np.nan, np.float32)


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, by one a pixel."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def test_aligned_pictures_have_the_crop_in_their_middle() -> None:
    landmarks = (ARCFACE_TEMPLATE.numpy() * 0.9 + (70, 40)).astype(np.float32)
    cut, moved = Framing(kind="aligned", size_px=128).cut(ramp(250, 200), landmarks)
    assert cut.size == (128, 128)
    assert np.allclose(moved, ARCFACE_TEMPLATE.numpy() + 8, atol=1e-3)
    for (x, y), (column, row) in zip(landmarks, moved, strict=True):  # what was there is here
        red, green, _ = cut.getpixel((round(float(column)), round(float(row))))  # pyright: ignore
        assert abs(red - x) <= 1.5
        assert abs(green - y) <= 1.5


@pytest.mark.parametrize("shift", [(20, 60), (200, 60), (400, 60)])
def test_square_pictures_have_the_face_in_their_middle_as_far_as_they_go(shift: tuple[int, int]) -> None:
    landmarks = (ARCFACE_TEMPLATE.numpy() * 0.5 + shift).astype(np.float32)
    image = ramp(250, 160).resize((500, 320))
    cut, moved = Framing(kind="square", size_px=64).cut(image, landmarks)
    assert cut.size == (64, 64)
    middle = moved.mean(axis=0)
    assert abs(middle[0] - 31.5) < 1 or shift[0] != 200
    for (x, y), (column, row) in zip(landmarks, moved, strict=True):
        red, green, _ = cut.getpixel((round(float(column)), round(float(row))))  # pyright: ignore
        assert abs(red - x / 2) <= 2
        assert abs(green - y / 2) <= 2


def test_pictures_without_a_face() -> None:
    cut, moved = Framing(kind="square", size_px=32).cut(ramp(100, 60), NOWHERE)
    assert np.isnan(moved).all()
    assert abs(cut.getpixel((16, 16))[0] - 50) <= 2  # pyright: ignore
    with pytest.raises(FaceNotFoundError, match="framing: square"):
        Framing(kind="aligned", size_px=32).cut(ramp(100, 60), NOWHERE)
    with pytest.raises(ConfigError, match="multiple of 16 pixels, got 100"):
        Framing(kind="square", size_px=100)


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    vae = AutoencoderKL.from_pretrained(mini.BASE / "vae").requires_grad_(False).eval()
    return Studio(
        detector=load_detector("mini"), encoder=load_encoder("mini"), vae=vae,
        framing=Framing(kind="aligned", size_px=64), store=tmp_path / "cache",
    )  # fmt: skip


def photo(folder: Path, name: str, image: Image.Image) -> Picture:
    path = folder / name
    image.save(path)
    return Picture(identity="anna", name=name, path=path)


def test_a_second_encoder_describes_the_same_faces(tmp_path: Path, studio: Studio) -> None:
    pictures = [photo(tmp_path, f"{d}.png", astronaut().rotate(d)) for d in (0, 10)]
    both = read_portraits(pictures, dataclasses.replace(studio, second=load_encoder("judge")))
    judged = read_portraits(pictures, dataclasses.replace(studio, encoder=load_encoder("judge")))
    assert both.seen_embedding is not None
    torch.testing.assert_close(both.seen_embedding, judged.id_embedding)
    torch.testing.assert_close(both.id_embedding, read_portraits(pictures, studio).id_embedding)
    turned = both.subset([1]).seen_embedding
    assert turned is not None
    torch.testing.assert_close(turned, both.seen_embedding[1:])


def test_latents_decode_to_the_cut_picture_and_come_back_from_the_cache(
    tmp_path: Path, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [photo(tmp_path, "a.png", astronaut()), photo(tmp_path, "b.png", astronaut().rotate(10))]
    first = read_portraits(pictures, studio)
    assert first.people == ("anna",)
    assert first.person.tolist() == [0, 0]
    face = choose_face(find_faces(astronaut(), studio.detector), "largest", source="astronaut")
    cut, moved = studio.framing.cut(astronaut(), face.landmarks)
    assert np.allclose(first.landmarks[0].numpy(), moved)
    shown = decode_latents(studio.vae, first.latents.mean[:1].float())[0]
    assert (shown - to_tensor(cut)).abs().mean() < 0.08  # mini's autoencoder has an L1 of 0.04

    def never(*_: object, **__: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("idgen.portraits.encode_latents", never)
    again = read_portraits(pictures, studio)
    for name in ("id_embedding", "landmarks", "person"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert torch.equal(first.latents.mean, again.latents.mean)
    assert torch.equal(first.latents.std, again.latents.std)
    other = Studio(detector=studio.detector, encoder=studio.encoder, vae=studio.vae, store=studio.store,
                   framing=Framing(kind="square", size_px=64))  # fmt: skip
    with pytest.raises(AssertionError, match="encoded again"):  # another framing, another key
        read_portraits(pictures, other)


def test_bad_pictures_are_listed_or_left_out(tmp_path: Path, studio: Studio) -> None:
    (tmp_path / "photos").mkdir()
    photo(tmp_path / "photos", "a.png", astronaut())
    photo(tmp_path / "photos", "sky.png", Image.new("RGB", (64, 64), "navy"))
    (tmp_path / "photos" / "z.jpg").write_text("Dear Sir or Madam")
    pictures = read_pictures(tmp_path / "photos", flat=True).pictures
    kept = read_portraits(pictures, studio, skip_bad=True)
    assert kept.names == ("a.png",)
    assert kept.skipped == ("z.jpg", "sky.png")
    with pytest.raises(FaceNotFoundError, match=r"none of the 2 pictures can be used: z\.jpg, sky\.png"):
        read_portraits(pictures[1:], studio, skip_bad=True)
    whole = read_portraits(pictures[:2], studio.framed("square"), faces_needed=False)
    assert whole.has_face.tolist() == [True, False]


def test_a_second_person_is_found_in_groups_and_alone() -> None:
    rng = np.random.default_rng(0)

    def shots(count: int) -> np.ndarray:
        who = rng.standard_normal(64)
        made = who + 0.7 * rng.standard_normal((count, 64))
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    for sizes in ((6, 3), (4, 4), (5, 2), (5, 1)):
        both = np.concatenate([shots(sizes[0]), shots(sizes[1])])
        found = find_second_person(both)
        truth = np.arange(len(both)) >= sizes[0]
        assert np.array_equal(found, truth) or (sizes[0] == sizes[1] and np.array_equal(found, ~truth)), sizes
    for size in (2, 3, 5, 9):
        assert not find_second_person(shots(size)).any()
