"""Adapters from the tensors of a file: all of them, and no others.

A number that no card gives, such as the width of a layer or the tokens of a reference, is read from shapes.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from idgen.adapters.attention import LayerWeights
from idgen.adapters.families import FAMILY_NAMES, Family
from idgen.adapters.install import IDAdapter
from idgen.adapters.projection import FaceIDProjection
from idgen.adapters.wplus import WPlusAdapter, WPlusLayer, WPlusProjection
from idgen.errors import WeightsError

_FACEID_LAYER = re.compile(r"ip_adapter\.(\d+)\.to_(?:[kv]_ip|(?:q|k|v|out)_lora\.(?:down|up))\.weight")
_WPLUS_LAYER = re.compile(r"wplus_adapter\.(\d+)\.to_[kvq]_wplus\.weight")
_WPLUS_GROUP = re.compile(r"w_proj\.proj_(\d+)\.weight")


def build_adapter(
    state: Mapping[str, Tensor], source: str, family: Family, *, style_dim: int
) -> IDAdapter | WPlusAdapter:
    """The adapter whose tensors these are, in float32 and without gradients.

    Args:
        state: tensors under the flat keys of a published file.
        source: the file, for messages.
        family: which kind it is.
        style_dim: width of the style vectors that a W+ adapter reads.

    Raises:
        WeightsError: if a tensor is missing or one too many, or its shape does not fit its neighbours.
    """
    for key, tensor in state.items():
        if tensor.ndim == 0 or not tensor.is_floating_point():
            raise WeightsError(
                f"{source}: {key} is {tuple(tensor.shape)} of {tensor.dtype}, expected float weights"
            )
    adapter = _empty_faceid(state, source) if family == "faceid" else _empty_wplus(state, source, style_dim)
    _check_keys(adapter.state_dict(), state, source, FAMILY_NAMES[family])
    adapter.load_state_dict(state)
    return adapter.eval().requires_grad_(False)


def _by_layer(state: Mapping[str, Tensor], layer_key: re.Pattern[str]) -> dict[int, dict[str, Tensor]]:
    """The tensors of each layer by position, under the ends of their keys: ``to_k_ip.weight``."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if match := layer_key.fullmatch(key):
            layers.setdefault(int(match[1]), {})[key.split(".", 2)[2]] = tensor
    return layers


def _empty_wplus(state: Mapping[str, Tensor], source: str, style_dim: int) -> WPlusAdapter:
    layers = {}
    for k, tensors in _by_layer(state, _WPLUS_LAYER).items():
        inner, kv = _matrix(tensors, "to_k_wplus.weight", f"{source}, layer {k}")
        layers[k] = WPlusLayer(kv, inner)
    return WPlusAdapter(_empty_w_proj(state, source, style_dim), layers)


def _empty_w_proj(state: Mapping[str, Tensor], source: str, style_dim: int) -> WPlusProjection:
    last = max((int(match[1]) for match in map(_WPLUS_GROUP.fullmatch, state) if match), default=0)
    groups, cross_dim = [], 0
    for token in range(last + 1):
        key = f"w_proj.proj_{token}.weight"
        cross_dim, width = _matrix(state, key, source)
        if width % style_dim or not width:
            raise WeightsError(
                f"{source}: {key} reads {width} numbers, no multiple of the {style_dim} of a style vector; "
                "another width than 512 must be said as style_dim in the JSON beside the file"
            )
        groups.append(width // style_dim)
    return WPlusProjection(groups, style_dim, cross_dim)


def _empty_faceid(state: Mapping[str, Tensor], source: str) -> IDAdapter:
    has_lora = any("_lora." in key for key in state)
    layers = _by_layer(state, _FACEID_LAYER)
    return IDAdapter(
        _empty_projection(state, source),
        {k: _empty_layer(tensors, source, k, has_lora=has_lora) for k, tensors in layers.items()},
    )


def _empty_projection(state: Mapping[str, Tensor], source: str) -> FaceIDProjection:
    hidden_dim, id_dim = _matrix(state, "image_proj.proj.0.weight", source)
    rows, _ = _matrix(state, "image_proj.proj.2.weight", source)
    cross_dim = state["image_proj.norm.weight"].shape[0]
    if rows % cross_dim:
        raise WeightsError(
            f"{source}: image_proj.proj.2.weight has {rows} rows, no multiple of the width {cross_dim}"
        )
    return FaceIDProjection(id_dim, cross_dim, rows // cross_dim, hidden_dim)


def _empty_layer(tensors: Mapping[str, Tensor], source: str, k: int, *, has_lora: bool) -> LayerWeights:
    at = f"{source}, layer {k}"
    cross = k % 2 == 1  # published files count self-attention layers even, cross-attention layers odd
    if not has_lora:
        inner, kv = _matrix(tensors, "to_k_ip.weight", at)
        return LayerWeights(inner, kv, inner, cross=cross)
    inner, rank = _matrix(tensors, "to_q_lora.up.weight", at)
    _, own = _matrix(tensors, "to_q_lora.down.weight", at)
    _, kv = _matrix(tensors, "to_k_lora.down.weight", at)
    return LayerWeights(own, kv, inner, cross=cross, lora_rank=rank)


def _matrix(tensors: Mapping[str, Tensor], key: str, at: str) -> tuple[int, int]:
    if key not in tensors:
        raise WeightsError(f"{at}: {key} is missing")
    if tensors[key].ndim != 2:
        raise WeightsError(f"{at}: {key} must be a matrix, got {tuple(tensors[key].shape)}")
    return tensors[key].shape[0], tensors[key].shape[1]


def _check_keys(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str, what_it_is: str
) -> None:
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or surplus:
        lists = [
            f"{what} {', '.join(keys)}"
            for what, keys in (("lacks", missing), ("has no use for", surplus))
            if keys
        ]
        raise WeightsError(f"{source} is no whole {what_it_is}: it {' and '.join(lists)}")
    for key, tensor in wanted.items():
        if tensor.shape != found[key].shape:
            raise WeightsError(
                f"{source}: {key} is {tuple(found[key].shape)}, its neighbours need {tuple(tensor.shape)}"
            )
