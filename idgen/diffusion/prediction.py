"""What a denoiser says, in its three forms: the noise (eps), the velocity (v), the picture (x0).

With ``x_t = sqrt(a) x0 + sqrt(1 - a) eps`` (DDPM, Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 4;
a is ``alphas_cumprod[t]``) and ``v = sqrt(a) eps - sqrt(1 - a) x0`` (Salimans and Ho 2022,
https://arxiv.org/abs/2202.00512, appendix D).

Shapes: B rows, C channels, h and w of the latents.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from idgen.errors import ConfigError

KINDS = ("epsilon", "v_prediction", "sample")  # as diffusers calls them


class NoiseScheduler(Protocol):
    """What is needed of a diffusers scheduler: DDPM, DDIM and most others have it."""

    alphas_cumprod: Tensor

    @property
    def config(self) -> Any:  # noqa: ANN401 - diffusers' FrozenDict
        """Its settings."""
        ...


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise of a model, apart from any sampler.

    Attributes:
        alphas_cumprod: (T,) a of each timestep, falling, in [0, 1].
        kind: what the model predicts: "epsilon", "v_prediction" or "sample".
    """

    alphas_cumprod: Tensor
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"the prediction type must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.kind == "epsilon" and bool((self.alphas_cumprod <= 0).any()):
            raise ConfigError(
                "a schedule that ends in pure noise says nothing to a model that predicts the noise; "
                "such models are trained with v_prediction"
            )

    @classmethod
    def of(cls, scheduler: NoiseScheduler) -> "NoiseSchedule":
        """The schedule that a diffusers scheduler describes.

        Raises:
            ConfigError: if what the model predicts is none of the three kinds, or cannot be with this noise.
        """
        return cls(scheduler.alphas_cumprod.float(), scheduler.config["prediction_type"])

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    def signal(self, timesteps: Tensor) -> Tensor:
        """A of each row: (B,) in [0, 1]."""
        return self.alphas_cumprod.to(timesteps.device)[timesteps]

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal to noise, ``a / (1 - a)``: (B,), 0 where all is noise."""
        signal = self.signal(timesteps)
        return signal / (1 - signal)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``x_t`` (B, C, h, w)."""
        signal = _per_row(self.signal(timesteps), x0)
        return signal.sqrt() * x0 + (1 - signal).sqrt() * noise

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model should say of ``x_t`` (B, C, h, w)."""
        if self.kind == "epsilon":
            return noise
        if self.kind == "sample":
            return x0
        signal = _per_row(self.signal(timesteps), x0)
        return signal.sqrt() * noise - (1 - signal).sqrt() * x0

    def x0(self, model_output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents (B, C, h, w) that ``model_output`` amounts to, in float32; differentiable."""
        model_output, noisy = model_output.float(), noisy.float()
        if self.kind == "sample":
            return model_output
        signal = _per_row(self.signal(timesteps), noisy)
        if self.kind == "epsilon":
            return (noisy - (1 - signal).sqrt() * model_output) / signal.sqrt()
        return signal.sqrt() * noisy - (1 - signal).sqrt() * model_output

    def noise(self, model_output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The noise (B, C, h, w) that ``model_output`` amounts to, in float32; differentiable.

        A model that predicts the picture says nothing of it where there is none: 0 at a = 1.
        """
        model_output, noisy = model_output.float(), noisy.float()
        if self.kind == "epsilon":
            return model_output
        signal = _per_row(self.signal(timesteps), noisy)
        if self.kind == "v_prediction":
            return signal.sqrt() * model_output + (1 - signal).sqrt() * noisy
        return (noisy - signal.sqrt() * model_output) / (1 - signal).sqrt().clamp(min=1e-6)


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1), on the device and in the precision of ``like``."""
    return values.to(like.device, torch.promote_types(like.dtype, torch.float32)).view(-1, 1, 1, 1)
