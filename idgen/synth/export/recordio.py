"""RecordIO of mxnet: ``train.rec``, ``train.idx`` and ``property``, as insightface's arcface_torch trains on.

A record is ``magic, flag << 29 | length, bytes, filling to 4`` in little endian. Where the bytes hold the
magic number at a multiple of 4, they are cut there into parts of one record each, with the flags 1 (first), 2
and 3 (last) instead of 0, and the number itself is left out (dmlc-core, src/recordio.cc). The bytes begin
with a header ``flag uint32, label float32, id uint64, id2 uint64``; a flag above 0 is the number of float32
labels that follow (mxnet/recordio.py, ``pack``). Record 0 has two labels: the number of the first record of a
person, and one beyond the last; pictures come before, from 1. A person's record has the numbers of the
first picture and one beyond the last (insightface, arcface_torch/dataset.py).
"""

import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from idgen.data.pictures import Picture
from idgen.errors import ConfigError, ImageError
from idgen.synth.export.base import Item, Person, class_names, identities_of
from idgen.synth.export.beside import Beside

if TYPE_CHECKING:
    import pyarrow

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
WHOLE, FIRST, MIDDLE, LAST = range(4)  # flags of a record or part
MAX_LENGTH = (1 << 29) - 1
HEADER = struct.Struct("<IfQQ")
MAX_RECORDS = 1 << 24  # numbers of records are written as float32, which is exact up to here
MAX_LABELS = 1024  # of one picture; arcface has 1 or 2


def packed_record(data: bytes) -> bytes:
    """A record as it stands in the file.

    Raises:
        ConfigError: if it has 512 MB or more.
    """
    if len(data) > MAX_LENGTH:
        raise ConfigError(f"a record holds at most {MAX_LENGTH} bytes, got {len(data)}")
    cuts = _magic_at(data)
    starts = [0, *(cut + 4 for cut in cuts)]
    parts = [data[start:end] for start, end in zip(starts, [*cuts, len(data)], strict=True)]
    flags = [WHOLE] if len(parts) == 1 else [FIRST, *[MIDDLE] * (len(parts) - 2), LAST]
    packed = b"".join(
        struct.pack("<II", MAGIC, flag << 29 | len(part)) + part
        for flag, part in zip(flags, parts, strict=True)
    )
    return packed + bytes(-len(packed) % 4)


def _magic_at(data: bytes) -> list[int]:
    """Every multiple of 4 at which the magic number stands."""
    words = np.frombuffer(data, dtype="<u4", count=len(data) // 4)
    return [int(word) * 4 for word in np.flatnonzero(words == MAGIC)]


def packed_labels(labels: tuple[float, ...], number: int, data: bytes = b"") -> bytes:
    """What a record holds: one label in its header, or several behind it; then the picture."""
    if len(labels) == 1:
        return HEADER.pack(0, labels[0], number, 0) + data
    return HEADER.pack(len(labels), 0.0, number, 0) + struct.pack(f"<{len(labels)}f", *labels) + data


class RecordIOExporter:
    """For training, arcface_torch wants aligned pictures of 112 x 112: ``--align 112`` makes them."""

    kinds = frozenset({"png", "jpg"})  # what mxnet's build of OpenCV decodes

    def write(
        self, people: Iterable[Person], folder: Path, columns: "pyarrow.Schema"
    ) -> list[dict[str, Any]]:
        """Write the three files; see `Exporter`."""
        del columns  # the manifest beside has them
        size: tuple[int, int] | None = None
        ranges: list[tuple[int, int]] = []
        with (folder / "train.rec").open("xb") as rec, (folder / "train.idx").open("x") as idx:
            records = _Records(rec, idx)
            records.add(packed_labels((0, 0), 0))  # filled in at the end, when the numbers are known
            for person in people:
                first = records.num
                for item in person.items:
                    size = _same_size(item, size)
                    records.add(packed_labels((person.label,), records.num, item.data))
                ranges.append((first, records.num))
            first_person = records.num
            for start, end in ranges:
                records.add(packed_labels((start, end), records.num))
            rec.seek(0)
            rec.write(packed_record(packed_labels((first_person, records.num), 0)))
        assert size is not None
        property_line = f"{len(ranges)},{size[1]},{size[0]}\n"  # height before width
        (folder / "property").write_text(property_line, encoding="ascii")
        return [{"record": number} for number in range(1, first_person)]

    def readme(self, datasheet: str, num_pictures: int) -> None:
        """No program reads a README.md here."""
        del datasheet, num_pictures


class _Records:
    """The two files while they are written."""

    def __init__(self, rec: BinaryIO, idx: io.TextIOBase) -> None:
        self.rec, self.idx, self.num = rec, idx, 0

    def add(self, data: bytes) -> None:
        if self.num >= MAX_RECORDS:
            raise ConfigError(
                f"RecordIO numbers at most {MAX_RECORDS} pictures and people; export to webdataset"
            )
        self.idx.write(f"{self.num}\t{self.rec.tell()}\n")
        self.rec.write(packed_record(data))
        self.num += 1


def _same_size(item: Item, size: tuple[int, int] | None) -> tuple[int, int]:
    """The size of a picture, which must be that of those before it."""
    with Image.open(io.BytesIO(item.data)) as image:
        own = image.size
    if size is not None and own != size:
        raise ConfigError(
            f"recordio holds pictures of one size, and {item.name} has {own[0]} x {own[1]} pixels after "
            f"others of {size[0]} x {size[1]}; --align 112 brings all to the crop of recognisers"
        )
    return own


# ---- reading


@dataclass(frozen=True, slots=True)
class Record:
    """A picture in a .rec file."""

    file: Path
    start: int

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            ImageError: if the file is gone or damaged.
        """
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.start)
                data = _next_record(file, self.file)
        except OSError as error:
            raise ImageError(f"cannot read {self.file}: {error.strerror or error}") from None
        return data[_labels_of(data, self.file)[1] :]


def _next_record(file: io.FileIO, path: Path) -> bytes:
    """The record that begins here, its parts joined."""
    parts: list[bytes] = []
    while True:
        at = file.tell()
        head = file.read(8)
        magic, word = struct.unpack("<II", head) if len(head) == 8 else (0, 0)
        flag, length = word >> 29, word & MAX_LENGTH
        if magic != MAGIC or flag not in ((MIDDLE, LAST) if parts else (WHOLE, FIRST)):
            raise ImageError(f"{path} is damaged: no record begins at byte {at}")
        part = file.read(length)
        if len(part) != length:
            raise ImageError(f"{path} is cut short: the record at byte {at} has {length} bytes")
        file.read(-length % 4)
        parts.append(part)
        if flag in (WHOLE, LAST):
            return MAGIC_BYTES.join(parts)
        if sum(map(len, parts)) > MAX_LENGTH:
            raise ImageError(f"{path} is damaged: the record before byte {at} has no end")


def _labels_of(data: bytes, path: Path) -> tuple[tuple[float, ...], int]:
    """The labels of a record, and where its picture begins."""
    if len(data) < HEADER.size:
        raise ImageError(f"{path} is damaged: a record of {len(data)} bytes has no header")
    num, label, _, _ = HEADER.unpack_from(data)
    if num == 0:
        return (label,), HEADER.size
    end = HEADER.size + 4 * num
    if num > MAX_LABELS or len(data) < end:
        raise ImageError(f"{path} is damaged: a record of {len(data)} bytes has {num} labels")
    return struct.unpack_from(f"<{num}f", data, HEADER.size), end


def read_recordio(rec: Path, *, with_labels: bool = False) -> list[Picture]:
    """The pictures of a .rec file, by the .idx beside it; without one the file is read through.

    Args:
        rec: the file.
        with_labels: whether what the manifest of an export beside it says is kept too.

    Raises:
        ImageError: if a file is damaged.
        ConfigError: if a label is no class number, or the manifest is of another set.
    """
    try:
        with rec.open("rb", buffering=0) as file:
            starts = _starts(rec, file)
            labels = {}
            for number in _numbers_of_pictures(rec, file, starts):
                labels[number] = _class_number(_first_label(file, starts[number], rec), number, rec)
    except OSError as error:
        raise ImageError(f"cannot read {rec}: {error.strerror or error}") from None
    people = identities_of(list(labels.values()), class_names(rec.parent), source=rec)
    width = len(str(max(labels, default=0)))
    pictures = [
        Picture(identity=identity, name=f"{number:0{width}d}", stored=Record(rec, starts[number]))
        for number, identity in zip(labels, people, strict=True)
    ]
    if not with_labels:
        return pictures
    manifest = Beside(rec.parent, "record", source=rec)
    return [
        manifest.describe(picture, number, label)
        for picture, (number, label) in zip(pictures, labels.items(), strict=True)
    ]


def _starts(rec: Path, file: io.FileIO) -> dict[int, int]:
    """Number of each record -> where it begins."""
    idx = rec.with_suffix(".idx")
    if not idx.is_file():
        return _starts_by_reading(rec, file)
    try:
        lines = [line.split() for line in idx.read_text(encoding="ascii").splitlines() if line.strip()]
        starts = {int(number): int(start) for number, start in lines}
    except (OSError, ValueError):
        raise ImageError(
            f"{idx} is damaged: each line must be a number and the place of its record"
        ) from None
    if len(starts) != len(lines) or min(starts, default=0) < 0 or min(starts.values(), default=0) < 0:
        raise ImageError(f"{idx} is damaged: numbers are negative, or come twice")
    return starts


def _starts_by_reading(rec: Path, file: io.FileIO) -> dict[int, int]:
    starts: dict[int, int] = {}
    end = rec.stat().st_size
    file.seek(0)
    while (at := file.tell()) < end:
        _next_record(file, rec)
        starts[len(starts)] = at
    return starts


def _numbers_of_pictures(rec: Path, file: io.FileIO, starts: dict[int, int]) -> list[int]:
    """As arcface_torch's MXFaceDataset chooses them: by the labels of record 0, or else all."""
    if 0 in starts:
        file.seek(starts[0])
        head = _next_record(file, rec)
        labels, _ = _labels_of(head, rec)
        if HEADER.unpack_from(head)[0] > 0:
            end = labels[0]
            missing = not 1 <= end <= MAX_RECORDS or any(n not in starts for n in range(1, int(end)))
            if missing:
                raise ImageError(
                    f"{rec} and its index do not fit: record 0 says that pictures end at {end:g}"
                )
            return list(range(1, int(end)))
    return sorted(starts)


def _first_label(file: io.FileIO, start: int, path: Path) -> float:
    """The first label of a record: its first bytes are enough, but where the header is cut by the magic."""
    file.seek(start)
    head = file.read(8 + HEADER.size + 4)
    magic, word = struct.unpack_from("<II", head) if len(head) >= 8 else (0, 0)
    if magic == MAGIC and word >> 29 == WHOLE and word & MAX_LENGTH >= HEADER.size + 4 <= len(head) - 8:
        num, label, _, _ = HEADER.unpack_from(head, 8)
        return label if num == 0 else struct.unpack_from("<f", head, 8 + HEADER.size)[0]
    file.seek(start)
    return _labels_of(_next_record(file, path), path)[0][0]


def _class_number(label: float, number: int, path: Path) -> int:
    if not label.is_integer() or label < 0:
        raise ConfigError(f"{path}: the record {number} has the label {label:g}, which is no class number")
    return int(label)
