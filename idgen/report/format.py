"""How a number is written: the same in HTML, on the terminal and in Markdown."""

import math

from idgen.report.document import Measure

UNDEFINED = "-"


def number(value: float) -> str:
    """Four figures at most, no exponent where it can be avoided; a dash where it is not defined."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isnan(value):
        return UNDEFINED
    if isinstance(value, int) or math.isinf(value):
        return f"{value:,}" if isinstance(value, int) else ("∞" if value > 0 else "-∞")
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4 or size >= 1e6:
        return f"{value:.2e}"
    if size < 1e-2:
        return f"{value:.4f}"
    return f"{value:.3f}" if size < 100 else f"{value:,.1f}"


def interval(measure: Measure) -> str:
    """``[0.1, 0.2]``, or nothing."""
    if measure.interval is None:
        return ""
    low, high = measure.interval
    return f"[{number(low)}, {number(high)}]"


def cell(value: str | int | float | Measure) -> str:
    """A cell of a table as plain text."""
    if isinstance(value, Measure):
        return " ".join(part for part in (number(value.value), interval(value)) if part)
    return value if isinstance(value, str) else number(value)


def is_number(value: str | int | float | Measure) -> bool:
    """Whether a cell stands at the right of its column."""
    return not isinstance(value, str)
