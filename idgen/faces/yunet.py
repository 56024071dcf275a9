"""YuNet (Wu et al. 2023, https://doi.org/10.1007/s11633-023-1423-y) from a user's ONNX file."""

from pathlib import Path

import numpy as np

from idgen.errors import WeightsError
from idgen.faces.boxes import letterbox, non_maximum_suppression
from idgen.faces.detect import Face
from idgen.faces.onnx_session import open_session
from idgen.pixels import rgb_to_bgr

STRIDES = (8, 16, 32)
SCORE = 0.6  # what OpenCV's FaceDetectorYN is shown with; below, hands and patterns pass
NMS_OVERLAP = 0.3  # as in OpenCV's FaceDetectorYN


class YunetDetector:
    """The export with outputs ``cls``, ``obj``, ``bbox`` and ``kps`` of each stride (libfacedetection.train).

    Unlike OpenCV's wrapper it scales every picture to one size, so that the largest and the smallest face it
    can see are shares of the picture.
    """

    licence = "Apache-2.0"

    def __init__(self, path: Path, *, name: str = "yunet", size_px: int = 640, score: float = SCORE) -> None:
        """Open the file.

        Args:
            path: the ONNX file.
            name: for messages.
            size_px: side of the square the picture is scaled to, a multiple of 32.
            score: faces below are dropped, in [0, 1].

        Raises:
            ModelNotFoundError: if there is no such file.
            WeightsError: if it is no ONNX file, or not one of YuNet.
        """
        self.name = name
        self.size_px = size_px
        self.score = score
        self._session = open_session(path)
        names = {output.name for output in self._session.get_outputs()}
        missing = [
            n for n in (f"{k}_{s}" for k in ("cls", "obj", "bbox", "kps") for s in STRIDES) if n not in names
        ]
        if missing:
            raise WeightsError(
                f"{path} is not a YuNet file: it has no output {missing[0]} (it has {sorted(names)})"
            )
        self._input = self._session.get_inputs()[0].name

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces of a picture (H, W, 3) uint8 RGB, best first."""
        canvas, scale = letterbox(image, self.size_px)
        pixels = rgb_to_bgr(canvas).astype(np.float32).transpose(2, 0, 1)[None]
        names = [output.name for output in self._session.get_outputs()]
        outputs = {
            n: np.asarray(v)[0]
            for n, v in zip(names, self._session.run(None, {self._input: pixels}), strict=True)
        }
        found = [self._level(outputs, stride) for stride in STRIDES]
        boxes, landmarks, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = non_maximum_suppression(boxes, scores, overlap=NMS_OVERLAP)
        return [
            Face(
                box=(boxes[i] / scale).astype(np.float32),
                landmarks=(landmarks[i] / scale).astype(np.float32),
                score=float(scores[i]),
            )
            for i in kept
        ]

    def _level(
        self, outputs: dict[str, np.ndarray], stride: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (n, 4) and landmarks (n, 5, 2) on the canvas and scores (n,) of one stride.

        score = sqrt(cls obj); centre = (cell + bbox[:2]) stride; size = exp(bbox[2:]) stride; landmark =
        (cell + kps) stride.
        """
        scores = np.sqrt(np.clip(outputs[f"cls_{stride}"], 0, 1) * np.clip(outputs[f"obj_{stride}"], 0, 1))[
            :, 0
        ]
        good = scores >= self.score
        rows, columns = np.mgrid[: self.size_px // stride, : self.size_px // stride]
        cells = np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(np.float32)[good]
        box = outputs[f"bbox_{stride}"][good]
        centre, half = (cells + box[:, :2]) * stride, np.exp(box[:, 2:]) * stride / 2
        landmarks = (cells[:, None] + outputs[f"kps_{stride}"][good].reshape(-1, 5, 2)) * stride
        return np.concatenate([centre - half, centre + half], axis=1), landmarks, scores[good]
