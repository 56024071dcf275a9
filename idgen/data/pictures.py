"""Pictures that are to be measured: folders of people, runs of idgen, Parquet files, each read alike."""

import io
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, ImageOps, UnidentifiedImageError

from idgen.errors import ConfigError, ImageError
from idgen.pixels import MAX_PIXELS, load_image, to_rgb
from idgen.provenance import read_provenance
from idgen.runs import RECORD, read_record

MANIFEST = "manifest.parquet"
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif"}
OWN_COLUMNS = {"image", "bytes", "path", "file", "identity", "prompt", "reference", "sha256"}


class Stored(Protocol):
    """Where an encoded picture lies in a larger file; it is read only when it is wanted."""

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            ImageError: if the file is gone, or shorter than it was.
        """
        ...


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of a file, such as a member of a tar."""

    file: Path
    start: int
    size: int

    def read(self) -> bytes:
        """The bytes of the piece.

        Raises:
            ImageError: if the file is gone, or shorter than it was.
        """
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.start)
                data = file.read(self.size)
        except OSError as error:
            raise ImageError(f"cannot read {self.file}: {error.strerror or error}") from None
        if len(data) != self.size:
            raise ImageError(f"{self.file} ends before byte {self.start + self.size}: it is cut short")
        return data


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture, opened only when it is looked at.

    Attributes:
        identity: whom it shows; empty where nobody says so.
        name: unique within its set: the file's name, below its identity's folder.
        path: the file, or None where ``data`` or ``stored`` has it.
        data: the encoded picture, where it came out of a table.
        stored: where the encoded picture lies, where it is part of a larger file.
        prompt: what was asked for, where that is known.
        reference: name of the picture it was conditioned on, where that is known.
        labels: whatever else its table says of it.
    """

    identity: str
    name: str
    path: Path | None = None
    data: bytes | None = None
    stored: Stored | None = None
    prompt: str = ""
    reference: str = ""
    labels: Mapping[str, str | float] = field(default_factory=dict)

    def read_bytes(self) -> bytes:
        """The encoded picture.

        Raises:
            ImageError: if the file is gone, or shorter than it was.
        """
        if self.data is not None:
            return self.data
        if self.stored is not None:
            return self.stored.read()
        assert self.path is not None
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ImageError(f"cannot read {self.path}: {error.strerror or error}") from None

    def open(self) -> Image.Image:
        """The picture as 8-bit RGB, upright.

        Raises:
            ImageError: if it is missing, no picture, damaged, or has more than 100 megapixels.
        """
        if self.path is not None and self.data is None and self.stored is None:
            return load_image(self.path)
        data = self.read_bytes()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is ours
                with Image.open(io.BytesIO(data)) as opened:
                    self._check_size(opened)
                    opened.load()
                    return to_rgb(ImageOps.exif_transpose(opened))
        except ImageError:
            raise
        except UnidentifiedImageError:  # whose text names the buffer, which nobody knows
            raise ImageError(f"the picture {self.name!r} of the table is damaged, or no picture") from None
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise ImageError(f"the picture {self.name!r} of the table is damaged: {error}") from None

    def _check_size(self, image: Image.Image) -> None:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"the picture {self.name!r} of the table has {image.width} x {image.height} pixels; at most "
                f"{MAX_PIXELS / 1e6:.0f} megapixels are opened"
            )


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Pictures, in an order that depends on their names alone.

    Attributes:
        pictures: at least one.
        source: what was read, as the user named it.
        encoder_ids: encoders that conditioned or trained the pictures, as far as they say so themselves.
    """

    pictures: tuple[Picture, ...]
    source: str
    encoder_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def people(self) -> dict[str, list[int]]:
        """Identity -> numbers of its pictures, both in order."""
        rows: dict[str, list[int]] = {}
        for row, picture in enumerate(self.pictures):
            rows.setdefault(picture.identity, []).append(row)
        return rows

    def subset(self, rows: list[int]) -> "PictureSet":
        """The set of these pictures, in this order."""
        return replace(self, pictures=tuple(self.pictures[row] for row in rows))


def read_pictures(path: str | Path, *, flat: bool = False) -> PictureSet:
    """Pictures with their identities.

    Args:
        path: a Parquet file with the columns ``identity`` and ``image`` (bytes, as Hugging Face datasets has
            it) or ``path`` (relative to the file); a folder with ``manifest.parquet``; a run of ``idgen
            generate``; or a folder with one folder a person, each of pictures or a run.
        flat: whether a folder of pictures without people is allowed too; the identities are then empty.

    Raises:
        ImageError: if there is nothing, or no picture in it.
        ConfigError: if a table lacks a column, or a folder says nothing of who is who.
    """
    path = Path(path).expanduser()
    if path.suffix == ".parquet":
        pictures, encoders = _of_table(path), encoders_of_table(path)
    elif not path.is_dir():
        raise ImageError(f"no such folder or Parquet file: {path}")
    elif (path / MANIFEST).exists():
        pictures, encoders = _of_table(path / MANIFEST), encoders_of_table(path / MANIFEST)
    else:
        pictures, encoders = _of_folder(path, flat=flat)
    if not pictures:
        raise ImageError(f"{path} holds no picture ({', '.join(sorted(SUFFIXES))})")
    ordered = tuple(sorted(pictures, key=lambda picture: (picture.identity, picture.name)))
    return PictureSet(pictures=ordered, source=str(path), encoder_ids=tuple(sorted(set(encoders))))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _of_folder(path: Path, *, flat: bool) -> tuple[list[Picture], list[str]]:
    """Pictures of a folder, and the encoders that they name."""
    if (path / RECORD).exists():
        return _of_run(path, path.resolve().name)
    pictures: list[Picture] = []
    encoders: list[str] = []
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if (folder / RECORD).exists():
            found, named = _of_run(folder, folder.name)
        else:
            found = [
                Picture(identity=folder.name, name=f"{folder.name}/{file.name}", path=file)
                for file in _files(folder)
            ]
            named = _named_by(found[:1])
        pictures, encoders = pictures + found, encoders + named
    loose = _files(path)
    if loose and not pictures:
        if not flat:
            raise ConfigError(
                f"{path} holds pictures and does not say who is who; put those of each person into a folder "
                f"of their own, or add a {MANIFEST} with the columns path and identity"
            )
        pictures = [Picture(identity="", name=file.name, path=file) for file in loose]
        encoders = _named_by(pictures[:1])
    return pictures, encoders


def _named_by(pictures: list[Picture]) -> list[str]:
    """The encoder that a picture of idgen names in itself; none where there is no such word."""
    for picture in pictures:
        assert picture.path is not None
        try:
            encoder = read_provenance(picture.path).encoder
        except ImageError:  # says nothing of its making: somebody else's picture
            return []
        return [encoder] if encoder else []
    return []


def _of_run(folder: Path, identity: str) -> tuple[list[Picture], list[str]]:
    record = read_record(folder)
    assert record is not None
    command = record["command"]
    pictures = [
        Picture(
            identity=identity,
            name=f"{identity}/{entry['file']}",
            path=folder / Path(entry["file"]).name,
            prompt=str(command.get("prompt", "")),
            labels={"seed": float(entry["seed"])} if "seed" in entry else {},
        )
        for entry in record["pictures"]
    ]
    return pictures, [command["encoder"]] if command.get("encoder") else []


def _columns(path: Path) -> dict[str, list[Any]]:
    import pyarrow  # heavy, and only training and evaluation read tables
    import pyarrow.parquet

    if not path.exists():
        raise ImageError(f"no such file: {path}")
    try:
        return pyarrow.parquet.read_table(path).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise ImageError(f"{path} is not a Parquet file that can be read: {error}") from None


def _of_table(path: Path) -> list[Picture]:
    columns = _columns(path)
    if "identity" not in columns or not {"image", "bytes", "path"} & columns.keys():
        raise ConfigError(
            f"{path} needs the column identity, and image (bytes) or path; it has {', '.join(columns)}"
        )
    num_rows = len(columns["identity"])
    return [_of_row(path, {name: columns[name][row] for name in columns}, row) for row in range(num_rows)]


def labels_of_row(row: Mapping[str, Any]) -> dict[str, str | float]:
    """What a row of a table says of its picture beside its own columns: text, and defined numbers."""
    return {
        name: value if isinstance(value, str) else float(value)
        for name, value in row.items()
        if name not in OWN_COLUMNS and _is_label(value)
    }


def _of_row(table: Path, row: dict[str, Any], number: int) -> Picture:
    cell = row.get("image", row.get("bytes"))
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    relative = row.get("path") or (cell.get("path") if isinstance(cell, dict) else None)
    if row["identity"] is None:
        raise ConfigError(f"row {number} of {table} has no identity")
    if data is None and not relative:
        raise ConfigError(f"row {number} of {table} has neither bytes nor a path")
    return Picture(
        identity=str(row["identity"]),
        name=str(row.get("file") or relative or number),
        path=None if data is not None else table.parent / str(relative),
        data=data,
        prompt=str(row.get("prompt") or ""),
        reference=str(row.get("reference") or ""),
        labels=labels_of_row(row),
    )


def _is_label(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value))


def encoders_of_table(path: Path) -> list[str]:
    """The encoders that the table's metadata or its column ``encoder`` names as its pictures' makers."""
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(path)
    kept = (schema.metadata or {}).get(b"idgen", b"{}")
    named = json.loads(kept).get("encoder_ids", [])
    if "encoder" in schema.names:
        column = pyarrow.parquet.read_table(path, columns=["encoder"])["encoder"]
        named = [*named, *(str(value) for value in column.unique().to_pylist() if value)]
    return named


def batches(pictures: tuple[Picture, ...], size: int) -> Iterator[tuple[int, tuple[Picture, ...]]]:
    """Pieces of at most ``size`` pictures, with the number of the first picture of each."""
    for start in range(0, len(pictures), size):
        yield start, pictures[start : start + size]
