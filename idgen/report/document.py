"""What a report says, before anybody draws it: numbers with intervals, tables, figures, pairs of pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number.

    Attributes:
        value: NaN where it is not defined; ``note`` then says why.
        interval: (lower, upper) end of its 95 % interval, where it has one.
        note: how it is defined, or why it is not.
    """

    value: float
    interval: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text and numbers; every row is as long as ``columns``."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | Measure, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title!r} has {len(self.columns)} columns, a row has {len(row)}")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot. ``alt`` says in words what is to be seen, for those who do not see it."""

    title: str
    png: bytes
    alt: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PicturePair:
    """Two pictures beside each other."""

    left_png: bytes
    right_png: bytes
    caption: str


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of pictures that a person should look at."""

    title: str
    pairs: tuple[PicturePair, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that an evaluation found.

    Attributes:
        kind: which evaluation, as in ``idgen evaluate <kind>``, or "synthesize"; only reports of one kind can
            be compared.
        title: a line for people.
        subject: what was evaluated, as the user named it.
        settings: whatever decides the numbers, as plain data.
        warnings: what a reader must know before believing a number.
        measures: stable slash name such as ``mini/eer`` -> the number.
        per_identity: measure -> identity -> its value; what a paired test needs.
        sections: what is shown, in order.
        data: plain data for other programs, such as curves and the list of each picture.
    """

    kind: str
    title: str
    subject: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    measures: Mapping[str, Measure] = field(default_factory=dict)
    per_identity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sections: tuple[Table | Figure | Pairs, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """What made it: an evaluation, or the making of a dataset."""
        return "idgen synthesize" if self.kind == "synthesize" else f"idgen evaluate {self.kind}"
