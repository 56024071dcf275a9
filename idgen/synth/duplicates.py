"""Near-duplicates: one picture twice, also mirrored, shifted, cropped, compressed again, or in another light.

Two small pictures are laid over each other in every way that a copy may be changed, and their correlation is
taken where they fit best: the peak of the normalised cross-correlation (Lewis 1995, "Fast normalized
cross-correlation", eq. 2, http://scribblethink.org/Work/nvisionInterface/nip.html) over shifts, sizes and the
mirror image. Slow changes of brightness are taken out before: they are the light and the outline of a head,
which different pictures of one person share.

Shapes: S side of a thumbnail, W side of a window, V views of a picture.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

THUMBNAIL_PX = 64
WINDOW_PX = 24  # in the middle, each pixel of it the mean of 2 x 2: three quarters of the picture
SHIFT_PX = 8  # of the thumbnail, to each side
# Sides that a picture is brought to, as if it showed 0.89 to 1.14 of what the other one shows. Between two of
# them a window is off by 3 %, less than a pixel at its border.
SIDES_PX = (56, 60, 64, 68, 72)
REACH_PX = 7  # brightness that changes more slowly than over a square of 15 pixels is taken out
FLAT = 1.0  # length of a window of grey values 0 to 255 in which nothing is to be seen


def thumbnail(picture: Image.Image) -> np.ndarray:
    """(S, S) float32: grey values of the picture, 0 to 255."""
    small = picture.convert("L").resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def resemblance(one: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """How much a picture is like any of several others, as copies of one picture are: a correlation.

    Args:
        one: (S, S) a thumbnail.
        others: likewise, one at least.

    Returns:
        The highest, in [-1, 1]; of pictures in which nothing is to be seen it is 0.
    """
    windows = _unit(np.stack([_windows(_relief(other), 0)[0] for other in others]))
    return float((_unit(_views(one)) @ windows.T).max())


def _views(one: np.ndarray) -> np.ndarray:
    """(V, W * W) the middle of the picture as a copy of it may show it: of each size, side and shift."""
    whole = Image.fromarray(one)
    resized = [whole.resize((side, side), Image.Resampling.BILINEAR) for side in SIDES_PX]
    reliefs = [_relief(np.asarray(image)) for image in resized]
    sides = [side for relief in reliefs for side in (relief, relief[:, ::-1])]
    return np.concatenate([_windows(relief, SHIFT_PX) for relief in sides])


def _relief(grey: np.ndarray) -> np.ndarray:
    """(s - 1, s - 1): what is left of (s, s) grey values without slow changes, as means of 2 x 2 pixels."""
    around = 2 * REACH_PX + 1
    slow = _means(np.pad(grey.astype(np.float64), REACH_PX, mode="reflect"), around)
    return _means(grey - slow, 2)


def _means(values: np.ndarray, side: int) -> np.ndarray:
    """The mean of each square of that side, from a table of sums (Crow 1984, summed-area tables)."""
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2


def _windows(relief: np.ndarray, shift: int) -> np.ndarray:
    """(V, W * W) the windows in the middle, and those shifted by up to so many pixels where there is room."""
    span = 2 * WINDOW_PX - 1
    every = np.lib.stride_tricks.sliding_window_view(relief, (span, span))[..., ::2, ::2]
    middle = (len(every) - 1) // 2
    chosen = slice(max(0, middle - shift), middle + shift + 1)
    return every[chosen, chosen].reshape(-1, WINDOW_PX**2)


def _unit(windows: np.ndarray) -> np.ndarray:
    """Each less its mean, of unit length; zero where it is flat."""
    centred = windows - windows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.where(length > FLAT, centred / np.maximum(length, FLAT), 0).astype(np.float32)
