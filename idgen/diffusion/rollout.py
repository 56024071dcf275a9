"""From noise to a picture while training: most of the way without gradients, the last steps with them.

Shapes: B rows, C channels, h and w of the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idgen.diffusion.prediction import NoiseSchedule
from idgen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How pictures are made for a reward.

    ID-Aligner (Chen et al. 2024, https://arxiv.org/abs/2404.15449), after ReFL (Xu et al. 2023,
    https://arxiv.org/abs/2304.05977): denoise without gradients to a random late step, take one step with
    gradients, judge the picture that it predicts.

    Attributes:
        steps: of the whole way, as in generation.
        late: the last step is drawn from this share of the schedule, counted from its clean end, in (0, 1].
        grad_steps: steps with gradients, the last one included; several are DRaFT-K (Clark et al. 2023,
            https://arxiv.org/abs/2309.17400).
        guidance: classifier-free; 1 for none, which is half the work.
    """

    steps: int = 10
    late: float = 1 / 3
    grad_steps: int = 1
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 1 <= self.grad_steps <= self.steps:
            raise ConfigError(
                "rollout.steps must be at least 1 and rollout.grad_steps from 1 to as many, got "
                f"{self.steps} and {self.grad_steps}"
            )
        if not 0 < self.late <= 1:
            raise ConfigError(f"rollout.late must be in (0, 1], got {self.late}")
        if not self.guidance >= 1:
            raise ConfigError(f"rollout.guidance must be at least 1, got {self.guidance}")

    def timesteps(self, num_timesteps: int, draw: float) -> list[int]:
        """From pure noise down to the late step that ``draw`` in [0, 1) decides.

        ``t_i = round(T - i T / steps) - 1``, the spacing "trailing" of diffusers: it begins with pure noise.
        """
        way = [round(num_timesteps - i * num_timesteps / self.steps) - 1 for i in range(self.steps)]
        is_late = [i for i, t in enumerate(way) if t < self.late * num_timesteps] or [self.steps - 1]
        return way[: is_late[int(draw * len(is_late))] + 1]


def roll_out(
    ask: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    noise: Tensor,
    timesteps: Sequence[int],
    *,
    grad_steps: int = 1,
) -> Tensor:
    """The picture that the model predicts in the last of these steps.

    ``x_s = sqrt(a_s) x0 + sqrt(1 - a_s) eps`` with the x0 and eps that the model's answer at t amounts to:
    DDIM without noise (Song et al. 2020, https://arxiv.org/abs/2010.02502, eq. 12 at sigma 0).

    Args:
        ask: the model's answer to (B, C, h, w) at timesteps (B,).
        schedule: its noise.
        noise: (B, C, h, w) that it begins with.
        timesteps: falling.
        grad_steps: how many of them, counted from the last, keep gradients.

    Returns:
        (B, C, h, w) float32, clean latents.
    """
    x = x0 = noise
    for i, t in enumerate(timesteps):
        is_last = i == len(timesteps) - 1
        keeps = len(timesteps) - i <= grad_steps
        at = torch.full((len(noise),), t, device=noise.device)
        with torch.set_grad_enabled(keeps and torch.is_grad_enabled()):
            said = ask(x, at)
            x0 = schedule.x0(said, x, at)
            if not is_last:
                after = torch.full_like(at, timesteps[i + 1])
                x = schedule.add_noise(x0, schedule.noise(said, x, at), after)
    return x0
