"""Parquet as Hugging Face datasets has it: a column of pictures, one of class numbers, and the manifest's.

``data/train-00000-of-00001.parquet``; the key ``huggingface`` of a file's metadata tells ``datasets`` that
``image`` is an Image and ``label`` a ClassLabel with the identities as names
(https://huggingface.co/docs/datasets/about_dataset_features).
"""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from idgen.data.pictures import Picture
from idgen.errors import ConfigError, ImageError
from idgen.synth.export.base import ALL_KINDS, Item, Person, checked_shard_mb, class_names, identities_of
from idgen.synth.export.beside import exact_labels

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

GROUP = 100  # pictures of a row group: what is read at once for one of them
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))  # of cards
MAX_GROUP_BYTES = 1 << 32
KEPT_GROUPS = 8  # row groups of which a process keeps the pictures


class ParquetExporter:
    """A new file is begun before a person with whom it would grow beyond ``shard_mb``."""

    kinds = ALL_KINDS

    def __init__(self, shard_mb: int) -> None:
        self.limit = checked_shard_mb(shard_mb)

    def write(
        self, people: Iterable[Person], folder: Path, columns: "pyarrow.Schema"
    ) -> list[dict[str, Any]]:
        """Write the files; see `Exporter`."""
        data = folder / "data"
        data.mkdir()
        files: list[_File] = []
        file_of_picture: list[int] = []
        names: list[str] = []
        try:
            for person in people:
                names.append(person.identity)
                size = sum(len(item.data) for item in person.items)
                if not files or files[-1].size + size > self.limit:
                    files.append(_File(data / f"{len(files)}.parquet", columns))
                files[-1].add(person.items)
                file_of_picture += [len(files) - 1] * len(person.items)
            for file in files:
                file.finish(names)
        finally:
            for file in files:
                file.writer.close()
        final = [f"data/train-{i:05d}-of-{len(files):05d}.parquet" for i in range(len(files))]
        for file, name in zip(files, final, strict=True):
            file.path.rename(folder / name)
        return [{"file": final[number]} for number in file_of_picture]

    def readme(self, datasheet: str, num_pictures: int) -> str:
        """The card of a dataset: settings that the Hub and ``datasets`` read, then the datasheet."""
        head = {
            "license": "other",  # the datasheet names the licences
            "task_categories": ["image-classification"],
            "tags": ["synthetic", "face-recognition"],
            "size_categories": [next((name for most, name in SIZES if num_pictures < most), "n>1M")],
            "configs": [
                {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
            ],
        }
        return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{datasheet}"


class _File:
    """A Parquet file that is filled; what its classes are called is said at its end."""

    def __init__(self, path: Path, columns: "pyarrow.Schema") -> None:
        import pyarrow
        import pyarrow.parquet  # heavy

        self.path, self.size = path, 0
        self.features = {"image": {"_type": "Image"}} | {f.name: _feature(f) for f in columns}
        image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        self.schema = pyarrow.schema([pyarrow.field("image", image), *columns])
        # Without a stored schema the metadata that is added at the end is that of the file.
        self.writer = pyarrow.parquet.ParquetWriter(path, self.schema, store_schema=False)
        self.waiting: list[Item] = []

    def add(self, items: Sequence[Item]) -> None:
        for item in items:
            self.waiting.append(item)
            self.size += len(item.data)
            if len(self.waiting) == GROUP:
                self._flush()

    def _flush(self) -> None:
        import pyarrow

        rows = [{"image": {"bytes": i.data, "path": i.name}, **i.row} for i in self.waiting]
        self.writer.write_table(pyarrow.Table.from_pylist(rows, schema=self.schema))
        self.waiting.clear()

    def finish(self, names: Sequence[str]) -> None:
        if self.waiting:
            self._flush()
        self.features["label"] = {"names": list(names), "_type": "ClassLabel"}
        said = {"info": {"features": self.features}}
        self.writer.add_key_value_metadata({"huggingface": json.dumps(said)})


def _feature(column: "pyarrow.Field") -> dict[str, Any]:
    """A column as ``datasets`` names its type."""
    names = {"double": "float64", "float": "float32"}
    kind = str(column.type)
    known = {"string", "large_string", "bool", "null", "double", "float"}
    if kind not in known and not kind.startswith(("int", "uint")):
        raise ConfigError(
            f"the manifest's column {column.name!r} is of type {kind}; text and numbers are exported"
        )
    return {"dtype": names.get(kind, kind), "_type": "Value"}


# ---- reading


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture in a Parquet file: it is read together with its row group."""

    file: Path
    group: int
    row: int  # of the group
    column: str

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            ImageError: if the file is gone or damaged, or the cell is empty.
        """
        try:
            stat = self.file.stat()
        except OSError as error:
            raise ImageError(f"cannot read {self.file}: {error.strerror or error}") from None
        values = _group(self.file, self.group, self.column, (stat.st_mtime_ns, stat.st_size))
        value = values[self.row].as_py() if self.row < len(values) else None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ImageError(
                f"{self.file} has no bytes of a picture in row {self.row} of row group {self.group}"
            )
        return data


@functools.lru_cache(maxsize=KEPT_GROUPS)
def _group(file: Path, group: int, column: str, version: tuple[int, int]) -> "pyarrow.ChunkedArray":
    """A column of a row group; ``version`` tells a file from a later one of the same name."""
    import pyarrow
    import pyarrow.parquet

    del version
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            size = opened.metadata.row_group(group).total_byte_size
            if size > MAX_GROUP_BYTES:
                raise ImageError(
                    f"{file} has a row group of {size} bytes, which must be read at once; at most "
                    f"{MAX_GROUP_BYTES} are. Write it again with small ones (row_group_size=100)"
                )
            # no threads: they do not survive a fork
            return opened.read_row_group(group, columns=[column], use_threads=False)[column]
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise ImageError(f"{file} cannot be read: {error}") from None


def read_parquet(paths: Sequence[Path], *, with_labels: bool) -> list[Picture]:
    """The pictures of Parquet files with a column ``image`` or ``bytes``, and ``identity`` or ``label``.

    A class number of ``label`` is named by the metadata of ``datasets``, or by the labels.json beside the
    files, or else stays a number.

    Args:
        paths: the files.
        with_labels: whether further columns are kept too; they take more memory than all the rest.

    Raises:
        ImageError: if a file is damaged.
        ConfigError: if it lacks a column.
    """
    return [picture for path in paths for picture in _pictures_of(path, with_labels=with_labels)]


def _pictures_of(path: Path, *, with_labels: bool) -> list[Picture]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            column = next((name for name in ("image", "bytes") if name in schema.names), None)
            who = next((name for name in ("identity", "label") if name in schema.names), None)
            if column is None or who is None:
                raise ConfigError(
                    f"{path} needs the columns image (bytes), and identity or label; it has "
                    + ", ".join(schema.names)
                )
            others = [n for n in schema.names if n != column] if with_labels else [who]
            rows = file.read(columns=others).to_pylist()
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        raise ImageError(f"{path} is not a Parquet file that can be read: {error}") from None
    people = _people(path, [row[who] for row in rows], who, schema.metadata or {})
    cells = [Cell(path, group, row, column) for group, size in enumerate(sizes) for row in range(size)]
    width = len(str(len(rows)))
    return [
        Picture(
            identity=identity,
            name=f"{path.stem}/{number:0{width}d}",
            stored=cell,
            prompt=str(row.get("prompt") or ""),
            reference=str(row.get("reference") or ""),
            labels=exact_labels(row) if with_labels else {},
        )
        for number, (identity, cell, row) in enumerate(zip(people, cells, rows, strict=True))
    ]


def _people(path: Path, values: list[Any], who: str, metadata: Mapping[bytes, bytes]) -> list[str]:
    if any(value is None for value in values):
        raise ConfigError(f"{path} has rows without {who}; each picture must say whom it shows")
    if who == "identity" or not all(isinstance(value, int) for value in values):
        known: dict[str, str] = {}  # one text a person, not one a picture
        return [known.setdefault(name, name) for name in map(str, values)]
    names = _names_in(metadata)
    beside = path.parent.parent if path.parent.name == "data" else path.parent
    return list(identities_of(values, names or class_names(beside), source=path))


def _names_in(metadata: Mapping[bytes, bytes]) -> dict[int, str] | None:
    """Class number -> name, where the metadata of ``datasets`` says that ``label`` is a ClassLabel."""
    try:
        label = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]
        return dict(enumerate(map(str, label["names"])))
    except (KeyError, ValueError, TypeError):
        return None
