"""Networks built empty from the keys and shapes of a file, and filled with its tensors.

Empty networks live on torch's meta device, which keeps shapes and no numbers: an e4e file of 1.2 GB is held
in memory once, and a wrong one is refused before anything is copied.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from idgen.errors import ConfigError, WeightsError
from idgen.stylegan.compact import CompactEncoder
from idgen.stylegan.generator import FIRST_SIZE_PX, StyleGenerator
from idgen.stylegan.inversion import Encoder4Editing, GradualStyleEncoder
from idgen.stylegan.model import CodeEncoder

M = TypeVar("M", bound=nn.Module)
# Tensors by key, and what the file says of the encoder beside them, to an encoder of those shapes.
EmptyEncoder = Callable[[Mapping[str, Tensor], Mapping[str, Any]], CodeEncoder]


def empty_generator(state: Mapping[str, Tensor]) -> StyleGenerator:
    """The generator that has tensors of such names and widths; `check_tensors` compares the rest.

    Raises:
        WeightsError: if a tensor that says a width is missing or no such tensor.
    """
    num_levels = _count(state, r"to_rgbs\.(\d+)\.")
    if num_levels == 0:
        raise WeightsError("decoder.to_rgbs.0 is missing: a generator has pictures of 8 pixels or more")
    sizes = [FIRST_SIZE_PX << level for level in range(num_levels + 1)]
    keys = ["conv1.conv.weight", *(f"convs.{2 * level}.conv.weight" for level in range(num_levels))]
    channels = {size: _shape(state, "decoder.", key, 5)[1] for size, key in zip(sizes, keys, strict=True)}
    _, style_dim = _shape(state, "decoder.", "conv1.conv.modulation.weight", 2)
    with torch.device("meta"):
        return StyleGenerator(sizes[-1], style_dim, channels, _count(state, r"style\.(\d+)\.", first=1))


def empty_e4e(state: Mapping[str, Tensor], _settings: Mapping[str, Any]) -> Encoder4Editing:
    """An e4e encoder as wide and deep as its tensors.

    Raises:
        WeightsError: if a tensor that says a width is missing or no such tensor.
    """
    return Encoder4Editing(*_pyramid_widths(state))


def empty_psp(state: Mapping[str, Tensor], _settings: Mapping[str, Any]) -> GradualStyleEncoder:
    """A pSp encoder as wide and deep as its tensors.

    Raises:
        WeightsError: if a tensor that says a width is missing or no such tensor.
    """
    return GradualStyleEncoder(*_pyramid_widths(state))


def empty_compact(_state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> CompactEncoder:
    """An encoder of idgen's own, as its settings say.

    Raises:
        WeightsError: if these are not its settings.
    """
    try:
        return CompactEncoder(**settings)
    except (TypeError, ConfigError) as error:
        raise WeightsError(f"the settings of the compact encoder cannot be used: {error}") from None


def _pyramid_widths(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Number of codes, width of a code, channels of the first maps."""
    style_dim, _ = _shape(state, "encoder.", "styles.0.linear.weight", 2)
    return (
        _count(state, r"styles\.(\d+)\."),
        style_dim,
        _shape(state, "encoder.", "input_layer.0.weight", 4)[0],
    )


def _count(state: Mapping[str, Tensor], pattern: str, first: int = 0) -> int:
    """How many parts of a numbered name there are; a gap ends the count, and what follows it is surplus."""
    numbers = {int(match[1]) for key in state if (match := re.match(pattern, key))}
    count = 0
    while first + count in numbers:
        count += 1
    return count


def _shape(state: Mapping[str, Tensor], at: str, key: str, num_dims: int) -> tuple[int, ...]:
    if key not in state:
        raise WeightsError(f"{at}{key} is missing")
    shape = tuple(state[key].shape)
    if len(shape) != num_dims or 0 in shape:
        raise WeightsError(f"{at}{key} must have {num_dims} dimensions, none of them 0, got {shape}")
    return shape


def check_tensors(empty: nn.Module, state: Mapping[str, Tensor], at: str) -> None:
    """Compare the tensors of a file with those that a network has.

    Args:
        empty: the network, on the meta device.
        state: tensors by key.
        at: what stands before a key in the file, for messages: ``encoder.``.

    Raises:
        WeightsError: if one is missing, surplus, of another shape, or whole numbers instead of others; the
            first is named and the others are counted.
    """
    wanted = empty.state_dict()
    wrong = [
        *(f"{at}{k} {_described(wanted[k])} is missing" for k in wanted if k not in state),
        *(f"{at}{k} {_described(state[k])} has no place" for k in state if k not in wanted),
        *(
            f"{at}{key} is {_described(state[key])}, its neighbours need {_described(tensor)}"
            for key, tensor in wanted.items()
            if key in state and _described(state[key]) != _described(tensor)
        ),
    ]
    if wrong:
        raise WeightsError(wrong[0] + and_more(wrong))


def and_more(wrong: Sequence[object]) -> str:
    """How many there are besides the first, for a message that names that one."""
    return f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""


def fill(empty: M, state: Mapping[str, Tensor]) -> M:
    """Put the tensors of a file into an empty network, in float32, frozen and in evaluation mode.

    Args:
        empty: on the meta device; it takes the tensors over.
        state: what `check_tensors` has let pass.
    """
    numbers = {k: t.float() if t.is_floating_point() else t for k, t in state.items()}
    empty.load_state_dict(numbers, assign=True)
    return empty.eval().requires_grad_(False)


def _described(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"
