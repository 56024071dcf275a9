"""Between pictures and the latents that a denoiser works on.

Shapes: N or B pictures, H and W of the picture, C channels, h and w of the latents.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from idgen.diffusion.tiny_decoder import Decoder


@dataclass(frozen=True)
class Latents:
    """What the encoder says of pictures: a Gaussian each, in the denoiser's scale.

    Attributes:
        mean: (N, C, h, w).
        std: (N, C, h, w), > 0.
    """

    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, h, w) of these rows: ``mean + std * noise``, drawn anew each time a row is seen."""
        return self.mean[rows].float() + self.std[rows].float() * noise

    @staticmethod
    def joined(parts: Sequence["Latents"]) -> "Latents":
        """All parts, one after the other."""
        return Latents(torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts]))


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: Tensor) -> Latents:
    """Latents of pictures (B, 3, H, W) in [0, 1], ``(z - b) s``: see `decode_latents`. On the CPU."""
    shift, scale = vae.config["shift_factor"] or 0.0, vae.config["scaling_factor"]
    (posterior,) = vae.encode((images * 2 - 1).to(vae.device, vae.dtype), return_dict=False)
    mean, std = (posterior.mean.float() - shift) * scale, posterior.std.float() * scale
    return Latents(mean.half().cpu(), std.half().cpu())


def decode_latents(vae: AutoencoderKL | Decoder, latents: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), about [0, 1], of latents in the denoiser's scale; not clipped: no gradient ends.

    ``D(z / s + b)`` with the ``scaling_factor`` s and, where the autoencoder has one, the ``shift_factor`` b.
    """
    shift = vae.config["shift_factor"] or 0.0
    scaled = latents.to(vae.dtype) / vae.config["scaling_factor"] + shift
    image = vae.decode(scaled, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
    return (image.float() + 1) / 2


def weights_sha256(module: nn.Module) -> str:
    """One hash of all weights of a module, by name: equal weights, equal digits, wherever they came from."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
