"""One look at a picture: who is nearest, exactly; what is measured; the same alone and among others."""

import io
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from generating import astronaut
from PIL import Image

from idgen.data.captions import CLEAR
from idgen.encoders.arcface import judge_encoder, mini_encoder
from idgen.errors import ConfigError, WeightsError
from idgen.faces.detect import load_detector
from idgen.faces.photo import choose_face, face_crop, find_faces
from idgen.faces.smile import SIDE_PX, SmileNet, small_grey, smile_net
from idgen.pixels import to_tensor
from idgen.synth.grammar import Grammar, grammar_from
from idgen.synth.looking import Onlooker, Seen, cosine, highest_cosine, two_nearest
from idgen.synth.probes import PROBES, FoundFace, check_probes
from idgen.synth.separation import RealPeople


def units(num: int, dim: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((num, dim))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def close_up(left: int = 130) -> Image.Image:
    """The astronaut's face, no other one, in a small picture."""
    return astronaut().crop((left, 20, left + 190, 210)).resize((96, 96), Image.Resampling.BOX)


@pytest.fixture(scope="module")
def onlooker() -> Onlooker:
    encoder, judge = mini_encoder(), judge_encoder()
    own = np.array([0.6, 0.8] + [0.0] * 126, np.float32)[None]
    real = {
        encoder.id: [RealPeople(name="by mini", vectors=units(5, 128, 3), max_cosine=0.4)],
        judge.id: [RealPeople(name="by judge", vectors=units(4, 128, 4), max_cosine=0.4)],
    }
    people = np.concatenate([units(7, 128, 2), own])
    return Onlooker(detector=load_detector("mini"), encoder=encoder, judge=judge, people=people, real=real)


# --- who is nearest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize(("num", "dim"), [(1, 8), (2, 8), (65, 128), (130, 512)])
def test_the_two_nearest_are_those_of_a_plain_loop_whatever_the_block(num: int, dim: int, block: int) -> None:
    vectors, people = units(9, dim, 5), units(num, dim)
    found = two_nearest(vectors, people, block=block)
    for vector, near in zip(vectors, found, strict=True):
        cosines = [math.fsum(float(a) * float(b) for a, b in zip(vector, who, strict=True)) for who in people]
        ranked = sorted(range(num), key=lambda row: (-cosines[row], row))[:2]
        assert near == tuple((row, cosines[row]) for row in ranked)


def test_of_equally_near_people_those_of_lower_rows_are_named() -> None:
    someone, other = units(2, 16)
    people = np.stack([other, someone, someone, someone])
    assert [row for row, _ in two_nearest(someone[None], people, block=2)[0]] == [1, 2]


def test_what_float32_cannot_tell_apart_is_told_apart() -> None:
    vector = np.zeros(512, np.float32)
    vector[:] = 1 / math.sqrt(512)
    people = np.stack([np.nextafter(vector, np.float32(0)), vector])
    assert people[0] @ vector == pytest.approx(float(people[1] @ vector), abs=1e-6)
    assert two_nearest(vector[None], people)[0][0][0] == 1


def test_other_faces_change_nothing() -> None:
    vectors, people = units(40, 128, 1), units(500, 128)
    together = two_nearest(vectors, people, block=100)
    assert together == [two_nearest(vector[None], people)[0] for vector in vectors]
    assert highest_cosine(vectors, people).tolist() == [near[0][1] for near in together]


# --- what is measured -------------------------------------------------------------------------------------


def found_face(picture: Image.Image) -> FoundFace:
    photo = find_faces(picture, load_detector("mini"))
    face = choose_face(photo, "largest", source="it")
    return FoundFace(face=face, crop=face_crop(photo.image, face))


def test_probes_say_what_they_are_documented_to_say() -> None:
    plain = found_face(close_up())
    mirrored = found_face(close_up().transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    dark = found_face(close_up().point([value // 2 for value in range(256)] * 3))
    assert PROBES["yaw"](mirrored) == pytest.approx(-PROBES["yaw"](plain), abs=8)
    total = 0.0
    for y in range(28, 100):
        for x in range(28, 84):
            red, green, blue = plain.crop[:, y, x].tolist()
            total += 255 * (0.299 * red + 0.587 * green + 0.114 * blue)
    assert PROBES["luminance"](plain) == pytest.approx(total / (72 * 56), abs=1e-3)
    assert PROBES["luminance"](dark) == pytest.approx(PROBES["luminance"](plain) / 2, abs=3)
    assert PROBES["smile"](plain) > 0.9  # she does
    assert PROBES["face_px"](plain) == plain.face.size_px
    assert PROBES["face_score"](plain) == plain.face.score


def test_smiles_are_seen_in_people_whom_nothing_here_has_seen(faces_folder: Path) -> None:
    table = pyarrow.parquet.read_table(faces_folder / "faces_test.parquet", columns=["image", "p_happy"])
    label = table["p_happy"].to_numpy()
    rows = np.flatnonzero((label <= CLEAR[0]) | (label >= CLEAR[1]))[::6]
    cells = table["image"].take(rows).to_pylist()
    pictures = [Image.open(io.BytesIO(cell["bytes"])) for cell in cells]
    crops = torch.stack([to_tensor(picture)[:, 8:120, 8:120] for picture in pictures])
    said, truth = smile_net().probability(crops).numpy() >= 0.5, label[rows] >= 0.5
    assert len(rows) > 200
    for answer in (True, False):
        assert (said == truth)[truth == answer].mean() > 0.9


def test_brightness_and_contrast_make_no_smile() -> None:
    crop = found_face(close_up()).crop[None]
    plain, dim = smile_net()(small_grey(crop)), smile_net()(small_grey(crop * 0.4 + 0.2))
    assert torch.allclose(plain, dim, atol=1e-3)
    assert small_grey(crop).shape == (1, 1, SIDE_PX, SIDE_PX)


def test_a_net_of_smiles_is_saved_and_read(tmp_path: Path) -> None:
    net = SmileNet()
    net.save(tmp_path / "net.safetensors")
    read = smile_net(tmp_path / "net.safetensors")
    for name, value in read.state_dict().items():
        assert torch.equal(value, net.state_dict()[name].half().float())
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="holds no net of smiles"):
        smile_net(tmp_path / "other.pt")


def checked(probe: str) -> Grammar:
    return grammar_from(
        {
            "format": 1,
            "picture": {
                "mood": {"glad": {"words": "glad", "check": {"probe": probe, "min": 0.5}}, "calm": "calm"}
            },
            "templates": ["a person, {mood}"],
        },
        "test",
    )


def test_an_unknown_probe_is_named_before_anything_is_drawn() -> None:
    check_probes(checked("smile"))
    with pytest.raises(ConfigError) as caught:
        check_probes(checked("smiles"))
    assert str(caught.value) == (
        "mood.glad.check: nothing measures 'smiles'; did you mean 'smile'? (known: yaw, smile, luminance, "
        "sharpness, face_px, face_score)"
    )


# --- the whole look ---------------------------------------------------------------------------------------


def same(one: Seen, two: Seen) -> bool:
    vectors = all(np.array_equal(one.vectors[name], two.vectors[name]) for name in one.vectors)
    numbers = (one.num_faces, one.measured, one.nearest, one.real) == (
        two.num_faces, two.measured, two.nearest, two.real,
    )  # fmt: skip
    return vectors and numbers and np.array_equal(one.thumbnail, two.thumbnail)


def test_a_look_is_a_function_of_the_picture_alone(onlooker: Onlooker) -> None:
    pictures = [close_up(), Image.new("RGB", (96, 96), "grey"), close_up(150), astronaut()]
    together = onlooker.look(pictures)
    assert all(
        same(seen, onlooker.look([picture])[0]) for seen, picture in zip(together, pictures, strict=True)
    )
    assert all(map(same, together, reversed(onlooker.look(pictures[::-1]))))
    assert [seen.has_face for seen in together] == [True, False, True, True]
    assert onlooker.look([]) == []


def test_a_look_says_what_its_parts_say(onlooker: Onlooker) -> None:
    (seen,) = onlooker.look([close_up()])
    encoder = onlooker.encoder
    detector = load_detector("mini").fitted(96)  # pyright: ignore[reportAttributeAccessIssue]
    photo = find_faces(close_up(), detector)
    crop = face_crop(photo.image, photo.faces[0])
    vector = encoder.encode(crop[None]).unit[0].numpy()
    assert np.array_equal(seen.vectors[encoder.id], vector)
    assert set(seen.vectors) == {encoder.id, onlooker.judge.id if onlooker.judge else ""}
    assert seen.nearest == two_nearest(vector[None], onlooker.people)[0]
    for eye, galleries in onlooker.real.items():
        for gallery in galleries:
            expected = max(cosine(seen.vectors[eye], photo) for photo in gallery.vectors)
            assert seen.real[gallery.name] == expected
    assert onlooker.similarity(seen, 3) == cosine(vector, onlooker.people[3])
    assert list(seen.measured) == list(PROBES)


def test_a_picture_without_a_face_has_a_thumbnail_only(onlooker: Onlooker) -> None:
    (seen,) = onlooker.look([astronaut().crop((0, 250, 120, 370))])
    assert not seen.has_face
    assert (seen.num_faces, seen.vectors, seen.measured, seen.nearest, seen.real) == (0, {}, {}, (), {})
    assert seen.thumbnail.any()
