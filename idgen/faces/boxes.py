"""Boxes and letterboxes: what every detector needs around its network.

Shapes: N and M numbers of boxes. A box is x1, y1, x2, y2 in pixels, float32.
"""

import numpy as np
from PIL import Image


def iou(boxes: np.ndarray, others: np.ndarray, *, border: float = 0.0) -> np.ndarray:
    """Intersection over union of every pair: (N, 4) and (M, 4) -> (N, M) in [0, 1].

    Args:
        boxes: (N, 4).
        others: (M, 4).
        border: added to every width and height; 1 counts pixels, as insightface does.
    """
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    inner = np.maximum(bottom_right - top_left + border, 0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2] + border).prod(axis=1)
    other_areas = (others[:, 2:] - others[:, :2] + border).prod(axis=1)
    return inner / np.maximum(areas[:, None] + other_areas[None] - inner, 1e-9)


def non_maximum_suppression(boxes: np.ndarray, scores: np.ndarray, *, overlap: float) -> np.ndarray:
    """Indices of the boxes that no better box covers, best first.

    Args:
        boxes: (N, 4).
        scores: (N,).
        overlap: boxes whose intersection over union with a better one exceeds this are dropped, in [0, 1].
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        order = order[iou(boxes[best][None], boxes[order], border=1.0)[0] <= overlap]
    return np.array(kept, dtype=np.int64)


def letterbox(image: np.ndarray, size_px: int) -> tuple[np.ndarray, float]:
    """Scale a picture until its longer side is ``size_px``, at the top left of a black square.

    Args:
        image: (H, W, 3) uint8.
        size_px: side of the square.

    Returns:
        The square (size_px, size_px, 3) uint8, and the factor from pixels of the picture to its pixels.
    """
    height, width = image.shape[:2]
    ratio = height / width
    if ratio > 1:  # the same rounding as insightface's, so that results can be compared
        new_height, new_width = size_px, max(1, int(size_px / ratio))
    else:
        new_height, new_width = max(1, int(size_px * ratio)), size_px
    scale = size_px / max(height, width)  # insightface takes new_height / height, wrong by 7 % for a panorama
    canvas = np.zeros((size_px, size_px, 3), dtype=np.uint8)
    if (new_height, new_width) == (height, width):
        canvas[:height, :width] = image
    else:
        resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
        canvas[:new_height, :new_width] = np.asarray(resized)
    return canvas, scale
