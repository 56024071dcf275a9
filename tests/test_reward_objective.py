"""Rewards on pictures made from noise: their values, where gradients go, what is said beside them."""

import math
from collections.abc import Callable

import pytest
import torch
from conftest import tiny_vae
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn.functional import normalize

from idgen import mini
from idgen.diffusion.prediction import NoiseSchedule
from idgen.encoders.onnx_torch import TorchEncoder, torch_encoder
from idgen.errors import ConfigError, ModelNotFoundError
from idgen.faces.align import ARCFACE_TEMPLATE
from idgen.metrics.diversity import picture_diversity
from idgen.objectives.faces import FaceReader
from idgen.objectives.reward import (
    AestheticRewardConfig,
    IdentityRewardConfig,
    aesthetic_loss,
    aesthetic_reward,
    identity_reward,
)
from idgen.objectives.terms import FaceTargets, Step, weighed
from idgen.preference.model import load_preference

B, D = 4, 128
IS_PRIOR = torch.tensor([False, False, True, False])


@pytest.fixture(scope="module")
def encoder() -> TorchEncoder:
    return torch_encoder(mini.FACES / "rec_mini.onnx").requires_grad_(False)


@pytest.fixture
def make_step(encoder: TorchEncoder) -> Callable[..., Step]:
    """A batch that generates ``latents``; the third row is prior, the last one without an identity."""
    torch.manual_seed(2)
    reader = FaceReader(vae=tiny_vae().requires_grad_(False).eval(), encoder=encoder)
    vectors = normalize(torch.randn(B, D), dim=1)
    faces = FaceTargets(
        id_embedding=vectors, person=torch.arange(B),
        landmarks=(ARCFACE_TEMPLATE / 7).expand(B, 5, 2).clone(),
        bank=vectors, bank_person=torch.arange(B), is_wanted=torch.tensor([True, True, True, False]),
    )  # fmt: skip

    def build(latents: Tensor | None) -> Step:
        noisy = torch.randn(B, 4, 8, 8)
        return Step(
            schedule=NoiseSchedule.of(DDIMScheduler()), timesteps=torch.full((B,), 500), noisy=noisy,
            model_output=noisy.clone().requires_grad_(), target=noisy, is_prior=IS_PRIOR, faces=faces,
            reader=reader, generate=None if latents is None else lambda rows: latents[rows],
        )  # fmt: skip

    return build


def test_the_identity_reward_is_the_cosine_to_the_person(make_step: Callable[..., Step]) -> None:
    latents = torch.randn(B, 4, 8, 8, requires_grad=True)
    step = make_step(latents)
    values = identity_reward(IdentityRewardConfig())(step)
    assert values.rows.tolist() == [0, 1, 3]
    assert step.faces is not None
    seen = step.generated_faces
    assert seen.rows.tolist() == [0, 1]  # not the prior row, not the one without an identity
    expected = [1 - float(seen.id_embedding[i].detach() @ step.faces.id_embedding[i]) for i in range(2)]
    assert values.loss.tolist() == pytest.approx([*expected, 0.0], abs=1e-6)
    assert values.said["similarity"] == pytest.approx(1 - sum(expected) / 2, abs=1e-6)
    values.loss.sum().backward()
    assert latents.grad is not None
    moved = latents.grad.flatten(1).norm(dim=1)
    assert bool((moved[:2] > 0).all())
    assert not moved[2:].any()


def test_the_aesthetic_reward_is_the_chance_to_be_preferred_to_a_photo(
    make_step: Callable[..., Step],
) -> None:
    latents = torch.randn(B, 4, 8, 8, requires_grad=True)
    step = make_step(latents)
    values = aesthetic_reward(AestheticRewardConfig())(step)
    model = load_preference().eval()
    with torch.no_grad():
        scores = model(step.generated_faces.crops)
    expected = [math.log1p(math.exp(model.reference_score - float(score))) for score in scores]
    assert values.loss.tolist() == pytest.approx([*expected, 0.0], rel=1e-4)
    values.loss.sum().backward()
    assert latents.grad is not None
    assert bool(latents.grad[:2].isfinite().all())
    assert bool(latents.grad[:2].any())
    assert float(aesthetic_loss(torch.tensor(2.0), 2.0)) == pytest.approx(math.log(2))


def test_pictures_that_are_all_alike_are_noticed(make_step: Callable[..., Step]) -> None:
    one = torch.randn(1, 4, 8, 8)
    alike = identity_reward(IdentityRewardConfig())(make_step(one.expand(B, -1, -1, -1)))
    varied = identity_reward(IdentityRewardConfig())(make_step(torch.randn(B, 4, 8, 8)))
    assert alike.said["diversity"] < 1e-6 < 1e-3 < varied.said["diversity"]
    a, b = torch.zeros(3, 2, 2), torch.full((3, 2, 2), 0.5)
    assert picture_diversity(torch.stack([a, b])) == pytest.approx(0.5)
    assert picture_diversity(torch.stack([a])) == 0


def test_a_picture_without_a_face_says_nothing_and_is_counted(make_step: Callable[..., Step]) -> None:
    step = make_step(torch.randn(B, 4, 8, 8))
    assert step.faces is not None
    step.faces.landmarks[0] = torch.nan
    values = identity_reward(IdentityRewardConfig())(step)
    assert values.said["no_face"] == pytest.approx(0.5)
    assert values.loss[0] == 0 < values.loss[1]


def test_a_weight_of_0_generates_nothing(make_step: Callable[..., Step]) -> None:
    config = IdentityRewardConfig(weight=0.0)
    step = make_step(None)
    loss, said = weighed({"identity_reward": (config, identity_reward(config))}, step, 0)
    assert float(loss.detach()) == 0
    assert not said


def test_what_cannot_be(make_step: Callable[..., Step]) -> None:
    with pytest.raises(ConfigError, match="pictures generated while training"):
        identity_reward(IdentityRewardConfig())(make_step(None))
    with pytest.raises(ConfigError, match="no timesteps"):
        IdentityRewardConfig(timesteps=(0.0, 0.5))
    with pytest.raises(ConfigError, match="time_power"):
        AestheticRewardConfig(time_power=2.0)
    with pytest.raises(ModelNotFoundError):
        aesthetic_reward(AestheticRewardConfig(model=mini.ROOT / "nowhere.safetensors"))
