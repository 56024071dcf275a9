"""Detectors of faces behind one Protocol, by name.

The networks have modules of their own, which are imported when a detector is built: `idgen.faces.scrfd`,
`idgen.faces.yunet`, `idgen.faces.insightface_detector`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from idgen.errors import ConfigError
from idgen.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face in a picture; (x, y) in pixels of that picture, parts outside of it included."""

    box: np.ndarray  # (4,) float32: x1, y1, x2, y2
    landmarks: (
        np.ndarray
    )  # (5, 2) float32: left eye, right eye, nose, left and right corner of the mouth, as seen
    score: float  # in [0, 1]; comparable within one detector only

    @property
    def size_px(self) -> float:
        """The shorter side of the box."""
        return float(min(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    def moved(self, *, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> "Face":
        """The same face in another picture: ``point * scale + shift``."""
        offset = np.array(shift, dtype=np.float32)
        return Face(
            box=(self.box * scale + np.tile(offset, 2)).astype(np.float32),
            landmarks=(self.landmarks * scale + offset).astype(np.float32),
            score=self.score,
        )


@runtime_checkable
class Detector(Protocol):
    """Finds faces with five landmarks."""

    name: str
    licence: str

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces of a picture, best first.

        Args:
            image: (H, W, 3) uint8 RGB, any size.
        """
        ...


detectors: Registry[Detector] = Registry("detector")


@detectors.register("mini")
def _mini() -> Detector:
    """The detector that travels with the package."""
    from idgen.faces.scrfd import mini_detector

    return mini_detector()


@detectors.register("scrfd")
def _scrfd(*, path: str | Path) -> Detector:
    """A user's ONNX file with the outputs of SCRFD, such as ``det_10g.onnx`` of insightface's packs."""
    from idgen.faces.scrfd import ScrfdDetector

    return ScrfdDetector(Path(path))


@detectors.register("yunet")
def _yunet(*, path: str | Path) -> Detector:
    """A user's ONNX file of YuNet."""
    from idgen.faces.yunet import YunetDetector

    return YunetDetector(Path(path))


@detectors.register("insightface")
def _insightface(*, path: str | Path = "buffalo_l", download: bool = False) -> Detector:
    """The detector of an insightface pack: a pack name or a folder on disk."""
    from idgen.faces.insightface_detector import InsightfaceDetector

    return InsightfaceDetector(path, download=download)


def load_detector(spec: str) -> Detector:
    """The detector that a command line means.

    Args:
        spec: ``mini``, ``scrfd:FILE``, ``yunet:FILE``, ``insightface:PACK``, or the name or folder of a pack.

    Raises:
        UnknownNameError: if it is none of these.
        ConfigError: if the file is left out.
        ModelNotFoundError: if a file or pack is not on this disk.
        WeightsError: if a file is no such network.
    """
    name, _, path = spec.partition(":")
    if name not in detectors:
        from idgen.faces.insightface_detector import KNOWN_PACKS, find_pack

        is_pack = spec in KNOWN_PACKS or find_pack(spec)
        return detectors.build("insightface", path=spec) if is_pack else detectors.build(spec)
    if name in ("scrfd", "yunet") and not path:
        raise ConfigError(f"the detector {name} needs its file: {name}:FILE.onnx")
    if name == "mini" and path:
        raise ConfigError(f"the detector mini travels with idgen and takes no file, got {spec!r}")
    return detectors.build(name, path=path) if path else detectors.build(name)
