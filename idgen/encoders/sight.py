"""What there is to look at in a picture, and things that look at it and say numbers.

Shapes: B pictures, D numbers of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sight:
    """A picture and the face in it.

    Attributes:
        image: the whole picture, RGB.
        crop: (3, 112, 112) RGB in [0, 1], the face in the ArcFace pose; None where no face was found.
        portrait: (3, 128, 128) likewise, with 8 pixels of context on each side; None likewise.
    """

    image: Image.Image
    crop: Tensor | None = None
    portrait: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Eye:
    """Something that looks at pictures, by name.

    Attributes:
        id: ``name@`` and twelve digits of the hash of its weights.
        dim: D.
        see: pictures -> (B, D) float32. The face of each was found, unless ``needs_face`` is false.
        needs_face: whether pictures without a face are kept from it; their numbers are NaN then.
    """

    id: str
    dim: int
    see: Callable[[Sequence[Sight]], np.ndarray]
    needs_face: bool = True

    @property
    def name(self) -> str:
        """The id without its digits."""
        return self.id.rpartition("@")[0]


def crops_of(sights: Sequence[Sight]) -> list[Tensor]:
    """The crops of pictures with a face."""
    return [sight.crop for sight in sights if sight.crop is not None]


def portraits_of(sights: Sequence[Sight]) -> list[Tensor]:
    """The portraits of pictures with a face."""
    return [sight.portrait for sight in sights if sight.portrait is not None]
