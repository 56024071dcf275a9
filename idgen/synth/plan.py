"""The plan of a data set: who, on which picture, with which attributes, prompt and seed; read it, edit it.

One row a picture, in a Parquet file that says in its metadata by which grammar and seed it was made. What is
generated follows from the rows alone, however they are later divided among shards.

Shapes: P people, N pictures.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from idgen.storage import replacing
from idgen.synth.grammar import Grammar
from idgen.synth.plan_file import METADATA, NUMBERS, TEXTS, read_table

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
BLOCK = 2**15  # pictures that are made into objects at once
ROW_GROUP = 2**18  # pictures of a part of the file that is written at once


@dataclass(frozen=True, kw_only=True)
class PicturePlan:
    """One picture that is to be made.

    Attributes:
        identity: name of the person.
        person: row of the file of identities.
        picture: number of the picture among those of the person.
        seed: of the noise, from 0 up.
        prompt: what is asked for.
        negative_prompt: what is not wanted.
        attributes: axis -> value; "" where nothing is wanted.
    """

    identity: str
    person: int
    picture: int
    seed: int
    prompt: str
    negative_prompt: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PersonPlan:
    """The pictures of one person, in order."""

    identity: str
    person: int
    pictures: tuple[PicturePlan, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A plan, as columns. `idgen.synth.planning.make_plan` makes one, `Plan.read` opens one.

    Attributes:
        table: sorted by person and picture, text as dictionaries, each column in one piece.
        grammar: with the weights that were in force.
        seed: of the plan; seeds of pictures follow from it.
        given: axes whose values came from the source of the people; there are no quotas for them.
        source: where the identities come from, plain data.
    """

    table: "pyarrow.Table"
    grammar: Grammar
    seed: int
    given: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path, *, like: str | Path | None = None) -> Self:
        """Open a plan and look at every row.

        Args:
            path: of the Parquet file.
            like: the plan that it was edited from, where the editor (pandas, for one) dropped the metadata.

        Raises:
            ConfigError: if it is no plan; if columns are missing or unknown; if a row is there twice, has a
                negative seed, an unknown value, a prompt that means a minor or a negative prompt that steers
                away from adults, or contradicts another row.
        """
        origin = None if like is None else Path(like).expanduser()
        table, grammar, head = read_table(Path(path).expanduser(), origin, FORMAT)
        return cls(
            table=table, grammar=grammar, seed=head["seed"], given=tuple(head["given"]), source=head["source"]
        )

    def write(self, path: str | Path) -> None:
        """Write the Parquet file, whole or not at all; text columns are plain text to every reader.

        Raises:
            StorageError: if that is not possible.
        """
        import pyarrow
        import pyarrow.parquet  # heavy

        fields = [
            pyarrow.field(name, NUMBERS.get(name, "string"), nullable=False)
            for name in self.table.column_names
        ]
        head = json.dumps(self.head, ensure_ascii=False, allow_nan=False)
        schema = pyarrow.schema(fields, metadata={METADATA: head})
        with (
            replacing(path) as file,
            pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            for start in range(0, len(self), ROW_GROUP):
                writer.write_table(self.table.slice(start, ROW_GROUP).cast(schema))

    def __len__(self) -> int:
        """Number of pictures."""
        return self.table.num_rows

    @property
    def num_people(self) -> int:
        """P."""
        return len(self._starts) - 1

    @property
    def head(self) -> dict[str, Any]:
        """What the metadata of the file says."""
        return {
            "format": FORMAT,
            "seed": self.seed,
            "grammar_sha256": self.grammar.sha256,
            "given": list(self.given),
            "source": dict(self.source),
            "grammar": self.grammar.to_data(),
        }

    @cached_property
    def plan_sha256(self) -> str:
        """Of what the plan says, however its file is written: the metadata and all rows in order."""
        total = hashlib.sha256(json.dumps(self.head, sort_keys=True, allow_nan=False).encode())
        for name in self.table.column_names:
            total.update(f"\n{name}\n".encode())
            if name in NUMBERS:
                total.update(self.numbers(name).astype("<i8").tobytes())
                continue
            codes, texts = self.texts(name)
            used = np.unique(codes)
            ordered = sorted(used.tolist(), key=lambda code: texts[code])
            place = np.zeros(len(texts), "<i4")
            place[ordered] = np.arange(len(ordered))
            total.update(json.dumps([texts[code] for code in ordered]).encode())
            total.update(place[codes].tobytes())
        return total.hexdigest()

    def numbers(self, name: str) -> np.ndarray:
        """(N,) int64 of a column of numbers."""
        return self.table[name].to_numpy().astype(np.int64, copy=False)

    def texts(self, name: str) -> tuple[np.ndarray, list[str]]:
        """(N,) int32 codes of a column of text, and the text of each code."""
        chunk = self.table[name].chunk(0)
        return chunk.indices.to_numpy(), chunk.dictionary.to_pylist()

    def people(self, start: int = 0, stop: int | None = None) -> Iterator[PersonPlan]:
        """The people from one number in the plan's order to before another, each with their pictures."""
        starts = self._starts
        stop = self.num_people if stop is None else min(stop, self.num_people)
        while start < stop:
            last = int(np.searchsorted(starts, starts[start] + BLOCK, side="right")) - 1
            last = min(max(last, start + 1), stop)
            rows = self._rows(int(starts[start]), int(starts[last]))
            bounds = (starts[start : last + 1] - starts[start]).tolist()
            for first, end in pairwise(bounds):
                pictures = tuple(rows[first:end])
                yield PersonPlan(identity=pictures[0].identity, person=pictures[0].person, pictures=pictures)
            start = last

    def summary(self) -> list[dict[str, Any]]:
        """Quotas, wanted and planned: one row a value of an axis.

        ``wanted`` is the exact share, of which the planned number differs by less than 1 as long as nobody
        edited the plan; None where the source of the people decided. Axes of people count people.
        """
        rows: list[dict[str, Any]] = []
        for axis in self.grammar.axes.values():
            codes, texts = self.texts(axis.name)
            codes = codes[self._starts[:-1]] if axis.is_personal else codes
            planned = dict.fromkeys((*axis.values, ""), 0)
            for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
                planned[texts[code]] += int(count)
            weights = dict(zip(axis.values, axis.weights, strict=True))
            for value, count in planned.items():
                share = weights.get(value, 0.0) / sum(axis.weights) if sum(axis.weights) else 0.0
                if value or count:
                    wanted = None if axis.name in self.given else share * len(codes)
                    unit = "people" if axis.is_personal else "pictures"
                    rows.append(
                        {"axis": axis.name, "value": value, "unit": unit, "wanted": wanted, "planned": count}
                    )
        return rows

    @cached_property
    def _starts(self) -> np.ndarray:
        """(P + 1,) first row of each person, and the number of rows."""
        person = self.numbers("person")
        return np.concatenate([[0], np.flatnonzero(person[1:] != person[:-1]) + 1, [len(person)]])

    @cached_property
    def _columns(self) -> dict[str, tuple[np.ndarray, list[str]]]:
        return {name: self.texts(name) for name in self.table.column_names if name not in NUMBERS}

    def _rows(self, start: int, stop: int) -> list[PicturePlan]:
        numbers = [self.numbers(name)[start:stop].tolist() for name in ("person", "picture", "seed")]
        said = {
            name: [texts[code] for code in codes[start:stop].tolist()]
            for name, (codes, texts) in self._columns.items()
        }
        fixed = [said.pop(name) for name in TEXTS]
        names = tuple(said)
        return [
            PicturePlan(
                identity=identity, person=person, picture=picture, seed=seed, prompt=prompt,
                negative_prompt=negative, attributes=dict(zip(names, values, strict=True)),
            )
            for person, picture, seed, identity, prompt, negative, *values in zip(
                *numbers, *fixed, *said.values(), strict=True
            )
        ]  # fmt: skip
