"""WebDataset: tars of samples, each a picture, its class number and its row, under one key.

``train-000000.tar`` holds ``KEY.png``, ``KEY.cls`` and ``KEY.json``; the key ends at the first dot of a name
(https://github.com/webdataset/webdataset, "The WebDataset Format").
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from idgen.data.pictures import Picture, Slice
from idgen.errors import ConfigError, ImageError
from idgen.synth.export.base import ALL_KINDS, Person, checked_shard_mb, class_names, identities_of
from idgen.synth.export.beside import exact_labels
from idgen.synth.shards import row_as_json
from idgen.synth.tars import END, members, packed_member

if TYPE_CHECKING:
    import pyarrow

PICTURES = {"png", "jpg", "jpeg", "webp"}
MAX_TEXT_BYTES = 1 << 20  # of a .json; a row is a thousandth of it


class WebDatasetExporter:
    """A new tar is begun before a person who would make it larger than ``shard_mb``; nobody is in two."""

    kinds = ALL_KINDS

    def __init__(self, shard_mb: int) -> None:
        self.limit = checked_shard_mb(shard_mb)

    def write(
        self, people: Iterable[Person], folder: Path, columns: "pyarrow.Schema"
    ) -> list[dict[str, Any]]:
        """Write the tars; see `Exporter`."""
        del columns  # each row stands in its sample
        places: list[dict[str, Any]] = []
        tars = _Tars(folder, self.limit)
        try:
            for person in people:
                packed = b"".join(
                    packed_member(item.name, item.data)
                    + packed_member(f"{item.key}.cls", str(person.label).encode())
                    + packed_member(f"{item.key}.json", row_as_json(item.row))
                    for item in person.items
                )
                name = tars.add(packed)
                places += [{"tar": name, "file": item.name} for item in person.items]
        finally:
            tars.close()
        return places

    def readme(self, datasheet: str, num_pictures: int) -> None:
        """No program reads a README.md here."""
        del datasheet, num_pictures


class _Tars:
    """Tars that are filled one after the other."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.file: BinaryIO | None = None
        self.num, self.size = 0, 0

    def add(self, packed: bytes) -> str:
        """Append a person's members; the name of the tar they are in."""
        if self.file is None or self.size + len(packed) + len(END) > self.limit:
            self.close()
            self.file = (self.folder / f"train-{self.num:06d}.tar").open("xb")
            self.num, self.size = self.num + 1, 0
        self.file.write(packed)
        self.size += len(packed)
        return f"train-{self.num - 1:06d}.tar"

    def close(self) -> None:
        """End the tar that is open."""
        if self.file is not None:
            with self.file as file:
                file.write(END)
            self.file = None


def read_webdataset(paths: Sequence[Path], *, with_labels: bool) -> list[Picture]:
    """The samples of tars that have a picture, and say whom it shows.

    That is, in this order: ``identity`` of the sample's JSON; its ``.cls``, by the labels.json beside the
    tars if there is one; ``label`` of its JSON; the folder that its key begins with.

    Args:
        paths: the tars.
        with_labels: whether a sample's JSON is kept too; it takes more memory than all the rest.

    Raises:
        ImageError: if a tar is damaged or not safe to read.
        ConfigError: if a sample has two pictures, or says nothing of whom it shows.
    """
    found: list[Picture] = []
    numbered: list[tuple[Picture, int]] = []
    for path in paths:
        for key, sample in _samples(path):
            pictures = [name for name in sample if name in PICTURES]
            if not pictures:
                continue
            if len(pictures) > 1:
                raise ConfigError(
                    f"{path}: the sample {key} has {len(pictures)} pictures ({', '.join(pictures)})"
                )
            row = _row(path, key, sample)
            who = _who(path, key, sample, row)
            picture = Picture(
                identity=who if isinstance(who, str) else "",
                name=f"{path.stem}/{key}.{pictures[0]}",
                stored=sample[pictures[0]],
                prompt=str(row.get("prompt") or "") if with_labels else "",
                reference=str(row.get("reference") or "") if with_labels else "",
                labels=exact_labels(row) if with_labels else {},
            )
            if isinstance(who, str):
                found.append(picture)
            else:
                numbered.append((picture, who))
    if numbered:
        source = paths[0].parent
        who = identities_of([label for _, label in numbered], class_names(source), source=source)
        found += [replace(picture, identity=name) for (picture, _), name in zip(numbered, who, strict=True)]
    return found


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Slice]]]:
    """Key -> extension -> bytes of neighbouring members of one key, as webdataset groups them."""
    key, sample = "", {}
    for member in members(path):
        head, _, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not stem or not dot:  # hidden files, such as macOS leaves, and files that are no part of a sample
            continue
        own = f"{head}/{stem}" if head else stem
        if own != key:
            if sample:
                yield key, sample
            key, sample = own, {}
        sample[extension.lower()] = member.data
    if sample:
        yield key, sample


def _row(path: Path, key: str, sample: dict[str, Slice]) -> dict[str, Any]:
    if "json" not in sample:
        return {}
    try:
        row = json.loads(_text(path, key, sample["json"]))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ImageError):
            raise
        raise ConfigError(f"{path}: the JSON of the sample {key} cannot be read: {error}") from None
    return row if isinstance(row, dict) else {}


def _text(path: Path, key: str, data: Slice) -> bytes:
    if data.size > MAX_TEXT_BYTES:
        raise ImageError(
            f"{path}: a text of the sample {key} has {data.size} bytes; {MAX_TEXT_BYTES} are read"
        )
    return data.read()


def _who(path: Path, key: str, sample: dict[str, Slice], row: dict[str, Any]) -> str | int:
    """Identity or class number."""
    if row.get("identity") not in (None, ""):
        return str(row["identity"])
    number = (
        _text(path, key, sample["cls"]).decode("ascii", "replace") if "cls" in sample else row.get("label")
    )
    if isinstance(number, str | int) and not isinstance(number, bool):
        text = str(number).strip()
        if not text.isdecimal() or len(text) > 12:
            raise ConfigError(f"{path}: the sample {key} has the class number {text[:40]!r}")
        return int(text)
    folder = PurePosixPath(key).parent.name
    if folder:
        return folder
    raise ConfigError(
        f"{path}: the sample {key} does not say whom it shows; it needs a .json with identity, a .cls with a "
        "class number, or a key in the person's folder"
    )
