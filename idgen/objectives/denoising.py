"""The squared error of the denoiser, its weight over timesteps, and the part of the picture it counts in.

Shapes: B rows, C channels, h and w of the latents.
"""

import torch
from torch import Tensor

from idgen.diffusion.prediction import NoiseSchedule
from idgen.errors import ConfigError


def denoising_loss(model_output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of what the model says, one value a row.

    ``L_i = sum_p m_ip (f_ip - y_ip)^2 / sum_p m_ip`` over channels and places p: the simple loss of DDPM
    (Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 14), with ``m = 1`` where no mask is given.

    Args:
        model_output: (B, C, h, w); gradients flow through these.
        target: (B, C, h, w), as `NoiseSchedule.target` gives it.
        mask: (B, 1, h, w) or (B, h, w), how much each place counts, in [0, 1]: the region of the face, say.

    Returns:
        (B,) float32, >= 0.

    Raises:
        ConfigError: if the shapes differ, or nothing counts in a row.
    """
    if model_output.shape != target.shape:
        raise ConfigError(
            f"the model's output is {tuple(model_output.shape)}, its target {tuple(target.shape)}"
        )
    error = (model_output.float() - target.float()).square().mean(dim=1)
    if mask is None:
        return error.mean(dim=(1, 2))
    weight = mask.float().reshape(len(mask), *mask.shape[-2:])
    if weight.shape != error.shape:
        raise ConfigError(f"the mask is {tuple(mask.shape)} for latents of {tuple(target.shape)}")
    total = weight.sum(dim=(1, 2))
    if bool((total <= 0).any()):
        rows = (total <= 0).nonzero().flatten().tolist()
        raise ConfigError(f"the mask leaves nothing of row {', '.join(map(str, rows))}")
    return (weight * error).sum(dim=(1, 2)) / total


def min_snr_weight(schedule: NoiseSchedule, timesteps: Tensor, gamma: float = 5.0) -> Tensor:
    """Weights that keep easy timesteps from outvoting the others, one value a row.

    ``min(snr, gamma)`` on the error of the picture, hence divided by ``snr`` for a model that predicts the
    noise and by ``snr + 1`` for the velocity (Min-SNR, Hang et al. 2023, https://arxiv.org/abs/2303.09556;
    gamma 5 is theirs).

    Args:
        schedule: of the model.
        timesteps: (B,).
        gamma: highest weight of the picture's error, > 0.

    Returns:
        (B,) float32 in [0, max(1, gamma)].

    Raises:
        ConfigError: if ``gamma`` is not positive.
    """
    if not gamma > 0:
        raise ConfigError(f"gamma of min-SNR must be greater than 0, got {gamma}")
    snr = schedule.snr(timesteps)
    clipped = snr.clamp(max=gamma)
    if schedule.kind == "epsilon":
        return clipped / snr
    return clipped / (snr + 1) if schedule.kind == "v_prediction" else clipped


def late_weight(schedule: NoiseSchedule, timesteps: Tensor, power: float = 2.0) -> Tensor:
    """``(1 - t / T)^power``: little where the predicted picture is a blur, (B,) in (0, 1].

    The time weight of ID-Booth's identity term (Tomasevic et al. 2025, https://arxiv.org/abs/2504.07392) with
    its power of 2.

    Raises:
        ConfigError: if ``power`` is negative.
    """
    if power < 0:
        raise ConfigError(f"the power of the time weight must not be negative, got {power}")
    return (1 - timesteps.to(torch.float32) / schedule.num_timesteps) ** power
