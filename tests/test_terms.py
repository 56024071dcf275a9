"""Terms on a real tiny UNet: each against its formula, weighed together, down to the weights that train."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from conftest import tiny_unet, tiny_vae
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn.functional import normalize

from idgen import mini
from idgen.diffusion.prediction import NoiseSchedule
from idgen.encoders.onnx_torch import TorchEncoder, torch_encoder
from idgen.errors import ConfigError
from idgen.faces.align import ARCFACE_TEMPLATE
from idgen.objectives.denoising import denoising_loss, min_snr_weight
from idgen.objectives.faces import FaceReader
from idgen.objectives.terms import (
    CosineConfig,
    DenoisingConfig,
    FaceTargets,
    PriorConfig,
    Step,
    Term,
    TermConfig,
    TripletConfig,
    Values,
    cosine,
    denoising,
    prior,
    triplet,
    weighed,
)

B, D = 5, 128
PRIOR = torch.tensor([False, False, True, False, True])
INSTANCES = [0, 1, 3]


@pytest.fixture(scope="module")
def encoder() -> TorchEncoder:
    return torch_encoder(mini.FACES / "rec_mini.onnx").requires_grad_(False)


@pytest.fixture
def make_step(encoder: TorchEncoder) -> Callable[..., Step]:
    """A batch of three pictures of people and two prior ones; ``say`` is what the model answers."""
    torch.manual_seed(1)
    schedule = NoiseSchedule.of(DDIMScheduler(prediction_type="v_prediction"))
    timesteps = torch.tensor([10, 300, 500, 700, 999])
    x0, noise = torch.randn(B, 4, 8, 8), torch.randn(B, 4, 8, 8)
    noisy, target = schedule.add_noise(x0, noise, timesteps), schedule.target(x0, noise, timesteps)
    vectors = normalize(torch.randn(B, D), dim=1)
    faces = FaceTargets(
        id_embedding=vectors, person=torch.tensor([0, 1, 5, 0, 6]),
        landmarks=(ARCFACE_TEMPLATE / 7).expand(B, 5, 2).clone(),
        bank=vectors, bank_person=torch.tensor([0, 1, 5, 0, 6]),
    )  # fmt: skip
    reader = FaceReader(vae=tiny_vae().requires_grad_(False).eval(), encoder=encoder)

    def build(say: Tensor | None = None, **changes: object) -> Step:
        step = Step(
            schedule=schedule, timesteps=timesteps, noisy=noisy,
            model_output=target + 0.3 * torch.randn_like(target) if say is None else say, target=target,
            is_prior=PRIOR, faces=faces, reader=reader,
        )  # fmt: skip
        return dataclasses.replace(step, **changes)  # pyright: ignore[reportArgumentType]

    return build


def test_another_eye_has_people_of_its_own(make_step: Callable[..., Step]) -> None:
    step = make_step()
    assert step.faces is not None
    others = normalize(torch.randn_like(step.faces.bank), dim=1)
    turned = dataclasses.replace(step.faces, seen_embedding=others, seen_bank=others)
    alone = dataclasses.replace(step.faces, id_embedding=others, bank=others)
    for config, term in ((CosineConfig(), cosine), (TripletConfig(mining="hard"), triplet)):
        first, second = (term(config)(dataclasses.replace(step, faces=faces)) for faces in (turned, alone))
        torch.testing.assert_close(first.loss, second.loss)
        assert first.said == second.said
        assert not torch.allclose(first.loss, term(config)(step).loss)


def test_errors_are_those_of_the_rows_they_are_about(make_step: Callable[..., Step]) -> None:
    step = make_step()
    whole = denoising_loss(step.model_output, step.target)
    own, other = denoising(DenoisingConfig())(step), prior(PriorConfig(min_snr_gamma=5))(step)
    assert own.rows.tolist() == INSTANCES
    assert torch.equal(own.loss, whole[INSTANCES])
    assert torch.allclose(other.loss, (whole * min_snr_weight(step.schedule, step.timesteps))[[2, 4]])


def seen_vectors(step: Step) -> Tensor:
    assert step.reader is not None
    assert step.faces is not None
    x0 = step.schedule.x0(step.model_output, step.noisy, step.timesteps)
    return step.reader.read(x0, step.faces.landmarks).id_embedding


def test_identity_terms_are_those_of_a_loop_over_the_faces(make_step: Callable[..., Step]) -> None:
    step = make_step()
    vectors, targets = seen_vectors(step), step.faces
    assert targets is not None
    near = cosine(CosineConfig())(step)
    hard = triplet(TripletConfig(mining="hard", margin=0.5))(step)
    assert near.rows.tolist() == INSTANCES
    for place, row in enumerate(INSTANCES):
        to_own = 1 - float(vectors[row] @ targets.id_embedding[row])
        to_others = [1 - float(vectors[row] @ v) for v, p in zip(targets.bank, targets.bank_person,
        strict=True)
                     if p != targets.person[row]]  # fmt: skip
        assert near.loss[place].item() == pytest.approx(to_own, abs=1e-5)
        assert hard.loss[place].item() == pytest.approx(max(0, to_own - min(to_others) + 0.5), abs=1e-5)
    assert near.said["similarity"] == pytest.approx(1 - near.loss.mean().item(), abs=1e-5)


def test_a_row_without_a_face_says_nothing_and_is_counted(make_step: Callable[..., Step]) -> None:
    step = make_step()
    assert step.faces is not None
    landmarks = step.faces.landmarks.clone()
    landmarks[1] = torch.nan
    whole = cosine(CosineConfig())(step)
    lost = cosine(CosineConfig())(
        make_step(step.model_output, faces=dataclasses.replace(step.faces, landmarks=landmarks))
    )
    assert lost.loss.tolist() == pytest.approx([whole.loss[0].item(), 0, whole.loss[2].item()])
    assert lost.said["no_face"] == pytest.approx(1 / 3)
    assert whole.said["no_face"] == 0
    nowhere = dataclasses.replace(step.faces, landmarks=torch.full_like(landmarks, torch.nan))
    empty = triplet(TripletConfig())(make_step(step.model_output, faces=nowhere))
    assert empty.loss.tolist() == [0, 0, 0]
    assert empty.said["no_face"] == 1


def test_the_sum_is_that_of_a_loop(make_step: Callable[..., Step]) -> None:
    step = make_step()
    near = CosineConfig(weight=0.5, timesteps=(0.0, 0.6), warmup_steps=3)
    terms = {"denoising": (DenoisingConfig(), denoising(DenoisingConfig())),
             "prior": (PriorConfig(weight=2.0), prior(PriorConfig())),
             "cosine": (near, cosine(near))}  # fmt: skip
    loss, said = weighed(terms, step, 1)
    error = denoising_loss(step.model_output, step.target).tolist()
    face = cosine(near)(step).loss.tolist()
    by_time = [(1 - 0.01) ** 2, (1 - 0.3) ** 2, 0.0]  # of rows 0, 1 and 3; the last is later than 0.6
    wanted = sum(error[i] for i in INSTANCES) / 3 + 2.0 * (error[2] + error[4]) / 2
    wanted += 0.5 * 2 / 4 * sum(w * f for w, f in zip(by_time, face, strict=True)) / 3
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert said["prior"] == pytest.approx((error[2] + error[4]) / 2, rel=1e-5)
    assert {"cosine", "cosine/similarity", "cosine/no_face"} <= set(said)


def trained(terms: dict[str, tuple[TermConfig, Term]], make_step: Callable[..., Step]) -> dict[str, Tensor]:
    """Gradients of every weight of a tiny UNet that answers the batch."""
    torch.manual_seed(2)
    unet = tiny_unet(16)
    step = make_step()
    say = unet(step.noisy, step.timesteps, encoder_hidden_states=torch.ones(B, 3, 16)).sample
    weighed(terms, make_step(say), 0)[0].backward()
    return {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "term",
    [
        (DenoisingConfig(min_snr_gamma=5), denoising(DenoisingConfig(min_snr_gamma=5))),
        (PriorConfig(), prior(PriorConfig())),
        (CosineConfig(), cosine(CosineConfig())),
        (TripletConfig(), triplet(TripletConfig())),
    ],
    ids=["denoising", "prior", "cosine", "triplet"],
)
def test_gradients_reach_every_weight(term: tuple[TermConfig, Term], make_step: Callable[..., Step]) -> None:
    gradients = trained({"term": term}, make_step)
    unused = [name for name, g in gradients.items() if not g.isfinite().all() or not g.any()]
    # a constant added to all keys shifts every score of a query alike, so softmax does not see it
    assert [name for name in unused if "norm" not in name] == []
    assert len(gradients) == len(list(tiny_unet(16).parameters()))


def test_a_gradient_is_that_of_differences(make_step: Callable[..., Step]) -> None:
    config = TripletConfig(mining="hard", margin=1.0)
    say = make_step().model_output.double().float().requires_grad_()
    loss, _ = weighed({"triplet": (config, triplet(config))}, make_step(say), 0)
    (gradient,) = torch.autograd.grad(loss, say)
    direction = gradient / gradient.norm()
    ends = [weighed({"triplet": (config, triplet(config))}, make_step(say.detach() + s * direction),
    0)[0].item()
            for s in (0.05, -0.05)]  # fmt: skip
    assert (ends[0] - ends[1]) / 0.1 == pytest.approx(gradient.norm().item(), rel=0.05)


def test_a_weight_of_zero_changes_nothing_and_costs_nothing(make_step: Callable[..., Step]) -> None:
    def never(_step: Step) -> Values:
        raise AssertionError("computed for nothing")

    alone: dict[str, tuple[TermConfig, Term]] = {
        "denoising": (DenoisingConfig(), denoising(DenoisingConfig()))
    }
    with_nothing = trained({**alone, "triplet": (TripletConfig(weight=0.0), never)}, make_step)
    assert all(
        torch.equal(with_nothing[name], gradient) for name, gradient in trained(alone, make_step).items()
    )


def test_identity_without_faces_is_refused(make_step: Callable[..., Step]) -> None:
    with pytest.raises(ConfigError, match="needs face vectors"):
        cosine(CosineConfig())(make_step(faces=None))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TermConfig(weight=-1), "must not be negative, got -1"),
        (lambda: TermConfig(timesteps=(0.5, 0.5)), r"rising shares.*\[0.5, 0.5\]"),
        (lambda: TermConfig(timesteps=(0.0, 1.0, 2.0)), "two rising shares"),
        (lambda: TermConfig(warmup_steps=-3), "warmup_steps must not be negative, got -3"),
        (lambda: TripletConfig(margin=0), r"\(0, 2\].*got 0"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], TermConfig], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
