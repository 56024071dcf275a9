"""From a photo to one crop: the ladder, the choice, the crop; mini's detector on a public photograph."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from idgen.errors import AmbiguousFaceError, ConfigError, FaceNotFoundError, ImageError
from idgen.faces.align import ARCFACE_TEMPLATE, similarity_matrix
from idgen.faces.detect import Detector, Face, detectors
from idgen.faces.photo import LADDER, MIN_FACE_PX, FacePhoto, choose_face, face_crop, find_faces, read_face
from idgen.faces.scrfd import ScrfdDetector
from idgen.mini import FACES
from idgen.pixels import to_array

EYES_PX = 42.8  # between the astronaut's eyes, by YuNet
LANDMARKS = np.array(
    [[205.1, 96.9], [247.5, 102.8], [222.4, 126.6], [201.0, 141.0], [239.0, 146.4]], np.float32
)


@pytest.fixture(scope="module")
def mini() -> Detector:
    return detectors.build("mini")


@pytest.fixture
def portrait() -> Image.Image:
    return Image.fromarray(astronaut())


def faces_at(*boxes: tuple[float, float, float, float]) -> FacePhoto:
    """A photo with faces at these boxes."""
    landmarks = ARCFACE_TEMPLATE.numpy() / 112
    faces = [
        Face(
            box=np.array(box, np.float32),
            landmarks=(landmarks * (box[2] - box[0]) + box[:2]).astype(np.float32),
            score=0.9,
        )
        for box in boxes
    ]
    return FacePhoto(image=Image.new("RGB", (400, 300)), faces=faces, attempt="as is")


def test_an_easy_photo_is_found_as_it_is(mini: Detector, portrait: Image.Image) -> None:
    photo = find_faces(portrait, mini)
    assert photo.attempt == "as is"
    assert len(photo.faces) == 1
    assert np.linalg.norm(photo.faces[0].landmarks - LANDMARKS, axis=1).mean() < 0.1 * EYES_PX


class OnlyPart:
    """A real detector that reports only faces of certain sizes, as if it saw no others."""

    name = "choosy"
    licence = "none"

    def __init__(self, detector: Detector, sees: Callable[[Face, np.ndarray], bool]) -> None:
        self.detector = detector
        self.sees = sees

    def detect(self, image: np.ndarray) -> list[Face]:
        return [face for face in self.detector.detect(image) if self.sees(face, image)]


@pytest.mark.parametrize(
    ("rung", "low", "high"),
    [("padded", 0.05, 0.15), ("padded widely", 0.03, 0.06), ("in four parts", 0.22, 0.5)],
)
def test_every_rung_gives_places_in_the_photo_itself(
    portrait: Image.Image, rung: str, low: float, high: float
) -> None:
    # the astronaut's face is 0.18 of the photo wide; each rung changes that share
    eager = ScrfdDetector(FACES / "det_mini.onnx", score=0.2)  # a face of 29 pixels scores low
    choosy = OnlyPart(eager, lambda face, image: low < face.size_px / max(image.shape) < high)
    photo = find_faces(portrait, choosy)
    assert photo.attempt == rung
    assert np.linalg.norm(photo.faces[0].landmarks - LANDMARKS, axis=1).mean() < 0.15 * EYES_PX


def test_a_close_up_without_any_margin_is_found(mini: Detector, portrait: Image.Image) -> None:
    box = (186, 62, 268, 172)
    photo = find_faces(portrait.crop(box), mini)
    expected = LANDMARKS - np.array(box[:2], np.float32)
    assert (
        np.linalg.norm(photo.faces[0].landmarks - expected, axis=1).mean() < 0.2 * EYES_PX
    )  # cut through hair and chin


def test_no_face_says_what_was_tried(mini: Detector) -> None:
    with pytest.raises(
        FaceNotFoundError, match=r"300 x 200 pixels by the detector 'mini'.*tried: as is, padded"
    ):
        find_faces(Image.new("RGB", (300, 200), "gray"), mini)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (33, 31)])
def test_tiny_pictures_are_no_special_case(mini: Detector, size: tuple[int, int]) -> None:
    with pytest.raises(FaceNotFoundError):
        find_faces(Image.new("RGB", size, "gray"), mini)


def test_several_faces_are_listed_from_left_to_right() -> None:
    photo = faces_at((200, 50, 260, 120), (20, 40, 100, 130))
    with pytest.raises(AmbiguousFaceError) as caught:
        choose_face(photo, source="group.jpg")
    message = str(caught.value)
    assert "group.jpg shows 2 faces" in message
    assert message.index("0: 20, 40, 100, 130") < message.index("1: 200, 50, 260, 120")
    assert "--which largest|left|right|N" in message


@pytest.mark.parametrize(
    ("which", "left"), [("largest", 20), ("left", 5), ("right", 200), ("0", 5), ("1", 20), ("2", 200)]
)
def test_every_choice(which: str, left: int) -> None:
    photo = faces_at((200, 50, 260, 120), (20, 40, 100, 130), (5, 5, 35, 45))
    assert choose_face(photo, which, source="a").box[0] == left


def test_a_small_face_in_the_background_does_not_count() -> None:
    photo = faces_at((200, 50, 260, 120), (10, 10, 10 + MIN_FACE_PX - 1, 40))
    assert choose_face(photo, source="a").box[0] == 200


def test_a_face_of_12_pixels_is_refused_with_size_and_bound() -> None:
    photo = faces_at((10, 10, 22, 24), (30, 30, 40, 44))
    with pytest.raises(
        FaceNotFoundError, match=r"largest face in a\.png is 12 pixels wide; at least 20 are needed"
    ):
        choose_face(photo, "largest", source="a.png")


def test_wrong_choices_are_refused() -> None:
    photo = faces_at((200, 50, 260, 120))
    with pytest.raises(FaceNotFoundError, match="no face number 1: it has 1 face,"):
        choose_face(photo, "1", source="a.png")
    with pytest.raises(ConfigError, match="got 'middle'"):
        choose_face(photo, "middle", source="a.png")


def test_crop_equals_opencv_where_the_face_is_small(portrait: Image.Image) -> None:
    face = Face(box=np.zeros(4, np.float32), landmarks=LANDMARKS, score=1.0)
    crop = face_crop(portrait, face)
    matrix = similarity_matrix(torch.from_numpy(LANDMARKS)[None].double(), ARCFACE_TEMPLATE.double())[
        0
    ].numpy()
    theirs = cv2.warpAffine(astronaut(), matrix, (112, 112))
    assert crop.shape == (3, 112, 112)
    difference = np.abs(crop.permute(1, 2, 0).numpy() * 255 - theirs)
    assert difference.mean() < 0.5  # OpenCV rounds positions to 1/32 pixel and levels to whole ones
    assert np.quantile(difference, 0.99) < 2.5


@pytest.mark.parametrize("factor", [4, 6])
def test_a_large_face_is_averaged_not_sampled(portrait: Image.Image, factor: int) -> None:
    """Fine stripes on a face six times as large must become grey in the crop, not another pattern."""
    large = portrait.resize((512 * factor, 512 * factor), Image.Resampling.BICUBIC)
    landmarks = ((LANDMARKS + 0.5) * factor - 0.5).astype(np.float32)
    face = Face(box=np.zeros(4, np.float32), landmarks=landmarks, score=1.0)
    small = Face(box=np.zeros(4, np.float32), landmarks=LANDMARKS, score=1.0)
    assert (face_crop(large, face) - face_crop(portrait, small)).abs().mean() < 0.02

    striped = to_array(large)
    striped[:, ::2], striped[:, 1::2] = 255, 0
    crop = face_crop(Image.fromarray(striped), face)
    assert crop.std() < 0.12


def test_outside_of_the_photo_is_black(portrait: Image.Image) -> None:
    shift = np.array([205, 96], np.float32)  # the left eye at the corner
    face = Face(box=np.zeros(4, np.float32), landmarks=LANDMARKS - shift, score=1.0)
    crop = face_crop(portrait, face)
    assert crop[:, :, :20].max() == 0
    assert crop[:, 70:, 70:].mean() > 0.1


def test_the_whole_walk(tmp_path: Path, mini: Detector, portrait: Image.Image) -> None:
    portrait.save(tmp_path / "a.png")
    crop, face, photo = read_face(tmp_path / "a.png", mini)
    assert crop.shape == (3, 112, 112)
    assert photo.faces[0] is face
    assert 0 <= crop.min() <= crop.max() <= 1
    Image.new("RGB", (200, 200)).save(tmp_path / "black.png")
    with pytest.raises(FaceNotFoundError, match=r"black\.png: no face found"):
        read_face(tmp_path / "black.png", mini)
    with pytest.raises(ImageError, match="no such file"):
        read_face(tmp_path / "missing.png", mini)


def test_two_people_in_one_photo(tmp_path: Path, mini: Detector, portrait: Image.Image) -> None:
    both = Image.new("RGB", (1024, 512))
    both.paste(portrait, (0, 0))
    both.paste(portrait, (512, 0))
    both.save(tmp_path / "two.png")
    with pytest.raises(AmbiguousFaceError, match=r"two\.png shows 2 faces"):
        read_face(tmp_path / "two.png", mini)
    left, right = (read_face(tmp_path / "two.png", mini, which)[1] for which in ("left", "right"))
    np.testing.assert_allclose(right.box - left.box, [512, 0, 512, 0], atol=6)


def test_a_sideways_photo_is_turned_by_its_exif(
    tmp_path: Path, mini: Detector, portrait: Image.Image
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    portrait.rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
    _, face, photo = read_face(tmp_path / "a.png", mini)
    assert photo.attempt == "as is"
    assert np.linalg.norm(face.landmarks - LANDMARKS, axis=1).mean() < 0.1 * EYES_PX


def test_the_ladder_begins_with_the_photo_itself() -> None:
    assert next(iter(LADDER)) == "as is"
