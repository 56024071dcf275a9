"""W+ codes in closed form: principal components of the latents of a diffusion model's autoencoder.

Without a GPU no StyleGAN can be trained until it shows who somebody is. The latents of a diffusion model are
a picture of few numbers already, and what a linear map makes of them can be had at once: the codes are the
principal components of the latents of photos (eigenfaces, Turk and Pentland 1991,
https://doi.org/10.1162/jocn.1991.3.1.71), the strongest in the first layer and the finest in the last one::

    w = S^-p V^T (z - m) / (a c)            z = m + a c V S^p w

with the latents z, their mean m, the standard deviations c of their channels, the principal axes V of z / c,
the standard deviations S along them, and a for codes of unit variance on the whole. With p = 1 all components
weigh alike, and a crop that is off by a pixel changes nearly all of a code: mini's codes of crops by two sets
of landmarks then have a cosine of 0.33. With p = 0 the first few components are all that counts.

Shapes: B batch, L layers and C width of the codes, K = L C components, P channels of the latents and S their
side, N = P S S numbers of them, H side of the pictures.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from idgen import mini
from idgen.errors import ConfigError, WeightsError
from idgen.runs import file_sha256
from idgen.stylegan.generator import CodeGenerator
from idgen.stylegan.model import CodeEncoder, WPlusModel

VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"


class PrincipalEncoder(CodeEncoder):
    """Latents (B, P, S, S) to codes (B, L, C): ``S^-p V^T (z - m) / (a c)``.

    Args:
        num_layers: L.
        style_dim: C.
        latent_shape: P, S and S.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, num_layers: int, style_dim: int, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.num_layers, self.style_dim = num_layers, style_dim
        _add_components(self, num_layers * style_dim, latent_shape)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, P, S, S) -> (B, L, C), of unit variance over pictures on the whole."""
        codes = (latents.flatten(1) - self.mean) @ self.axes.T
        return codes.unflatten(1, (self.num_layers, self.style_dim))


class PrincipalGenerator(CodeGenerator):
    """Codes (B, L, C) to latents (B, P, S, S): ``m + a c V S^p w``.

    Args:
        num_layers: L.
        style_dim: C.
        latent_shape: P, S and S.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, num_layers: int, style_dim: int, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.num_layers, self.style_dim = num_layers, style_dim
        self.latent_shape, self.size_px = tuple(latent_shape), latent_shape[-1]
        _add_components(self, num_layers * style_dim, latent_shape)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, L, C) -> (B, P, S, S)."""
        return (self.mean + codes.flatten(1) @ self.axes).unflatten(1, self.latent_shape)


def _add_components(part: torch.nn.Module, num: int, latent_shape: Sequence[int]) -> None:
    """Room for the mean and the axes of ``num`` components."""
    size = torch.Size(latent_shape).numel()
    part.register_buffer("mean", torch.zeros(size))
    part.register_buffer("axes", torch.zeros(num, size))


def fit_components(latents: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Principal components of latents.

    Args:
        latents: (M, N), more than ``num_components`` rows.
        num_components: K.

    Returns:
        Mean m (N,), axes V (N, K) by falling variance, and standard deviations S (K,) along them.

    Raises:
        ConfigError: if there are too few rows, or they have fewer dimensions than that.
    """
    if not num_components < min(len(latents), latents.shape[1] + 1):
        raise ConfigError(
            f"{num_components} components need more pictures than that and as many numbers in each, got "
            f"{tuple(latents.shape)}"
        )
    mean = latents.mean(dim=0)
    centred = latents - mean
    variance, axes = torch.linalg.eigh(centred.T @ centred / (len(latents) - 1))
    kept = variance.flip(0)[:num_components]
    if not bool((kept > 0).all()):
        raise ConfigError(
            f"the pictures differ in fewer than {num_components} ways; ask for fewer components"
        )
    return mean, axes.flip(1)[:, :num_components], kept.sqrt()


def principal_pair(
    latents: Tensor, *, num_layers: int, style_dim: int, whitening: float = 0.5
) -> tuple[PrincipalEncoder, PrincipalGenerator]:
    """Encoder and generator of these latents (M, P, S, S).

    Args:
        latents: (M, P, S, S).
        num_layers: L.
        style_dim: C.
        whitening: p in [0, 1].

    Raises:
        ConfigError: if the latents are too few, or of too few numbers, for so many components.
    """
    shape = tuple(latents.shape[1:])
    encoder = PrincipalEncoder(num_layers, style_dim, shape)
    generator = PrincipalGenerator(num_layers, style_dim, shape)
    channel_std = latents.std(dim=(0, 2, 3))[:, None, None]
    mean, axes, spread = fit_components((latents / channel_std).flatten(1), num_layers * style_dim)
    scale = channel_std.expand(shape).flatten()
    lengths = spread**whitening
    lengths = lengths * (spread / lengths).square().mean().sqrt()  # a S^p: codes of unit variance
    for part in (encoder, generator):
        part.mean.copy_(mean * scale)
    encoder.axes.copy_((axes / lengths).T / scale)
    generator.axes.copy_((axes * lengths).T * scale)
    return encoder, generator


class LatentWPlusModel(WPlusModel):
    """A `WPlusModel` in the latents of a diffusion model, whose autoencoder the file only names.

    Args:
        encoder: of latents.
        decoder: to latents.
        latent_avg: (L, C).
        vae: frozen; its latents' mean is what is encoded.
    """

    def __init__(
        self, encoder: PrincipalEncoder, decoder: PrincipalGenerator, latent_avg: Tensor, vae: AutoencoderKL
    ) -> None:
        super().__init__(encoder, decoder, latent_avg)
        self.vae = vae

    def weights(self) -> dict[str, Tensor]:
        """What the file holds: everything but the autoencoder."""
        return {name: t for name, t in self.state_dict().items() if not name.startswith("vae.")}

    def invert(self, pixel_values: Tensor) -> Tensor:
        """Codes (B, L, C) of pictures (B, 3, H, H) in [-1, 1]."""
        return super().invert(latents_of(self.vae, pixel_values))

    def show(self, codes: Tensor) -> Tensor:
        """Pictures (B, 3, H, H) in about [-1, 1]."""
        return pictures_of(self.vae, self.decoder(codes))


def latents_of(vae: AutoencoderKL, pixel_values: Tensor) -> Tensor:
    """Mean latents (B, P, S, S) of pictures (B, 3, H, H) in [-1, 1], in the autoencoder's own scale."""
    (posterior,) = vae.encode(pixel_values, return_dict=False)
    return posterior.mean


def pictures_of(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures (B, 3, H, H) in about [-1, 1]."""
    return vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]


def vae_folder(model: str) -> Path:
    """Where the autoencoder of a model lies: ``mini``, or a folder in the layout of diffusers.

    Raises:
        WeightsError: if there is none.
    """
    folder = (mini.BASE if model == "mini" else Path(model).expanduser()) / "vae"
    if not (folder / VAE_WEIGHTS).is_file():
        raise WeightsError(
            f"{folder} holds no {VAE_WEIGHTS}: the autoencoder whose latents these codes describe"
        )
    return folder


def open_vae(model: str, *, sha256: str | None = None) -> AutoencoderKL:
    """The autoencoder of a model, frozen, in float32.

    Args:
        model: as for `vae_folder`.
        sha256: of its file of weights, where that has to be one in particular.

    Raises:
        WeightsError: if it is missing or another one.
    """
    folder = vae_folder(model)
    found = file_sha256(folder / VAE_WEIGHTS)
    if sha256 is not None and found != sha256:
        raise WeightsError(
            f"these codes describe latents of the autoencoder {sha256[:12]}, that of {model} is "
            f"{found[:12]}: they mean nothing to it"
        )
    return AutoencoderKL.from_pretrained(folder).float().eval().requires_grad_(False)


def principal_settings(model: str, generator: PrincipalGenerator) -> dict[str, Any]:
    """What the card of a file says, so that `empty_principal` and `open_vae` find everything again."""
    return {
        "model": model,
        "vae_sha256": file_sha256(vae_folder(model) / VAE_WEIGHTS),
        "num_layers": generator.num_layers,
        "style_dim": generator.style_dim,
        "latent_shape": list(generator.latent_shape),
    }


def empty_principal(settings: Mapping[str, Any]) -> tuple[PrincipalEncoder, PrincipalGenerator]:
    """Encoder and generator as the settings of a card say; to be called on torch's meta device.

    Raises:
        WeightsError: if these are not its settings.
    """
    try:
        sizes = settings["num_layers"], settings["style_dim"], tuple(settings["latent_shape"])
        return PrincipalEncoder(*sizes), PrincipalGenerator(*sizes)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise WeightsError(f"the settings of the principal components cannot be used: {error!r}") from None
