"""Pictures with faces at known places: portraits pasted onto backgrounds, with their boxes and landmarks.

Points are (x, y) in pixels, whole numbers are pixel centres. Pictures are uint8 (H, W, 3) RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from idgen.faces.detect import Detector

CONTEXT = 0.25  # of its side is added around a portrait for the teacher: a face that fills a picture is hard
SMALLEST = 1 / 3  # of the side of a portrait: what is smaller is somebody in the background


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """A picture of one face with what a teacher says about it."""

    image: np.ndarray  # (S, S, 3) uint8
    box: np.ndarray  # (4,) float32 x1, y1, x2, y2
    landmarks: np.ndarray  # (5, 2) float32

    @property
    def size_px(self) -> float:
        """Side of a square as large as the box."""
        width, height = self.box[2:] - self.box[:2]
        return float(np.sqrt(width * height))

    def mirrored(self) -> "Portrait":
        """Left and right exchanged; the landmarks keep their order as seen in the image."""
        last = self.image.shape[1] - 1
        x1, y1, x2, y2 = self.box
        flipped = self.landmarks * np.array([-1, 1], np.float32) + np.array([last, 0], np.float32)
        return Portrait(
            image=np.ascontiguousarray(self.image[:, ::-1]),
            box=np.array([last - x2, y1, last - x1, y2], np.float32),
            landmarks=flipped[[1, 0, 2, 4, 3]],
        )


def portrait_of(image: np.ndarray, teacher: Detector) -> Portrait | None:
    """The portrait (S, S, 3) uint8 with the teacher's box and landmarks; None where it sees no large face."""
    margin = round(CONTEXT * len(image))
    faces = teacher.detect(np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    if not faces or faces[0].size_px < SMALLEST * len(image):
        return None
    face = faces[0].moved(shift=(-margin, -margin))
    return Portrait(image=image, box=face.box, landmarks=face.landmarks)


def agreed_portrait(image: np.ndarray, teachers: Sequence[Detector]) -> Portrait | None:
    """A portrait with the mean of all answers to the picture and to its mirror image; None if one is missing.

    A single answer of YuNet is off from the mean of many by 5 to 7 % of the distance of the eyes, in part
    always to the right: too coarse to judge 6 % by, and to learn it from.
    """
    mirror = np.ascontiguousarray(image[:, ::-1])
    answers = [portrait_of(image, teacher) for teacher in teachers]
    answers += [
        found and found.mirrored() for found in (portrait_of(mirror, teacher) for teacher in teachers)
    ]
    found = [answer for answer in answers if answer is not None]
    if len(found) < len(answers):
        return None
    box = np.mean([portrait.box for portrait in found], axis=0)
    return Portrait(
        image=image, box=box, landmarks=np.mean([portrait.landmarks for portrait in found], axis=0)
    )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a portrait goes: turned about the middle of its box, scaled, the middle moved to ``centre``."""

    scale: float
    angle_rad: float  # positive turns clockwise as seen, since y points down
    centre: tuple[float, float]

    def matrix(self, portrait: Portrait) -> np.ndarray:
        """(2, 3), from pixels of the portrait to pixels of the scene."""
        cosine, sine = self.scale * np.cos(self.angle_rad), self.scale * np.sin(self.angle_rad)
        linear = np.array([[cosine, -sine], [sine, cosine]])
        middle = (portrait.box[:2] + portrait.box[2:]) / 2
        return np.concatenate([linear, (np.array(self.centre) - linear @ middle)[:, None]], axis=1)


def placed_landmarks(portrait: Portrait, placement: Placement) -> np.ndarray:
    """The landmarks (5, 2) in the scene."""
    matrix = placement.matrix(portrait)
    return (portrait.landmarks @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def placed_box(portrait: Portrait, placement: Placement) -> np.ndarray:
    """The box (4,) in the scene: around the turned ellipse that fills the upright box.

    A face is closer to an ellipse than to a rectangle: a box around the turned corners would be a third too
    wide at 30 degrees. With half axes a and b, its half width is ``sqrt(a^2 cos^2 + b^2 sin^2)``.
    """
    half = (portrait.box[2:] - portrait.box[:2]) / 2 * placement.scale
    cosine2, sine2 = np.cos(placement.angle_rad) ** 2, np.sin(placement.angle_rad) ** 2
    turned = np.sqrt(half**2 * cosine2 + half[::-1] ** 2 * sine2)
    centre = np.array(placement.centre)
    return np.concatenate([centre - turned, centre + turned]).astype(np.float32)


def paste(scene: np.ndarray, portrait: Portrait, placement: Placement, mask: np.ndarray) -> None:
    """Paste a portrait into a scene, in place, smoothed where it shrinks.

    Args:
        scene: (H, W, 3) uint8, changed.
        portrait: what to paste.
        placement: where to.
        mask: (S, S) uint8, 0 where the scene shows through.
    """
    source = Image.fromarray(np.dstack([portrait.image, mask]), "RGBA")
    matrix = placement.matrix(portrait)
    shrunk = max(1, round(source.width * placement.scale)) if placement.scale < 1 else source.width
    ratio = shrunk / source.width
    if ratio < 1:
        source = source.resize((shrunk, shrunk), Image.Resampling.BILINEAR, reducing_gap=2.0)
    # Pillow maps continuous coordinates, in which the first pixel covers 0 to 1 and has its centre at 0.5.
    linear = matrix[:, :2] / ratio
    shift = matrix[:, :2] @ np.full(2, -0.5) + matrix[:, 2] + 0.5
    corners = np.array([[0, 0], [shrunk, 0], [0, shrunk], [shrunk, shrunk]]) @ linear.T + shift
    left, top = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)), scene.shape[1::-1]).astype(int)
    if right <= left or bottom <= top:
        return
    inverse = np.linalg.inv(linear)
    offset = inverse @ (np.array([left, top]) - shift)
    coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
    size = (int(right - left), int(bottom - top))
    patch = source.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    target = Image.fromarray(scene[top:bottom, left:right])
    target.paste(patch.convert("RGB"), mask=patch.getchannel("A"))
    scene[top:bottom, left:right] = np.asarray(target)


def ellipse_mask(size_px: int, box: np.ndarray, *, grow: float, feather: float) -> np.ndarray:
    """An elliptic mask (S, S) uint8 around a box.

    Args:
        size_px: S.
        box: (4,) the box the ellipse fills.
        grow: factor on the half axes.
        feather: width of the soft border as a share of the half axes, > 0.
    """
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * grow
    axis = np.arange(size_px, dtype=np.float32)
    radius = np.hypot((axis[None] - centre[0]) / half[0], (axis[:, None] - centre[1]) / half[1])
    return (np.clip((1 - radius) / feather, 0, 1) * 255).astype(np.uint8)


def square_mask(size_px: int, *, feather_px: float) -> np.ndarray:
    """A mask (S, S) uint8 of the whole picture with a soft border of this width; 0 gives a hard border."""
    axis = np.arange(size_px, dtype=np.float32)
    inside = np.minimum(axis + 1, size_px - axis) / max(feather_px, 1)
    return (np.clip(np.minimum(inside[None], inside[:, None]), 0, 1) * 255).astype(np.uint8)
