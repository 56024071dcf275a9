"""Shards of a dataset: a tar of pictures, the part of the manifest that plans them, and checksums of both.

``shards/00000.json`` is written last: a shard without it does not exist, whatever else lies there. A person's
pictures are all in one shard.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from idgen.data.pictures import Slice
from idgen.errors import ConfigError, ImageError, StorageError
from idgen.runs import file_sha256
from idgen.storage import replacing, write_bytes, write_json
from idgen.synth.tars import END, PICTURE_SUFFIXES, members, packed_member, picture_kind

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
FOLDER = "shards"
KEPT = "kept"  # the decision on a picture that is in the tar; any other one says why it is not
# Columns that are made when a shard is read or exported, so that no row may bring them.
RESERVED = ("shard", "label", "source_sha256", "image", "bytes", "file", "tar", "record", "entry")
# Face vectors are written before the shard, which has their checksum among its facts.
VECTORS_FACT, VECTORS_SUFFIX = "embeddings", "safetensors"
KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")  # what is allowed in a file's name everywhere, and before a dot


class DamagedShardError(StorageError):
    """A finished shard is not what was written.

    Attributes:
        path: of its JSON, without which it does not exist.
    """

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path

    def __reduce__(self) -> tuple[type["DamagedShardError"], tuple[str, Path]]:
        """It travels from the process of a device to the one that tells the user."""
        return type(self), (str(self), self.path)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard that is finished.

    Attributes:
        folder: of all shards.
        number: of this one.
        sha256: of its files, by suffix: ``tar``, ``parquet``, and ``safetensors`` if it has face vectors.
        num_bytes: of its files likewise.
        num_planned: pictures that it was to have.
        num_kept: pictures that it has.
        num_people: people of whom at least one picture was kept.
        facts: whatever else its maker wrote down, such as the plan's hash.
    """

    folder: Path
    number: int
    sha256: Mapping[str, str]
    num_bytes: Mapping[str, int]
    num_planned: int
    num_kept: int
    num_people: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def file(self, suffix: str) -> Path:
        """Its ``tar``, ``parquet``, ``safetensors`` or ``json``."""
        return shard_file(self.folder, self.number, suffix)

    def table(self) -> "pyarrow.Table":
        """Its part of the manifest: one row a planned picture.

        Raises:
            StorageError: if the file is damaged.
        """
        import pyarrow
        import pyarrow.parquet  # heavy

        try:
            return pyarrow.parquet.read_table(self.file("parquet"))
        except (pyarrow.ArrowException, OSError) as error:
            raise self.damaged(f"{self.file('parquet').name} cannot be read: {error}") from None

    def pictures(self) -> dict[str, Slice]:
        """Name of each picture -> where its bytes lie.

        Raises:
            StorageError: if the tar is damaged.
        """
        kinds = tuple(PICTURE_SUFFIXES.values())
        try:
            return {m.name: m.data for m in members(self.file("tar")) if m.name.endswith(kinds)}
        except ImageError as error:
            raise self.damaged(str(error)) from None

    def check(self) -> None:
        """Compare everything with its checksum: its files, and every picture.

        Raises:
            StorageError: if anything differs.
        """
        for suffix, expected in self.sha256.items():
            if file_sha256(self.file(suffix)) != expected:
                raise self.damaged(f"{self.file(suffix).name} is not what was written: its sha256 differs")
        rows = self.table().select(["path", "sha256", "decision"]).to_pylist()
        kept = {row["path"]: row["sha256"] for row in rows if row["decision"] == KEPT}
        found = self.pictures()
        if kept.keys() != found.keys():
            raise self.damaged(
                f"its manifest keeps {len(kept)} pictures, and its tar has {len(found)} or others"
            )
        for name, expected in kept.items():
            if hashlib.sha256(found[name].read()).hexdigest() != expected:
                raise self.damaged(f"the picture {name} is not what was written: its sha256 differs")

    def damaged(self, what: str) -> DamagedShardError:
        """The error that says what is wrong with this shard, and the way out."""
        return _damaged(self.file("json"), what)


def _damaged(path: Path, what: str) -> DamagedShardError:
    return DamagedShardError(
        f"shard {path.stem} of {path.parent.parent} is damaged: {what.rstrip('.')}. Delete {path} and run "
        "`idgen synthesize` again: it makes that shard anew",
        path,
    )


def shard_file(folder: Path, number: int, suffix: str) -> Path:
    """The path of a shard's ``tar``, ``parquet`` or ``json`` in the folder of all shards."""
    return folder / f"{number:05d}.{suffix}"


def read_shards(dataset: Path, damaged: list[str] | None = None) -> tuple[Shard, ...]:
    """The finished shards of a dataset, in order; of their files only the sizes are looked at.

    Args:
        dataset: its folder.
        damaged: is told what is wrong with a shard, which is then left out; if not given, that is an error.

    Raises:
        StorageError: if one is damaged, as far as that is seen so.
        ConfigError: if it was written by a newer idgen.
    """
    files = [path for path in dataset.joinpath(FOLDER).glob("*.json") if path.stem.isdecimal()]
    found: list[Shard] = []
    for path in sorted(files, key=lambda path: int(path.stem)):
        try:
            found.append(read_shard(path))
        except DamagedShardError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
    return tuple(found)


def read_shard(path: Path) -> Shard:
    """The shard whose JSON this is.

    Raises:
        StorageError: if it cannot be read, or a file is missing or of another size.
        ConfigError: if it was written by a newer idgen.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["idgen_shard"] > FORMAT:
            raise ConfigError(
                f"{path} was written by a newer idgen (format {said['idgen_shard']}, this one reads {FORMAT})"
            )
        files = {suffix: said[suffix] for suffix in ("tar", "parquet")}
        if VECTORS_FACT in said["facts"]:
            files[VECTORS_SUFFIX] = said["facts"][VECTORS_FACT]
        shard = Shard(
            folder=path.parent,
            number=int(path.stem),
            sha256={suffix: str(file["sha256"]) for suffix, file in files.items()},
            num_bytes={suffix: int(file["bytes"]) for suffix, file in files.items()},
            num_planned=int(said["num_planned"]),
            num_kept=int(said["num_kept"]),
            num_people=int(said["num_people"]),
            facts=dict(said["facts"]),
        )
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(path, f"{path.name} cannot be read") from None
    for suffix, size in shard.num_bytes.items():
        file = shard.file(suffix)
        if not file.is_file():
            raise shard.damaged(f"{file.name} is missing")
        if file.stat().st_size != size:
            raise shard.damaged(f"{file.name} has {file.stat().st_size} bytes instead of {size}")
    return shard


def write_shard(
    dataset: Path,
    number: int,
    pictures_and_rows: Iterable[tuple[Mapping[str, Any], bytes | None]],
    *,
    facts: Mapping[str, Any] | None = None,
) -> Shard:
    """Write a shard, each file whole or not at all and its JSON last; a shard of that number is replaced.

    Equal pictures and rows give equal files, byte for byte.

    Args:
        dataset: its folder; ``shards/`` is made.
        number: of the shard, from 0.
        pictures_and_rows: for each planned picture its row, and the encoded picture where it was kept. A row
            has text, numbers and truth values under ``identity``, ``key`` (unique in the dataset; letters,
            digits, ``-`` and ``_``), ``decision`` (``kept``, or why not) and whatever else is known; ``path``
            and ``sha256`` are added.
        facts: whatever else is to stand in the JSON.

    Raises:
        ConfigError: if a row lacks something, or does not fit its picture.
        StorageError: if the disk is full, or the folder cannot be written.
    """
    folder = dataset / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shard_file(folder, number, "json").unlink(missing_ok=True)  # from here on it does not exist
    except OSError as error:
        raise StorageError(f"cannot write into {folder}: {error.strerror or error}") from None
    tar_path = shard_file(folder, number, "tar")
    rows: dict[str, dict[str, Any]] = {}
    with replacing(tar_path) as file:
        tar = _Hashed(file)
        for given, data in pictures_and_rows:
            row = _checked_row(given, data)
            if row["key"] in rows:
                raise ConfigError(f"shard {number:05d} has the key {row['key']!r} twice")
            rows[row["key"]] = row
            if data is not None:
                tar.write(packed_member(row["path"], data))
                tar.write(packed_member(f"{row['key']}.json", row_as_json(row)))
        if not rows:
            raise ConfigError(f"shard {number:05d} would have no rows; a shard plans one picture at least")
        tar.write(END)
    table = _as_parquet(list(rows.values()))
    write_bytes(shard_file(folder, number, "parquet"), table)
    kept = [row for row in rows.values() if row["decision"] == KEPT]
    said = {
        "idgen_shard": FORMAT,
        "tar": {"sha256": tar.digest.hexdigest(), "bytes": tar.size},
        "parquet": {"sha256": hashlib.sha256(table).hexdigest(), "bytes": len(table)},
        "num_planned": len(rows),
        "num_kept": len(kept),
        "num_people": len({row["identity"] for row in kept}),
        "facts": dict(facts or {}),
    }
    write_json(shard_file(folder, number, "json"), said)
    return read_shard(shard_file(folder, number, "json"))


class _Hashed:
    """A file that is written, and the sha256 of what was meant to be in it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self.digest.update(data)
        self.size += len(data)
        self.file.write(data)


def _checked_row(given: Mapping[str, Any], data: bytes | None) -> dict[str, Any]:
    row = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
    key = row.get("key")
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise ConfigError(f"a row's key must be letters, digits, - and _, 100 at most, got {key!r}")
    for name in ("identity", "decision"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise ConfigError(f"the row {key} needs a text under {name}, got {row.get(name)!r}")
    taken = [name for name in RESERVED if name in row]
    if taken:
        raise ConfigError(
            f"the row {key} has a column {taken[0]}; idgen itself fills that one, choose another name"
        )
    for name, value in row.items():
        if not isinstance(value, str | int | float | None):
            raise ConfigError(
                f"the row {key} has a {type(value).__name__} under {name}; a manifest holds text and numbers"
            )
    if (data is not None) != (row["decision"] == KEPT):
        raise ConfigError(
            f"the row {key} has the decision {row['decision']!r} and {'no' if data is None else 'a'} "
            f"picture; {KEPT!r} pictures, and these alone, are stored"
        )
    if data is None:
        return row | {"path": None, "sha256": None}
    kind = picture_kind(data)
    if kind is None:
        raise ConfigError(f"the picture of the row {key} is neither PNG, JPEG nor WebP")
    sha256 = hashlib.sha256(data).hexdigest()
    if row.get("sha256", sha256) != sha256:
        raise ConfigError(f"the row {key} has another sha256 than its picture")
    return row | {"path": key + PICTURE_SUFFIXES[kind], "sha256": sha256}


def row_as_json(row: Mapping[str, Any]) -> bytes:
    """A row of a manifest as JSON; a number that is not defined becomes null."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(plain, ensure_ascii=False, allow_nan=False).encode()


def table_of(rows: list[dict[str, Any]]) -> "pyarrow.Table":
    """Rows as a table with every column that any of them has.

    Raises:
        ConfigError: if a column has text in one row and a number in another.
    """
    import pyarrow

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])
        except (pyarrow.ArrowException, OverflowError) as error:
            raise ConfigError(f"the column {name!r} of the manifest mixes kinds of values: {error}") from None
    return pyarrow.table(columns)


def _as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(table_of(rows), stream)
    return stream.getvalue()
