"""How strong the identity is: over rows, over the steps of the denoising, and over the layers of the UNet."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from idgen.config import nearest
from idgen.errors import ConfigError

_LAYER = re.compile(r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.attentions\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class IDSchedule:
    """Strength of the identity in row r, at step i of n, in layer l: ``scale[r] * window(i, n) * layers[l]``.

    Attributes:
        scale: strength of each row, finite and >= 0; 0 is the base model, 1 what the adapter trained with.
        id_start: the identity has a say from this part of the denoising on, in [0, 1); 0.2 leaves the layout
            of the picture to the prompt.
        id_end: and up to this part, in (0, 1].
        layers: factors by layer group, finite and >= 0: ``{"down": 0.5, "mid": 0, "up.1": 0.8}``.
            A group is ``down``, ``mid`` or ``up``, a block of it, or one attention of a block; the finest
            name that fits a layer counts, and layers that nothing names keep 1.
        prefix: of the arguments that these values came from, for messages: ``id`` of ``id_scale``.

    Raises:
        ConfigError: if a value is outside of its range.
    """

    scale: tuple[float, ...]
    id_start: float = 0.0
    id_end: float = 1.0
    layers: Mapping[str, float] = field(default_factory=dict)
    prefix: str = "id"

    def __post_init__(self) -> None:
        name = self.prefix
        for row, value in enumerate(self.scale):
            _check_strength(value, f"{name}_scale" if len(self.scale) == 1 else f"{name}_scale[{row}]")
        if not 0 <= self.id_start < self.id_end <= 1:
            raise ConfigError(
                f"{name}_start and {name}_end are parts of the denoising with 0 <= {name}_start < {name}_end "
                f"<= 1, got {self.id_start} and {self.id_end}; for no identity at all use {name}_scale=0"
            )
        for group, value in self.layers.items():
            _check_strength(value, f"{name}_layers[{group!r}]")

    def window(self, step: int, num_steps: int) -> float:
        """1 while the identity has a say at ``step`` (0-based) of ``num_steps``, else 0."""
        return float(self.id_start <= step / num_steps < self.id_end)

    def layer_scale(self, names: Iterable[str]) -> dict[str, float]:
        """Factor of every cross-attention layer that is named by its path in the UNet.

        Raises:
            ConfigError: if a group of ``layers`` fits none of them; the nearest one is shown.
        """
        groups = {name: _groups(name) for name in names}
        known = list(dict.fromkeys(group for of_layer in groups.values() for group in of_layer))
        for group in self.layers:
            if group not in known:
                near = nearest(str(group), known)
                raise ConfigError(
                    f"{self.prefix}_layers: this UNet has no {group!r}{near} (it has: {', '.join(known)})"
                )
        return {
            name: next((float(self.layers[g]) for g in reversed(of_layer) if g in self.layers), 1.0)
            for name, of_layer in groups.items()
        }


def _check_strength(value: object, at: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{at} must be a finite number >= 0 (0 is the base model), got {value!r}")


def _groups(name: str) -> list[str]:
    """``up_blocks.1.attentions.0...`` -> ``["up", "up.1", "up.1.0"]``, from coarse to fine."""
    match = _LAYER.match(name)
    if match is None:
        return []
    where, block, middle, attention = match.groups()
    parts = [middle, attention] if middle else [where, block, attention]
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
