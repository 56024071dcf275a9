"""Detectors with the outputs of SCRFD (Guo et al. 2021, https://arxiv.org/abs/2105.04714), mini's among them.

Shapes: A anchors of one stride: two for every cell of a grid, cells in reading order.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from idgen.errors import WeightsError
from idgen.faces.boxes import letterbox, non_maximum_suppression
from idgen.faces.detect import Detector, Face
from idgen.faces.onnx_session import open_session
from idgen.mini import FACES

STRIDES = (8, 16, 32)
ANCHORS_PER_CELL = 2
NMS_OVERLAP = 0.4  # as in insightface
LARGEST_PX = 640  # side of the square that a picture is shown in, unless it is small: as in insightface
MINI_SCORE = 0.5  # as in insightface, so that `FaceAnalysis` with its defaults sees the same faces


def anchor_centres(height: int, width: int, stride: int) -> np.ndarray:
    """Centres (A, 2) in pixels of the anchors of one stride: corners of the grid, each twice."""
    rows, columns = np.mgrid[: height // stride, : width // stride]
    corners = np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(np.float32) * stride
    return corners.repeat(ANCHORS_PER_CELL, axis=0)


def decode(centres: np.ndarray, distances: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (A, 4) and landmarks (A, 5, 2) from what the network says about each anchor, all in pixels.

    Args:
        centres: (A, 2).
        distances: (A, 4) from the centre to the left, top, right and bottom side of the box.
        offsets: (A, 10) from the centre to the five landmarks, x and y in turns.
    """
    boxes = np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], axis=1)
    return boxes, centres[:, None] + offsets.reshape(-1, 5, 2)


class ScrfdDetector:
    """An ONNX file with nine outputs: scores, box distances and landmark offsets at strides 8, 16 and 32.

    Input is one picture, RGB, ``(x - 127.5) / 128``. Decoding equals ``insightface.model_zoo.SCRFD``, of
    which this is an own implementation that needs neither insightface nor OpenCV. A picture is scaled with
    smoothing, where insightface samples it, so that large photos differ by a fraction of a pixel.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str | None = None,
        licence: str = "unknown: that of the file",
        sizes_px: Sequence[int] = (LARGEST_PX,),
        score: float = MINI_SCORE,
    ) -> None:
        """Open the file.

        Args:
            path: the ONNX file.
            name: for messages; by default that of the file.
            licence: of the weights.
            sizes_px: sides of the squares the picture is scaled to, multiples of 32; faces of all are merged.
            score: faces below are dropped, in [0, 1].

        Raises:
            ModelNotFoundError: if there is no such file.
            WeightsError: if it is not an ONNX file or does not have nine outputs.
        """
        self.name = name or path.stem
        self.licence = licence
        self.sizes_px = tuple(sizes_px)
        self.score = score
        self._session = open_session(path)
        num_outputs = len(self._session.get_outputs())
        if num_outputs != 3 * len(STRIDES):
            raise WeightsError(
                f"{path} has {num_outputs} outputs; a SCRFD detector with landmarks has {3 * len(STRIDES)} "
                "(scores, boxes and landmarks at strides 8, 16 and 32)"
            )
        self._input = self._session.get_inputs()[0].name

    def fitted(self, side_px: int) -> Self:
        """The same network for small pictures, each seen at 2.5 times its size (at most 640 pixels).

        On 100 pictures of 64 pixels that mini drew, 160 pixels find 95 faces in 5 ms each, 640 pixels 88 in
        55 ms (one core); landmarks differ by 1.5 pixels (median of the largest difference).
        """
        other = copy.copy(self)
        other.sizes_px = (shown_px(side_px),)
        return other

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces of a picture (H, W, 3) uint8 RGB, best first."""
        found = [self._candidates(image, size_px) for size_px in self.sizes_px]
        boxes, landmarks, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = non_maximum_suppression(boxes, scores, overlap=NMS_OVERLAP)
        return [Face(box=boxes[i], landmarks=landmarks[i], score=float(scores[i])) for i in kept]

    def _candidates(self, image: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        canvas, scale = letterbox(image, size_px)
        pixels = (canvas.astype(np.float32) - 127.5) / 128
        outputs = self._session.run(None, {self._input: pixels.transpose(2, 0, 1)[None]})
        found = []
        for level, stride in enumerate(STRIDES):
            scores, distances, offsets = (
                np.asarray(outputs[level + part * len(STRIDES)]).reshape(-1, width)
                for part, width in enumerate((1, 4, 10))
            )
            good = scores[:, 0] >= self.score
            centres = anchor_centres(size_px, size_px, stride)[good]
            found.append(
                (*decode(centres, distances[good] * stride, offsets[good] * stride), scores[good, 0])
            )
        boxes, landmarks, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return (boxes / scale).astype(np.float32), (landmarks / scale).astype(np.float32), scores


def shown_px(side_px: int) -> int:
    """Side of the square in which `ScrfdDetector.fitted` shows pictures with this longer side."""
    return min(LARGEST_PX, -(-side_px * 5 // 2 // 32) * 32)


def suited_to(detector: Detector, side_px: int) -> Detector:
    """The detector as small pictures want it: SCRFD sees them enlarged, others are returned as they are.

    Args:
        detector: any.
        side_px: the longer side of the pictures.
    """
    is_small = shown_px(side_px) < LARGEST_PX
    return detector.fitted(side_px) if is_small and isinstance(detector, ScrfdDetector) else detector


def mini_detector() -> ScrfdDetector:
    """The detector that travels with the package, trained by `train/detector.py` (see its card)."""
    return ScrfdDetector(
        FACES / "det_mini.onnx", name="mini", licence="idgen mini: research only (see its card)"
    )
