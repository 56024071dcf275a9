"""What is done to a picture between the model and its file: distortions as planned, a format, its record."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image

from idgen.config import nearest
from idgen.errors import ConfigError
from idgen.pixels import to_pil, to_tensor
from idgen.preference.distort import DISTORTIONS
from idgen.provenance import Provenance, encoded_picture
from idgen.synth.grammar import Grammar

SUFFIX = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
LOSSLESS = "png"


@dataclass(frozen=True, kw_only=True)
class Finish:
    """How pictures are finished and stored.

    Attributes:
        grammar: says what is done to a finished picture.
        kind: ``png``, ``jpeg`` or ``webp``.
        quality: of JPEG and WebP, from 1 to 100.

    Raises:
        ConfigError: if the grammar asks for a distortion that there is not.
    """

    grammar: Grammar
    kind: str
    quality: int

    def __post_init__(self) -> None:
        for axis in self.grammar.axes.values():
            for name, value in axis.values.items():
                for kind in value.finish:
                    if kind not in DISTORTIONS:
                        raise ConfigError(
                            f"the grammar: {axis.name}.{name}.finish: there is no distortion {kind!r}"
                            f"{nearest(kind, list(DISTORTIONS))} (known: {', '.join(DISTORTIONS)})"
                        )

    def distorted(self, image: Image.Image, attributes: Mapping[str, str], seed: int) -> Image.Image:
        """The picture with what its attributes ask for done to it.

        Args:
            image: as the model made it.
            attributes: axis -> value; "" where nothing is wanted.
            seed: of the noise that a distortion adds.
        """
        asked = [
            (DISTORTIONS[kind], strength)
            for axis, value in attributes.items()
            if value
            for kind, strength in self.grammar.finish_of(axis, value).items()
            if strength
        ]
        if not asked:
            return image
        crop, generator = to_tensor(image)[None], torch.Generator().manual_seed(seed)
        for distortion, strength in asked:
            crop = distortion(crop, generator, strength)
        return to_pil(crop[0])

    def as_read(self, image: Image.Image, record: Provenance) -> Image.Image:
        """What a reader of the file will see: the picture, through a lossy format and out again.

        Args:
            image: with its distortions.
            record: any; what lies beside the pixels does not change them.
        """
        if self.kind == LOSSLESS:
            return image
        with Image.open(io.BytesIO(self.encoded(image, record))) as read:
            return read.convert("RGB")

    def encoded(self, image: Image.Image, record: Provenance) -> bytes:
        """The file of a picture with its distortions."""
        return encoded_picture(image, f"picture{SUFFIX[self.kind]}", record, quality=self.quality)
