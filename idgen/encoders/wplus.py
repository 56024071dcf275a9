"""Faces as codes of a StyleGAN: read by e4e, pSp or an encoder of idgen's own, shown by the generator.

A code in W+ holds much more than a face vector does (pose, hair, light) and can be edited. It means something
to one generator alone.

Shapes: B batch, L layers of the generator, C width of a code, S side of its pictures.
"""

import re
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from idgen import mini
from idgen.encoders.base import TEMPLATES, UNKNOWN_LICENCE, CropSpec
from idgen.errors import EncoderMismatchError, WeightsError
from idgen.faces.framing import CONTEXT
from idgen.faces.photo import crop_at, crop_ffhq
from idgen.identity import Feature
from idgen.pixels import to_image
from idgen.stylegan.checkpoint import WPlusFile, read_wplus
from idgen.stylegan.model import WPlusModel

KIND = "wplus"  # of the features it makes
MAX_BATCH = 8  # crops at once: the first maps of an e4e encoder take 17 MB each, for one crop


class WPlusEncoder:
    """An encoder of W+ codes with the generator that shows them.

    It is no `FaceEncoder`: its codes have no unit length, and their angles say little of who somebody is.

    Args:
        file: what `read_wplus` read.
        name: what an Identity calls it; the file's stem where it is not given.

    Raises:
        WeightsError: if the file's crop is none that idgen can cut.
    """

    def __init__(self, file: WPlusFile, *, name: str | None = None) -> None:
        self.model: WPlusModel = file.model
        self.name = re.sub(r"[@\s]", "_", name or file.path.stem)
        self.sha256 = file.sha256
        self.licence = file.card.licence or UNKNOWN_LICENCE
        self.crop = _crop(file)

    @property
    def id(self) -> str:
        """``name@`` and the first twelve digits of the hash."""
        return f"{self.name}@{self.sha256[:12]}"

    @property
    def num_layers(self) -> int:
        """L."""
        return self.model.decoder.num_layers

    @property
    def style_dim(self) -> int:
        """C."""
        return self.model.decoder.style_dim

    @property
    def latent_avg(self) -> Tensor:
        """The code of the average face, (L, C)."""
        return self.model.latent_avg

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self.model.to(device)
        return self

    def encode(self, crops: Tensor) -> Tensor:
        """Codes of aligned crops, without gradients.

        Args:
            crops: (B, 3, size, size) RGB in [0, 1]; B may be 0.

        Returns:
            (B, L, C) float32 on the device of ``crops``.

        Raises:
            ValueError: if the crops have another shape, or are not in [0, 1].
        """
        self.crop.check(crops, self.name)
        codes = [crops.new_zeros(0, self.num_layers, self.style_dim, dtype=torch.float32)]
        with torch.no_grad():
            for part in crops.split(MAX_BATCH) if len(crops) else ():
                codes.append(self._invert(part).to(crops.device))
        return torch.cat(codes)

    def cut(self, image: Image.Image, landmarks: np.ndarray) -> Tensor:
        """The crop (3, size, size) that `encode` reads, in [0, 1].

        Args:
            image: RGB.
            landmarks: (5, 2) in pixels of it.
        """
        size = self.crop.size_px
        if self.crop.template == "ffhq":
            return crop_ffhq(image, landmarks, size)
        margin = size // CONTEXT if self.crop.template == "portrait" else 0
        return crop_at(image, landmarks, size - 2 * margin, margin_px=margin)[0]

    def invert(self, crops: Tensor) -> Tensor:
        """`encode` with gradients, which reach the pixels; the weights stay as they are.

        Args:
            crops: (B, 3, size, size) RGB in [0, 1].

        Returns:
            (B, L, C) float32.

        Raises:
            ValueError: if the crops have another shape, or are not in [0, 1].
        """
        self.crop.check(crops, self.name)
        return self._invert(crops)

    def decode(self, codes: Tensor | Feature) -> Tensor:
        """The generator's pictures of codes, with gradients to the codes.

        Args:
            codes: (B, L, C), or what `feature` made.

        Returns:
            (B, 3, S, S) RGB in [0, 1]; clipped, so that white and black pixels have no gradient.

        Raises:
            EncoderMismatchError: if the codes are of another generator, by their shape or their name.
        """
        if isinstance(codes, Feature):
            codes = self.codes_of(codes)[None]
        if codes.ndim != 3 or tuple(codes.shape[1:]) != (self.num_layers, self.style_dim):
            raise EncoderMismatchError(
                f"{self.id} makes pictures of W+ codes of shape (B, {self.num_layers}, {self.style_dim}), "
                f"got {tuple(codes.shape)}; a code fits the generator it was made for alone"
            )
        pixel_values = self.model.show(codes.to(self.latent_avg))
        return to_image(pixel_values).clamp(0, 1).to(codes.device)

    def feature(self, code: Tensor) -> Feature:
        """One code (L, C) as what an `Identity` keeps of a person.

        Raises:
            EncoderMismatchError: if it is of another generator, by its shape.
            IdentityError: if it is not finite.
        """
        if tuple(code.shape) != (self.num_layers, self.style_dim):
            raise EncoderMismatchError(
                f"a W+ code of {self.id} has the shape ({self.num_layers}, {self.style_dim}), got "
                f"{tuple(code.shape)}"
            )
        return Feature(self.id, KIND, code.detach().float().cpu().numpy())

    def codes_of(self, feature: Feature) -> Tensor:
        """The code (L, C) that a feature keeps.

        Raises:
            EncoderMismatchError: if it is no W+ code, or another encoder made it.
        """
        if feature.kind != KIND or feature.encoder != self.id:
            raise EncoderMismatchError(
                f"{self.id} shows its own W+ codes, got a {feature.kind} of {feature.encoder}; embed the "
                f"photo again with {self.id}, or open {feature.encoder}"
            )
        return torch.from_numpy(feature.value.copy()).to(self.latent_avg)

    def _invert(self, crops: Tensor) -> Tensor:
        return self.model.invert(self.crop.pixel_values(crops.to(self.latent_avg)))


def _crop(file: WPlusFile) -> CropSpec:
    try:
        crop = CropSpec(**file.card.crop)
    except TypeError as error:
        raise WeightsError(f"{file.path} describes a crop that idgen does not know: {error}") from None
    if crop.template not in TEMPLATES:
        raise WeightsError(
            f"{file.path} wants crops of the template {crop.template!r}; idgen cuts {' and '.join(TEMPLATES)}"
        )
    return crop


def load_wplus(spec: str | Path, *, kind: str | None = None) -> WPlusEncoder:
    """The W+ encoder that a user means.

    Args:
        spec: ``mini``, or the path of a file: idgen's safetensors, or an e4e or pSp checkpoint.
        kind: ``e4e`` or ``psp``, for a file that does not say which.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it is damaged, holds code, or is no encoder with its generator.
    """
    return WPlusEncoder(read_wplus(mini.WPLUS if str(spec) == "mini" else spec, kind=kind))
