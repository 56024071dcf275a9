"""Axes of a grammar: attributes of people or pictures, with what each value says and how it is measured."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from idgen.config import from_mapping, nearest
from idgen.errors import ConfigError
from idgen.synth.adults import refuse_minors
from idgen.synth.shards import RESERVED as SHARD_COLUMNS

# Columns of plans, and of the manifests that are made of them.
RESERVED = (
    *("identity", "person", "picture", "seed", "prompt", "negative_prompt"),
    *("key", "path", "sha256", "decision", *SHARD_COLUMNS),
)
MAX_VALUES = 2**15 - 1  # of an axis; plans count them in 16 bits
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_VALUE_NAME = re.compile(r"[^\s,;:|/\\{}\x00-\x1f](?:[^,;:|/\\{}\x00-\x1f]{0,58}[^\s,;:|/\\{}\x00-\x1f])?")


@dataclass(frozen=True, kw_only=True)
class Check:
    """How a value is measured in a finished picture: ``min <= measured <= max``.

    Attributes:
        probe: name of the measurement; the grammar does not know which ones there are.
        min: lower bound, or None.
        max: upper bound, or None.
    """

    probe: str
    min: float | None = None
    max: float | None = None

    def holds(self, measured: float) -> bool:
        """Whether a measured number lies within the bounds; one that is not a number does not."""
        low = -math.inf if self.min is None else self.min
        high = math.inf if self.max is None else self.max
        return low <= measured <= high


@dataclass(frozen=True, kw_only=True)
class Value:
    """One value of an axis.

    Attributes:
        words: what a prompt says, in one or several wordings; "" says nothing.
        weight: how often, beside the other values; 0 is never drawn, and may be given by a source.
        negative: said in the negative prompt.
        check: how it is measured, where that can be done.
        finish: kind of distortion -> strength, done to the finished picture.
    """

    words: tuple[str, ...] | str
    weight: float = 1.0
    negative: str = ""
    check: Check | None = None
    finish: Mapping[str, float] = field(default_factory=dict)

    @property
    def wordings(self) -> tuple[str, ...]:
        """The words as a tuple."""
        return (self.words,) if isinstance(self.words, str) else self.words


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An attribute: its values by name, in the order of the file.

    Attributes:
        is_personal: whether it stays with a person.
        otherwise: name of the value where a source of people does not say; such an axis is never drawn.
    """

    name: str
    values: Mapping[str, Value]
    is_personal: bool
    otherwise: str | None = None

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the values, in order."""
        return tuple(value.weight for value in self.values.values())

    def index(self, value: str, at: str) -> int:
        """The number of a value.

        Raises:
            ConfigError: if there is none of this name; ``at`` says where it was asked for.
        """
        try:
            return list(self.values).index(value)
        except ValueError:
            known = list(self.values)
            hint = f"{nearest(str(value), known)} (known: {', '.join(known)})"
            raise ConfigError(f"{at}: {value!r} is no value of {self.name}{hint}") from None


def group_of(values: object, at: str) -> dict[str, Any]:
    """A group of settings, empty where there is none.

    Raises:
        ConfigError: if it is something else.
    """
    if not isinstance(values, Mapping | None):
        raise ConfigError(f"{at} must be a group of settings, got {values!r}")
    return dict(values or {})


def line_of(value: object, at: str) -> str:
    """Text on one line.

    Raises:
        ConfigError: if it is something else.
    """
    if not isinstance(value, str) or any(ord(letter) < 32 for letter in value):
        raise ConfigError(f"{at} must be text on one line, got {value!r}")
    return value


def axis_of(name: object, values: object, is_personal: bool, otherwise: object, at: str) -> Axis:
    """The axis of plain data.

    Args:
        name: of the axis.
        values: name of a value -> its words, or a group of settings.
        is_personal: whether it stays with a person.
        otherwise: name of the value of people whose source does not say, or None.
        at: where it stands, for messages.

    Raises:
        ConfigError: if it says something that cannot be, or means a minor.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{at}: the name of an axis is small letters, digits and _, got {name!r}")
    if name in RESERVED:
        raise ConfigError(f"{at}: {name} is a column that every dataset has; the axis needs another name")
    refuse_minors(name, at)
    group = group_of(values, at)
    if not 1 <= len(group) <= MAX_VALUES:
        raise ConfigError(f"{at} needs 1 to {MAX_VALUES} values, got {len(group)}")
    axis = Axis(
        name=name,
        values={value: _value(name, value, settings, f"{at}.{value}") for value, settings in group.items()},
        is_personal=is_personal,
    )
    if otherwise is None:
        check_weights(axis.weights, at)
        return axis
    axis.index(otherwise if isinstance(otherwise, str) else repr(otherwise), f"{at}: otherwise")
    return dataclasses.replace(axis, otherwise=otherwise)


def _value(axis: str, name: object, settings: object, at: str) -> Value:
    if not isinstance(name, str):
        raise ConfigError(f"{at}: the name of a value must be text; put it in quotes, got {name!r}")
    if not _VALUE_NAME.fullmatch(name):
        raise ConfigError(
            f"{at}: the name of a value is 1 to 60 letters without , ; : | / \\ or braces, got {name!r}"
        )
    refuse_minors(name, at)
    refuse_minors(f"{axis} {name}", at)  # such as "age 17"
    if isinstance(settings, str | list):
        settings = {"words": settings}
    value = from_mapping(Value, group_of(settings, at), at=at)
    for number, words in enumerate(value.wordings):
        refuse_minors(line_of(words, f"{at}.words[{number}]"), f"{at}.words[{number}]")
        if "{" in words or "}" in words:
            raise ConfigError(f"{at}.words[{number}]: axes are named in templates only, got {words!r}")
    if not value.wordings:
        raise ConfigError(f'{at}.words needs one wording at least; "" says nothing')
    line_of(value.negative, f"{at}.negative")
    check_weight(value.weight, f"{at}.weight")
    if value.check is not None:
        _check_bounds(value.check, f"{at}.check")
    if not isinstance(value.finish, dict) or not all(isinstance(kind, str) for kind in value.finish):
        raise ConfigError(f"{at}.finish must be `kind: strength`, got {value.finish!r}")
    for kind, strength in value.finish.items():
        check_weight(strength, f"{at}.finish.{kind}")
    return value


def _check_bounds(check: Check, at: str) -> None:
    bounds = [bound for bound in (check.min, check.max) if bound is not None]
    if not check.probe.strip():
        raise ConfigError(f"{at}.probe must name a measurement, got {check.probe!r}")
    if not bounds:
        raise ConfigError(f"{at} needs min or max, or both: without a bound everything passes")
    if not all(math.isfinite(bound) for bound in bounds) or sorted(bounds) != bounds:
        raise ConfigError(f"{at} needs finite bounds with min <= max, got min {check.min}, max {check.max}")


def check_weight(weight: object, at: str) -> None:
    """Let a number pass that can be a weight.

    Raises:
        ConfigError: if it is negative, not finite, or no number.
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ConfigError(f"{at} must be a number from 0 up, got {weight!r}")


def check_weights(weights: tuple[float, ...], at: str) -> None:
    """Let weights pass of which one is not 0.

    Raises:
        ConfigError: if all are.
    """
    if not any(weights):
        raise ConfigError(f"{at}: all weights are 0, so that nothing can be drawn; one must be more")


def value_data(value: Value) -> dict[str, Any]:
    """Plain data that is read back as the same value; what was not set is left out."""
    data: dict[str, Any] = {"words": list(value.wordings), "weight": value.weight}
    if value.negative:
        data["negative"] = value.negative
    if value.check is not None:
        bounds = dataclasses.asdict(value.check)
        data["check"] = {name: bound for name, bound in bounds.items() if bound is not None}
    if value.finish:
        data["finish"] = dict(value.finish)
    return data
