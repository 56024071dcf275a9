"""A small decoder that a model's own one has taught: nearly its pictures, for a fraction of the work.

The network is that of TAESD (Bohan 2023, https://github.com/madebyollin/taesd), as diffusers has it.

Shapes: B rows, C channels, h and w of the latents, H and W of the picture.
"""

import json
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.autoencoders.vae import DecoderTiny
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from idgen.errors import ModelNotFoundError, WeightsError
from idgen.storage import sorted_header, write_bytes

SETTINGS = "tiny_decoder"  # in the metadata of the file


class TinyDecoder(nn.Module):
    """Latents (B, C, h, w) in the denoiser's scale to pictures in about [-1, 1], in place of a VAE's decoder.

    Args:
        latent_channels: C.
        width: of every layer.
        blocks: residual blocks of each level; each level but the last doubles the picture.
    """

    def __init__(self, *, latent_channels: int, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.settings = {"latent_channels": latent_channels, "width": width, "blocks": list(blocks)}
        self.config = {"scaling_factor": 1.0, "shift_factor": 0.0}  # as `decode_latents` asks
        self.decoder = DecoderTiny(
            in_channels=latent_channels, out_channels=3, num_blocks=blocks,
            block_out_channels=(width,) * len(blocks), upsampling_scaling_factor=2, act_fn="relu",
            upsample_fn="nearest",
        )  # fmt: skip

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The picture (B, 3, H, W), as the ``decode`` of diffusers' autoencoders says it."""
        assert not return_dict
        return (self.decoder(latents),)

    def save(self, path: Path) -> None:
        """Write the weights in halves, whole or not at all.

        Raises:
            StorageError: if that is not possible.
        """
        weights = {
            name: value.detach().half().cpu().contiguous() for name, value in self.state_dict().items()
        }
        said = {"format": "pt", SETTINGS: json.dumps(self.settings, sort_keys=True)}
        write_bytes(path, sorted_header(save(weights, said)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote, in float32 on the CPU, frozen.

        Raises:
            ModelNotFoundError: if there is no such file.
            WeightsError: if it is damaged or something else.
        """
        if not path.is_file():
            raise ModelNotFoundError(f"no small decoder: there is no file {path}")
        try:
            with safe_open(path, "pt") as file:
                settings = json.loads((file.metadata() or {})[SETTINGS])
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            decoder = cls(**{**settings, "blocks": tuple(settings["blocks"])})
            decoder.load_state_dict(weights)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{path} is no small decoder ({type(error).__name__}); `idgen train decoder` makes one"
            ) from None
        return decoder.requires_grad_(False).eval()


Decoder = TinyDecoder | AutoencoderTiny


def load_decoder(path: Path) -> Decoder:
    """A small decoder: a file of `idgen train decoder`, or a folder of diffusers' AutoencoderTiny (TAESD).

    Raises:
        ModelNotFoundError: if there is neither.
        WeightsError: if it cannot be read.
    """
    if not path.is_dir():
        return TinyDecoder.load(path)
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(f"{path} is no folder of an AutoencoderTiny: it holds no config.json")
    try:
        vae: Any = AutoencoderTiny.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is no AutoencoderTiny: {error}") from None
    return vae.requires_grad_(False).eval()
