"""A small grammar of portraits: which attributes people and pictures have, and how a prompt says them."""

import dataclasses
import hashlib
import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from idgen.config import from_mapping, nearest, read_yaml
from idgen.errors import ConfigError
from idgen.synth.adults import refuse_minors, refuse_no_adults
from idgen.synth.axes import (
    Axis,
    Check,
    Value,
    axis_of,
    check_weight,
    check_weights,
    group_of,
    line_of,
    value_data,
)

FORMAT = 1
PORTRAITS = Path(__file__).with_name("portraits.yaml")


@dataclass(frozen=True, kw_only=True)
class Template:
    """A prompt with ``{axis}`` where the words of an axis go."""

    text: str
    weight: float = 1.0

    @property
    def names(self) -> list[str]:
        """The axes it speaks of."""
        return [name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None]

    def say(self, words: Mapping[str, str]) -> str:
        """The prompt; what says nothing takes its comma along."""
        said = self.text.format_map(words)
        return " ".join(re.sub(r"\s*,[\s,]*", ", ", said).split()).strip(" ,")


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """Axes, templates and what must not come together. Read one with `read_grammar`.

    Attributes:
        axes: by name; those of people first.
        templates: at least one.
        negative: the negative prompt of every picture.
        forbidden: axis -> values that must not come together.
    """

    axes: Mapping[str, Axis]
    templates: tuple[Template, ...]
    negative: str
    forbidden: tuple[Mapping[str, tuple[str, ...]], ...]

    def axis(self, name: str, at: str = "the grammar") -> Axis:
        """The axis of this name.

        Raises:
            ConfigError: if there is none.
        """
        if name not in self.axes:
            known = list(self.axes)
            raise ConfigError(
                f"{at}: there is no axis {name!r}{nearest(str(name), known)} (known: {', '.join(known)})"
            )
        return self.axes[name]

    @property
    def personal(self) -> tuple[Axis, ...]:
        """Axes of people."""
        return tuple(axis for axis in self.axes.values() if axis.is_personal)

    @property
    def pictorial(self) -> tuple[Axis, ...]:
        """Axes of pictures."""
        return tuple(axis for axis in self.axes.values() if not axis.is_personal)

    def value(self, axis: str, value: str) -> Value:
        """One value of one axis.

        Raises:
            ConfigError: if there is no such axis or value.
        """
        found = self.axis(axis)
        return list(found.values.values())[found.index(value, "the grammar")]

    def check_of(self, axis: str, value: str) -> Check | None:
        """How a value is measured in a finished picture; None where the grammar does not say."""
        return self.value(axis, value).check

    def finish_of(self, axis: str, value: str) -> Mapping[str, float]:
        """What is done to a finished picture: kind of distortion -> strength."""
        return self.value(axis, value).finish

    def weighted(
        self, distribution: Mapping[str, Mapping[str, float]], at: str = "distribution"
    ) -> "Grammar":
        """The grammar with other weights on some axes; a value that is not named there gets weight 0.

        Args:
            distribution: axis -> value -> weight; counts are weights too.
            at: where it comes from, for messages.

        Raises:
            ConfigError: for unknown axes or values, weights that cannot be, and axes that are never drawn.
        """
        axes = dict(self.axes)
        for name, weights in distribution.items():
            axis = self.axis(name, at)
            if axis.otherwise is not None:
                raise ConfigError(
                    f"{at}.{name}: {name} comes from the source of the people and is never drawn"
                )
            if not isinstance(weights, Mapping):
                raise ConfigError(f"{at}.{name} must give weights as `value: weight`, got {weights!r}")
            for value, weight in weights.items():
                axis.index(value, f"{at}.{name}")
                check_weight(weight, f"{at}.{name}.{value}")
            changed = {
                value: dataclasses.replace(found, weight=float(weights.get(value, 0)))
                for value, found in axis.values.items()
            }
            axes[name] = dataclasses.replace(axis, values=changed)
            check_weights(axes[name].weights, f"{at}.{name}")
        return dataclasses.replace(self, axes=axes)

    def to_data(self) -> dict[str, Any]:
        """Plain data that `grammar_from` brings back: what a plan carries along."""
        groups: dict[str, Any] = {"person": {}, "picture": {}}
        for axis in self.axes.values():
            values = {name: value_data(value) for name, value in axis.values.items()}
            groups["person" if axis.is_personal else "picture"][axis.name] = values
        return {
            "format": FORMAT,
            **groups,
            "otherwise": {axis.name: axis.otherwise for axis in self.personal if axis.otherwise is not None},
            "templates": [{"text": template.text, "weight": template.weight} for template in self.templates],
            "negative": self.negative,
            "forbidden": [{name: list(values) for name, values in rule.items()} for rule in self.forbidden],
        }

    @cached_property
    def sha256(self) -> str:
        """Of what the grammar says: comments and the layout of its file do not count."""
        text = json.dumps(self.to_data(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def read_grammar(path: str | Path | None = None) -> Grammar:
    """The grammar of a YAML file.

    Args:
        path: of the file; by default the embedded grammar of portraits.

    Raises:
        ConfigError: if the file is missing, is no YAML, or says something that cannot be.
    """
    path = PORTRAITS if path is None else Path(path).expanduser()
    try:
        path.open("rb").close()
    except OSError as error:
        way_out = "leave the grammar out for that of portraits"
        raise ConfigError(f"cannot read the grammar {path}: {error.strerror}; {way_out}") from None
    return grammar_from(read_yaml(path), str(path))


def grammar_from(data: Mapping[str, Any], at: str) -> Grammar:
    """The grammar of plain data, such as that of a YAML file.

    Args:
        data: laid out as ``portraits.yaml``.
        at: where it comes from, for messages.

    Raises:
        ConfigError: if it says something that cannot be, means a minor, or steers away from adults.
    """
    known = ("format", "person", "otherwise", "picture", "templates", "negative", "forbidden")
    for key in data:
        if key not in known:
            raise ConfigError(
                f"{at}: {key} is no part of a grammar{nearest(str(key), known)} (known: {', '.join(known)})"
            )
    if data.get("format") != FORMAT:
        raise ConfigError(f"{at}: a grammar of `format: {FORMAT}` is needed, got {data.get('format')!r}")
    otherwise = group_of(data.get("otherwise"), f"{at}: otherwise")
    axes: dict[str, Axis] = {}
    for kind in ("person", "picture"):
        for name, values in group_of(data.get(kind), f"{at}: {kind}").items():
            if name in axes:
                raise ConfigError(f"{at}: {name} is an axis of person and of picture; it can be one of them")
            is_personal = kind == "person"
            rest = otherwise.pop(name, None) if is_personal else None
            axes[name] = axis_of(name, values, is_personal, rest, f"{at}: {kind}.{name}")
    if otherwise:
        name = next(iter(otherwise))
        personal = [axis.name for axis in axes.values() if axis.is_personal]
        raise ConfigError(f"{at}: otherwise.{name} is no axis of person{nearest(str(name), personal)}")
    if all(axis.is_personal for axis in axes.values()):
        raise ConfigError(f"{at}: a grammar needs an axis of `picture` at least")
    negative = line_of(data.get("negative", ""), f"{at}: negative")
    refuse_no_adults(negative, f"{at}: negative")
    for axis in axes.values():
        for name, value in axis.values.items():
            kind = "person" if axis.is_personal else "picture"
            refuse_no_adults(value.negative, f"{at}: {kind}.{axis.name}.{name}.negative")
    grammar = Grammar(
        axes=axes,
        templates=_templates(data.get("templates"), axes, at),
        negative=negative,
        forbidden=(),
    )
    return dataclasses.replace(grammar, forbidden=_forbidden(data.get("forbidden"), grammar, at))


def _templates(entries: object, axes: Mapping[str, Axis], at: str) -> tuple[Template, ...]:
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{at}: templates must be a list of prompts, one at least, got {entries!r}")
    speaking = [axis.name for axis in axes.values() if any(any(v.wordings) for v in axis.values.values())]
    found: list[Template] = []
    for number, entry in enumerate(entries):
        here = f"{at}: templates[{number}]"
        settings = {"text": entry} if isinstance(entry, str) else group_of(entry, here)
        template = from_mapping(Template, settings, at=here)
        _check_template(template, list(axes), speaking, here)
        found.append(template)
    check_weights(tuple(template.weight for template in found), f"{at}: templates")
    return tuple(found)


def _check_template(template: Template, known: list[str], speaking: list[str], at: str) -> None:
    """A prompt must name known axes, and every axis that has something to say."""
    refuse_minors(line_of(template.text, at), at)
    check_weight(template.weight, f"{at}.weight")
    try:
        parts = list(string.Formatter().parse(template.text))
    except ValueError as error:
        raise ConfigError(f"{at}: {template.text!r} has a brace too many or too few: {error}") from None
    names = [name for _, name, _, _ in parts if name is not None]
    for _, name, form, conversion in parts:
        if name is not None and (form or conversion):
            raise ConfigError(
                f"{at}: {{{name}}} takes nothing but the name of an axis, got {template.text!r}"
            )
    for name in names:
        if name not in known:
            listed = ", ".join(known)
            raise ConfigError(f"{at} names an unknown axis {name!r}{nearest(name, known)} (known: {listed})")
    if silent := [name for name in speaking if name not in names]:
        raise ConfigError(
            f"{at} does not name {{{silent[0]}}}: it would be planned and never asked for; "
            f"every template names every axis that has words, got {template.text!r}"
        )


def _forbidden(rules: object, grammar: Grammar, at: str) -> tuple[Mapping[str, tuple[str, ...]], ...]:
    if not isinstance(rules, list | None):
        raise ConfigError(f"{at}: forbidden must be a list of combinations, got {rules!r}")
    found: list[Mapping[str, tuple[str, ...]]] = []
    for number, rule in enumerate(rules or []):
        here = f"{at}: forbidden[{number}]"
        group = group_of(rule, here)
        if len(group) < 2:
            raise ConfigError(
                f"{here} must name two axes at least, got {rule!r}; a weight of 0 forbids one value"
            )
        for name, values in group.items():
            axis = grammar.axis(name, here)
            group[name] = tuple(values) if isinstance(values, list) else (values,)
            for value in group[name]:
                axis.index(value, f"{here}.{name}")
        found.append(group)
    return tuple(found)
