"""A report on the disk: report.json for programs, report.html for people, a PNG for each figure."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from idgen import __version__
from idgen.errors import ConfigError, StorageError
from idgen.report.document import Figure, Measure, Pairs, Report, Table
from idgen.report.html import render_html
from idgen.report.terminal import print_report
from idgen.storage import write_bytes, write_json

FORMAT = 1
JSON, HTML = "report.json", "report.html"


def write_report(report: Report, folder: Path) -> Path:
    """Write all files of a report, each whole or not at all; files of an older report are replaced.

    Returns:
        The HTML file.

    Raises:
        StorageError: if the folder or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror or error}") from None
    for section in report.sections:
        if isinstance(section, Figure):
            write_bytes(folder / f"{_file_name(section.title)}.png", section.png)
    write_json(folder / JSON, to_plain(report))
    write_bytes(folder / HTML, render_html(report, version=__version__).encode())
    return folder / HTML


def publish(report: Report, folder: Path) -> None:
    """Write a report, show its tables on the terminal, and say where the page is.

    Raises:
        StorageError: as `write_report`.
    """
    page = write_report(report, folder)
    print_report(report)
    print(f"\nthe report: {page}")


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80] or "figure"


def to_plain(report: Report) -> dict[str, Any]:
    """The report as plain data; numbers that are not defined become null."""
    return {
        "idgen_report": FORMAT,
        "idgen": __version__,
        "kind": report.kind,
        "title": report.title,
        "subject": report.subject,
        "settings": _plain(report.settings),
        "warnings": list(report.warnings),
        "measures": {name: _plain_measure(measure) for name, measure in report.measures.items()},
        "per_identity": _plain(report.per_identity),
        "tables": [_plain_table(s) for s in report.sections if isinstance(s, Table)],
        "figures": [
            {"title": s.title, "file": f"{_file_name(s.title)}.png", "alt": s.alt}
            for s in report.sections
            if isinstance(s, Figure)
        ],
        "pairs": [
            {"title": s.title, "captions": [pair.caption for pair in s.pairs]}
            for s in report.sections
            if isinstance(s, Pairs)
        ],
        "data": _plain(report.data),
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - plain data of any shape
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return str(value) if isinstance(value, Path) else value


def _plain_measure(measure: Measure) -> dict[str, Any]:
    plain: dict[str, Any] = {"value": _plain(measure.value)}
    if measure.interval is not None:
        plain["interval"] = _plain(measure.interval)
    if measure.note:
        plain["note"] = measure.note
    return plain


def _plain_table(table: Table) -> dict[str, Any]:
    rows = [[_plain_measure(v) if isinstance(v, Measure) else _plain(v) for v in row] for row in table.rows]
    return {"title": table.title, "columns": list(table.columns), "rows": rows, "note": table.note}


def read_report(path: Path) -> Report:
    """The numbers of a report that was written; its tables and pictures stay on the disk.

    Args:
        path: report.json, or the folder that holds it.

    Raises:
        ConfigError: if there is none, or it was written by something else or by a newer idgen.
    """
    file = path / JSON if path.is_dir() else path
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        version = plain["idgen_report"]
        if version > FORMAT:
            raise ConfigError(
                f"{file} was written by a newer idgen (format {version}, this one reads {FORMAT})"
            )
        return Report(
            kind=plain["kind"],
            title=plain["title"],
            subject=plain["subject"],
            settings=plain["settings"],
            warnings=tuple(plain["warnings"]),
            measures={name: _measure(value) for name, value in plain["measures"].items()},
            per_identity={
                measure: {who: _number(value) for who, value in people.items()}
                for measure, people in plain["per_identity"].items()
            },
            data=plain["data"],
        )
    except OSError as error:
        raise ConfigError(f"cannot read the report {file}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file} is not a report of idgen") from None


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def _measure(plain: dict[str, Any]) -> Measure:
    ends = plain.get("interval")
    return Measure(
        value=_number(plain["value"]),
        interval=(_number(ends[0]), _number(ends[1])) if ends else None,
        note=plain.get("note", ""),
    )
