"""The attention layers of a UNet as published files count them, and whether an adapter fits them."""

from collections.abc import Iterator, Mapping

from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Size, Tensor

from idgen.errors import WeightsError

# Text width -> what has it (counted on the published configurations).
BASE_MODELS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


def attention_layers(unet: UNet2DConditionModel) -> Iterator[tuple[int, str, Attention]]:
    """Position, name and module of every attention layer, in the order of published files (middle last)."""
    names = [name for name in unet.attn_processors if not name.startswith("encoder_hid_proj.")]
    for position, processor_name in enumerate(names):
        name = processor_name.removesuffix(".processor")
        yield position, name, unet.get_submodule(name)  # pyright: ignore[reportReturnType]


def is_cross(name: str) -> bool:
    """Whether the layer of that name looks at the text (and so at the identity)."""
    return not name.endswith("attn1")


def layer_widths(attention: Attention) -> tuple[int, int, int]:
    """(own features, features looked at, inner), asked of the layers; peft's wrappers answer as well."""
    to_q, to_k = attention.to_q, attention.to_k
    return to_q.in_features, to_k.in_features, to_q.out_features  # pyright: ignore


def guess_base(state: Mapping[str, Tensor]) -> str:
    """The base model a file was likely made for, from its text width; in words, for messages."""
    keys = ("to_k_ip.weight", "to_k_wplus.weight")
    widths = {tensor.shape[1] for key, tensor in state.items() if key.endswith(keys)}
    if len(widths) != 1:
        return "no base model that idgen knows"
    width = widths.pop()
    return f"{BASE_MODELS.get(width, 'an unknown base model')} (text width {width})"


def check_fit(unet: UNet2DConditionModel, state: Mapping[str, Tensor]) -> None:
    """Compare an adapter's tensors with what ``unet`` needs, key by key and shape by shape.

    Args:
        unet: the base model.
        state: tensors under the keys of a published file.

    Raises:
        WeightsError: for a missing key, a surplus key or another shape; it names the first with both shapes,
            counts the others, and guesses the base model that the file was made for.
    """
    is_wplus = any(key.startswith("w_proj.") for key in state)
    wanted = _wplus_shapes(unet) if is_wplus else _faceid_shapes(unet, state)
    projector, layers = ("w_proj", "wplus_adapter.") if is_wplus else ("image_proj", "ip_adapter.")
    found = {key: tensor.shape for key, tensor in state.items() if key.startswith(layers)}
    problems = [
        f"{key} is {tuple(found[key])} in the file, {tuple(shape)} in this UNet"
        for key, shape in wanted.items()
        if key in found and found[key] != shape
    ]
    problems += [f"{key} is missing" for key in wanted if key not in found]
    problems += [f"{key} has no place in this UNet" for key in found if key not in wanted]
    text_width = unet.config["cross_attention_dim"]
    if (projected := state[f"{projector}.norm.weight"].shape[0]) != text_width:
        problems.append(f"{projector} makes tokens of width {projected}, this UNet reads {text_width}")
    if problems:
        raise WeightsError(_fit_message(problems, guess_base(state), text_width))


def _wplus_shapes(unet: UNet2DConditionModel) -> dict[str, Size]:
    wanted: dict[str, Size] = {}
    for position, name, attention in attention_layers(unet):
        if is_cross(name):
            _, seen, inner = layer_widths(attention)
            for target, into in (("k", seen), ("v", seen), ("q", inner)):
                wanted[f"wplus_adapter.{position}.to_{target}_wplus.weight"] = Size((inner, into))
    return wanted


def _faceid_shapes(unet: UNet2DConditionModel, state: Mapping[str, Tensor]) -> dict[str, Size]:
    has_lora = any("_lora." in key for key in state)
    wanted: dict[str, tuple[int, ...]] = {}
    for position, name, attention in attention_layers(unet):
        own, seen, inner = layer_widths(attention)
        at = f"ip_adapter.{position}"
        if is_cross(name):
            wanted[f"{at}.to_k_ip.weight"] = wanted[f"{at}.to_v_ip.weight"] = (inner, seen)
        if has_lora:
            for target, into, out in (
                ("q", own, inner),
                ("k", seen, inner),
                ("v", seen, inner),
                ("out", inner, own),
            ):
                down = state.get(f"{at}.to_{target}_lora.down.weight")
                rank = 0 if down is None else down.shape[0]  # the rank is the file's own choice
                wanted[f"{at}.to_{target}_lora.down.weight"] = (rank, into)
                wanted[f"{at}.to_{target}_lora.up.weight"] = (out, rank)
    return {key: Size(shape) for key, shape in wanted.items()}


def _fit_message(problems: list[str], guess: str, text_width: int) -> str:
    more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
    here = BASE_MODELS.get(text_width, "another base model")
    return (
        f"the adapter does not fit this UNet: {problems[0]}{more}. "
        f"Its shapes are those of {guess}; this UNet has text width {text_width} ({here})"
    )
