"""The W+ adapter on a real UNet, called directly: its formula, rows, strength, company, leaving no trace."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from conftest import tiny_unet
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from tiny_wplus_adapter import NUM_LAYERS, STYLE_DIM, random_wplus
from torch import Tensor

from idgen.adapters.attention import LayerBranch, LayerWeights
from idgen.adapters.install import IDAdapter, install_adapter, remove_adapter
from idgen.adapters.layers import attention_layers
from idgen.adapters.wplus import WPlusAdapter, WPlusBranch, WPlusLayer, WPlusProjection, default_groups
from idgen.errors import ConfigError, WeightsError
from idgen.objectives.editing import text_attention

Make = Callable[..., IDAdapter]
Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return tiny_unet(16).eval()


@pytest.fixture
def adapter(unet: UNet2DConditionModel) -> WPlusAdapter:
    """Installed."""
    made = random_wplus(unet)
    install_adapter(unet, made)
    return made


@pytest.fixture
def inputs() -> Inputs:
    """Three rows: latents, timesteps, text."""
    return torch.randn(3, 4, 8, 8), torch.tensor([900, 500, 100]), torch.randn(3, 6, 16)


def run(unet: UNet2DConditionModel, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample


def codes(num_rows: int = 3) -> Tensor:
    return torch.randn(num_rows, NUM_LAYERS, STYLE_DIM)


def people(num_rows: int = 3) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(num_rows, 1, 8), dim=-1)


def differ(a: Tensor, b: Tensor) -> float:
    """The smallest difference of a row."""
    return (a - b).abs().amax((1, 2, 3)).min().item()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


# the formula -----------------------------------------------------------------------------------------------


def test_groups_of_layers() -> None:
    assert default_groups(18) == (4, 4, 4, 6)
    assert [default_groups(n) for n in (4, 6, 14, 16)] == [
        (1, 1, 1, 1), (1, 1, 2, 2), (3, 3, 4, 4), (4, 4, 4, 4),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="needs at least as many layers, got 3"):
        default_groups(3)
    with pytest.raises(ConfigError, match=r"got groups \(2, 0\) and width 8"):
        WPlusProjection((2, 0), 8, 16)


@pytest.mark.parametrize("groups", [(4, 4, 4, 6), (2, 1, 3)])
def test_the_projection_is_the_formula_written_as_loops(groups: tuple[int, ...]) -> None:
    project, given = WPlusProjection(groups, 3, 5), torch.randn(2, sum(groups), 3)
    torch.nn.init.normal_(project.norm.weight)
    torch.nn.init.normal_(project.norm.bias)
    state = project.state_dict()
    assert list(state) == [*(f"proj_{i}.weight" for i in range(len(groups))), "norm.weight", "norm.bias"]
    expected = torch.zeros(2, len(groups), 5)
    for row in range(2):
        layer = 0
        for token, size in enumerate(groups):
            numbers = [x for one in given[row, layer : layer + size].tolist() for x in one]
            layer += size
            out = [sum(w * x for w, x in zip(weights, numbers, strict=True))
                   for weights in state[f"proj_{token}.weight"].tolist()]  # fmt: skip
            mean = sum(out) / 5
            deviation = math.sqrt(sum((o - mean) ** 2 for o in out) / 5 + 1e-5)  # LayerNorm's own epsilon
            for i, o in enumerate(out):
                expected[row, token, i] = (o - mean) / deviation * state["norm.weight"][i] + state[
                    "norm.bias"
                ][i]
    close(project(given), expected)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of (B, P, D), (B, M, D), (B, M, D), written as loops."""
    out, size = torch.zeros_like(query), query.shape[-1] // heads
    for b in range(len(query)):
        for head in range(heads):
            at = slice(head * size, (head + 1) * size)
            for place in range(query.shape[1]):
                scores = [query[b, place, at] @ key[b, m, at] / size**0.5 for m in range(key.shape[1])]
                out[b, place, at] = torch.stack(scores).softmax(0) @ value[b, :, at]
    return out


@pytest.mark.parametrize("company", ["alone", "after the face", "before the face"])
def test_the_residual_attention_is_the_formula_written_as_loops(
    unet: UNet2DConditionModel, company: str
) -> None:
    _, name, attention = next(layer for layer in attention_layers(unet) if layer[0] == 1)
    weights, face = WPlusLayer(16, 16), LayerWeights(16, 16, 16, cross=True)
    hidden, text, of_code, of_face = (torch.randn(2, n, 16) for n in (5, 3, 4, 2))
    strength = torch.tensor([0.7, 2.0])
    branches = {"w": WPlusBranch(name, attention, weights), "f": LayerBranch(name, attention, face)}
    order = {"alone": "w", "after the face": "fw", "before the face": "wf"}[company]
    with torch.no_grad():
        base = attention(hidden, encoder_hidden_states=text)
        handles = []
        for which in order:
            branches[which].set_tokens(of_code if which == "w" else of_face, None)
            branches[which].set_strength(strength, torch.ones(2))
            handles += branches[which].attach()
        got = attention(hidden, encoder_hidden_states=text)
        for handle in handles:
            handle.remove()
        heads, query = attention.heads, attention.to_q(hidden)
        found = attend(query, attention.to_k(text), attention.to_v(text), heads)
        close(base, attention.to_out[0](found))
        key, value = weights.to_k_wplus(of_code), weights.to_v_wplus(of_code)
        added = strength[:, None, None] * attend(weights.to_q_wplus(found), key, value, heads)
        if "f" in order:
            by_face = attend(query, face.to_k_ip(of_face), face.to_v_ip(of_face), heads)
            added += strength[:, None, None] * by_face
        close(got, attention.to_out[0](found + added))
    assert (got - base).abs().amax() > 0.05


def test_what_reads_the_text_attention_sees_it_alone(
    unet: UNet2DConditionModel, adapter: WPlusAdapter, inputs: Inputs
) -> None:
    def first_layer(early: bool) -> Tensor:
        given = codes()
        if early:
            adapter.condition(given)
        with text_attention(unet, "down_blocks") as recorded:
            if not early:
                adapter.condition(given)
            run(unet, inputs)
        adapter.clear()
        return recorded[0]

    with text_attention(unet, "down_blocks") as recorded:
        run(unet, inputs)
    assert torch.equal(first_layer(early=True), recorded[0])
    assert torch.equal(first_layer(early=False), recorded[0])


def test_shapes_of_published_files_and_where_training_begins() -> None:
    """Of Stable Diffusion 1.5: 16 layers at odd positions, 31.56 M weights in them."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        state = WPlusAdapter.for_unet(unet).state_dict()
    assert [tuple(state[f"w_proj.proj_{i}.weight"].shape) for i in range(4)] == [(768, 2048)] * 3 + [
        (768, 3072)
    ]
    layers = {key: value for key, value in state.items() if key.startswith("wplus_adapter.")}
    assert set(layers) == {f"wplus_adapter.{k}.to_{t}_wplus.weight" for k in range(1, 32, 2) for t in "kvq"}
    assert sum(value.numel() for value in layers.values()) == 31_559_680
    tiny = tiny_unet(16)
    state, (_, _, attention) = WPlusAdapter.for_unet(tiny).state_dict(), list(attention_layers(tiny))[3]
    for target in "qkv":
        begin = attention.get_parameter(f"to_{target}.weight")
        assert torch.equal(state[f"wplus_adapter.3.to_{target}_wplus.weight"], begin)


# contracts: a row is a person, strength 0, no trace --------------------------------------------------------


def test_each_row_sees_its_own_code_at_its_own_strength(
    unet: UNet2DConditionModel, adapter: WPlusAdapter, inputs: Inputs
) -> None:
    given, scale = codes(), torch.tensor([1.0, 0.3, 0.7])
    adapter.condition(given, scale)
    together = run(unet, inputs)
    for i in range(3):
        adapter.condition(given[i : i + 1], scale[i].item())
        close(together[i : i + 1], run(unet, tuple(x[i : i + 1] for x in inputs)))  # pyright: ignore
    adapter.condition(given.roll(1, 0), scale)
    assert differ(run(unet, inputs), together) > 1e-2


def test_rows_of_strength_zero_are_the_base_model_bit_for_bit(
    unet: UNet2DConditionModel, adapter: WPlusAdapter, inputs: Inputs
) -> None:
    base, given = run(unet, inputs), codes()
    adapter.condition(given, torch.tensor([1.0, 0.0, 1.0]))
    mixed = run(unet, inputs)
    assert torch.equal(mixed[1], base[1])
    assert differ(mixed[[0, 2]], base[[0, 2]]) > 1e-2
    given[1] = torch.nan  # whatever is off cannot spread
    adapter.condition(given, torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(run(unet, inputs), mixed)
    adapter.condition(given, 0.0)
    assert torch.equal(run(unet, inputs), base)


def test_strength_is_the_product_over_rows_and_layers_and_may_change_between_steps(
    unet: UNet2DConditionModel, adapter: WPlusAdapter, inputs: Inputs
) -> None:
    def everywhere(factor: float) -> dict[str, float]:
        return {name: factor for _, name, _ in attention_layers(unet)}

    base, given = run(unet, inputs), codes()
    adapter.condition(given, 0.5)
    half = run(unet, inputs)
    adapter.set_strength(0.0)
    assert torch.equal(run(unet, inputs), base)
    adapter.set_strength(torch.full((3,), 0.5))
    assert torch.equal(run(unet, inputs), half)
    adapter.condition(given, layer_scale=everywhere(0.5))
    close(run(unet, inputs), half)
    adapter.condition(given, layer_scale=everywhere(0.0))
    assert torch.equal(run(unet, inputs), base)


def test_both_kinds_add_up_in_any_order_and_each_can_be_taken_off(
    unet: UNet2DConditionModel, random_adapter: Make, inputs: Inputs
) -> None:
    base, given, who = run(unet, inputs), codes(), people()
    face, wplus = random_adapter(unet, lora_rank=2), random_wplus(unet)

    def pictures(order: list[IDAdapter | WPlusAdapter]) -> Tensor:
        for one in order:
            install_adapter(unet, one)
        for one in order:
            one.condition(who if one is face else given)
        made = run(unet, inputs)
        face.clear()
        wplus.clear()
        return made

    both = pictures([face, wplus])
    close(pictures([wplus, face]), both)
    assert (face.is_on(unet), wplus.is_on(unet)) == (True, True)
    assert remove_adapter(unet) is face
    assert (face.is_on(unet), wplus.is_on(unet)) == (False, True)
    by_code = pictures([wplus])
    install_adapter(unet, face)
    assert remove_adapter(unet, WPlusAdapter.feature_kind) is wplus
    by_face = pictures([face])
    assert min(differ(both, by_code), differ(both, by_face), differ(by_code, base)) > 1e-2
    assert remove_adapter(unet, WPlusAdapter.feature_kind) is None
    install_adapter(unet, wplus)
    other = random_wplus(unet, seed=1)
    install_adapter(unet, other)  # in place of the one of its kind
    assert (face.is_on(unet), wplus.is_on(unet), other.is_on(unet)) == (True, False, True)


def test_taking_it_off_leaves_no_trace(unet: UNet2DConditionModel, inputs: Inputs) -> None:
    before, keys, attributes = run(unet, inputs), list(unet.state_dict()), set(vars(unet))
    adapter = random_wplus(unet)
    install_adapter(unet, adapter)
    adapter.condition(codes())
    assert not torch.equal(run(unet, inputs), before)
    assert list(unet.state_dict()) == keys
    assert not copy.deepcopy(adapter).is_on(unet)
    adapter.remove()
    assert torch.equal(run(unet, inputs), before)
    assert set(vars(unet)) == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
    with pytest.raises(WeightsError, match="on no UNet; call install_adapter"):
        adapter.condition(codes())


@pytest.mark.parametrize("lora_first", [True, False])
def test_loras_of_the_user_work_on_and_stay_as_they_were(
    unet: UNet2DConditionModel, inputs: Inputs, lora_first: bool
) -> None:
    adapter, given = random_wplus(unet), codes()
    lora = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    if not lora_first:
        install_adapter(unet, adapter)
    unet.add_adapter(lora, "mine")
    if lora_first:
        install_adapter(unet, adapter)
    with_mine, state = run(unet, inputs), copy.deepcopy(unet.state_dict())
    adapter.condition(given, torch.tensor([1.0, 0.0, 1.0]))
    both = run(unet, inputs)
    assert torch.equal(both[1], with_mine[1])
    assert differ(both[[0, 2]], with_mine[[0, 2]]) > 1e-2
    unet.disable_adapters()
    assert differ(run(unet, inputs), both) > 1e-3
    unet.enable_adapters()
    adapter.remove()
    assert torch.equal(run(unet, inputs), with_mine)
    assert unet.active_adapters() == ["mine"]
    assert all(torch.equal(value, state[key]) for key, value in unet.state_dict().items())


# training --------------------------------------------------------------------------------------------------


def gradients(unet: UNet2DConditionModel, adapter: WPlusAdapter, inputs: Inputs) -> list[Tensor]:
    """Of every weight, for some loss of the rows that are conditioned now."""
    adapter.zero_grad()
    answer = unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample
    answer.square().mean().backward()
    return [weight.grad.clone() for weight in adapter.parameters()]


def test_gradients_reach_every_weight_and_only_codes_that_are_on(
    unet: UNet2DConditionModel, adapter: WPlusAdapter, inputs: Inputs
) -> None:
    unet.requires_grad_(False)
    adapter.requires_grad_(True)
    given = codes().requires_grad_(True)
    adapter.condition(given, torch.tensor([0.0, 1.0, 0.5]))
    assert all(gradient.abs().sum() > 0 for gradient in gradients(unet, adapter, inputs))
    assert given.grad is not None
    assert (given.grad.abs().sum((1, 2)) > 0).tolist() == [False, True, True]


def test_gradients_are_finite_at_the_zero_code_and_the_same_with_checkpointing(
    unet: UNet2DConditionModel, adapter: WPlusAdapter, inputs: Inputs
) -> None:
    unet.train()
    adapter.requires_grad_(True)
    given = codes()
    given[1] = 0
    adapter.condition(given)
    expected = gradients(unet, adapter, inputs)
    assert all(gradient.isfinite().all() for gradient in expected)
    unet.enable_gradient_checkpointing()
    adapter.condition(given)
    torch.testing.assert_close(gradients(unet, adapter, inputs), expected)


def test_a_full_precision_adapter_trains_on_a_unet_of_half_precision(
    unet: UNet2DConditionModel, adapter: WPlusAdapter, inputs: Inputs
) -> None:
    adapter.requires_grad_(True)
    given = codes()
    adapter.condition(given)
    full = run(unet, inputs)
    unet.to(torch.bfloat16)
    adapter.condition(given)
    latents, timesteps, text = inputs
    half = unet(latents.bfloat16(), timesteps, encoder_hidden_states=text.bfloat16()).sample
    torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0)
    half.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters())


def test_wrong_shapes_are_named(unet: UNet2DConditionModel, adapter: WPlusAdapter, inputs: Inputs) -> None:
    with pytest.raises(ConfigError, match=r"codes must be \(B, 6, 8\), got \(3, 5, 8\)"):
        adapter.condition(torch.randn(3, 5, 8))
    with pytest.raises(ConfigError, match=r"one number or 3 \(one a row\), got \(2,\)"):
        adapter.condition(codes(), torch.ones(2))
    adapter.condition(codes(2))
    with pytest.raises(ConfigError, match="called with 3 rows, but 2 rows were given an identity"):
        run(unet, inputs)
