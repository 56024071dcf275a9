"""The denoiser's error against loops, its weights against the formula."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from idgen.diffusion.prediction import NoiseSchedule
from idgen.errors import ConfigError
from idgen.objectives.denoising import denoising_loss, late_weight, min_snr_weight


def test_the_error_is_that_of_a_loop() -> None:
    said, target, mask = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6), torch.rand(3, 1, 5, 6)
    for given in (None, mask, mask[:, 0]):
        loss = denoising_loss(said, target, given)
        for i in range(3):
            total = weight = 0.0
            for c in range(4):
                for y in range(5):
                    for x in range(6):
                        m = 1.0 if given is None else mask[i, 0, y, x].item()
                        total += m * (said[i, c, y, x] - target[i, c, y, x]).item() ** 2
                        weight += m
            assert loss[i].item() == pytest.approx(total / weight, rel=1e-5)


def test_what_is_masked_out_has_no_gradient() -> None:
    said = torch.randn(2, 4, 5, 6, requires_grad=True)
    mask = torch.ones(2, 1, 5, 6)
    mask[:, :, :2] = 0
    denoising_loss(said, torch.zeros(2, 4, 5, 6), mask).sum().backward()
    assert said.grad is not None
    assert not said.grad[:, :, :2].any()
    assert said.grad[:, :, 2:].all()


def test_gradients_are_those_of_differences() -> None:
    said = torch.randn(2, 2, 3, 3, requires_grad=True)
    target, mask = torch.randn(2, 2, 3, 3), torch.rand(2, 1, 3, 3)
    denoising_loss(said, target, mask).sum().backward()
    assert said.grad is not None
    for place in ((0, 0, 0, 0), (1, 1, 2, 1)):
        step = torch.zeros_like(said)
        step[place] = 1e-2
        with torch.no_grad():
            ends = [denoising_loss(said + sign * step, target, mask).sum() for sign in (1, -1)]
        assert said.grad[place].item() == pytest.approx((ends[0] - ends[1]).item() / 2e-2, rel=1e-2, abs=1e-5)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"\(1, 4, 2, 2\).*\(1, 4, 3, 3\)"):
        denoising_loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 3, 3))
    with pytest.raises(ConfigError, match="mask is"):
        denoising_loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), torch.ones(1, 1, 3, 3))
    with pytest.raises(ConfigError, match="nothing of row 1"):
        denoising_loss(
            torch.zeros(2, 4, 2, 2),
            torch.zeros(2, 4, 2, 2),
            torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2),
        )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_the_picture(kind: str) -> None:
    """Whatever a model predicts, its weighted error is min(snr, gamma) times the squared error of x0."""
    schedule = NoiseSchedule.of(DDPMScheduler(prediction_type=kind))
    timesteps = torch.tensor([3, 50, 300, 800])
    x0, noise = torch.randn(4, 4, 6, 6), torch.randn(4, 4, 6, 6)
    noisy = schedule.add_noise(x0, noise, timesteps)
    target = schedule.target(x0, noise, timesteps)
    said = target + 0.1 * torch.randn_like(target)
    weighted = min_snr_weight(schedule, timesteps) * denoising_loss(said, target)
    of_picture = denoising_loss(schedule.x0(said, noisy, timesteps), x0)
    assert torch.allclose(weighted, schedule.snr(timesteps).clamp(max=5) * of_picture, rtol=1e-2)


def test_min_snr_is_finite_where_all_is_noise() -> None:
    schedule = NoiseSchedule.of(DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    assert min_snr_weight(schedule, torch.tensor([999])).item() == pytest.approx(0, abs=1e-6)


def test_late_timesteps_weigh_little() -> None:
    schedule = NoiseSchedule.of(DDPMScheduler())
    assert late_weight(schedule, torch.tensor([0, 500, 900])).tolist() == pytest.approx([1, 0.25, 0.01])
    assert late_weight(schedule, torch.tensor([900]), power=0).tolist() == [1]


def test_bad_settings_are_refused() -> None:
    schedule = NoiseSchedule.of(DDPMScheduler())
    with pytest.raises(ConfigError, match="greater than 0, got 0"):
        min_snr_weight(schedule, torch.tensor([1]), gamma=0)
    with pytest.raises(ConfigError, match="negative, got -1"):
        late_weight(schedule, torch.tensor([1]), power=-1)
