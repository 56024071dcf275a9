"""The adapter on a real UNet, called directly: rows, strength, LoRA, leaving no trace."""

import copy
from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from peft import LoraConfig
from torch import Tensor

from idgen.adapters.attention import LayerBranch, LayerWeights
from idgen.adapters.install import IDAdapter, install_adapter, remove_adapter
from idgen.adapters.layers import attention_layers
from idgen.errors import ConfigError, WeightsError

Make = Callable[..., IDAdapter]


@pytest.fixture
def unet(tiny_sd: dict[str, object]) -> UNet2DConditionModel:
    return tiny_sd["unet"]  # pyright: ignore[reportReturnType]


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Three rows: latents, timesteps, text."""
    return torch.randn(3, 4, 8, 8), torch.tensor([900, 500, 100]), torch.randn(3, 6, 16)


def run(unet: UNet2DConditionModel, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        return unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample


def people(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, 8), dim=-1)


def row(inputs: tuple[Tensor, Tensor, Tensor], i: int) -> tuple[Tensor, Tensor, Tensor]:
    return inputs[0][i : i + 1], inputs[1][i : i + 1], inputs[2][i : i + 1]


def test_the_identity_branch_is_the_formula_written_as_loops(unet: UNet2DConditionModel) -> None:
    _, name, attention = next(layer for layer in attention_layers(unet) if layer[0] == 1)
    weights = LayerWeights(16, 16, 16, cross=True)
    branch = LayerBranch(name, attention, weights)
    hidden, text, tokens, strength = (
        torch.randn(2, 5, 16),
        torch.randn(2, 3, 16),
        torch.randn(2, 4, 16),
        [0.7, 2.0],
    )
    with torch.no_grad():
        base = attention(hidden, encoder_hidden_states=text)
        branch.set_tokens(tokens, None)
        branch.set_strength(torch.tensor(strength), torch.ones(2))
        handles = branch.attach()
        got = attention(hidden, encoder_hidden_states=text)
        query, key, value = attention.to_q(hidden), weights.to_k_ip(tokens), weights.to_v_ip(tokens)
        size = 16 // attention.heads
        identity = torch.zeros(2, 5, 16)
        for b in range(2):
            for head in range(attention.heads):
                of_head = slice(head * size, (head + 1) * size)
                for at in range(5):
                    scores = [query[b, at, of_head] @ key[b, m, of_head] / size**0.5 for m in range(4)]
                    share = torch.stack(scores).softmax(0)
                    identity[b, at, of_head] = strength[b] * (share @ value[b, :, of_head])
        expected = base + identity @ attention.to_out[0].weight.T
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert (got - base).abs().amax() > 0.05
    assert len(handles) == 2


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_each_row_sees_its_own_person_at_its_own_strength(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor], lora_rank: int
) -> None:
    adapter = random_adapter(unet, lora_rank=lora_rank)
    install_adapter(unet, adapter)
    embedding, scale = people(3, 1), torch.tensor([1.0, 0.3, 0.7])
    adapter.condition(embedding, scale)
    together = run(unet, inputs)
    for i in range(3):
        adapter.condition(embedding[i : i + 1], scale[i].item())
        torch.testing.assert_close(together[i : i + 1], run(unet, row(inputs, i)), atol=1e-5, rtol=0)
    adapter.condition(embedding.roll(1, 0), scale)
    assert (run(unet, inputs) - together).abs().amax((1, 2, 3)).min() > 1e-2


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_rows_of_strength_zero_are_the_base_model_bit_for_bit(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor], lora_rank: int
) -> None:
    base = run(unet, inputs)
    adapter = random_adapter(unet, lora_rank=lora_rank)
    install_adapter(unet, adapter)
    embedding = people(3, 2)
    adapter.condition(embedding, torch.tensor([1.0, 0.0, 1.0]))
    mixed = run(unet, inputs)
    assert torch.equal(mixed[1], base[1])
    assert (mixed - base)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-2
    adapter.condition(embedding, 0.0)
    assert torch.equal(run(unet, inputs), base)
    embedding[1] = torch.nan  # whatever is off cannot spread
    adapter.condition(embedding, torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(run(unet, inputs), mixed)


def test_the_lora_part_has_its_own_strength(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    adapter = random_adapter(unet, lora_rank=2)
    plain = IDAdapter.for_unet(unet, id_dim=8)
    plain.load_state_dict({k: v for k, v in adapter.state_dict().items() if "_lora" not in k})
    embedding = people(3, 1)
    install_adapter(unet, plain)
    plain.condition(embedding)
    without = run(unet, inputs)
    install_adapter(unet, adapter)
    adapter.condition(embedding, lora_scale=0.0)
    assert torch.equal(run(unet, inputs), without)
    adapter.condition(embedding, lora_scale=0.5)
    assert (run(unet, inputs) - without).abs().amax((1, 2, 3)).min() > 1e-2


def test_strength_can_change_between_steps_and_over_layers(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    base = run(unet, inputs)
    adapter = random_adapter(unet)
    install_adapter(unet, adapter)
    embedding = people(3, 1)
    adapter.condition(embedding, 0.5)
    half = run(unet, inputs)
    adapter.set_strength(0.0)
    assert torch.equal(run(unet, inputs), base)
    adapter.set_strength(0.5)
    assert torch.equal(run(unet, inputs), half)
    names = [name for _, name, _ in attention_layers(unet)]
    adapter.condition(embedding, 1.0, layer_scale=dict.fromkeys(names, 0.5))
    torch.testing.assert_close(run(unet, inputs), half, atol=1e-6, rtol=0)
    adapter.condition(embedding, 0.5, layer_scale=dict.fromkeys(names, 0.0))
    assert torch.equal(run(unet, inputs), base)


def test_several_references_are_an_unordered_set_and_may_differ_in_number(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    adapter = random_adapter(unet)
    install_adapter(unet, adapter)
    embedding = people(3, 2)
    adapter.condition(embedding)
    both = run(unet, inputs)
    adapter.condition(embedding.flip(1))
    torch.testing.assert_close(run(unet, inputs), both, atol=1e-5, rtol=0)
    adapter.condition(embedding, mask=torch.tensor([[True, True], [True, False], [False, True]]))
    ragged = run(unet, inputs)
    adapter.condition(torch.stack([embedding[0, 0], embedding[1, 0], embedding[2, 1]])[:, None])
    single = run(unet, inputs)
    torch.testing.assert_close(ragged[:1], both[:1], atol=1e-5, rtol=0)
    torch.testing.assert_close(ragged[1:], single[1:], atol=1e-5, rtol=0)
    assert (both - single).abs().amax((1, 2, 3)).min() > 1e-3


def test_taking_it_off_leaves_no_trace(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    before, keys, attributes = run(unet, inputs), list(unet.state_dict()), set(vars(unet))
    processors = dict(unet.attn_processors)
    adapter = random_adapter(unet, lora_rank=2)
    install_adapter(unet, adapter)
    adapter.condition(people(3, 1))
    assert not torch.equal(run(unet, inputs), before)
    assert list(unet.state_dict()) == keys
    assert remove_adapter(unet) is adapter
    assert torch.equal(run(unet, inputs), before)
    assert set(vars(unet)) == attributes
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
    assert remove_adapter(unet) is None
    with pytest.raises(WeightsError, match="on no UNet; call install_adapter"):
        adapter.condition(people(3, 1))


def test_loras_of_the_user_work_on_and_stay_as_they_were(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    bare_adapter = random_adapter(unet, lora_rank=2)
    install_adapter(unet, bare_adapter)
    embedding = people(3, 1)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), "mine")
    with_mine, state = run(unet, inputs), copy.deepcopy(unet.state_dict())
    bare_adapter.condition(embedding, torch.tensor([1.0, 0.0, 1.0]))  # the LoRA came after the adapter
    both = run(unet, inputs)
    assert torch.equal(both[1], with_mine[1])
    assert (both - with_mine)[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-2
    install_adapter(unet, bare_adapter)  # and before it
    bare_adapter.condition(embedding, torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(run(unet, inputs), both)
    unet.disable_adapters()
    bare_adapter.condition(embedding)
    without_mine = run(unet, inputs)
    assert (without_mine - both).abs().amax() > 1e-3
    unet.enable_adapters()
    remove_adapter(unet)
    assert torch.equal(run(unet, inputs), with_mine)
    assert unet.active_adapters() == ["mine"]
    assert all(torch.equal(value, state[key]) for key, value in unet.state_dict().items())


@pytest.mark.parametrize("processor", [AttnProcessor(), SlicedAttnProcessor(slice_size=1), "own"])
def test_attention_processors_of_the_user_go_on_working(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor], processor: object
) -> None:
    calls = []

    class Own(AttnProcessor2_0):
        def __call__(self, *args: object, **kwargs: object) -> Tensor:
            calls.append(1)
            return super().__call__(*args, **kwargs)

    adapter = random_adapter(unet, lora_rank=2)
    install_adapter(unet, adapter)
    embedding = people(3, 1)
    adapter.condition(embedding)
    expected = run(unet, inputs)
    mine = Own() if processor == "own" else processor
    unet.set_attn_processor(mine)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(run(unet, inputs), expected, atol=1e-5, rtol=0)
    assert (len(calls) > 0) == (processor == "own")
    remove_adapter(unet)
    assert all(p is mine for p in unet.attn_processors.values())


def test_gradients_reach_every_weight_of_the_adapter_and_only_rows_that_are_on(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    adapter = random_adapter(unet, lora_rank=2).requires_grad_(True)
    unet.requires_grad_(False)
    install_adapter(unet, adapter)
    embedding = people(3, 2).requires_grad_(True)
    adapter.condition(embedding, torch.tensor([1.0, 0.0, 0.5]))
    unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    assert embedding.grad is not None
    assert (embedding.grad.abs().sum((1, 2)) > 0).tolist() == [True, False, True]


def test_gradient_checkpointing_gives_the_same_gradients(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    adapter = random_adapter(unet).requires_grad_(True)
    install_adapter(unet, adapter)
    embedding, gradients = people(3, 1), []
    unet.train()
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        adapter.zero_grad()
        adapter.condition(embedding)
        unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in adapter.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_a_copy_of_the_adapter_is_free_and_an_adapter_is_on_one_unet_at_a_time(
    unet: UNet2DConditionModel, random_adapter: Make
) -> None:
    adapter, other = random_adapter(unet), copy.deepcopy(unet)
    install_adapter(unet, adapter)
    assert not copy.deepcopy(adapter).is_on(unet)
    install_adapter(other, adapter)
    assert adapter.is_on(other)
    assert not adapter.is_on(unet)
    install_adapter(other, copy.deepcopy(adapter))
    assert not adapter.is_on(other)


def test_wrong_shapes_are_named(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    adapter = random_adapter(unet)
    install_adapter(unet, adapter)
    with pytest.raises(ConfigError, match=r"must be \(B, n, 8\), got \(3, 1, 7\)"):
        adapter.condition(torch.randn(3, 1, 7))
    with pytest.raises(ConfigError, match=r"one number or 3 \(one a row\), got \(2,\)"):
        adapter.condition(people(3, 1), torch.ones(2))
    adapter.condition(people(2, 1))
    with pytest.raises(ConfigError, match="called with 3 rows, but 2 rows were given an identity"):
        run(unet, inputs)


def test_a_lora_part_is_refused_where_it_could_not_act(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: tuple[Tensor, Tensor, Tensor]
) -> None:
    adapter = random_adapter(unet, lora_rank=2)
    plain = random_adapter(unet)
    install_adapter(unet, plain)
    embedding = people(3, 1)
    plain.condition(embedding)
    expected = run(unet, inputs)
    unet.fuse_qkv_projections()
    torch.testing.assert_close(run(unet, inputs), expected, atol=1e-5, rtol=0)
    install_adapter(unet, adapter)
    with pytest.raises(WeightsError, match=r"fused projections, .* call unfuse_qkv_projections"):
        adapter.condition(embedding)
