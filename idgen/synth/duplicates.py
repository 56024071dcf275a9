"""Near-duplicates: one picture twice, also mirrored, shifted, cropped, compressed again, or in another light.

Two small pictures are laid over each other in every way that a copy may be changed, and their correlation is
taken where they fit best: the peak of the normalised cross-correlation (Lewis 1995, "Fast normalized
cross-correlation", eq. 2, http://scribblethink.org/Work/nvisionInterface/nip.html) over shifts, sizes and the
mirror image. Slow changes of brightness are taken out before: they are the light and the outline of a head,
which different pictures of one person share.

Shapes: S side of a thumbnail, W side of a window, V views of a picture.
"""

from collections.abc import Sequence
from functools import cache

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
    middles = np.concatenate([_views(_relief(other), 0) for other in others])
    upright = _over(middles - middles.mean(axis=1, keepdims=True), _lengths(middles))
    mirrored = upright.reshape(-1, WINDOW_PX, WINDOW_PX)[:, :, ::-1].reshape(upright.shape)
    return max(_best_fit(relief, np.concatenate([upright, mirrored])) for relief in _reliefs(one))


def _reliefs(one: np.ndarray) -> list[np.ndarray]:
    """The picture in each size that it may have as a copy."""
    whole = Image.fromarray(one)
    resized = [whole.resize((side, side), Image.Resampling.BILINEAR) for side in SIDES_PX]
    return [_relief(np.asarray(image)) for image in resized]


def _best_fit(relief: np.ndarray, windows: np.ndarray) -> float:
    """The highest correlation of a picture, shifted in every way, with windows of mean 0 and length 1."""
    views = _views(relief, SHIFT_PX)
    return float(_over(views @ windows.T, _lengths(views)).max())


def _relief(grey: np.ndarray) -> np.ndarray:
    """(s - 1, s - 1): what is left of (s, s) grey values without slow changes, as means of 2 x 2 pixels."""
    average = _moving_average(len(grey))
    fast = grey - average @ grey @ average.T
    return (fast[1:, 1:] + fast[1:, :-1] + fast[:-1, 1:] + fast[:-1, :-1]) / 4


@cache
def _moving_average(side: int) -> np.ndarray:
    """(s, s) matrix that takes the mean around each of s values, which go on mirrored beyond the ends."""
    padded = np.pad(np.eye(side), ((REACH_PX, REACH_PX), (0, 0)), mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * REACH_PX + 1, axis=0).mean(axis=-1)


def _views(relief: np.ndarray, shift: int) -> np.ndarray:
    """(V, W * W) float32: windows in the middle, and shifted by up to so many pixels where there is room."""
    span = 2 * WINDOW_PX - 1
    every = np.lib.stride_tricks.sliding_window_view(relief.astype(np.float32), (span, span))[..., ::2, ::2]
    middle = (len(every) - 1) // 2
    chosen = slice(max(0, middle - shift), middle + shift + 1)
    return every[chosen, chosen].reshape(-1, WINDOW_PX**2)


def _lengths(views: np.ndarray) -> np.ndarray:
    """(V, 1) length of each view less its mean."""
    squares = np.einsum("vp,vp->v", views, views) - views.sum(axis=1) ** 2 / WINDOW_PX**2
    return np.sqrt(np.maximum(squares, 0))[:, None]


def _over(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Each row through the length of its view; zero where that is flat."""
    return np.where(lengths > FLAT, values / np.maximum(lengths, FLAT), 0)
