"""From a photo to one aligned face: the ladder of attempts, the choice among several faces, the crop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from idgen.errors import AmbiguousFaceError, ConfigError, FaceNotFoundError
from idgen.faces.align import (
    ARCFACE_TEMPLATE,
    TEMPLATE_SIZE_PX,
    ffhq_matrix,
    similarity_matrix,
    transform_points,
    warp,
)
from idgen.faces.boxes import non_maximum_suppression
from idgen.faces.detect import Detector, Face
from idgen.pixels import load_image, to_array, to_tensor

# A face of 20 pixels has about 8 between the eyes. Shrunk further, recognisers begin to confuse people, and a
# detector's box is mostly guesswork.
MIN_FACE_PX = 20
SAME_FACE_OVERLAP = 0.4  # faces of two tiles that overlap more than this are one
CHOICES = "largest|left|right|N"


@dataclass(frozen=True, kw_only=True)
class FacePhoto:
    """A photo and the faces found in it."""

    image: Image.Image  # 8-bit RGB
    faces: list[Face]  # best first, in pixels of `image`
    attempt: str  # the rung of the ladder that found them


# One rung: a detector and a picture (H, W, 3) uint8 in, faces in pixels of that picture out.
Attempt = Callable[[Detector, np.ndarray], list[Face]]


def _as_is(detector: Detector, image: np.ndarray) -> list[Face]:
    return detector.detect(image)


def _padded(detector: Detector, image: np.ndarray, share: float) -> list[Face]:
    """Grey around the picture, for close-ups: the face becomes a smaller part of what the detector sees."""
    margin = round(max(image.shape[:2]) * share)
    around = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), constant_values=127)
    return [face.moved(shift=(-margin, -margin)) for face in detector.detect(around)]


def _tiles(detector: Detector, image: np.ndarray) -> list[Face]:
    """Four overlapping quarters, for small faces: each is seen at 1.5 times the size."""
    height, width = image.shape[:2]
    tile_height, tile_width = -(-height * 2 // 3), -(-width * 2 // 3)
    faces = []
    for top in (0, height - tile_height):
        for left in (0, width - tile_width):
            tile = np.ascontiguousarray(image[top : top + tile_height, left : left + tile_width])
            faces += [face.moved(shift=(left, top)) for face in detector.detect(tile)]
    return _merged(faces)


def _merged(faces: list[Face]) -> list[Face]:
    if not faces:
        return []
    boxes, scores = np.stack([f.box for f in faces]), np.array([f.score for f in faces])
    return [faces[i] for i in non_maximum_suppression(boxes, scores, overlap=SAME_FACE_OVERLAP)]


LADDER: dict[str, Attempt] = {
    "as is": _as_is,
    "padded": lambda detector, image: _padded(detector, image, 0.5),
    "padded widely": lambda detector, image: _padded(detector, image, 1.5),
    "in four parts": _tiles,
}


def _climb(detector: Detector, image: np.ndarray) -> Iterator[tuple[str, list[Face]]]:
    for name, attempt in LADDER.items():
        yield name, attempt(detector, image)


def find_faces(image: Image.Image, detector: Detector) -> FacePhoto:
    """Look for faces in easier and easier versions of a photo, until one shows any.

    The rungs: the photo as it is; with a grey margin of half its longer side, then three halves (close-ups);
    in four overlapping parts (small faces).

    Args:
        image: any mode; `FacePhoto.image` is its 8-bit RGB.
        detector: see `idgen.faces.detect`.

    Raises:
        FaceNotFoundError: if no rung shows a face; the message says what was tried.
    """
    pixels = to_array(image)
    for attempt, faces in _climb(detector, pixels):
        if faces:
            return FacePhoto(image=Image.fromarray(pixels), faces=faces, attempt=attempt)
    height, width = pixels.shape[:2]
    raise FaceNotFoundError(
        f"no face found in a picture of {width} x {height} pixels by the detector {detector.name!r} "
        f"(tried: {', '.join(LADDER)}). "
        "Use a sharper photo that shows the face from the front, or another --detector"
    )


def choose_face(photo: FacePhoto, which: str = "only", *, source: str) -> Face:
    """The face that is meant.

    Args:
        photo: what `find_faces` found. Faces under `MIN_FACE_PX` pixels do not count.
        which: "only" (there must be just one), "largest", "left" (leftmost), "right", or a number counted
            from 0 at the left.
        source: what the photo is called in messages.

    Raises:
        AmbiguousFaceError: for "only" with several faces; their boxes are listed from left to right.
        FaceNotFoundError: if every face is too small, or there is no face of that number.
        ConfigError: for any other ``which``.
    """
    faces = sorted(_large_enough(photo, source), key=lambda face: float(face.box[0] + face.box[2]))
    if which == "only":
        if len(faces) > 1:
            raise AmbiguousFaceError(_ambiguous(faces, source))
        return faces[0]
    if which == "largest":
        return max(faces, key=lambda face: face.size_px)
    if which in {"left", "right"}:
        return faces[0 if which == "left" else -1]
    if not which.isdecimal():
        raise ConfigError(
            f"--which must be only, largest, left, right or a number counted from 0, got {which!r}"
        )
    if int(which) >= len(faces):
        raise FaceNotFoundError(f"{source} shows no face number {which}: it has {_listing(faces)}")
    return faces[int(which)]


def _large_enough(photo: FacePhoto, source: str) -> list[Face]:
    faces = [face for face in photo.faces if face.size_px >= MIN_FACE_PX]
    if not faces:
        largest = max((face.size_px for face in photo.faces), default=0.0)
        raise FaceNotFoundError(
            f"the largest face in {source} is {largest:.0f} pixels wide; at least {MIN_FACE_PX} are needed. "
            "Use a picture with more pixels"
        )
    return faces


def _listing(faces: list[Face]) -> str:
    boxes = [f"{i}: {', '.join(f'{v:.0f}' for v in face.box)}" for i, face in enumerate(faces)]
    return (
        f"{len(faces)} face{'s' if len(faces) > 1 else ''}, boxes from left to right (x1, y1, x2, y2) "
        + "; ".join(boxes)
    )


def _ambiguous(faces: list[Face], source: str) -> str:
    return f"{source} shows {_listing(faces)}. Say which one is meant: --which {CHOICES}"


def face_crop(
    image: Image.Image, face: Face, size_px: int = TEMPLATE_SIZE_PX, *, margin_px: int = 0
) -> Tensor:
    """The face in the ArcFace pose, with ``margin_px`` of context; black outside of the picture.

    Returns:
        (3, S, S) in [0, 1], RGB, with S = size_px + 2 margin_px.
    """
    return crop_at(image, face.landmarks, size_px, margin_px=margin_px)[0]


def crop_at(
    image: Image.Image, landmarks: np.ndarray, size_px: int, *, margin_px: int = 0
) -> tuple[Tensor, np.ndarray]:
    """`face_crop` by the landmarks (5, 2) alone, and where these lie in the crop.

    Where the face is more than twice the size of the crop, its pixels are averaged in whole blocks first, so
    that every pixel counts; otherwise the warp equals insightface's ``norm_crop``.

    Returns:
        (3, S, S) in [0, 1] with S = size_px + 2 margin_px, and (5, 2) float32 in pixels of it.
    """
    points = torch.from_numpy(np.asarray(landmarks, dtype=np.float32)).double()[None]
    template = ARCFACE_TEMPLATE.double() * (size_px / TEMPLATE_SIZE_PX) + margin_px
    matrix = similarity_matrix(points, template)
    moved = transform_points(matrix, points)[0].float().numpy()
    shrink = float(1 / torch.linalg.det(matrix[0, :, :2]).sqrt())
    blocks = max(1, int(shrink))
    if blocks > 1:
        image = image.convert("RGB").reduce(blocks)
        # the centre of block i lies at pixel blocks * i + (blocks - 1) / 2
        matrix = similarity_matrix((points - (blocks - 1) / 2) / blocks, template)
    return warp(to_tensor(image)[None], matrix.float(), size_px + 2 * margin_px)[0], moved


def crop_ffhq(image: Image.Image, landmarks: np.ndarray, size_px: int) -> Tensor:
    """The face as FFHQ cuts it, with hair and chin; mirrored where that reaches beyond the picture.

    Args:
        image: RGB.
        landmarks: (5, 2) in pixels of it.
        size_px: S.

    Returns:
        (3, S, S) in [0, 1], RGB; a large face is averaged in whole blocks first, as by `crop_at`.
    """
    points = torch.from_numpy(np.asarray(landmarks, dtype=np.float32)).double()[None]
    shrink = float(1 / torch.linalg.det(ffhq_matrix(points, size_px)[0, :, :2]).sqrt())
    blocks = max(1, int(shrink))
    if blocks > 1:
        image = image.convert("RGB").reduce(blocks)
    matrix = ffhq_matrix((points - (blocks - 1) / 2) / blocks, size_px)
    return warp(to_tensor(image)[None], matrix.float(), size_px, outside="reflection")[0]


def read_face(path: str | Path, detector: Detector, which: str = "only") -> tuple[Tensor, Face, FacePhoto]:
    """From a file to the crop (3, 112, 112) in [0, 1], the face it shows and the photo with all faces.

    Raises:
        ImageError: if the file is no picture that can be used.
        FaceError: if it shows no face, only small ones, or several and ``which`` does not say which.
    """
    try:
        photo = find_faces(load_image(path), detector)
    except FaceNotFoundError as error:
        raise FaceNotFoundError(f"{path}: {error}") from None
    face = choose_face(photo, which, source=str(path))
    return face_crop(photo.image, face), face, photo
