"""What the identity must leave alone: mask of the face, background, preservation, against plain loops."""

import math
from collections.abc import Callable

import pytest
import torch
from conftest import tiny_unet
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn.functional import normalize

from idgen.adapters.install import IDAdapter, install_adapter
from idgen.diffusion.prediction import NoiseSchedule
from idgen.errors import ConfigError
from idgen.faces.align import ARCFACE_TEMPLATE
from idgen.objectives.disentangle import (
    DISTURBANCES,
    BackgroundConfig,
    PreservationConfig,
    background,
    background_loss,
    disturbed,
    preservation,
    preservation_loss,
)
from idgen.objectives.region import CENTRE, EDGE, RADII, face_mask
from idgen.objectives.terms import DenoisingConfig, FaceTargets, Step, denoising

B, D, SIDE = 4, 8, 64
HERE = ARCFACE_TEMPLATE / 2
NOWHERE = torch.full((5, 2), torch.nan)


def test_the_mask_is_the_ellipse_of_the_template() -> None:
    """A picture that is the template itself: each place by the formula."""
    mask = face_mask(ARCFACE_TEMPLATE[None], 112, (14, 14))[0]
    for row in range(14):
        for column in range(14):
            x, y = (column + 0.5) * 8 - 0.5, (row + 0.5) * 8 - 0.5
            away = math.hypot((x - CENTRE[0]) / RADII[0], (y - CENTRE[1]) / RADII[1])
            assert mask[row, column].item() == pytest.approx(1 / (1 + math.exp(-(1 - away) / EDGE)), abs=1e-4)


def test_the_mask_goes_with_the_face() -> None:
    """Twice as small and moved to the right by whole cells: the mask is that of the small face, moved."""
    small = ARCFACE_TEMPLATE / 2
    here = face_mask(small[None], 128, (16, 16))[0]
    there = face_mask((small + torch.tensor([64.0, 0.0]))[None], 128, (16, 16))[0]
    assert torch.allclose(here[:, :8], there[:, 8:], atol=1e-5)
    area = math.pi * RADII[0] * RADII[1] / 4 / 64**2  # of the ellipse, over that of 8 x 8 cells
    assert here[:8, :8].mean().item() == pytest.approx(area, abs=0.02)
    assert here[:, 9:].max() < 0.01
    assert not face_mask(NOWHERE[None], 128, (16, 16)).any()


def test_losses_against_loops() -> None:
    torch.manual_seed(0)
    answer, other, face = torch.randn(B, 3, 4, 4), torch.randn(B, 3, 4, 4), torch.rand(B, 4, 4)
    for i in range(B):
        top = sum((1 - face[i, y, x]) * (answer[i, c, y, x] - other[i, c, y, x]) ** 2 / 3
                  for c in range(3) for y in range(4) for x in range(4))  # fmt: skip
        assert background_loss(answer, other, face)[i].item() == pytest.approx(
            float(top / (1 - face[i]).sum())
        )
    assert torch.allclose(preservation_loss(answer, other), (answer - other).square().mean(dim=(1, 2, 3)))


def test_disturbed_vectors() -> None:
    own, other = normalize(torch.randn(B, D), dim=1), normalize(torch.randn(B, D), dim=1)
    noise, share = torch.randn(B, D), torch.tensor([0.0, 0.3, 0.8, 1.0])
    made = {how: disturbed(own, other, how=how, share=share, noise=noise) for how in DISTURBANCES}
    assert torch.equal(made["shuffle"], other)
    assert torch.allclose(made["mix"][[0, 3]], torch.stack([other[0], own[3]]))
    assert torch.allclose(made["mix"][1], normalize(0.3 * own[1] + 0.7 * other[1], dim=0))
    assert torch.allclose(made["noise"], normalize(own + noise, dim=1))
    with pytest.raises(ConfigError, match="disturbance must be one of shuffle, mix, noise, got 'swap'"):
        disturbed(own, other, how="swap", share=share, noise=noise)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def make_step() -> Callable[[], tuple[Step, IDAdapter]]:
    """A batch on a real tiny UNet with an adapter: row 2 shows no face, row 3 has no identity."""

    def build() -> tuple[Step, IDAdapter]:
        torch.manual_seed(3)
        unet = tiny_unet(16).requires_grad_(False)
        adapter = IDAdapter.for_unet(unet, id_dim=D).requires_grad_(True)
        install_adapter(unet, adapter)
        schedule = NoiseSchedule.of(DDIMScheduler())
        timesteps, x0 = torch.tensor([10, 300, 600, 900]), torch.randn(B, 4, 8, 8)
        noise, text = torch.randn(B, 4, 8, 8), torch.randn(B, 5, 16)
        noisy = schedule.add_noise(x0, noise, timesteps)
        vectors = normalize(torch.randn(B, D), dim=1)
        wanted = torch.tensor([True, True, True, False])

        def run(id_embedding: Tensor, id_scale: float = 1.0) -> Tensor:
            adapter.condition(id_embedding, id_scale)
            return unet(noisy, timesteps, encoder_hidden_states=text).sample

        def ask(**other: Tensor) -> Tensor:
            with torch.no_grad():
                return run(**{"id_embedding": vectors * wanted[:, None], **other})  # pyright: ignore

        faces = FaceTargets(
            id_embedding=vectors, person=torch.arange(B), bank=vectors, bank_person=torch.arange(B),
            landmarks=torch.stack([HERE, HERE, NOWHERE, HERE]),
            draw=torch.rand(B, B), noise=torch.randn(B, D), picture_px=SIDE, is_wanted=wanted,
        )  # fmt: skip
        return Step(
            schedule=schedule, timesteps=timesteps, noisy=noisy, model_output=run(vectors * wanted[:, None]),
            target=noise, is_prior=torch.zeros(B, dtype=torch.bool), faces=faces,
            conditions={"id_embedding": vectors * wanted[:, None]}, ask=ask,
        ), adapter  # fmt: skip

    return build


@pytest.mark.parametrize("how", DISTURBANCES)
def test_background_is_compared_with_somebody_else(
    make_step: Callable[[], tuple[Step, IDAdapter]], how: str
) -> None:
    step, adapter = make_step()
    values = background(BackgroundConfig(disturbance=how))(step)  # pyright: ignore[reportArgumentType]
    assert values.rows.tolist() == [0, 1, 2, 3]
    assert (values.loss > 0).tolist() == [True, True, False, False]  # no face in row 2, nobody in row 3
    values.loss.sum().backward()
    for name, weight in adapter.named_parameters():
        assert weight.grad is not None, name
        assert bool(weight.grad.isfinite().all() & weight.grad.any()), name


def test_background_of_shuffled_people_by_hand(make_step: Callable[[], tuple[Step, IDAdapter]]) -> None:
    step, _ = make_step()
    assert step.faces is not None
    assert step.ask is not None
    values = background(BackgroundConfig())(step)
    assert step.faces.draw is not None
    vectors = step.conditions["id_embedding"].clone()
    for row in (0, 1):
        others = [i for i in range(B) if i != row]
        vectors[row] = step.faces.bank[max(others, key=lambda i: float(step.faces.draw[row, i]))]  # pyright: ignore
    other = step.ask(id_embedding=vectors)
    expected = background_loss(step.model_output[:2], other[:2], step.face_mask[:2])
    assert torch.allclose(values.loss[:2], expected)


def test_preservation_is_the_way_from_the_base_model(make_step: Callable[[], tuple[Step, IDAdapter]]) -> None:
    step, adapter = make_step()
    assert step.ask is not None
    values = preservation(PreservationConfig())(step)
    assert values.rows.tolist() == [0, 1, 2, 3]
    base = step.ask(id_scale=0.0)
    expected = (step.model_output[:3] - base[:3]).square().mean(dim=(1, 2, 3))
    assert torch.allclose(values.loss, torch.cat([expected, torch.zeros(1)]))
    values.loss.sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in adapter.parameters())


def test_the_denoiser_may_look_at_the_face_alone(make_step: Callable[[], tuple[Step, IDAdapter]]) -> None:
    step, _ = make_step()
    error = (step.model_output - step.target).square().mean(dim=1).detach()
    for outside in (0.0, 0.3):
        loss = denoising(DenoisingConfig(outside=outside))(step).loss
        for row in range(B):
            face = step.face_mask[row]
            weight = torch.ones_like(face) if row == 2 else face + outside * (1 - face)  # row 2 has no face
            assert loss[row].item() == pytest.approx(
                float((weight * error[row]).sum() / weight.sum()), rel=1e-4
            )
    assert torch.allclose(denoising(DenoisingConfig(outside=1.0))(step).loss, error.mean(dim=(1, 2)))


def test_settings_that_cannot_be(make_step: Callable[[], tuple[Step, IDAdapter]]) -> None:
    for wrong, said in (
        ({"mix": (0.8, 0.2)}, "mix must be two rising shares"),
        ({"noise": 0.0}, "noise must be greater than 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            BackgroundConfig(**wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"outside must be in \[0, 1\]"):
        DenoisingConfig(outside=2.0)
    step, _ = make_step()
    lonely = Step(schedule=step.schedule, timesteps=step.timesteps, noisy=step.noisy, target=step.target,
                  model_output=step.model_output, is_prior=step.is_prior)  # fmt: skip
    with pytest.raises(ConfigError, match="they train an adapter"):
        preservation(PreservationConfig())(lonely)
    with pytest.raises(ConfigError, match="needs the landmarks"):
        denoising(DenoisingConfig(outside=0.0))(lonely)
