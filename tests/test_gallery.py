"""Face vectors of many pictures: kept, resumed, and honest about pictures without a face."""

import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from idgen.data.pictures import Picture
from idgen.encoders import gallery
from idgen.encoders.arcface import mini_encoder
from idgen.encoders.card import EncoderCard, card_path, read_encoder_card, related, write_encoder_card
from idgen.encoders.gallery import embed_pictures
from idgen.errors import ConfigError, ImageError
from idgen.faces.detect import load_detector
from idgen.faces.photo import choose_face, face_crop, find_faces


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    astronaut = Image.fromarray(skimage.data.astronaut()).crop((96, 0, 352, 256))
    plain = Image.new("RGB", (64, 64), (90, 120, 150))
    images = [astronaut, plain, astronaut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return [Picture(identity="x", name=str(i), data=encoded(image)) for i, image in enumerate(images)]


def test_vectors_are_those_of_the_ordinary_road(pictures: list[Picture]) -> None:
    detector, encoder = load_detector("mini"), mini_encoder()
    seen = embed_pictures(pictures, detector, [encoder])
    photo = find_faces(pictures[0].open(), detector)
    face = choose_face(photo, "largest", source="")
    expected = encoder.encode(face_crop(photo.image, face)[None]).unit[0].numpy()
    assert seen.found.tolist() == [True, False, True]
    np.testing.assert_allclose(seen.vectors[encoder.id][0], expected, atol=1e-5)
    assert not seen.vectors[encoder.id][1].any()
    assert np.isnan(seen.landmarks[1]).all()
    assert np.isnan(seen.face_px[1])
    np.testing.assert_array_equal(seen.landmarks[0], face.landmarks)


def test_what_is_kept_is_not_done_again(
    pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, encoder = load_detector("mini"), mini_encoder()
    monkeypatch.setattr(gallery, "PIECE", 2)
    first = embed_pictures(pictures, detector, [encoder], store=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 2

    def refuse(*_: object) -> None:
        raise AssertionError("looked at again")

    monkeypatch.setattr(gallery, "_look", refuse)
    again = embed_pictures(pictures, detector, [encoder], store=tmp_path)
    np.testing.assert_array_equal(again.vectors[encoder.id], first.vectors[encoder.id])
    with pytest.raises(AssertionError, match="looked at again"):  # another order is another piece
        embed_pictures(pictures[::-1], detector, [encoder], store=tmp_path)


def test_aligned_pictures_are_taken_as_they_are() -> None:
    encoder = mini_encoder()
    portrait = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    sizes = [Image.fromarray(portrait), Image.fromarray(portrait[8:120, 8:120])]
    both = [Picture(identity="x", name=str(i), data=encoded(image)) for i, image in enumerate(sizes)]
    seen = embed_pictures(both, load_detector("mini"), [encoder], aligned=True)
    assert seen.found.all()
    np.testing.assert_array_equal(*seen.vectors[encoder.id])
    wrong = Picture(identity="x", name="wide.png", data=encoded(Image.new("RGB", (100, 90))))
    with pytest.raises(ImageError, match=r"wide.png has 100 x 90"):
        embed_pictures([wrong], load_detector("mini"), [encoder], aligned=True)


class FakeFile:
    """Only what a card looks at: the path and the hash of an encoder."""

    def __init__(self, path: Path, name: str, sha256: str) -> None:
        self.path, self.name, self.sha256 = path, name, sha256
        self.id = f"{name}@{sha256[:12]}"


def test_teacher_student_and_sibling_are_related_a_stranger_is_not(tmp_path: Path) -> None:
    def encoder(name: str, taught_by: tuple[str, ...] = ()) -> FakeFile:
        made = FakeFile(tmp_path / f"{name}.onnx", name, (name.encode().hex() * 64)[:64])
        if taught_by:
            write_encoder_card(made.path, EncoderCard(encoder=made.id, taught_by=taught_by))
        return made

    teacher, stranger = encoder("teacher"), encoder("stranger")
    student, sibling = encoder("student", (teacher.id,)), encoder("sibling", (teacher.id,))
    everyone = [teacher, stranger, student, sibling]
    answers = [related(judge, [student.id], everyone) for judge in everyone]  # pyright: ignore[reportArgumentType]
    assert answers == [True, False, True, True]
    assert not related(student, [], everyone)  # pyright: ignore[reportArgumentType]


def test_a_card_comes_back_and_is_refused_beside_other_weights(tmp_path: Path) -> None:
    encoder = FakeFile(tmp_path / "net.onnx", "net", "ab" * 32)
    assert read_encoder_card(encoder) is None  # pyright: ignore[reportArgumentType]
    card_path(encoder.path).write_text('{"something": "else"}')
    assert read_encoder_card(encoder) is None  # pyright: ignore[reportArgumentType]
    card = EncoderCard(encoder=encoder.id, thresholds={"1e-3": 0.31}, thresholds_from="12 people")
    write_encoder_card(encoder.path, card)
    assert read_encoder_card(encoder) == card  # pyright: ignore[reportArgumentType]
    other = FakeFile(encoder.path, "net", "cd" * 32)
    with pytest.raises(ConfigError, match="belongs to net@abab"):
        read_encoder_card(other)  # pyright: ignore[reportArgumentType]
