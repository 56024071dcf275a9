"""Pictures made while training: the way of diffusers' DDIM, the late step, gradients at the end alone."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from idgen.diffusion.prediction import NoiseSchedule
from idgen.diffusion.rollout import RolloutConfig, roll_out
from idgen.errors import ConfigError

SHAPE = (2, 4, 8, 8)


def scheduler_of(kind: str) -> DDIMScheduler:
    return DDIMScheduler(
        prediction_type=kind, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
        rescale_betas_zero_snr=kind == "v_prediction",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_whole_way_is_that_of_diffusers(kind: str) -> None:
    scheduler = scheduler_of(kind)
    scheduler.set_timesteps(10)
    weight, noise = torch.randn(4, 4) * 0.3, torch.randn(SHAPE)

    def ask(x: Tensor, t: Tensor) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", x, weight) + (t / 1000).view(-1, 1, 1, 1)

    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(ask(x, t.expand(2)), int(t), x).prev_sample  # pyright: ignore
    config = RolloutConfig(steps=10, late=0.05)
    way = config.timesteps(1000, 0.5)  # the last step alone is so late: the picture is finished
    assert way == scheduler.timesteps.tolist()
    made = roll_out(ask, NoiseSchedule.of(scheduler), noise, way)
    assert torch.allclose(made, x, atol=2e-4)


def test_the_last_step_is_drawn_from_the_late_ones() -> None:
    config = RolloutConfig(steps=10, late=1 / 3)
    ends = {config.timesteps(1000, draw / 20)[-1] for draw in range(20)}
    assert ends == {299, 199, 99}
    assert config.timesteps(1000, 0.0)[0] == 999
    assert RolloutConfig(steps=2, late=0.1).timesteps(1000, 0.9) == [999, 499]  # none is late: the last


@pytest.mark.parametrize("grad_steps", [1, 3])
def test_gradients_flow_through_the_last_steps_alone(grad_steps: int) -> None:
    weights = [torch.ones((), requires_grad=True) for _ in range(4)]
    order = iter(weights)
    way = [999, 749, 499, 249]
    schedule = NoiseSchedule.of(scheduler_of("v_prediction"))
    made = roll_out(lambda x, _t: x * next(order), schedule, torch.randn(SHAPE), way, grad_steps=grad_steps)
    made.sum().backward()
    assert [weight.grad is not None for weight in weights] == [i >= 4 - grad_steps for i in range(4)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"steps": 0}, "steps"), ({"grad_steps": 11}, "grad_steps"), ({"late": 0.0}, "late"),
     ({"late": 1.1}, "late"), ({"guidance": 0.5}, "guidance")],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RolloutConfig(**settings)  # pyright: ignore[reportArgumentType]
