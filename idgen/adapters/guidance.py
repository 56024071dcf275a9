"""Guidance of the identity apart from that of the text.

With ``u`` the answer to neither, ``t`` to the text alone, ``ti`` to text and identity, and scales g_t, g_i::

    u + g_t (t - u) + g_i (ti - t)

as InstructPix2Pix does with a picture (Brooks et al. 2022, https://arxiv.org/abs/2211.09800, eq. 3, in the
other order). The pipelines of diffusers compute ``u + g_t (c - u)`` from two rows a picture: here the UNet
sees a third one, and ``c = t + (g_i / g_t) (ti - t)``.

Shapes: P pictures, hence 2 P rows in diffusers and 3 P in the UNet: negative, both, text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput
from torch import Tensor, nn

from idgen.errors import ConfigError


@contextmanager
def guided_apart(unet: UNet2DConditionModel, num_pictures: int, ratio: float) -> Iterator[None]:
    """Let each call of ``unet`` inside the block weigh the identity by ``ratio``, g_i / g_t.

    The rows must be conditioned by a hook that is registered after this one: it sees 3 P rows.

    Raises:
        ConfigError: if the UNet is called without negative rows; guidance above 1 makes them.
    """

    def widen(_unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        sample: Tensor = args[0] if args else kwargs["sample"]
        if len(sample) != 2 * num_pictures:
            raise ConfigError(
                f"guiding the identity apart needs a negative row for each picture: the UNet was called with "
                f"{len(sample)} rows for {num_pictures} pictures"
            )
        return _widened(args, num_pictures), _widened(kwargs, num_pictures)

    def fold(_unet: nn.Module, _args: Any, output: Any) -> Any:  # noqa: ANN401 - what a UNet returns
        sample = output[0]
        nothing, both, text = sample.chunk(3)
        folded = torch.cat([nothing, text + ratio * (both - text)])
        return (folded,) if isinstance(output, tuple) else UNet2DConditionOutput(sample=folded)

    handles = [
        unet.register_forward_pre_hook(widen, with_kwargs=True),
        unet.register_forward_hook(fold),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _widened(value: Any, num_pictures: int) -> Any:  # noqa: ANN401 - arguments of a UNet
    """The same with a third row for each picture, a copy of its second, in every tensor that has rows."""
    if isinstance(value, Tensor):
        has_rows = value.ndim > 0 and len(value) == 2 * num_pictures
        return torch.cat([value, value[num_pictures:]]) if has_rows else value
    if isinstance(value, tuple | list):
        return type(value)(_widened(item, num_pictures) for item in value)
    if isinstance(value, dict):
        return {name: _widened(item, num_pictures) for name, item in value.items()}
    return value
