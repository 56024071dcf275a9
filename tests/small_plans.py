"""A small grammar for the tests of plans, and what is read off a plan."""

from typing import Any

import numpy as np

from idgen.synth.grammar import Grammar, grammar_from
from idgen.synth.plan import Plan

DATA: dict[str, Any] = {
    "format": 1,
    "person": {
        "who": {"man": "a man", "woman": ["a woman", "a lady"], "person": "a person"},
        "hair": {"dark": ["with dark hair", "dark-haired"], "fair": "with fair hair", "grey": "grey-haired"},
        "glasses": {"none": {"words": "", "weight": 3}, "glasses": "wearing glasses"},
    },
    "otherwise": {"who": "person"},
    "picture": {
        "pose": {"ahead": ["ahead", "straight ahead"], "left": "left", "right": "right"},
        "expression": {"smiling": {"words": "smiling", "negative": "serious"}, "serious": "serious"},
        "light": {"plain": {"words": "", "weight": 2}, "dim": "in dim light"},
    },
    "templates": [
        "{who} {hair}, {glasses}, {pose}, {expression}, {light}",
        "{light}, {pose}, {expression}, {who} {hair}, {glasses}",
    ],
}  # fmt: skip


def grammar(**changes: Any) -> Grammar:
    return grammar_from({**DATA, **changes}, "test")


def column(plan: Plan, name: str) -> list[Any]:
    return plan.table[name].to_pylist()


def counted(plan: Plan, axis: str) -> dict[str, int]:
    values, counts = np.unique(column(plan, axis), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
