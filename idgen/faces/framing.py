"""Photos as training pictures: cut around the face to the square that a model was made for."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from idgen.errors import ConfigError, FaceNotFoundError
from idgen.faces.photo import crop_at
from idgen.pixels import to_pil

Kind = Literal["aligned", "square"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CONTEXT = 16  # an aligned picture shows 1/16 of its side around the ArcFace crop: 8 pixels of 128


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How pictures are cut.

    Attributes:
        kind: "aligned" turns and scales the face to the ArcFace pose with a rim around it, as mini draws
            faces; "square" takes the largest square of the picture that has the face in its middle, as far
            as the picture goes, and turns nothing.
        size_px: side of the result, a multiple of 16.
    """

    kind: Kind
    size_px: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"framing must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.size_px < CONTEXT or self.size_px % CONTEXT:
            raise ConfigError(f"pictures must have a multiple of {CONTEXT} pixels, got {self.size_px}")

    def cut(self, image: Image.Image, landmarks: np.ndarray) -> tuple[Image.Image, np.ndarray]:
        """The picture of ``size_px``, and where the landmarks lie in it.

        Args:
            image: RGB.
            landmarks: (5, 2) in pixels of it; NaN where there is no face: "square" then takes the middle.

        Raises:
            FaceNotFoundError: if a picture without a face is to be aligned.
        """
        if self.kind == "square":
            return _square(image, landmarks, self.size_px)
        if not np.isfinite(landmarks).all():
            raise FaceNotFoundError("a picture without a face cannot be aligned; take framing: square")
        margin = self.size_px // CONTEXT
        crop, moved = crop_at(image, landmarks, self.size_px - 2 * margin, margin_px=margin)
        return to_pil(crop), moved


def _square(image: Image.Image, landmarks: np.ndarray, size_px: int) -> tuple[Image.Image, np.ndarray]:
    side, size = min(image.size), np.array(image.size, dtype=np.float64)
    centre = landmarks.mean(axis=0) + 0.5 if np.isfinite(landmarks).all() else size / 2
    left, top = np.clip(centre - side / 2, 0, size - side)
    cut = image.resize((size_px, size_px), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    moved = (landmarks + 0.5 - (left, top)) * (size_px / side) - 0.5  # whole numbers are pixel centres
    return cut, moved.astype(np.float32)
