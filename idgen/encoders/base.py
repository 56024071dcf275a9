"""What a face encoder is: it declares the crop it wants and gives vectors of unit length.

Shapes: B batch, D embedding width.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from idgen.registry import Registry

RESEARCH_ONLY = "research only"
INSIGHTFACE_PACK = "insightface model pack: non-commercial research only"
UNKNOWN_LICENCE = "unknown: ask whoever trained this file"
# How a face lies in a crop: `align_faces` (close around the face) or `align_ffhq` (with hair and chin) of
# idgen.faces.align; or as mini draws it, the ArcFace crop with a sixteenth of the side around it.
TEMPLATES = ("arcface", "ffhq", "portrait")


@dataclass(frozen=True, kw_only=True)
class CropSpec:
    """The face crop an encoder reads: aligned RGB in [0, 1], scaled to ``(x * 255 - mean) / std``.

    Attributes:
        size_px: side of the crop.
        template: how the face lies in it, one of `TEMPLATES`.
        mean: on the scale 0..255.
        std: on the scale 0..255.
        colour: order of the channels.
    """

    size_px: int = 112
    template: str = "arcface"
    mean: float = 127.5
    std: float = 127.5
    colour: str = "RGB"

    def check(self, crops: Tensor, name: str) -> None:
        """Refuse crops of another shape than (B, 3, size, size), or not in [0, 1]; ``name`` wants them.

        Raises:
            ValueError: if they are.
        """
        size = self.size_px
        if crops.ndim != 4 or tuple(crops.shape[1:]) != (3, size, size):
            raise ValueError(f"{name} wants crops of shape (B, 3, {size}, {size}), got {tuple(crops.shape)}")
        if crops.numel() and not -0.01 <= crops.min() <= crops.max() <= 1.01:  # False for NaN as well
            raise ValueError(f"crops must be in [0, 1], got {crops.min():g} to {crops.max():g}")

    def pixel_values(self, crops: Tensor) -> Tensor:
        """Crops in [0, 1] as the network wants them."""
        return (crops * 255 - self.mean) / self.std


@dataclass(frozen=True, kw_only=True)
class FaceVectors:
    """Embeddings of a batch of faces."""

    unit: Tensor  # (B, D) float32, unit length
    norm: Tensor  # (B,) float32, length before it was made 1; always 1 where the network itself normalises

    @property
    def raw(self) -> Tensor:
        """The vectors as the network gave them: (B, D)."""
        return self.unit * self.norm[:, None]


class FaceEncoder(Protocol):
    """Aligned crops in, unit vectors out. Vectors of encoders with different ids must never meet."""

    @property
    def name(self) -> str:
        """Short name, without '@'."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of the weights, 64 hexadecimal digits."""
        ...

    @property
    def licence(self) -> str:
        """What the weights may be used for, in words."""
        ...

    @property
    def crop(self) -> CropSpec:
        """The crop that ``encode`` wants."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def id(self) -> str:
        """``name@`` and the first twelve digits of the hash: what an Identity remembers."""
        ...

    def encode(self, crops: Tensor) -> FaceVectors:
        """(B, 3, size, size) RGB in [0, 1] -> vectors. No gradients: the torch form is for that."""
        ...


encoders: Registry[FaceEncoder] = Registry("encoder")
"""Filled by ``idgen.encoders.arcface``: "mini", "judge", "insightface" and "onnx"."""
