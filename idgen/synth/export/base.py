"""What every exporter is: people in, files of one format out; and the names that go with all formats."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from idgen.errors import ConfigError
from idgen.registry import Registry
from idgen.synth.tars import PICTURE_SUFFIXES

if TYPE_CHECKING:
    import pyarrow

LABELS = "labels.json"  # identity -> class number
ALL_KINDS = frozenset(PICTURE_SUFFIXES)
MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Item:
    """A picture that goes out.

    Attributes:
        key: unique in the set; letters, digits, ``-`` and ``_``.
        kind: ``png``, ``jpg`` or ``webp``.
        data: the encoded picture.
        row: of the manifest, with the class number under ``label``.
    """

    key: str
    kind: str
    data: bytes
    row: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.key + PICTURE_SUFFIXES[self.kind]


@dataclass(frozen=True, kw_only=True)
class Person:
    """The pictures of one person, at least one, with the class number ``label``."""

    identity: str
    label: int
    items: tuple[Item, ...]


class Exporter(Protocol):
    """Writes one format.

    Attributes:
        kinds: of pictures that the format's readers decode.
    """

    kinds: frozenset[str]

    def write(
        self, people: Iterable[Person], folder: Path, columns: "pyarrow.Schema"
    ) -> list[dict[str, Any]]:
        """Write everybody, who come by ascending class number, into an empty folder.

        Args:
            people: looked at once, one after the other.
            folder: to write into.
            columns: of the rows of the items.

        Returns:
            For each picture, in order, where it lies: further columns of the manifest.

        Raises:
            ConfigError: if the format cannot hold something.
        """
        ...

    def readme(self, datasheet: str, num_pictures: int) -> str | None:
        """The README.md that programs read, where the format has one."""
        ...


exporters: Registry[Exporter] = Registry("format of datasets")
SHARDED = ("webdataset", "parquet")  # whose factories take shard_mb


@exporters.register("folder")
def _folder() -> Exporter:
    """One folder a person, as torchvision's ImageFolder and most programs read."""
    from idgen.synth.export.folder import FolderExporter

    return FolderExporter()


@exporters.register("webdataset")
def _webdataset(*, shard_mb: int = 500) -> Exporter:
    """Tars of at most ``shard_mb`` megabytes."""
    from idgen.synth.export.webdataset import WebDatasetExporter

    return WebDatasetExporter(shard_mb)


@exporters.register("parquet")
def _parquet(*, shard_mb: int = 500) -> Exporter:
    """Parquet files of about ``shard_mb`` megabytes as Hugging Face datasets has them."""
    from idgen.synth.export.parquet import ParquetExporter

    return ParquetExporter(shard_mb)


@exporters.register("recordio")
def _recordio() -> Exporter:
    """RecordIO of mxnet, as insightface's arcface_torch trains on."""
    from idgen.synth.export.recordio import RecordIOExporter

    return RecordIOExporter()


@exporters.register("lmdb")
def _lmdb() -> Exporter:
    """An LMDB as the training code of HSFace reads it."""
    from idgen.synth.export.lmdb import LMDBExporter

    return LMDBExporter()


def checked_shard_mb(shard_mb: int) -> int:
    """The size of a shard in bytes.

    Raises:
        ConfigError: if it is not from 1 to 100 000 megabytes.
    """
    if not 1 <= shard_mb <= 100_000:
        raise ConfigError(f"--shard-mb must be from 1 to 100000 megabytes, got {shard_mb}")
    return shard_mb * MEGABYTE


def folder_name(identity: str) -> str:
    """An identity as the name of a folder, the same text.

    Raises:
        ConfigError: if it cannot be one.
    """
    forbidden = set('/\\<>:"|?*')
    is_name = identity.isprintable() and not forbidden & set(identity) and identity == identity.strip(" .")
    if not is_name or not 0 < len(identity.encode("utf-8", "replace")) <= 200:
        raise ConfigError(
            f'the identity {identity!r} cannot be the name of a folder: no / \\ < > : " | ? *, no dot or '
            "space at its ends, 200 bytes at most. Export to another format, or rename the identity"
        )
    return identity


def class_names(folder: Path) -> dict[int, str] | None:
    """Class number -> identity, from the labels.json of a set; None where there is none.

    Raises:
        ConfigError: if that file is something else.
    """
    path = folder / LABELS
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        names = {int(number): str(identity) for identity, number in said.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise ConfigError(f"{path} must be a JSON of identities and their class numbers") from None
    if len(names) != len(said):
        raise ConfigError(f"{path} gives two identities one class number")
    return names


def identities_of(labels: Sequence[int], names: Mapping[int, str] | None, *, source: Path) -> Iterator[str]:
    """The identity of each class number; numbers filled with zeros where they have no names.

    Raises:
        ConfigError: if a number is negative, or some have names and this one has none.
    """
    if labels and min(labels) < 0:
        raise ConfigError(f"{source} has the class number {min(labels)}; class numbers begin at 0")
    if names is None:
        width = len(str(max(labels, default=0)))
        names = {label: f"{label:0{width}d}" for label in set(labels)}
    missing = sorted(set(labels) - names.keys())
    if missing:
        raise ConfigError(f"{source} has the class number {missing[0]}, which has no name in {LABELS}")
    return (names[label] for label in labels)
