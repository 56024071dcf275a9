"""How sharp is a picture?"""

import numpy as np
from PIL import Image

LAPLACIAN = ((0, 1), (0, -1), (1, 0), (-1, 0))  # neighbours of a pixel


def laplacian_variance(picture: Image.Image) -> float:
    """Variance of the Laplacian of the grey values in 0 to 255 (Pech-Pacheco et al. 2000).

    ``f(x+1, y) + f(x-1, y) + f(x, y+1) + f(x, y-1) - 4 f(x, y)``, borders mirrored about their last pixel.
    It grows with noise as with detail, and falls with the size of the picture: compare pictures of one size.

    Args:
        picture: at least 2 x 2 pixels.
    """
    grey = np.asarray(picture.convert("L"), dtype=np.float64)
    padded = np.pad(grey, 1, mode="reflect")
    height, width = grey.shape
    around = sum(padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in LAPLACIAN)
    return float(np.var(around - 4 * grey))
