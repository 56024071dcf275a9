"""What a user's networks say of a face: expression, head pose, quality. Files by path, none downloaded.

Shapes: B faces.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from idgen.encoders.sight import Eye, Sight, crops_of, portraits_of
from idgen.errors import WeightsError
from idgen.faces.onnx_session import open_session
from idgen.metrics.sharpness import laplacian_variance
from idgen.pixels import to_pil
from idgen.runs import file_sha256

NUM_EXPRESSIONS, HAPPY = 7, 3  # angry, disgust, fear, happy, sad, surprise, neutral
SMALL_PX = 64
LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def _opened(path: Path, shape: tuple[int | None, ...], what: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function that runs the file on one face at a time.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it does not read such faces.
    """
    session = open_session(path)
    pixels = session.get_inputs()[0]
    fits = len(pixels.shape) == len(shape) and all(
        wanted is None or not isinstance(got, int) or got == wanted
        for wanted, got in zip(shape, pixels.shape, strict=True)
    )
    if not fits:
        raise WeightsError(f"{path} is no {what}: it reads {pixels.shape}, not {shape}")

    def run(values: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(found) for found in session.run(None, {pixels.name: values.astype(np.float32)})]

    return run


def _small(face: Tensor) -> Tensor:
    """(3, 64, 64) in 0 to 255."""
    size = (SMALL_PX, SMALL_PX)
    shrunk = interpolate(face[None], size=size, mode="bilinear", antialias=True, align_corners=False)
    return shrunk[0].clamp(0, 1) * 255


def _named(path: Path, what: str) -> str:
    return f"{what}:{path.stem}@{file_sha256(path)[:12]}".replace("@", "_", path.stem.count("@"))


def smile_eye(path: Path) -> Eye:
    """Probability of "happy" by a net of seven expressions.

    Layout of oarriaga/face_classification: (n, 64, 64, 1) grey, ``(x / 255 - 0.5) * 2`` -> seven
    probabilities (angry, disgust, fear, happy, sad, surprise, neutral). It reads the 112-pixel crop:
    among several cuts that one agrees best with the labels of the training faces.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it has another layout.
    """
    run = _opened(path, (None, SMALL_PX, SMALL_PX, 1), "net of expressions")

    def see(sights: Sequence[Sight]) -> np.ndarray:
        grey = [((_small(crop) * LUMA).sum(dim=0).numpy() / 255 - 0.5) * 2 for crop in crops_of(sights)]
        found = np.stack([run(face[None, :, :, None])[0].reshape(-1) for face in grey])
        if found.shape[1] != NUM_EXPRESSIONS:
            raise WeightsError(f"{path} gives {found.shape[1]} expressions, not {NUM_EXPRESSIONS}")
        return found[:, HAPPY : HAPPY + 1].astype(np.float32)

    return Eye(id=_named(path, "smile"), dim=1, see=see)


def pose_eye(path: Path) -> Eye:
    """Yaw, pitch and roll in degrees; yaw is positive where the nose points to the left of the picture.

    Layout of FSA-Net (Yang et al. 2019): (n, 3, 64, 64) BGR, ``(x - 127.5) / 128``. It reads the 128-pixel
    portrait, for the same reason as `smile_eye` the crop.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it has another layout.
    """
    run = _opened(path, (None, 3, SMALL_PX, SMALL_PX), "net of head poses")

    def see(sights: Sequence[Sight]) -> np.ndarray:
        faces = [(_small(face).flip(0).numpy() - 127.5) / 128 for face in portraits_of(sights)]
        found = np.stack([run(face[None])[0].reshape(-1) for face in faces])
        if found.shape[1] != 3:
            raise WeightsError(f"{path} gives {found.shape[1]} numbers, not yaw, pitch and roll")
        return found.astype(np.float32)

    return Eye(id=_named(path, "pose"), dim=3, see=see)


def sharpness_eye() -> Eye:
    """`laplacian_variance` of the face at 112 pixels."""

    def see(sights: Sequence[Sight]) -> np.ndarray:
        values = [laplacian_variance(to_pil(crop)) for crop in crops_of(sights)]
        return np.array(values, np.float32)[:, None]

    return Eye(id="sharpness@laplacian", dim=1, see=see)


def quality_eye(path: Path) -> Eye:
    """How useful a face is for recognition, higher is better; the scale is the network's own.

    Layouts of CR-FIQA (Boutros et al. 2023: a vector and one number) and eDifFIQA (Babnik et al. 2024: one
    number): (n, 3, 112, 112) RGB, ``(x / 255 - 0.5) / 0.5``.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it does not give one number, beside a vector or not.
    """
    run = _opened(path, (None, 3, 112, 112), "net of face quality")

    def one_number(outputs: list[np.ndarray]) -> float:
        single = [found for found in outputs if found.size == 1]
        if len(single) != 1:
            raise WeightsError(
                f"{path} gives outputs of {[f.shape for f in outputs]}, not one number of quality"
            )
        return float(single[0].reshape(-1)[0])

    def see(sights: Sequence[Sight]) -> np.ndarray:
        values = [one_number(run(((crop - 0.5) / 0.5)[None].numpy())) for crop in crops_of(sights)]
        return np.array(values, np.float32)[:, None]

    return Eye(id=_named(path, "quality"), dim=1, see=see)
