"""Is the person kept? Generated pictures against the reference, a picture without a face counting as 0.

Shapes: B batch, D width of a face vector.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from idgen.errors import FaceNotFoundError
from idgen.faces.detect import Detector
from idgen.faces.photo import choose_face, face_crop, find_faces


@dataclass(frozen=True, kw_only=True)
class Eye:
    """One encoder that judges, with the reference as it sees it.

    Attributes:
        encode: face crops (B, 3, 112, 112) in [0, 1] -> unit face vectors (B, D).
        reference: the reference's unit face vector (D,) by this encoder.
    """

    encode: Callable[[Tensor], Tensor]
    reference: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What was measured on one picture.

    Attributes:
        face_found: whether the detector saw a face large enough to compare.
        similarity: encoder id -> cosine with the reference in [-1, 1]; 0 for all without a face.
    """

    face_found: bool
    similarity: dict[str, float]


def measure_likeness(image: Image.Image, detector: Detector, eyes: Mapping[str, Eye]) -> Likeness:
    """Similarity of the person in a generated picture to the reference, by each encoder.

    Of several faces the largest is compared, never the most alike: that one would flatter.

    Args:
        image: the picture.
        detector: finds the face.
        eyes: encoder id -> encoder and reference.
    """
    crop = find_crop(image, detector)
    if crop is None:
        return Likeness(face_found=False, similarity=dict.fromkeys(eyes, 0.0))
    values = {
        name: float(eye.encode(crop[None])[0].cpu().numpy() @ eye.reference) for name, eye in eyes.items()
    }
    return Likeness(face_found=True, similarity={k: float(np.clip(v, -1, 1)) for k, v in values.items()})


def find_crop(image: Image.Image, detector: Detector) -> Tensor | None:
    """The aligned crop (3, 112, 112) in [0, 1] of the largest face, or None if no usable one is seen."""
    try:
        photo = find_faces(image, detector)
        return face_crop(photo.image, choose_face(photo, "largest", source="the picture"))
    except FaceNotFoundError:
        return None
