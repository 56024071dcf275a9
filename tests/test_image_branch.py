"""DisenBooth's image branch: what it adds, where it is not, and its two terms against their formulas."""

from collections.abc import Callable

import pytest
import torch
from conftest import tiny_unet
from diffusers import DDIMScheduler
from torch import Tensor

from idgen.diffusion.latents import Latents
from idgen.diffusion.prediction import NoiseSchedule
from idgen.errors import ConfigError
from idgen.objectives.image_branch import ContrastiveConfig, TextOnlyConfig, contrastive, text_only
from idgen.objectives.terms import Step, weighed
from idgen.tuning.image_branch import ImageBranch, ImageConditionedUnet, latent_vectors

B, L, V, WIDTH = 3, 5, 64, 32
IS_PRIOR = torch.tensor([False, True, False])


@pytest.fixture
def make_step() -> Callable[[], tuple[Step, ImageConditionedUnet, Tensor]]:
    """A batch that was told its images; the text that it was told; the second row is prior."""

    def build() -> tuple[Step, ImageConditionedUnet, Tensor]:
        torch.manual_seed(3)
        unet = tiny_unet(WIDTH)
        model = ImageConditionedUnet(unet, ImageBranch(V, WIDTH))
        schedule = NoiseSchedule.of(DDIMScheduler())
        x0, noise, at = torch.randn(B, 4, 8, 8), torch.randn(B, 4, 8, 8), torch.full((B,), 400)
        noisy, text = schedule.add_noise(x0, noise, at), torch.randn(B, L, WIDTH)
        told = {"image_vector": torch.randn(B, V), "image_scale": (~IS_PRIOR).float()}

        def ask(**other: object) -> Tensor:
            return model(noisy, at, text, **{**told, **other}).sample

        step = Step(
            schedule=schedule, timesteps=at, noisy=noisy, model_output=ask(), target=noise, is_prior=IS_PRIOR,
            conditions=told, ask=ask,
            image_states=lambda: (text.mean(dim=1), model.branch(told["image_vector"])),
        )  # fmt: skip
        return step, model, text

    return build


def test_the_branch_is_added_to_every_token_of_rows_with_an_image(
    make_step: Callable[[], tuple[Step, ImageConditionedUnet, Tensor]],
) -> None:
    step, model, text = make_step()
    with torch.no_grad():
        said = model.branch(step.conditions["image_vector"])
        by_hand = model.unet(
            step.noisy, step.timesteps,
            encoder_hidden_states=text + (said * step.conditions["image_scale"][:, None])[:, None],
        ).sample  # fmt: skip
        alone = model.unet(step.noisy, step.timesteps, encoder_hidden_states=text).sample
    assert torch.allclose(step.model_output, by_hand, atol=1e-6)
    assert torch.allclose(step.model_output[1], alone[1], atol=1e-6)  # a prior row has no image
    assert not torch.allclose(step.model_output[0], alone[0], atol=1e-3)


def test_the_text_alone_must_say_the_person_a_little(
    make_step: Callable[[], tuple[Step, ImageConditionedUnet, Tensor]],
) -> None:
    step, model, text = make_step()
    values = text_only(TextOnlyConfig())(step)
    assert values.rows.tolist() == [0, 2]
    with torch.no_grad():
        alone = model.unet(step.noisy, step.timesteps, encoder_hidden_states=text).sample
    expected = [float((alone[i] - step.target[i]).square().mean()) for i in (0, 2)]
    assert values.loss.tolist() == pytest.approx(expected, rel=1e-5)
    values.loss.sum().backward()
    assert any(bool(p.grad is not None and p.grad.any()) for p in model.unet.parameters())
    assert not any(bool(p.grad is not None and p.grad.any()) for p in model.branch.parameters())


def test_the_branch_must_not_say_what_the_text_says(
    make_step: Callable[[], tuple[Step, ImageConditionedUnet, Tensor]],
) -> None:
    step, model, text = make_step()
    values = contrastive(ContrastiveConfig())(step)
    with torch.no_grad():
        a, b = text.mean(dim=1), model.branch(step.conditions["image_vector"])
    expected = [float(a[i] @ b[i] / (a[i].norm() * b[i].norm())) for i in (0, 2)]
    assert values.loss.tolist() == pytest.approx(expected, rel=1e-5)
    values.loss.sum().backward()
    for name, weight in model.branch.named_parameters():
        assert weight.grad is not None, name
        assert bool(weight.grad.isfinite().all() & weight.grad.any()), name


def test_a_weight_of_0_changes_nothing(
    make_step: Callable[[], tuple[Step, ImageConditionedUnet, Tensor]],
) -> None:
    step, _, _ = make_step()
    terms = {"text_only": (c := TextOnlyConfig(weight=0.0), text_only(c)),
             "contrastive": (d := ContrastiveConfig(weight=0.0), contrastive(d))}  # fmt: skip
    loss, said = weighed(terms, step, 0)
    assert float(loss.detach()) == 0
    assert not said


def test_vectors_of_latents_say_where_what_is_and_no_more() -> None:
    mean = torch.zeros(2, 4, 8, 8)
    mean[0, 1, :2, :2] = 3.0
    vectors = latent_vectors(Latents(mean, torch.zeros_like(mean)))
    assert vectors.shape == (2, V)
    assert vectors[0].nonzero().flatten().tolist() == [16]  # channel 1, first cell
    assert not vectors[1].any()


def test_without_a_branch_the_terms_say_what_is_missing() -> None:
    noise = torch.randn(1, 4, 8, 8)
    step = Step(
        schedule=NoiseSchedule.of(DDIMScheduler()), timesteps=torch.zeros(1, dtype=torch.long), noisy=noise,
        model_output=noise, target=noise, is_prior=torch.tensor([False]),
    )  # fmt: skip
    for term in (text_only(TextOnlyConfig()), contrastive(ContrastiveConfig())):
        with pytest.raises(ConfigError, match="image branch"):
            term(step)
