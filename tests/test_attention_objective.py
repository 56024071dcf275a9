"""Face-wise attention: maps against diffusers' own, the loss against loops, gradients, no trace left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_unet
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from idgen.adapters.stages import StageTokens
from idgen.diffusion.prediction import NoiseSchedule
from idgen.errors import ConfigError, WeightsError
from idgen.faces.align import ARCFACE_TEMPLATE
from idgen.objectives.attention import (
    AttentionConfig,
    AttentionRecord,
    attention,
    face_attention_loss,
    identity_attention,
    recorded_attention,
)
from idgen.objectives.region import face_mask
from idgen.objectives.terms import DenoisingConfig, FaceTargets, Step, Term, TermConfig, denoising, weighed
from idgen.tuning.lora import LoraSettings, add_lora
from idgen.tuning.stages import StagedUnet

B, L, W, S, N = 4, 5, 16, 3, 2
SIDE = 64
HERE = ARCFACE_TEMPLATE / 2
NOWHERE = torch.full((5, 2), torch.nan)
HAS_TOKENS = torch.tensor([True, True, False, True])


def two_levels() -> UNet2DConditionModel:
    """Cross-attention at 8 x 8 and at 4 x 4 places, and not as even as that of a new UNet."""
    torch.manual_seed(0)
    unet = tiny_unet(
        W, down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2
    )
    for name, weight in unet.named_parameters():
        if ".attn2.to_q." in name or ".attn2.to_k." in name:
            weight.data *= 4
    return unet


def tokens() -> StageTokens:
    return StageTokens(torch.randn(S, N, W), 1000)


def settings() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "sample": torch.randn(B, 4, 8, 8), "timestep": torch.tensor([10, 400, 600, 999]),
        "encoder_hidden_states": torch.randn(B, L, W), "has_tokens": HAS_TOKENS,
    }  # fmt: skip


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# the maps --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora_model() -> StagedUnet:
    """With LoRA, none of it at zero, where its first half would have no gradient."""
    unet = two_levels()
    for weight in add_lora(unet, LoraSettings(rank=2), seed=0).values():
        weight.data = torch.randn_like(weight) * 0.3
    return StagedUnet(unet, tokens()).train()


@pytest.mark.parametrize("with_lora", [False, True])
def test_maps_are_the_probabilities_of_diffusers(
    with_lora: bool, lora_model: StagedUnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = lora_model if with_lora else StagedUnet(two_levels(), tokens())
    unet = staged.unet
    own, theirs = Attention.get_attention_scores, []

    def scores(layer: Attention, *args: Any) -> Tensor:
        found = own(layer, *args)
        if found.shape[-1] == L + N:
            theirs.append(found.unflatten(0, (B, layer.heads))[..., L:].sum(-1))
        return found

    monkeypatch.setattr(Attention, "get_attention_scores", scores)
    with the_asking_processor(unet), recorded_attention(nn.Sequential(staged)) as record:
        staged(**settings())
    by_name = {name: place for place, name in enumerate(calls_of(unet))}
    maps = dict(zip(record.layers, record.identity_maps(N), strict=True))
    assert {m.shape for m in maps.values()} == {(B, 8, 64), (B, 8, 16)}
    assert len(maps) == len(theirs) == 7
    for name, found in maps.items():
        expected = theirs[by_name[name]]
        torch.testing.assert_close(found[HAS_TOKENS], expected[HAS_TOKENS], atol=1e-6, rtol=0)
        assert not expected[~HAS_TOKENS].any()  # hidden for good


@contextmanager
def the_asking_processor(unet: UNet2DConditionModel) -> Iterator[None]:
    """Attention as diffusers wrote it out: it asks for the probabilities."""
    before = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    yield
    unet.set_attn_processor(before)


def calls_of(unet: UNet2DConditionModel) -> list[str]:
    """Names of the cross-attention layers in the order in which a UNet asks them: not the middle last."""
    names = [name for name, module in unet.named_modules() if name.endswith("attn2")]
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return sorted(names, key=lambda name: order[name.split(".")[0]])


def test_identity_attention_is_that_of_a_loop() -> None:
    query, key, heads = torch.randn(2, 3, 8), torch.randn(2, 4, 8), 2
    found = identity_attention(query, key, heads, 2)
    for row in range(2):
        for head in range(heads):
            part = slice(4 * head, 4 * head + 4)
            for place in range(3):
                scores = [float(query[row, place, part] @ key[row, j, part]) / 2 for j in range(4)]
                shares = torch.tensor(scores).exp() / torch.tensor(scores).exp().sum()
                assert found[row, head, place].item() == pytest.approx(float(shares[2:].sum()), abs=1e-6)


def test_nothing_as_large_as_the_probabilities_waits_for_the_backward_pass() -> None:
    query, key = torch.randn(2, 64, 8, requires_grad=True), torch.randn(2, 9, 8, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        found = identity_attention(query, key, 4, 2)
    assert kept == [query.numel(), key.numel()]  # and not the 2 * 4 * 64 * 9 probabilities
    (found**2).sum().backward()
    expected = torch.autograd.grad((plain_attention(query, key) ** 2).sum(), [query, key])
    assert query.grad is not None
    assert key.grad is not None
    torch.testing.assert_close([query.grad, key.grad], list(expected))


def plain_attention(query: Tensor, key: Tensor) -> Tensor:
    q, k = (x.unflatten(-1, (4, 2)).transpose(1, 2) for x in (query, key))
    return (q @ k.transpose(-1, -2) / 2**0.5).softmax(-1)[..., -2:].sum(-1)


# the loss and its term -------------------------------------------------------------------------------------


def test_the_loss_is_that_of_loops() -> None:
    maps = [torch.rand(2, 3, 4), torch.rand(2, 5, 9)]
    masks = [torch.rand(2, 4), torch.rand(2, 9)]
    found = face_attention_loss(maps, masks)
    for row in range(2):
        layers = []
        for layer, mask in zip(maps, masks, strict=True):
            missed = []
            for head in layer[row].tolist():
                inside = sum(m * a for m, a in zip(mask[row].tolist(), head, strict=True))
                missed.append(1 - inside / sum(head))
            layers.append(sum(missed) / len(missed))
        assert found[row].item() == pytest.approx(sum(layers) / 2, abs=1e-6)


def test_the_ends_of_the_loss() -> None:
    face = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert face_attention_loss([torch.tensor([[[0.3, 0.1, 0.0, 0.0]]])], [face]).item() == 0
    assert face_attention_loss([torch.tensor([[[0.0, 0.0, 0.2, 0.0]]])], [face]).item() == 1
    assert face_attention_loss([torch.full((1, 2, 4), 1e-30)], [face]).item() == pytest.approx(0.5)
    assert face_attention_loss([torch.zeros(1, 2, 4)], [face]).isfinite().all()  # all of it underflowed


Batch = Callable[..., tuple[Step, AttentionRecord]]


@pytest.fixture
def make_step() -> Batch:
    """Row 0 is whole, row 1 shows no face, row 2 is a prior one, row 3 is whole and a small face."""

    def build(model: nn.Module, **changes: Any) -> tuple[Step, AttentionRecord]:
        given = settings()
        with recorded_attention(model) as record:
            answer = model(**given).sample
        faces = FaceTargets(
            id_embedding=torch.ones(B, 8), person=torch.arange(B), bank=torch.ones(B, 8),
            bank_person=torch.arange(B), landmarks=torch.stack([HERE, NOWHERE, HERE, HERE / 2 + 16]),
            picture_px=SIDE,
        )  # fmt: skip
        step = Step(
            schedule=NoiseSchedule.of(DDIMScheduler()), timesteps=given["timestep"], noisy=given["sample"],
            model_output=answer, target=torch.zeros(B, 4, 8, 8), is_prior=~HAS_TOKENS, faces=faces,
            attention_maps=lambda: record.identity_maps(N),
        )  # fmt: skip
        return replace(step, **changes), record

    return build


def test_the_term_is_about_faces_of_the_person(make_step: Batch) -> None:
    step, record = make_step(StagedUnet(two_levels(), tokens()))
    assert step.faces is not None
    values = attention(AttentionConfig())(step)
    maps = record.identity_maps(N)
    full = face_mask(step.faces.landmarks, SIDE, (8, 8))
    half = full.view(B, 4, 2, 4, 2).mean(dim=(2, 4))
    masks = [full.flatten(1) if m.shape[-1] == 64 else half.flatten(1) for m in maps]
    expected = face_attention_loss(maps, masks)
    assert values.rows.tolist() == [0, 1, 3]
    torch.testing.assert_close(values.loss, torch.stack([expected[0], torch.tensor(0.0), expected[3]]))
    assert values.said["inside"] == pytest.approx(1 - (expected[0] + expected[3]).item() / 2)
    assert 0.1 < values.loss[0].item() < values.loss[2].item() < 1  # spread out: the smaller face gets less


def test_an_identity_that_was_left_out_says_nothing(make_step: Batch) -> None:
    model = StagedUnet(two_levels(), tokens())
    step, _ = make_step(model)
    assert step.faces is not None
    wanted = torch.tensor([False, True, True, True])
    out = replace(step, faces=replace(step.faces, is_wanted=wanted))
    values = attention(AttentionConfig())(out)
    assert values.rows.tolist() == [0, 1, 3]
    assert values.loss[:2].tolist() == [0, 0]
    assert torch.equal(values.loss[2], attention(AttentionConfig())(step).loss[2])

    def never() -> list[Tensor]:
        raise AssertionError("computed for nothing")

    nowhere = replace(step.faces, landmarks=torch.stack([NOWHERE] * B))
    empty = attention(AttentionConfig())(replace(step, faces=nowhere, attention_maps=never))
    assert empty.rows.tolist() == [0, 1, 3]
    assert empty.loss.tolist() == [0, 0, 0]


def gradients(
    make_step: Batch, model: StagedUnet, terms: dict[str, tuple[TermConfig, Term]]
) -> dict[str, Tensor]:
    """Of everything that trains: tokens, and LoRA."""
    model.zero_grad(set_to_none=True)
    step, _ = make_step(model)
    weighed(terms, step, 0)[0].backward()
    return {name: w.grad.clone() for name, w in model.trained().items() if w.grad is not None}


def term(weight: float) -> dict[str, tuple[TermConfig, Term]]:
    config = AttentionConfig(weight=weight)
    return {"attention": (config, attention(config))}


def test_gradients_reach_the_tokens_and_the_lora(make_step: Batch, lora_model: StagedUnet) -> None:
    found = gradients(make_step, lora_model, term(1.0))
    # of the rows with a face, the first is in stage 0 and the last in stage 2
    assert [bool(g.any()) for g in found["stage_tokens"]] == [True, False, True]
    read = [name for name in found if ".attn2.to_q." in name or ".attn2.to_k." in name]
    assert len(read) == 7 * 2 * 2  # layers, projections, halves of a LoRA
    for name in ["stage_tokens", *read]:
        assert found[name].isfinite().all(), name
        assert found[name].any(), name
    lora_model.unet.enable_gradient_checkpointing()
    again = gradients(make_step, lora_model, term(1.0))
    lora_model.unet.disable_gradient_checkpointing()
    assert found.keys() == again.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_weight_of_zero_changes_nothing_and_costs_nothing(make_step: Batch) -> None:
    def never() -> list[Tensor]:
        raise AssertionError("computed for nothing")

    step, _ = make_step(StagedUnet(two_levels(), tokens()))
    error: dict[str, tuple[TermConfig, Term]] = {
        "denoising": (DenoisingConfig(), denoising(DenoisingConfig()))
    }
    alone = weighed(error, step, 0)
    assert weighed({**error, **term(0.0)}, replace(step, attention_maps=never), 0) == alone
    assert weighed({**error, **term(0.5)}, step, 0)[0] > alone[0]


def test_learning_draws_the_attention_into_the_face(make_step: Batch) -> None:
    model = StagedUnet(two_levels(), tokens())
    optimizer = torch.optim.Adam(model.trained().values(), lr=0.2)
    inside = []
    for _ in range(5):
        step, _record = make_step(model)
        loss, said = weighed(term(1.0), step, 0)
        inside.append(said["attention/inside"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert inside[-1] > inside[0] + 0.02


# what is refused, and what is left behind ------------------------------------------------------------------


def test_no_hook_stays_behind() -> None:
    model = StagedUnet(two_levels(), tokens())
    with recorded_attention(model):
        assert hooks_of(model) == 7 * 2
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError, match="stop"), recorded_attention(model):
        raise RuntimeError("stop")
    assert hooks_of(model) == 0


def test_recording_changes_no_bit() -> None:
    model = StagedUnet(two_levels(), tokens())
    with torch.no_grad():
        before = model(**settings()).sample
        with recorded_attention(model):
            during = model(**settings()).sample
    assert torch.equal(before, during)


def test_what_cannot_be_recorded_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match=r"attention of a UNet .* Linear holds none"),
        recorded_attention(nn.Linear(1, 1)),
    ):
        pass
    unet = two_levels()
    with recorded_attention(unet) as record:
        pass
    with pytest.raises(WeightsError, match=r"down_blocks\.0.*attn2 was not asked"):
        record.identity_maps(N)
    unet.fuse_qkv_projections()
    with recorded_attention(unet) as record, torch.no_grad():
        given = settings()
        unet(given["sample"], given["timestep"], encoder_hidden_states=given["encoder_hidden_states"])
    with pytest.raises(WeightsError, match="unfuse_qkv_projections"):
        record.identity_maps(N)


@pytest.mark.parametrize("count", [0, 5])
def test_more_tokens_than_there_are(count: int) -> None:
    with pytest.raises(ConfigError, match=rf"num_id_tokens must be in \[1, 4\], got {count}"):
        identity_attention(torch.randn(1, 3, 8), torch.randn(1, 4, 8), 2, count)


def test_masks_that_do_not_fit() -> None:
    for maps, masks in (([], []), ([torch.rand(2, 3, 4)], [torch.rand(2, 9)]), ([torch.rand(2, 3, 4)], [])):
        with pytest.raises(ConfigError, match="each layer needs a mask of its rows and places"):
            face_attention_loss(maps, masks)


def test_the_term_needs_the_maps_and_the_faces(make_step: Batch) -> None:
    model = StagedUnet(two_levels(), tokens())
    with pytest.raises(ConfigError, match="it trains stage tokens"):
        attention(AttentionConfig())(make_step(model, attention_maps=None)[0])
    with pytest.raises(ConfigError, match="needs the landmarks"):
        attention(AttentionConfig())(make_step(model, faces=None)[0])
