"""Noise, velocity and picture: one and the same statement, and what diffusers makes of it."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from idgen.diffusion.prediction import KINDS, NoiseSchedule
from idgen.errors import ConfigError

B = 5


@pytest.fixture
def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Clean latents, noise, timesteps from the first to the last but one."""
    return torch.randn(B, 4, 6, 6), torch.randn(B, 4, 6, 6), torch.tensor([0, 1, 400, 998, 37])


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_answer_gives_back_the_picture(kind: str, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, timesteps = rows
    schedule = NoiseSchedule.of(DDPMScheduler(prediction_type=kind))
    noisy = schedule.add_noise(x0, noise, timesteps)
    back = schedule.x0(schedule.target(x0, noise, timesteps), noisy, timesteps)
    assert torch.allclose(back, x0, atol=2e-3)  # 1/sqrt(a) is 150 at the end


def test_noise_and_velocity_are_those_of_diffusers(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, timesteps = rows
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    schedule = NoiseSchedule.of(scheduler)
    timesteps[0] = 999
    assert torch.allclose(schedule.add_noise(x0, noise, timesteps), scheduler.add_noise(x0, noise, timesteps))
    assert torch.allclose(schedule.target(x0, noise, timesteps), scheduler.get_velocity(x0, noise, timesteps))


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_is_the_one_that_a_sampler_sees(kind: str, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    noisy, said, _ = rows
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    schedule = NoiseSchedule.of(scheduler)
    for t in scheduler.timesteps[:: len(scheduler.timesteps) - 1]:
        seen = scheduler.step(said, t, noisy).pred_original_sample
        assert torch.allclose(schedule.x0(said, noisy, t.expand(B)), seen, rtol=1e-4, atol=1e-5)


def test_rows_do_not_meet(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    noisy, said, timesteps = rows
    schedule = NoiseSchedule.of(DDPMScheduler())
    whole = schedule.x0(said, noisy, timesteps)
    for i in range(B):
        alone = schedule.x0(said[i : i + 1], noisy[i : i + 1], timesteps[i : i + 1])
        assert torch.equal(alone[0], whole[i])


def test_halves_are_computed_in_float32(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    noisy, said, timesteps = rows
    schedule = NoiseSchedule.of(DDPMScheduler())
    assert schedule.x0(said.half(), noisy.half(), timesteps).dtype == torch.float32


def test_noise_cannot_be_predicted_where_all_is_noise() -> None:
    with pytest.raises(ConfigError, match="pure noise"):
        NoiseSchedule.of(DDIMScheduler(rescale_betas_zero_snr=True))


def test_an_unknown_prediction_is_named() -> None:
    with pytest.raises(ConfigError, match="'flow'"):
        NoiseSchedule(torch.tensor([0.9, 0.1]), "flow")
