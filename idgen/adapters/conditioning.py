"""Gives the rows of one pipeline call their identities while the UNet denoises them.

Shapes: P pictures; the UNet sees P rows, or 2 P with guidance (negative rows first, as in diffusers), or 3 P
where the identity is guided apart (`idgen.adapters.guidance`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from idgen.adapters.install import IDAdapter
from idgen.adapters.layers import attention_layers, is_cross
from idgen.adapters.rows import IdentityRows
from idgen.diffusion.schedule import IDSchedule
from idgen.errors import ConfigError


@contextmanager
def conditioned(
    unet: UNet2DConditionModel,
    adapter: IDAdapter,
    rows: IdentityRows,
    schedule: IDSchedule,
    *,
    lora_scale: float,
    num_steps: Callable[[], int],
) -> Iterator[None]:
    """Condition each call of ``unet`` inside the block as the next step of one denoising; none after it.

    The step is counted from the calls themselves, hence right for every sampler, those that call the UNet
    twice a step included. Whether guidance doubles the rows is seen from the batch, at every step anew.

    Args:
        unet: with ``adapter`` installed.
        adapter: moved to the device of the rows.
        rows: who.
        schedule: its ``scale`` has P entries.
        lora_scale: strength of the LoRA part.
        num_steps: number of calls in the whole denoising, asked once it runs.
    """
    step = _Step(adapter, rows, schedule, lora_scale, num_steps)
    step.layer_scale = schedule.layer_scale(name for _, name, _ in attention_layers(unet) if is_cross(name))
    handle = unet.register_forward_pre_hook(step, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        adapter.clear()


class _Step:
    """Forward pre-hook of the UNet."""

    layer_scale: dict[str, float]

    def __init__(
        self,
        adapter: IDAdapter,
        rows: IdentityRows,
        schedule: IDSchedule,
        lora_scale: float,
        num_steps: Callable[[], int],
    ) -> None:
        self._adapter, self._rows, self._schedule = adapter, rows, schedule
        self._lora_scale, self._num_steps = lora_scale, num_steps
        self._index = 0
        self._conditioned_rows = 0
        self._window: float | None = None

    def __call__(self, _unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample: Tensor = args[0] if args else kwargs["sample"]
        window = self._schedule.window(self._index, self._num_steps())
        self._index += 1
        scale = self._scale(len(sample)) * window
        if len(sample) != self._conditioned_rows:
            self._condition(sample, scale)
        elif window != self._window:
            self._adapter.set_strength(scale)
        self._window = window

    def _scale(self, num_rows: int) -> Tensor:
        scale = torch.tensor(self._schedule.scale) * self._rows.is_somebody
        if num_rows not in (len(scale), 2 * len(scale), 3 * len(scale)):
            raise ConfigError(
                f"the UNet was called with {num_rows} rows for {len(scale)} pictures with an identity"
            )
        return scale.repeat(num_rows // len(scale))

    def _condition(self, sample: Tensor, scale: Tensor) -> None:
        embedding, mask = self._rows.id_embedding, self._rows.mask
        if len(sample) > len(embedding):  # guidance: the unconditional identity is the zero vector
            times = len(sample) // len(embedding)
            nobody = torch.zeros_like(embedding)
            embedding = torch.cat([nobody, embedding, nobody][:times])
            mask = None if mask is None else torch.cat([mask] * times)
        self._adapter.condition(
            embedding.to(sample.device),
            scale,
            mask=None if mask is None else mask.to(sample.device),
            lora_scale=self._lora_scale,
            layer_scale=self.layer_scale,
        )
        self._conditioned_rows = len(sample)
