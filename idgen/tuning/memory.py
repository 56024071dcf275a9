"""How much memory a training step will need, counted on tensors without storage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

GIB = 2**30
OPTIMIZER_BYTES = 8  # AdamW keeps two float32 numbers for each weight


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of a training step.

    Attributes:
        weights: of all modules.
        trained: gradients, optimizer and moving average of the weights that train.
        activations: what is kept of the forward pass for the backward one.
    """

    weights: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, without what libraries take for themselves."""
        return self.weights + self.trained + self.activations

    def __str__(self) -> str:
        parts = {"weights": self.weights, "training state": self.trained, "activations": self.activations}
        said = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
        return f"about {_gib(self.total)} of memory ({said}), and what the libraries take themselves"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def weight_bytes(modules: Mapping[str, nn.Module]) -> int:
    """Of all parameters and buffers."""
    return sum(value.nbytes for module in modules.values() for value in module.state_dict().values())


def trained_bytes(weights: Mapping[str, Tensor], *, with_average: bool) -> int:
    """Gradient, optimizer state and moving average."""
    each = 4 + OPTIMIZER_BYTES + (4 if with_average else 0)
    return sum(value.numel() for value in weights.values()) * each


def activation_bytes(module: nn.Module, *inputs: Any, **settings: Any) -> int:  # noqa: ANN401 - the module's
    """What autograd keeps of one call for the backward pass, each storage once, without the weights.

    Computed on the meta device, where tensors have shapes and no numbers: it takes no memory and little
    time.

    Args:
        module: as it will train: which weights want gradients decides what is kept.
        inputs: of the call; tensors of the right shapes, whatever they hold.
        settings: likewise.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    without_numbers = {
        name: value.detach().to("meta").requires_grad_(value.requires_grad) for name, value in state.items()
    }
    weights = {value.untyped_storage()._cdata for value in without_numbers.values()}
    kept: dict[int, UntypedStorage] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other storage gets its address
        return value

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda value: value):
        functional_call(module, without_numbers, _on_meta(inputs), _on_meta(settings))
    return sum(storage.nbytes() for storage in kept.values())


def _on_meta(value: Any) -> Any:  # noqa: ANN401 - tensors in tuples and dicts
    if isinstance(value, Tensor):
        return value.detach().to("meta").requires_grad_(value.requires_grad)
    if isinstance(value, tuple):
        return tuple(_on_meta(item) for item in value)
    return {key: _on_meta(item) for key, item in value.items()} if isinstance(value, dict) else value
