"""A report on the terminal: what matters, in columns that fit."""

from collections.abc import Sequence

from idgen.report.document import Report, Table
from idgen.report.format import cell, is_number

MAX_COLUMN = 44  # characters; longer text is cut


def print_report(report: Report) -> None:
    """Title, warnings and tables; plots and pictures are in the files."""
    print(f"\n{report.title}\n{'=' * min(len(report.title), 100)}\n{report.subject}")
    for warning in report.warnings:
        print(f"\n! {warning}")
    for section in report.sections:
        if isinstance(section, Table):
            print("\n" + "\n".join(table_lines(section)))


def table_lines(table: Table) -> list[str]:
    """A table as lines of text: numbers to the right, words to the left."""
    rows = [[_cut(cell(value)) for value in row] for row in table.rows]
    names = [_cut(name) for name in table.columns]
    widths = [max(len(row[i]) for row in [names, *rows]) for i in range(len(names))]
    right = [any(is_number(row[i]) for row in table.rows) for i in range(len(names))]
    lines = [table.title, _line(names, widths, right), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths, right) for row in rows]
    return [*lines, table.note] if table.note else lines


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = zip(cells, widths, right, strict=True)
    return "  ".join(text.rjust(w) if at_right else text.ljust(w) for text, w, at_right in parts).rstrip()


def _cut(text: str) -> str:
    return text if len(text) <= MAX_COLUMN else text[: MAX_COLUMN - 1] + "…"
