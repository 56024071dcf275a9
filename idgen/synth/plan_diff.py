"""What changed from one plan to another: pictures that came, went, or are asked for otherwise.

Shapes: N pictures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from idgen.synth.plan import Plan
from idgen.synth.plan_file import NUMBERS


@dataclass(frozen=True, kw_only=True)
class PictureChange:
    """One picture that differs.

    Attributes:
        kind: "added", "removed" or "changed".
        identity: name of the person.
        picture: number of the picture.
        columns: column -> what was there before and is there now; None where there was no picture, or no such
            column.
    """

    kind: str
    identity: str
    picture: int
    columns: Mapping[str, tuple[str | int | None, str | int | None]]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanDiff:
    """What changed; pictures are the same if identity and number are.

    Attributes:
        before: the old plan.
        after: the new one.
        head: part of the metadata -> old and new, where they differ.
        added: rows of the new plan.
        removed: rows of the old one.
        changed: (2, M) rows of both.
        columns: column -> number of changed pictures in which it differs.
    """

    before: Plan
    after: Plan
    head: Mapping[str, tuple[Any, Any]]
    added: np.ndarray
    removed: np.ndarray
    changed: np.ndarray
    columns: Mapping[str, int]

    @property
    def is_empty(self) -> bool:
        """Whether the plans say the same."""
        return not (self.head or len(self.added) or len(self.removed) or self.changed.shape[1])

    def rows(self) -> Iterator[PictureChange]:
        """The pictures that differ: changed ones, removed ones, added ones, each in order."""
        before, after = _Cells(self.before), _Cells(self.after)
        for old, new in self.changed.T.tolist():
            yield _change("changed", before.row(old), after.row(new))
        for row in self.removed.tolist():
            yield _change("removed", before.row(row), {})
        for row in self.added.tolist():
            yield _change("added", {}, after.row(row))


def diff_plans(before: Plan, after: Plan) -> PlanDiff:
    """Compare two plans, picture by picture and in their metadata.

    A plan that was made on its own does not say where its people come from, and differs in that from none.
    """
    old, new = _keys(before, after)
    _, old_rows, new_rows = np.intersect1d(old, new, assume_unique=True, return_indices=True)
    names = {**dict.fromkeys(before.table.column_names), **dict.fromkeys(after.table.column_names)}
    differs = {name: _differs(before, after, name, old_rows, new_rows) for name in names}
    is_changed = np.any(list(differs.values()), axis=0)
    compared = before.head.keys() - (set() if before.source and after.source else {"source"})
    head = {name: (before.head[name], after.head[name]) for name in before.head if name in compared}
    return PlanDiff(
        before=before,
        after=after,
        head={name: pair for name, pair in head.items() if pair[0] != pair[1]},
        added=np.flatnonzero(~np.isin(new, old)),
        removed=np.flatnonzero(~np.isin(old, new)),
        changed=np.stack([old_rows[is_changed], new_rows[is_changed]]),
        columns={name: int(found.sum()) for name, found in differs.items() if found.any()},
    )


def _keys(before: Plan, after: Plan) -> tuple[np.ndarray, np.ndarray]:
    """(N,) of each plan: a number for identity and picture, the same in both."""
    old, new = (plan.numbers("picture") for plan in (before, after))
    old_codes, new_codes = _common_codes(before, after, "identity")
    return old_codes.astype(np.int64) << 32 | old, new_codes.astype(np.int64) << 32 | new


def _common_codes(before: Plan, after: Plan, name: str) -> tuple[np.ndarray, np.ndarray]:
    codes, texts = before.texts(name)
    place = {text: code for code, text in enumerate(texts)}
    new_codes, new_texts = after.texts(name)
    return codes, np.array([place.setdefault(text, len(place)) for text in new_texts])[new_codes]


def _differs(before: Plan, after: Plan, name: str, old_rows: np.ndarray, new_rows: np.ndarray) -> np.ndarray:
    if any(name not in plan.table.column_names for plan in (before, after)):
        return np.ones(len(old_rows), bool)
    if name in NUMBERS:
        return before.numbers(name)[old_rows] != after.numbers(name)[new_rows]
    old, new = _common_codes(before, after, name)
    return old[old_rows] != new[new_rows]


def _change(kind: str, before: Mapping[str, str | int], after: Mapping[str, str | int]) -> PictureChange:
    either = after or before
    cells = {name: (before.get(name), after.get(name)) for name in {**before, **after}}
    return PictureChange(
        kind=kind,
        identity=str(either["identity"]),
        picture=int(either["picture"]),
        columns={name: pair for name, pair in cells.items() if pair[0] != pair[1]},
    )


class _Cells:
    """The cells of a plan, one row at a time."""

    def __init__(self, plan: Plan) -> None:
        names = plan.table.column_names
        self.numbers = {name: plan.numbers(name) for name in names if name in NUMBERS}
        self.texts = {name: plan.texts(name) for name in names if name not in NUMBERS}

    def row(self, row: int) -> dict[str, str | int]:
        """Column -> cell."""
        numbers = {name: int(values[row]) for name, values in self.numbers.items()}
        return numbers | {name: texts[codes[row]] for name, (codes, texts) in self.texts.items()}
