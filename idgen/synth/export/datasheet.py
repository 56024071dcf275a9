"""DATASHEET.md: how a dataset was made, from what, and what was measured of it, as far as it is on record.

After Datasheets for Datasets (Gebru et al. 2021, https://arxiv.org/abs/1803.09010). What its maker wrote into
dataset.json is repeated; the rest is counted in the manifest and in the files.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from idgen import __version__
from idgen.report.format import number
from idgen.synth.counts import counts_of_attributes, kept_rows
from idgen.synth.shards import KEPT
from idgen.synth.training_data import data_of_people

if TYPE_CHECKING:
    import pyarrow

NOT_MEASURED = "not measured"
# Sections of dataset.json that the sheet has a place for; everything else stands under "Further facts".
MADE_FROM = ("models", "model", "encoders", "encoder_ids", "judge", "detector", "data", "sources", "adapter")
LICENCES = ("licences", "licence", "licenses", "license")
RULES, YIELD, QUOTAS = ("rules",), ("yield",), ("quotas",)
SIMILARITY, DIVERSITY = ("measured", "similarity", "separation"), ("diversity",)
LEAKAGE, PROVENANCE = ("leakage", "leakage_audit"), ("provenance",)
PLACED = {
    *MADE_FROM, *LICENCES, *RULES, *YIELD, *QUOTAS, *SIMILARITY, *DIVERSITY, *LEAKAGE, *PROVENANCE
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What went out.

    Attributes:
        to: the format.
        num_people: with at least one picture.
        num_pictures: of all of them.
        num_bytes: of the encoded pictures.
        kinds: ``png``, ``jpg``, ``webp`` -> number of pictures.
        num_marked: pictures that say in themselves that a trained model made them.
        aligned: how, where the faces were cut out.
        left_out: pictures without a usable face, where they were to be aligned.
        people_left_out: people of whom no picture is left.
    """

    to: str
    num_people: int
    num_pictures: int
    num_bytes: int
    kinds: Mapping[str, int]
    num_marked: int
    aligned: str = ""
    left_out: Sequence[str] = field(default_factory=tuple)
    people_left_out: Sequence[str] = field(default_factory=tuple)


def datasheet(
    name: str, about: Mapping[str, Any], planned: "pyarrow.Table", exported: Exported, num_shards: int
) -> str:
    """The sheet as Markdown.

    Args:
        name: of the dataset.
        about: what dataset.json says.
        planned: its manifest, one row a planned picture.
        exported: what went out.
        num_shards: that are finished.
    """
    further = {key: value for key, value in about.items() if key not in PLACED}
    sections = [
        ("What it is", _what(exported, num_shards, about)),
        ("Models and data it was made from", _facts(_with_people(about), MADE_FROM, "not recorded")),
        ("Licences", _facts(about, LICENCES, "not recorded: ask its maker before you use it")),
        ("What was planned and what was kept", [*_decisions(planned), "", *_facts(about, YIELD, "")]),
        ("Rules by which pictures were kept", _facts(about, RULES, "not recorded")),
        ("Quotas", [*_facts(about, QUOTAS, "No goals are on record."), "", *_attributes(planned)]),
        ("Similarity", _similarity(planned, about)),
        ("Variety", _facts(about, DIVERSITY, NOT_MEASURED)),
        ("Leakage audit", _facts(about, LEAKAGE, NOT_MEASURED)),
        ("Other numbers", _numbers(planned, of_similarity=False) or [NOT_MEASURED]),
        ("Provenance", [*_provenance(exported), "", *_facts(about, PROVENANCE, "")]),
        ("Further facts", _facts(further, tuple(further), "none")),
        ("Files", _files()),
    ]
    lines = [f"# Datasheet of {_text(name)}", "", f"Written by idgen {__version__}."]
    for title, body in sections:
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _with_people(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """What dataset.json says, and what the distribution was fitted to that its people were drawn from."""
    sources, data = about.get("sources"), about.get("data", {})
    spec = sources.get("people") if isinstance(sources, Mapping) else None
    if not isinstance(spec, str) or not isinstance(data, Mapping):
        return about
    fitted = {f"people ({source})": found for source, found in data_of_people(spec).items()}
    return {**about, "data": {**data, **fitted}}


def _what(exported: Exported, num_shards: int, about: Mapping[str, Any]) -> list[str]:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(exported.kinds.items()))
    rows = [
        ("people", f"{exported.num_people:,}"),
        ("pictures", f"{exported.num_pictures:,} ({kinds}; {exported.num_bytes / 1e6:,.1f} MB)"),
        ("format", exported.to),
        ("aligned", exported.aligned or "no: the pictures are byte for byte those that were made"),
    ]
    if exported.aligned:
        lost = f"{len(exported.left_out):,} pictures"
        if exported.people_left_out:
            lost += f", and with them {len(exported.people_left_out):,} people of whom none is left"
        rows.append(("left out, no usable face found", lost))
    if isinstance(whole := about.get("num_shards"), int):
        rows.append(("finished shards", f"{num_shards:,} of {whole:,}"))
    return _table(("", ""), rows)


def _decisions(planned: "pyarrow.Table") -> list[str]:
    counts = Counter(planned["decision"].to_pylist())
    ranked = sorted(counts.items(), key=lambda pair: (pair[0] != KEPT, -pair[1], pair[0]))
    total = planned.num_rows
    rows = [(decision, f"{count:,}", _share(count, total)) for decision, count in ranked]
    return _table(("decision", "pictures", "share"), [*rows, ("planned", f"{total:,}", "")])


def _attributes(planned: "pyarrow.Table") -> list[str]:
    """How many pictures of each value were planned, and how many kept."""
    rows = [
        (name, value, f"{wanted:,}", f"{kept:,}", _share(kept, wanted))
        for name, values in counts_of_attributes(planned).items()
        for value, (wanted, kept) in values.items()
    ]
    header = ("attribute", "value", "planned", "kept", "reached")
    return _table(header, rows) if rows else ["No attributes are in the manifest."]


def _similarity(planned: "pyarrow.Table", about: Mapping[str, Any]) -> list[str]:
    within = _numbers(planned, of_similarity=True)
    return [
        "Of the kept pictures, to the vector that each was conditioned on, as the manifest has it:",
        "",
        *(within or [NOT_MEASURED]),
        "",
        "Within and between people, and how well pictures of one person are told from those of others:",
        "",
        *_facts(about, SIMILARITY, NOT_MEASURED),
    ]


def _numbers(planned: "pyarrow.Table", *, of_similarity: bool) -> list[str]:
    """Mean and percentiles of the manifest's columns of real numbers, over the kept pictures."""
    import pyarrow

    is_kept = kept_rows(planned)
    rows = []
    for column in planned.schema:
        is_wanted = column.name.startswith(("similarity", "cosine")) == of_similarity
        if not is_wanted or not pyarrow.types.is_floating(column.type):
            continue
        values = np.array(planned[column.name].to_pylist(), dtype=float)[is_kept]
        values = values[np.isfinite(values)]
        if len(values):
            spread = np.percentile(values, (0, 5, 50, 95, 100))
            rows.append(
                (column.name, f"{len(values):,}", *(number(float(v)) for v in (values.mean(), *spread)))
            )
    header = ("column", "pictures", "mean", "least", "5 %", "median", "95 %", "most")
    return _table(header, rows) if rows else []


def _provenance(exported: Exported) -> list[str]:
    marked, total = exported.num_marked, exported.num_pictures
    return [
        f"{marked:,} of {total:,} pictures carry IPTC's mark `trainedAlgorithmicMedia` (made by a trained "
        "model) in their own metadata. Programs that encode a picture again may drop it.",
    ]


def _files() -> list[str]:
    return [
        "`manifest.parquet` has a row for each picture here; `labels.json` the class number of each "
        "identity; `export.json` what this sheet was written from. `sha256sum -c SHA256SUMS` checks every "
        "file.",
    ]


# ---- Markdown


def _facts(about: Mapping[str, Any], keys: Iterable[str], otherwise: str) -> list[str]:
    rows = [row for key in keys if key in about for row in _flat(key, about[key])]
    return _table(("", ""), rows) if rows else [otherwise]


def _flat(at: str, value: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - plain data
    """Nested plain data as rows of a path and a value."""
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in _flat(f"{at}.{key}", item)]
    if isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        return [row for i, item in enumerate(value) for row in _flat(f"{at}.{i}", item)]
    if isinstance(value, list):
        return [(at, ", ".join(map(str, value)))]
    if isinstance(value, bool) or value is None:
        return [(at, {True: "yes", False: "no", None: "none"}[value])]
    return [(at, number(value) if isinstance(value, float) and math.isfinite(value) else str(value))]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(_text(text) for text in line)} |" for line in lines]


def _text(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    for character in "\\`*<>|[]#":
        shown = shown.replace(character, f"\\{character}")
    return shown


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
