"""What is measured in a finished picture, by name: a grammar's checks name these probes.

Shapes: S side of a crop.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from idgen.config import nearest
from idgen.errors import ConfigError
from idgen.faces.detect import Face
from idgen.faces.pose import pose_from_landmarks
from idgen.faces.smile import smile_net
from idgen.metrics.sharpness import laplacian_variance
from idgen.pixels import to_pil
from idgen.synth.grammar import Grammar

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# Where a crop of 112 pixels shows skin: without hair, neck and background.
FACE_ROWS, FACE_COLUMNS = slice(28, 100), slice(28, 84)


@dataclass(frozen=True, kw_only=True)
class FoundFace:
    """The largest face of a picture.

    Attributes:
        face: where it is.
        crop: (3, 112, 112) RGB in [0, 1], in the ArcFace pose.
    """

    face: Face
    crop: Tensor


def _yaw(found: FoundFace) -> float:
    return float(pose_from_landmarks(found.face.landmarks[None].astype(np.float64))[0, 0])


def _luminance(found: FoundFace) -> float:
    inner = found.crop[:, FACE_ROWS, FACE_COLUMNS].double().numpy()
    return float(np.einsum("chw,c->hw", inner, LUMA).mean() * 255)


def _sharpness(found: FoundFace) -> float:
    return laplacian_variance(to_pil(found.crop))


def _smile(found: FoundFace) -> float:
    return float(smile_net().probability(found.crop[None])[0])


PROBES: Mapping[str, Callable[[FoundFace], float]] = {
    "yaw": _yaw,  # degrees; positive where the nose points to the left of the picture
    "smile": _smile,  # probability; idgen/mini/smile/README.md says how often it is right
    "luminance": _luminance,  # mean of the face, 0 to 255
    "sharpness": _sharpness,  # variance of the Laplacian of the crop
    "face_px": lambda found: found.face.size_px,  # shorter side of the face's box
    "face_score": lambda found: found.face.score,  # the detector's
}


def check_probes(grammar: Grammar) -> None:
    """Let a grammar pass whose checks can all be measured.

    Raises:
        ConfigError: if one names an unknown probe; axis, value and the nearest name are said.
    """
    for axis in grammar.axes.values():
        for name, value in axis.values.items():
            if value.check is not None and value.check.probe not in PROBES:
                probe, known = value.check.probe, list(PROBES)
                raise ConfigError(
                    f"{axis.name}.{name}.check: nothing measures {probe!r}{nearest(probe, known)} "
                    f"(known: {', '.join(known)})"
                )
