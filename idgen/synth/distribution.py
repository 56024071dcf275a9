"""How often each value of an axis is wanted: from a file, or as often as in a real data set."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from idgen.config import nearest, read_yaml
from idgen.errors import ConfigError
from idgen.synth.axes import Axis, group_of
from idgen.synth.grammar import Grammar

MEASURED = {"table", "column"}  # keys of an axis that is measured


def distribution_of(given: str | Path | Mapping[str, Any], grammar: Grammar) -> dict[str, dict[str, float]]:
    """Weights as a command takes them: written out, in a YAML file, or measured in a table.

    Args:
        given: axis -> value -> weight; or a file for `read_distribution`; or a Parquet table, such as the
            manifest of a real set, in which every axis is measured that has a column of its name.
        grammar: whose axes are meant.

    Raises:
        ConfigError: as for `read_distribution`; if a table has no column that is named like an axis.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, str | Path):
        raise ConfigError(
            f"distribution must be a file, or weights as `axis: {{value: weight}}`, got {given!r}"
        )
    path = Path(given).expanduser()
    if path.suffix != ".parquet":
        return read_distribution(path, grammar)
    names = _columns(path)
    axes = [axis for axis in grammar.axes.values() if axis.name in names]
    if not axes:
        raise ConfigError(
            f"{path} has no column that is named like an axis ({', '.join(grammar.axes)}); name its columns "
            "in a YAML file: `AXIS: {table: FILE, column: NAME}`"
        )
    found = {axis.name: measure_distribution(path, axis.name, axis) for axis in axes}
    grammar.weighted(found, str(path))
    return found


def read_distribution(path: str | Path, grammar: Grammar) -> dict[str, dict[str, float]]:
    """Weights of a YAML file: axis -> value -> weight.

    An axis is either a group of weights, ``pose: {ahead: 6, left: 2, right: 2}``, or measured in a table,
    ``pose: {table: faces.parquet, column: yaw}``, whose path is relative to the YAML file.

    Raises:
        ConfigError: if a file cannot be read, or an axis, a value or a weight cannot be.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"cannot read the distribution {path}: there is no such file")
    found: dict[str, dict[str, float]] = {}
    for name, weights in read_yaml(path).items():
        axis, at = grammar.axis(name, str(path)), f"{path}: {name}"
        group = group_of(weights, at)
        if group.keys() & MEASURED:
            if group.keys() != MEASURED or not all(isinstance(value, str) for value in group.values()):
                raise ConfigError(f"{at} is measured by the text `table` and `column`, got {weights!r}")
            group = measure_distribution(
                path.parent / Path(group["table"]).expanduser(), group["column"], axis
            )
        found[name] = group
    grammar.weighted(found, str(path))  # weights that cannot be are refused here, with the file's name
    return found


def measure_distribution(path: str | Path, column: str, axis: Axis) -> dict[str, float]:
    """How many rows of a table have each value of an axis.

    Args:
        path: of a Parquet file, such as the manifest of a data set.
        column: of names of values; or of numbers, for an axis whose values have checks: that value counts
            whose bounds are the first to hold the number. Empty cells and other numbers do not count.
        axis: whose values are counted.

    Raises:
        ConfigError: if the table or column cannot be read, a name is no value of the axis, or nothing counts.
    """
    values = _column(Path(path), column)
    at = f"{path}: column {column}"
    if values.dtype.kind in "biuf":
        counts = _count_numbers(values.astype(np.float64), axis, at)
    else:
        cells = [value for value in values.tolist() if value not in (None, "")]
        if not all(isinstance(value, str) for value in cells):
            raise ConfigError(f"{at} holds neither names nor numbers")
        names = Counter(cells)
        for name in names:
            axis.index(name, at)
        counts = {value: float(names[value]) for value in axis.values}
    if not any(counts.values()):
        raise ConfigError(f"{at} says nothing of {axis.name}: no row has one of {', '.join(axis.values)}")
    return counts


def _column(path: Path, column: str) -> np.ndarray:
    import pyarrow
    import pyarrow.parquet  # heavy

    names = _columns(path)
    if column not in names:
        raise ConfigError(
            f"{path} has no column {column!r}{nearest(column, names)} (known: {', '.join(names)})"
        )
    try:
        return pyarrow.parquet.read_table(path, columns=[column])[column].to_numpy()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"cannot read the table {path}: {error}") from None


def _columns(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet  # heavy

    try:
        return pyarrow.parquet.read_schema(path).names
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"cannot read the table {path}: {error}") from None


def _count_numbers(values: np.ndarray, axis: Axis, at: str) -> dict[str, float]:
    bounds = {name: value.check for name, value in axis.values.items() if value.check is not None}
    if not bounds:
        raise ConfigError(
            f"{at} holds numbers, and no value of {axis.name} has a check that says which are its own"
        )
    left = np.isfinite(values)
    counts = dict.fromkeys(axis.values, 0.0)
    for name, check in bounds.items():
        low = -np.inf if check.min is None else check.min
        high = np.inf if check.max is None else check.max
        holds = left & (values >= low) & (values <= high)
        counts[name] = float(holds.sum())
        left &= ~holds
    return counts
