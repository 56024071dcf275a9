"""What the manifest of a dataset counts: how many pictures of each kind were planned, drawn, and kept.

Shapes: N planned pictures.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from idgen.synth.shards import KEPT

if TYPE_CHECKING:
    import pyarrow

# Why a picture is not kept; of several reasons the first one is named. What a model's own safety checker
# blocks is not judged at all: whoever makes the pictures says so.
REASONS = (
    "blocked", "no_face", "several_faces", "refused", "leakage", "unlike", "other_identity", "quality",
    "attribute", "near_duplicate",
)  # fmt: skip
# Text columns of a manifest that are no attributes of pictures.
NO_ATTRIBUTES = {
    "identity", "person", "key", "path", "file", "sha256", "source_sha256", "prompt", "negative_prompt",
    "decision", "reason", "reference", "rejections",
}  # fmt: skip
MAX_VALUES = 40  # of an attribute that is listed


def kept_rows(manifest: "pyarrow.Table") -> np.ndarray:
    """(N,) of bool."""
    return np.array(manifest["decision"].to_pylist(), dtype=object) == KEPT


def counts_of_attributes(manifest: "pyarrow.Table") -> dict[str, dict[str, tuple[int, int]]]:
    """Attribute -> value -> pictures planned, pictures kept; rows without a value do not count."""
    import pyarrow

    is_kept = kept_rows(manifest)
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for column in manifest.schema:
        if column.name in NO_ATTRIBUTES or not pyarrow.types.is_string(column.type):
            continue
        values = manifest[column.name].to_pylist()
        planned = Counter(value for value in values if value)
        if 1 <= len(planned) <= MAX_VALUES:
            kept = Counter(value for value, here in zip(values, is_kept, strict=True) if value and here)
            found[column.name] = {value: (planned[value], kept[value]) for value in sorted(planned)}
    return found


def quotas_of(manifest: "pyarrow.Table") -> dict[str, dict[str, Any]]:
    """Attribute -> how much of its quotas was reached, and the value that fell behind most."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in counts_of_attributes(manifest).items():
        reached = {value: kept / planned for value, (planned, kept) in values.items()}
        last = min(reached, key=lambda value: (reached[value], value))
        found[name] = {
            "planned": sum(planned for planned, _ in values.values()),
            "kept": sum(kept for _, kept in values.values()),
            "least_reached": last,
            "least_share": round(reached[last], 4),
        }
    return found


@dataclass(frozen=True, kw_only=True)
class Yield:
    """How many pictures were drawn for those that were kept, and why the others were not.

    Attributes:
        planned: pictures.
        kept: of these.
        drawn: each attempt counting.
        kept_at_attempt: number of the attempt, from 1 -> pictures that were kept then.
        rejected: reason -> attempts that were rejected for it.
        missing: reason -> pictures of which no attempt was kept, by their last reason.
    """

    planned: int
    kept: int
    drawn: int
    kept_at_attempt: Mapping[str, int]
    rejected: Mapping[str, int]
    missing: Mapping[str, int]

    @property
    def kept_of_drawn(self) -> float:
        """Share; NaN where nothing was drawn."""
        return self.kept / self.drawn if self.drawn else math.nan


def yield_of(manifest: "pyarrow.Table") -> Yield:
    """The yield of a manifest. Where nobody wrote down how often a picture was drawn, it was once."""
    decisions, names = manifest["decision"].to_pylist(), manifest.column_names
    attempts = manifest["attempts"].to_pylist() if "attempts" in names else [1] * len(decisions)
    if "rejections" in names:
        rejections = manifest["rejections"].to_pylist()
    else:
        rejections = ["" if decision == KEPT else decision for decision in decisions]
    rejected = Counter(reason for said in rejections for reason in (said or "").split(",") if reason)
    missing = Counter(decision for decision in decisions if decision != KEPT)
    needed = Counter(times for times, said in zip(attempts, decisions, strict=True) if said == KEPT)
    return Yield(
        planned=len(decisions),
        kept=decisions.count(KEPT),
        drawn=sum(attempts),
        kept_at_attempt={str(times): needed[times] for times in sorted(needed)},
        rejected={reason: rejected[reason] for reason in _in_order(rejected)},
        missing={reason: missing[reason] for reason in _in_order(missing)},
    )


def _in_order(reasons: Counter[str]) -> list[str]:
    """Known reasons in their order, then others by name."""
    return [*(name for name in REASONS if name in reasons), *sorted(set(reasons) - set(REASONS))]
