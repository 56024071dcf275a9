"""Gives the rows of one pipeline call their identities while the UNet denoises them.

Shapes: P pictures; the UNet sees P rows, or 2 P with guidance (negative rows first, as in diffusers), or 3 P
where the identity is guided apart (`idgen.adapters.guidance`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from idgen.adapters.checkpoint import AdapterFile
from idgen.adapters.guidance import guided_apart
from idgen.adapters.install import IDAdapter, install_adapter
from idgen.adapters.layers import attention_layers, is_cross
from idgen.adapters.rows import IdentityRows, Person, check_features, identity_rows
from idgen.adapters.wplus import WPlusAdapter
from idgen.diffusion.schedule import IDSchedule
from idgen.errors import ConfigError


@contextmanager
def injected(
    unet: UNet2DConditionModel,
    files: Collection[AdapterFile],
    persons: Sequence[Person],
    schedules: Mapping[str, IDSchedule],
    *,
    lora_scale: float,
    num_images: int,
    apart: float | None,
    device: torch.device,
    num_steps: Callable[[], int],
) -> Iterator[None]:
    """A block in which ``unet`` sees these persons by all adapters that read them; just a block for nobody.

    Args:
        unet: whose adapters they are.
        files: the loaded adapters, one of each kind at most; they are moved to the device.
        persons: one a row.
        schedules: by kind of feature, for each of the adapters; ``scale`` has P entries.
        lora_scale: strength of a face-vector adapter's LoRA part.
        num_images: pictures a row.
        apart: what `guided_apart` weighs the identity by; with the text's guidance where None.
        device: of the rows.
        num_steps: number of calls in the whole denoising, asked once it runs.

    Raises:
        ConfigError: if there is somebody, but no adapter.
        IdentityError: if no adapter reads a feature of somebody.
        EncoderMismatchError: if a feature is of another encoder than its adapter's.
    """
    if all(person is None for person in persons):
        yield
        return
    if not files:
        raise ConfigError(
            "an identity was given, but no adapter is loaded; load one with pipe.load_adapter(FILE)"
        )
    check_features(persons, files)
    rows = [(file.adapter, identity_rows(persons, file, num_images)) for file in files]
    with ExitStack() as blocks:
        if apart is not None:  # before the conditioning, which must see the rows that it adds
            blocks.enter_context(guided_apart(unet, len(persons) * num_images, apart))
        for adapter, its_rows in rows:
            if not its_rows.is_somebody.any():
                continue
            adapter.to(device, unet.dtype)
            if not adapter.is_on(unet):  # the pipeline's UNet was exchanged
                install_adapter(unet, adapter)
            settings = {"lora_scale": lora_scale} if isinstance(adapter, IDAdapter) else {}
            schedule = schedules[adapter.feature_kind]
            blocks.enter_context(
                conditioned(unet, adapter, its_rows, schedule, num_steps=num_steps, **settings)
            )
        yield


@contextmanager
def conditioned(
    unet: UNet2DConditionModel,
    adapter: IDAdapter | WPlusAdapter,
    rows: IdentityRows,
    schedule: IDSchedule,
    *,
    num_steps: Callable[[], int],
    **settings: float,
) -> Iterator[None]:
    """Condition each call of ``unet`` inside the block as the next step of one denoising; none after it.

    The step is counted from the calls themselves, hence right for every sampler, those that call the UNet
    twice a step included. Whether guidance doubles the rows is seen from the batch, at every step anew.

    Args:
        unet: with ``adapter`` installed.
        adapter: moved to the device of the rows.
        rows: who.
        schedule: its ``scale`` has P entries.
        num_steps: number of calls in the whole denoising, asked once it runs.
        settings: what else the adapter's ``condition`` takes: ``lora_scale``, strength of the LoRA part.
    """
    step = _Step(adapter, rows, schedule, settings, num_steps)
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
        adapter: IDAdapter | WPlusAdapter,
        rows: IdentityRows,
        schedule: IDSchedule,
        settings: Mapping[str, Any],
        num_steps: Callable[[], int],
    ) -> None:
        self._adapter, self._rows, self._schedule = adapter, rows, schedule
        self._settings, self._num_steps = settings, num_steps
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
        times = len(sample) // len(embedding)
        nobody = torch.zeros_like(embedding)  # of guidance: the zero vector, or the zero code
        rows = embedding if times == 1 else torch.cat([nobody, embedding, nobody][:times])
        settings = dict(self._settings)
        if mask is not None:
            settings["mask"] = torch.cat([mask] * times).to(sample.device)
        self._adapter.condition(rows.to(sample.device), scale, layer_scale=self.layer_scale, **settings)
        self._conditioned_rows = len(sample)
