"""What pictures are going to show, while they are denoised: small, and soon."""

import io
import math

from PIL import Image
from torch import Tensor

PREVIEW_PX = 192


def clean_latents(earlier: Tensor, latents: Tensor, a: float, b: float) -> Tensor:
    """The noise-free latents that a step of DDIM went towards.

    The step takes ``x = sqrt(a) x0 + sqrt(1 - a) e`` to ``y = sqrt(b) x0 + sqrt(1 - b) e`` (Song et al. 2020,
    https://arxiv.org/abs/2010.02502, eq. 12 with sigma 0); without e that is
    ``x0 = (sqrt(1 - a) y - sqrt(1 - b) x) / (sqrt(1 - a) sqrt(b) - sqrt(1 - b) sqrt(a))``.

    Args:
        earlier: x, before the step.
        latents: y, after it.
        a: share of the signal in x, in (0, 1).
        b: share of the signal in y, in (a, 1].
    """
    noise_x, noise_y = math.sqrt(1 - a), math.sqrt(1 - b)
    return (noise_x * latents - noise_y * earlier) / (noise_x * math.sqrt(b) - noise_y * math.sqrt(a))


def small_webp(image: Image.Image) -> bytes:
    """A picture, made small in place, as a WebP file."""
    image.thumbnail((PREVIEW_PX, PREVIEW_PX))
    packed = io.BytesIO()
    image.save(packed, "WEBP", quality=60)
    return packed.getvalue()
