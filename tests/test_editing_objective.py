"""The editing direction: against loops, on a real tiny UNet with an adapter, and of which rows."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn import functional as F
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from idgen.adapters.install import IDAdapter, install_adapter
from idgen.adapters.layers import attention_layers
from idgen.config import from_mapping
from idgen.data.captions import every_phrase
from idgen.diffusion.denoiser import Denoiser, TextStates
from idgen.diffusion.prediction import NoiseSchedule
from idgen.errors import ConfigError
from idgen.faces.align import ARCFACE_TEMPLATE
from idgen.objectives.editing import (
    EDITS,
    EditingConfig,
    attention_reader,
    edit_captions,
    editing,
    editing_loss,
    text_attention,
    text_layers,
)
from idgen.objectives.terms import DenoisingConfig, FaceTargets, Step, Term, TermConfig, denoising, weighed
from idgen.tuning.adapter import AdaptedUnet

B, D, SIDE, WIDTH = 4, 8, 64, 16
EVERYWHERE = ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")  # order of calls
PLAIN, EDITED = torch.arange(B), torch.arange(B) + B  # rows of the texts
TIMESTEPS = torch.tensor([150, 300, 200, 250])  # all in range
HERE = ARCFACE_TEMPLATE / 2


@pytest.fixture
def adapted() -> AdaptedUnet:
    """A UNet with cross-attention in every block, and an adapter on it."""
    torch.manual_seed(3)
    down, up = ("CrossAttnDownBlock2D",) * 2, ("CrossAttnUpBlock2D",) * 2
    unet = tiny_unet(WIDTH, down_block_types=down, up_block_types=up)
    adapter = IDAdapter.for_unet(unet, id_dim=D)
    install_adapter(unet, adapter)
    return AdaptedUnet(unet, adapter)


@pytest.fixture
def denoiser(adapted: AdaptedUnet) -> Denoiser:
    """Rows 0 to 3 of its texts are plain, 4 to 7 the same with an edit."""
    prompts = tuple(f"text {i}" for i in range(2 * B))
    texts = TextStates(prompts=prompts, hidden=torch.randn(2 * B, 5, WIDTH), pooled=None)
    return Denoiser(unet=adapted, texts=texts, size_px=SIDE)


@pytest.fixture
def make_step(denoiser: Denoiser) -> Callable[..., Step]:
    """Everybody shows a face and is wanted, every timestep is in range; ``changes`` tell otherwise."""
    torch.manual_seed(4)
    noisy, target = torch.randn(B, 4, 8, 8), torch.randn(B, 4, 8, 8)
    told = {"id_embedding": normalize(torch.randn(B, D), dim=1)}
    faces = FaceTargets(
        **told, person=torch.arange(B), bank=told["id_embedding"], bank_person=torch.arange(B),
        landmarks=HERE.expand(B, 5, 2), picture_px=SIDE,
    )  # fmt: skip

    def build(timesteps: Tensor = TIMESTEPS, *, model: Denoiser = denoiser, **changes: object) -> Step:
        step = Step(
            schedule=NoiseSchedule.of(DDIMScheduler()), timesteps=timesteps, noisy=noisy, target=target,
            model_output=model(noisy, timesteps, PLAIN, **told), is_prior=torch.zeros(B, dtype=torch.bool),
            faces=faces, conditions=told,
            attend=attention_reader(model, noisy, timesteps, PLAIN, EDITED, told, "up_blocks.1"),
        )  # fmt: skip
        return dataclasses.replace(step, **changes)  # pyright: ignore[reportArgumentType]

    return build


def inputs() -> list[Tensor]:
    """The same noise, text and people every time."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(*s, generator=generator) for s in ((B, 4, 8, 8), (B, 5, WIDTH), (B, D))]


def record(model: nn.Module, layers: str, id_scale: float) -> list[Tensor]:
    """The text attention of ``layers`` for these."""
    noisy, text, people = inputs()
    with text_attention(model, layers) as recorded:
        model(noisy, TIMESTEPS, id_embedding=people, id_scale=id_scale, encoder_hidden_states=text)
    return recorded


def num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


# ---- the loss


def loop_over_places(branches: list[list[Tensor]], masks: list[Tensor], row: int) -> float:
    """The formula of one row, place by place; ``masks`` are those of the layers."""
    total = 0.0
    for plain, edited, still, moved, mask in zip(*branches, masks, strict=True):
        above = below = 0.0
        for place, weight in enumerate(mask[row].flatten().tolist()):
            a, b = (edited - plain)[row, place], (moved - still)[row, place]
            length = float(a.norm() * b.norm())
            # no direction where the base model does not move, none of the model's own where it does not
            apart = 1 - float(a @ b) / length if length else float(b.norm() > 0)
            above, below = above + weight * apart, below + weight
        total += above / below if below else 0.0
    return total


def test_the_loss_is_that_of_a_loop_over_places() -> None:
    branches = [[torch.randn(B, 16, 6), torch.randn(B, 4, 3)] for _ in range(4)]
    branches[3][0][0, 5] = branches[2][0][0, 5]  # the base model does not move here,
    branches[1][0][0, 6] = branches[0][0][0, 6]  # the model does not move there
    branches[1][0][0, 7], branches[3][0][0, 7] = branches[0][0][0, 7], branches[2][0][0, 7]  # nor do both
    mask = torch.rand(B, 8, 8)
    mask[3] = 0
    masks = [mask.unflatten(2, (n, -1)).unflatten(1, (n, -1)).mean(dim=(2, 4)) for n in (4, 2)]
    loss = editing_loss(*branches, mask)
    expected = [loop_over_places(branches, masks, row) for row in range(B)]
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx(expected, abs=1e-5)
    assert min(expected[:3]) > 0.5


@pytest.mark.parametrize(("factor", "each"), [(3.0, 0.0), (-0.5, 2.0)], ids=["along", "against"])
def test_only_the_direction_counts(factor: float, each: float) -> None:
    """A change of any length along the base model's is right, against it as wrong as can be."""
    plain, still, change = (torch.randn(B, 16, 6) for _ in range(3))
    branches = [plain], [plain + factor * change], [still], [still + change]
    loss = editing_loss(*(2 * branch for branch in branches), torch.rand(B, 4, 4))
    assert torch.allclose(loss, torch.full((B,), 2 * each), atol=1e-5)


def test_odd_latents_are_halved_as_a_unet_does_it_and_what_does_not_fit_is_refused() -> None:
    layers = [[torch.randn(1, places, 3) for places in (35, 12, 4)] for _ in range(4)]  # 7 x 5, 4 x 3, 2 x 2
    assert editing_loss(*layers, torch.ones(1, 7, 5)).isfinite()
    with pytest.raises(ConfigError, match="no halving of 7 x 6 latents has 35 places"):
        editing_loss(*layers, torch.ones(1, 7, 6))
    with pytest.raises(ConfigError, match="must have equal layers"):
        editing_loss(*layers[:3], layers[3][:2], torch.ones(1, 7, 5))


def test_gradients_are_finite_and_the_base_model_has_none() -> None:
    plain, edited, still, moved = (torch.randn(B, 16, 6) for _ in range(4))
    edited[0, 0] = plain[0, 0]  # nothing moves in the model,
    moved[0, 1] = still[0, 1]  # or in the base,
    edited[0, 2] = plain[0, 2] + 1e-8  # or next to nothing
    layers = [layer.requires_grad_() for layer in (plain, edited, still, moved)]
    editing_loss(*([layer] for layer in layers), torch.ones(B, 4, 4)).sum().backward()
    assert still.grad is None
    assert moved.grad is None
    assert edited.grad is not None
    assert torch.allclose(plain.grad, -edited.grad)
    assert edited.grad.abs().max() < 10
    assert edited.grad.any(dim=2).flatten().tolist() == [False] * 3 + [True] * (16 * B - 3)


# ---- what is recorded


def attention_of_the_text(model: AdaptedUnet, layers: str) -> list[Tensor]:
    """What `record` should find, computed anew from the query, keys and values of each layer."""
    seen, found, handles = {"to_q": [], "to_k": [], "to_v": []}, [], []
    for attention in text_layers(model, layers):
        for part, outputs in seen.items():
            hook = attention.get_submodule(part).register_forward_hook
            handles.append(hook(lambda _m, _a, output, to=outputs: to.append(output)))
    record(model, layers, 1.0)
    for handle in handles:
        handle.remove()
    for attention, *parts in zip(text_layers(model, layers), *seen.values(), strict=True):
        q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in parts)
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
        found.append((scores @ v).transpose(1, 2).flatten(2))
    return found


@pytest.mark.parametrize("layers", ["down_blocks.0", "up_blocks.1"])
def test_what_is_recorded_is_the_attention_of_the_text_alone(adapted: AdaptedUnet, layers: str) -> None:
    recorded, expected = record(adapted, layers, 1.0), attention_of_the_text(adapted, layers)
    assert len(recorded) == {"down_blocks.0": 1, "up_blocks.1": 2}[layers]
    for found, by_hand in zip(recorded, expected, strict=True):
        assert found.shape == (B, 64, 8)
        assert torch.allclose(found, by_hand, atol=1e-6)


def test_the_first_layer_does_not_know_who_it_is_and_the_deeper_ones_do(adapted: AdaptedUnet) -> None:
    found = [[layer for part in EVERYWHERE for layer in record(adapted, part, s)] for s in (1.0, 0.0)]
    (first, plain), *deeper = zip(*found, strict=True)
    assert torch.equal(first, plain)
    assert [torch.allclose(a, b) for a, b in deeper] == [False] * 6


def test_an_adapter_that_is_attached_already_adds_nothing(adapted: AdaptedUnet) -> None:
    noisy, text, people = inputs()
    adapted.adapter.condition(people)  # its hooks are there before ours
    with text_attention(adapted, "down_blocks.0") as recorded:
        adapted.unet(noisy, TIMESTEPS, encoder_hidden_states=text)
    assert torch.equal(recorded[0], record(adapted, "down_blocks.0", 0.0)[0])


def test_recording_changes_nothing_and_leaves_nothing(adapted: AdaptedUnet) -> None:
    noisy, text, people = inputs()
    told = {"id_embedding": people, "encoder_hidden_states": text}
    before = adapted(noisy, TIMESTEPS, **told).sample
    attached = num_hooks(adapted)  # of the adapter
    with text_attention(adapted, "up_blocks") as recorded:
        assert num_hooks(adapted) == attached + 4
        within = adapted(noisy, TIMESTEPS, **told).sample
    assert len(recorded) == 4
    assert torch.equal(before, within)
    assert num_hooks(adapted) == attached
    with pytest.raises(RuntimeError, match="stop here"), text_attention(adapted, "up_blocks"):
        raise RuntimeError("stop here")
    assert num_hooks(adapted) == attached


def test_layers_are_named_by_whole_words(adapted: AdaptedUnet) -> None:
    assert len(text_layers(adapted, "up_blocks")) == 4
    for wrong in ("up_block", "up_blocks.", "up_blocks.2"):
        with pytest.raises(ConfigError, match=f"in {re.escape(wrong)}; .* be {', '.join(EVERYWHERE)}$"):
            text_layers(adapted, wrong)
    with pytest.raises(ConfigError, match=r"can be down_blocks\.1, mid_block, up_blocks\.0$"):
        text_layers(tiny_unet(WIDTH), "up_blocks.1")  # has cross-attention on one level alone
    with pytest.raises(ConfigError, match="Linear holds none"):
        text_layers(nn.Linear(1, 1), "up_blocks.1")


def test_several_processes_see_and_learn_the_same(denoiser: Denoiser, make_step: Callable[..., Step]) -> None:
    adapter, gradients = denoiser.unet.get_submodule("adapter"), []
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        for unet in (denoiser.unet, DistributedDataParallel(denoiser.unet)):
            adapter.zero_grad()
            weighed(terms(weight=1.0), make_step(model=denoiser.of(unet)), 0)[0].backward()
            gradients.append([p.grad.clone() for p in adapter.parameters() if p.grad is not None])
    finally:
        destroy_process_group()
    assert len(gradients[0]) == len(list(adapter.parameters()))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


def test_the_reader_asks_for_the_rows_it_is_told(denoiser: Denoiser, make_step: Callable[..., Step]) -> None:
    step, rows = make_step(), torch.tensor([1, 3])
    denoiser.unet.requires_grad_(True)  # as if the UNet trained too
    assert step.attend is not None
    for edited, texts in ((False, PLAIN), (True, EDITED)):
        for with_identity in (False, True):
            found, scale = step.attend(rows, edited, with_identity), torch.full((B,), float(with_identity))
            with text_attention(denoiser.unet, "up_blocks.1") as whole:
                denoiser(step.noisy, step.timesteps, texts, **step.conditions, id_scale=scale)
            assert len(found) == len(whole) == 2
            assert all(torch.allclose(a, b[rows], atol=1e-5) for a, b in zip(found, whole, strict=True))
            assert all(layer.requires_grad == with_identity for layer in found)
    assert not torch.allclose(step.attend(rows, False, True)[0], step.attend(rows, True, True)[0])
    with torch.no_grad():
        assert not step.attend(rows, False, True)[0].requires_grad


# ---- the term


def terms(**settings: object) -> dict[str, tuple[TermConfig, Term]]:
    """The denoiser's error and the editing direction."""
    config = EditingConfig(**settings)  # pyright: ignore[reportArgumentType]
    error = DenoisingConfig()
    return {"denoising": (error, denoising(error)), "editing": (config, editing(config))}


def test_the_term_trains_what_can_turn_the_direction(
    adapted: AdaptedUnet, make_step: Callable[..., Step]
) -> None:
    values = editing(EditingConfig())(make_step())
    assert values.rows.tolist() == [0, 1, 2, 3]
    assert (values.loss > 1e-4).all()
    values.loss.sum().backward()
    names = {name: position for position, name, _ in attention_layers(adapted.unet)}
    last = names["up_blocks.1.attentions.1.transformer_blocks.0.attn2"]
    for name, weight in adapted.trained().items():
        if name.startswith(f"ip_adapter.{last}."):  # its identity is added behind all that is recorded
            assert weight.grad is None, name
        else:
            assert weight.grad is not None, name
            assert bool(weight.grad.isfinite().all() & weight.grad.any()), name
    assert all(weight.grad is None for weight in adapted.unet.parameters())


def test_the_model_without_identity_edits_as_the_base_model(make_step: Callable[..., Step]) -> None:
    attend = make_step().attend
    assert attend is not None
    same = make_step(attend=lambda rows, edited, _with: attend(rows, edited, False))
    assert torch.allclose(editing(EditingConfig())(same).loss, torch.zeros(B), atol=1e-5)


def test_rows_out_of_range_or_without_a_face_or_identity_say_nothing(make_step: Callable[..., Step]) -> None:
    """Row 0 counts; row 1 shows no face, row 2 has no identity, row 3 is out of range."""
    step, asked = make_step(torch.tensor([300, 300, 300, 900])), []
    attend, faces = step.attend, step.faces
    assert attend
    assert faces
    landmarks = torch.stack([HERE, torch.full_like(HERE, torch.nan), HERE, HERE])
    faces = dataclasses.replace(faces, landmarks=landmarks, is_wanted=torch.tensor([True, True, False, True]))

    def listen(rows: Tensor, edited: bool, who: bool) -> list[Tensor]:
        asked.append((rows.tolist(), edited, who))
        return attend(rows, edited, who)

    values = editing(EditingConfig())(dataclasses.replace(step, faces=faces, attend=listen))
    branches = [attend(torch.tensor([0]), edited, who) for who in (True, False) for edited in (False, True)]
    by_hand = editing_loss(*branches, step.face_mask[:1]).item()
    assert values.rows.tolist() == [0, 1, 2, 3]
    assert values.loss.tolist() == pytest.approx([by_hand, 0, 0, 0])
    assert by_hand > 1e-4
    assert sorted(asked) == [([0], edited, who) for edited in (False, True) for who in (False, True)]


def test_prior_rows_are_left_alone_and_an_idle_step_asks_nothing(make_step: Callable[..., Step]) -> None:
    values = editing(EditingConfig())(make_step(is_prior=torch.tensor([True, False, True, False])))
    assert values.rows.tolist() == [1, 3]
    assert (values.loss > 0).all()

    def never(*_: object) -> list[Tensor]:
        raise AssertionError("asked for nothing")

    idle = make_step(torch.full((B,), 900), attend=never)
    assert editing(EditingConfig())(idle).loss.tolist() == [0, 0, 0, 0]
    alone = {name: pair for name, pair in terms().items() if name == "denoising"}
    with_nothing = weighed(terms(weight=0.0), make_step(attend=never), 0)
    assert torch.equal(with_nothing[0], weighed(alone, make_step(), 0)[0])
    assert with_nothing[1].keys() == {"denoising"}


def test_the_term_is_weighed_from_one_end_of_its_range_to_the_other(make_step: Callable[..., Step]) -> None:
    step = make_step(torch.tensor([100, 350, 99, 351]))
    loss, said = weighed(terms(), step, 0)
    values = editing(EditingConfig())(step).loss
    assert (values > 0).tolist() == [True, True, False, False]
    assert said["editing"] == pytest.approx(values.mean().item())
    error = F.mse_loss(step.model_output, step.target).item()
    assert loss.item() == pytest.approx(error + 0.02 * values.mean().item(), rel=1e-6)


def test_a_training_without_an_adapter_is_refused(make_step: Callable[..., Step]) -> None:
    with pytest.raises(ConfigError, match="it trains an adapter"):
        editing(EditingConfig())(make_step(attend=None))
    with pytest.raises(ConfigError, match="needs the landmarks"):
        editing(EditingConfig())(make_step(faces=None))


# ---- settings and captions


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": " "}, "such as up_blocks.1, got ' '"),
        ({"edits": ()}, r"one at least, got \[\]"),
        ({"edits": ("smiling", "")}, r"phrases to say after a caption.*\['smiling', ''\]"),
        ({"edits": ("sad", "angry", "sad")}, "must differ, got 'sad' 2 times"),
        ({"timesteps": (0.35, 0.1)}, "rising shares"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EditingConfig(**settings)  # pyright: ignore[reportArgumentType]


def test_settings_are_the_published_ones_with_edits_that_the_mini_model_knows() -> None:
    config = from_mapping(EditingConfig, {"warmup_steps": 2, "edits": ["smiling", "sad"]})
    assert (config.weight, config.timesteps, config.layers) == (0.02, (0.1, 0.35), "up_blocks.1")
    assert config.edits == ("smiling", "sad")
    assert len(EDITS) >= 24 <= 2 * len(set(EDITS) & set(every_phrase()))


def test_every_caption_gets_an_edit_that_it_does_not_say() -> None:
    captions = ["a photo of a man, smiling, white background", "a woman", "", "a person, sad"] * 50
    edits = ("smiling", "sad", "white background")
    edited = edit_captions(captions, edits, np.random.default_rng([1, 2]))
    assert edited == edit_captions(captions, edits, np.random.default_rng([1, 2]))
    assert edited != edit_captions(captions, edits, np.random.default_rng([1, 3]))
    said = [set(edited[i::4]) for i in range(4)]
    assert said[0] == {"a photo of a man, smiling, white background, sad"}  # it smiles already
    assert said[1] == {f"a woman, {edit}" for edit in edits}
    assert said[2] == set(edits)
    assert said[3] == {"a person, sad, smiling", "a person, sad, white background"}
    assert edit_captions(["a man, sad"], ["sad"], np.random.default_rng(0)) == ["a man, sad, sad"]
