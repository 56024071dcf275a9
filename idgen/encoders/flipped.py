"""An encoder that looks at each face and its mirror image."""

import torch
from torch import Tensor

from idgen.encoders.base import CropSpec, FaceEncoder, FaceVectors


class FlipTest:
    """The normalised sum of the raw vectors of a crop and of its mirror image.

    The flip test of the verification protocols. The vectors are no longer the encoder's, and the id says so.

    Args:
        encoder: what looks.
    """

    def __init__(self, encoder: FaceEncoder) -> None:
        self._encoder = encoder
        self.name, self.sha256, self.licence = f"{encoder.name}+flip", encoder.sha256, encoder.licence
        self.crop: CropSpec = encoder.crop
        self.dim = encoder.dim

    @property
    def id(self) -> str:
        """The encoder's id under the longer name."""
        return f"{self.name}@{self.sha256[:12]}"

    def encode(self, crops: Tensor) -> FaceVectors:
        """(B, 3, size, size) RGB in [0, 1] -> vectors."""
        raw = self._encoder.encode(crops).raw + self._encoder.encode(crops.flip(-1)).raw
        norm = torch.linalg.vector_norm(raw, dim=1)
        return FaceVectors(unit=raw / norm.clamp_min(1e-12)[:, None], norm=norm)
