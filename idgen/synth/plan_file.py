"""Reading the Parquet file of a plan: every row is looked at, and an error names the first one that is wrong.

Rows are counted from 0, in the order of the file. Shapes: N pictures.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idgen.config import nearest
from idgen.errors import ConfigError
from idgen.synth.adults import adult_in, refuse_minors_in, refuse_no_adults
from idgen.synth.grammar import Grammar, grammar_from

if TYPE_CHECKING:
    import pyarrow

METADATA = "idgen_plan"
NUMBERS = {"person": "int32", "picture": "int32", "seed": "int64"}
TEXTS = ("identity", "prompt", "negative_prompt")
ORDER = ("identity", "person", "picture", "seed", "prompt", "negative_prompt")
BATCH = 2**18  # rows that are plain text at once
# The name of a person begins the names of files, in which a dot would begin the suffix.
IDENTITY = re.compile(r"[A-Za-z0-9_-]{1,80}")


def read_table(path: Path, like: Path | None, form: int) -> tuple["pyarrow.Table", Grammar, dict[str, Any]]:
    """The rows of a plan, sorted by person and picture, its grammar, and the rest of its metadata.

    Args:
        path: of the Parquet file.
        like: a plan whose metadata is taken instead.
        form: version of the format that is understood.

    Raises:
        ConfigError: as for `Plan.read`.
    """
    file = _open(path)
    head = _head(path if like is None else like, file if like is None else _open(like), form, like is None)
    grammar = grammar_from(head["grammar"], f"the grammar in {path}")
    if grammar.sha256 != head["grammar_sha256"]:
        raise ConfigError(f"{path}: the grammar in its metadata was changed: its sha256 differs; plan again")
    _check_names(path, file.schema_arrow.names, [*ORDER, *grammar.axes])
    table = _checked_table(path, file, grammar)
    rows = _Rows(path, table)
    rows.check_numbers()
    rows.check_people(grammar)
    rows.check_words(grammar)
    person, picture = (table[name].to_numpy().astype(np.int64) for name in ("person", "picture"))
    key = person << 32 | picture
    if (key[1:] < key[:-1]).any():
        table = table.take(np.argsort(key, kind="stable")).combine_chunks()
    return table, grammar, head


def has_metadata(path: Path) -> bool:
    """Whether a Parquet file still says what a plan says of itself; editors of tables mostly drop that.

    Raises:
        ConfigError: if it cannot be read.
    """
    return METADATA.encode() in (_open(path).metadata.metadata or {})


def _open(path: Path) -> Any:  # noqa: ANN401 - pyarrow.parquet.ParquetFile, imported late
    import pyarrow
    import pyarrow.parquet  # heavy

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"cannot read the plan {path}: {error}") from None


def _head(path: Path, file: Any, form: int, is_own: bool) -> dict[str, Any]:  # noqa: ANN401
    kept = (file.metadata.metadata or {}).get(METADATA.encode())
    if kept is None:
        way_out = (
            "; where an editor dropped its metadata, name the plan that it was edited from: `idgen "
            "synthesize --plan-like FILE`, or `like` of `Plan.read`"
            if is_own
            else ""
        )
        raise ConfigError(f"{path} is no plan of idgen: its metadata has no {METADATA}{way_out}")
    try:
        head = json.loads(kept)
        found = head["format"]
        kinds = {"seed": int, "given": list, "source": dict, "grammar": dict, "grammar_sha256": str}
        if found == form and not all(isinstance(head[name], kind) for name, kind in kinds.items()):
            raise ValueError(f"{', '.join(kinds)} are not what they should be")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: the metadata {METADATA} is damaged: {error!r}") from None
    if found != form:
        raise ConfigError(f"{path} is a plan of format {found!r}; this idgen reads format {form}")
    return head


def _check_names(path: Path, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            is_index = name.startswith("__index_level_")  # of pandas, after rows were taken out
            way_out = "; write it with `index=False`" if is_index else nearest(name, known)
            raise ConfigError(
                f"{path}: {name} is no column of this plan{way_out} (known: {', '.join(known)})"
            )
    if missing := [name for name in known if name not in names]:
        raise ConfigError(f"{path} lacks the column {missing[0]}; a plan has {', '.join(known)}")


def _checked_table(path: Path, file: Any, grammar: Grammar) -> "pyarrow.Table":  # noqa: ANN401
    """The columns in their order and with their types; an empty cell is an error."""
    import pyarrow

    names, parts, row = (*ORDER, *grammar.axes), [], 0
    for batch in file.iter_batches(BATCH, columns=list(names)):
        columns: dict[str, Any] = {}
        for name in names:
            column = batch[name]
            if column.null_count:
                empty = row + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
                raise ConfigError(f"{path}: row {empty} has no {name}")
            wanted = NUMBERS.get(name, "string")
            try:
                column = column.cast(wanted)
            except pyarrow.ArrowException as error:
                raise ConfigError(f"{path}: the column {name} must be of type {wanted}: {error}") from None
            columns[name] = column if name in NUMBERS else column.dictionary_encode()
        parts.append(pyarrow.table(columns))
        row += len(batch)
    if not row:
        raise ConfigError(f"{path} plans no picture; a plan has one row at least")
    return pyarrow.concat_tables(parts).unify_dictionaries().combine_chunks()


class _Rows:
    """Checks of all rows; each raises a ConfigError that names the first row that is wrong."""

    def __init__(self, path: Path, table: "pyarrow.Table") -> None:
        self.path, self.table = path, table
        self.codes: dict[str, np.ndarray] = {}
        self.names: dict[str, list[str]] = {}
        for name in table.column_names:
            if name not in NUMBERS:
                chunk = table[name].chunk(0)
                self.codes[name], self.names[name] = chunk.indices.to_numpy(), chunk.dictionary.to_pylist()

    def refuse(self, is_wrong: np.ndarray, what: Callable[[int], str]) -> None:
        """Stop at the first row that is wrong."""
        wrong = np.flatnonzero(is_wrong)
        if len(wrong):
            more = f" (and {len(wrong) - 1} rows more)" if len(wrong) > 1 else ""
            raise ConfigError(f"{self.path}: row {wrong[0]}: {what(int(wrong[0]))}{more}")

    def text(self, name: str, row: int) -> str:
        """One cell of a column of text."""
        return self.names[name][self.codes[name][row]]

    def check_numbers(self) -> None:
        """None is negative, and no picture is planned twice."""
        for name in NUMBERS:
            values = self.table[name].to_numpy()
            self.refuse(
                values < 0, lambda row, name=name, v=values: f"{name} must be from 0 up, got {v[row]}"
            )
        picture = self.table["picture"].to_numpy().astype(np.int64)
        key = self.codes["identity"].astype(np.int64) << 32 | picture
        order = np.argsort(key, kind="stable")
        is_again = np.zeros(len(key), bool)
        is_again[order[1:]] = key[order[1:]] == key[order[:-1]]
        self.refuse(
            is_again, lambda row: f"picture {picture[row]} of {self.text('identity', row)} is planned twice"
        )

    def check_people(self, grammar: Grammar) -> None:
        """A name means one person, a person has one name, and what stays with a person does not change."""
        person = self.table["person"].to_numpy()
        for name in self.names["identity"]:
            if not IDENTITY.fullmatch(name):
                is_wrong = self.codes["identity"] == self.names["identity"].index(name)
                self.refuse(
                    is_wrong, lambda _, name=name: f"identity must be letters, digits, _ and -, got {name!r}"
                )
        other, _ = _first_of_group(self.codes["identity"], person)
        self.refuse(
            person != other,
            lambda row: f"{self.text('identity', row)} is person {person[row]} here and {other[row]} before",
        )
        same, first = _first_of_group(person, self.codes["identity"])
        self.refuse(
            self.codes["identity"] != same,
            lambda row: (
                f"person {person[row]} is {self.text('identity', row)} here and "
                f"{self.text('identity', int(first[row]))} before"
            ),
        )
        for axis in grammar.personal:
            same, first = _first_of_group(person, self.codes[axis.name])
            self.refuse(
                self.codes[axis.name] != same,
                lambda row, name=axis.name, first=first: (
                    f"{name} stays with a person: it is {self.text(name, row)!r} here, and "
                    f"{self.text(name, int(first[row]))!r} in row {first[row]}"
                ),
            )

    def check_words(self, grammar: Grammar) -> None:
        """Values are those of the grammar, or empty; prompts are about adults."""
        for axis in grammar.axes.values():
            known = list(axis.values)
            unknown = np.array([name not in ("", *known) for name in self.names[axis.name]])
            self.refuse(
                unknown[self.codes[axis.name]],
                lambda row, name=axis.name, known=known: (
                    f"{self.text(name, row)!r} is no value of {name}"
                    f"{nearest(self.text(name, row), known)} (known: {', '.join(known)})"
                ),
            )
        codes = self.codes["prompt"]
        refuse_minors_in(
            self.names["prompt"],
            lambda number: f"{self.path}: row {np.flatnonzero(codes == number)[0]}: prompt",
        )
        for number, negative in enumerate(self.names["negative_prompt"]):
            if adult_in(negative):
                row = np.flatnonzero(self.codes["negative_prompt"] == number)[0]
                refuse_no_adults(negative, f"{self.path}: row {row}: negative_prompt")


def _first_of_group(group: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the value in the first row of the group that a row belongs to, and the number of that row."""
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    return values[first[inverse]], first[inverse]
