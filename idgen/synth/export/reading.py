"""A set of pictures with their people, in whichever format it is; nothing is in memory but where they lie."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from idgen.data.pictures import MANIFEST, Picture, PictureSet, encoders_of_table, read_pictures
from idgen.errors import ConfigError, ImageError
from idgen.synth.dataset import Dataset, is_dataset
from idgen.synth.export.beside import described, rows_of_table
from idgen.synth.export.lmdb import read_lmdb
from idgen.synth.export.parquet import read_parquet
from idgen.synth.export.recordio import read_recordio
from idgen.synth.export.webdataset import read_webdataset
from idgen.synth.shards import KEPT


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a path holds: the format, and its files."""

    format: str
    files: tuple[Path, ...]


def open_labelled(path: str | Path, *, with_labels: bool = False) -> PictureSet:
    """Pictures with their identities, of any format that idgen writes or knows.

    That is a dataset of ``idgen synthesize``; a folder of people or a ``manifest.parquet``; tars of
    WebDataset; Parquet of Hugging Face datasets; RecordIO of mxnet; LMDB of the HSFace family. Pictures are
    read when they are looked at: a set may be larger than memory.

    Args:
        path: a file, or a folder with files of one format.
        with_labels: whether what the set says of each picture is kept in memory too.

    Raises:
        ConfigError: if nobody can say which format it is, or who is who.
        ImageError: if there is nothing, or it is damaged or not safe to read.
        StorageError: if a dataset of idgen is damaged.
        ModelNotFoundError: if a library is missing.
    """
    path = Path(path).expanduser()
    found = recognise(path)
    if found.format == "folder":
        return _of_folder(path, with_labels=with_labels)
    if found.format == "dataset":
        dataset = Dataset.open(path)
        pictures, encoders = _of_dataset(dataset, with_labels=with_labels), dataset.encoder_ids
    else:
        pictures = READERS[found.format](found.files, with_labels)
        encoders = _encoders_of(found)
    if not pictures:
        raise ImageError(f"{path} holds no picture")
    pictures.sort(key=lambda picture: (picture.identity, picture.name))
    return PictureSet(pictures=tuple(pictures), source=str(path), encoder_ids=encoders)


READERS: dict[str, Callable[[Sequence[Path], bool], list[Picture]]] = {
    "webdataset": lambda files, with_labels: read_webdataset(files, with_labels=with_labels),
    "parquet": lambda files, with_labels: read_parquet(files, with_labels=with_labels),
    "recordio": lambda files, with_labels: read_recordio(files[0], with_labels=with_labels),
    "lmdb": lambda files, with_labels: read_lmdb(files[0], with_labels=with_labels),
}


def recognise(path: Path) -> Found:
    """Which format lies there.

    Raises:
        ConfigError: if there are several, or it is none that is known.
        ImageError: if there is nothing.
    """
    if not path.exists():
        raise ImageError(f"no such file or folder: {path}")
    if path.is_dir():
        return _in_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return Found(format=_of_table(path), files=(path,))
    known = {".tar": "webdataset", ".rec": "recordio", ".lmdb": "lmdb", ".mdb": "lmdb"}
    if suffix not in known:
        raise ConfigError(
            f"{path} is no set of pictures that idgen knows: .tar, .rec, .lmdb and .parquet are, folders of "
            "them, and folders of people"
        )
    return Found(format=known[suffix], files=(path,))


def _in_folder(path: Path) -> Found:
    if is_dataset(path):
        return Found(format="dataset", files=(path,))
    there = {
        "recordio": sorted(path.glob("*.rec")),
        "lmdb": [path] if (path / "data.mdb").is_file() else sorted(path.glob("*.lmdb")),
        "webdataset": sorted(path.glob("*.tar")),
        "parquet": [file for file in _tables(path) if _holds_pictures(file)],
    }
    there = {name: files for name, files in there.items() if files}
    if len(there) > 1:
        names = ", ".join(f"{files[0].name} ({name})" for name, files in there.items())
        raise ConfigError(f"{path} holds several formats: {names}; name the file that is meant")
    for name, files in there.items():
        if len(files) > 1 and name in ("recordio", "lmdb"):
            names = ", ".join(file.name for file in files)
            raise ConfigError(f"{path} holds {len(files)} sets: {names}; name the one that is meant")
        return Found(format=name, files=tuple(files))
    return Found(format="folder", files=(path,))


def _tables(path: Path) -> list[Path]:
    """The Parquet files of a folder, or of its ``data`` as on the Hugging Face hub."""
    return [*sorted(path.glob("*.parquet")), *sorted(path.glob("data/*.parquet"))]


def _holds_pictures(path: Path) -> bool:
    """Whether a table has the pictures themselves, and not only their paths."""
    return bool({"image", "bytes"} & set(_columns(path)))


def _columns(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet  # heavy

    try:
        return pyarrow.parquet.read_schema(path).names
    except (pyarrow.ArrowException, OSError) as error:
        raise ImageError(f"{path} is not a Parquet file that can be read: {error}") from None


def _of_table(path: Path) -> str:
    """The format of a Parquet file.

    Raises:
        ConfigError: if it neither holds pictures nor says where they lie.
    """
    if _holds_pictures(path):
        return "parquet"
    if "path" not in _columns(path):
        raise ConfigError(
            f"{path} neither holds pictures nor says where they lie: it has no column image (bytes) and none "
            "of path. Name the set that it lists, or make a folder of that: `idgen synthesize import SET "
            "--out DIR`"
        )
    return "folder"


def _of_folder(path: Path, *, with_labels: bool) -> PictureSet:
    """A folder of people, or a table of paths."""
    found = read_pictures(path)
    table = path / MANIFEST if path.is_dir() else path
    if not with_labels or not table.is_file():
        return found
    rows: dict[Path | None, dict[str, Any]] = {
        table.parent / str(place): row for place, row in rows_of_table(table, "path").items()
    }
    return replace(found, pictures=tuple(described(p, rows.get(p.path)) for p in found.pictures))


def _of_dataset(dataset: Dataset, *, with_labels: bool) -> list[Picture]:
    if with_labels:
        rows = [row for row in dataset.manifest().to_pylist() if row["decision"] == KEPT]
        return [described(picture, row) for picture, row in zip(dataset.kept(), rows, strict=True)]
    known: dict[str, str] = {}  # one text a person, not one a picture
    return [
        Picture(identity=known.setdefault(p.identity, p.identity), name=p.name, stored=p.stored)
        for p in dataset.kept()
    ]


def _encoders_of(found: Found) -> tuple[str, ...]:
    """The encoders that the tables of a set name as its makers, and the manifest of an export beside it."""
    first = found.files[0]
    folder = first if first.is_dir() else first.parent
    tables = [*(found.files if found.format == "parquet" else ()), folder / MANIFEST]
    if folder.name == "data":  # as on the Hugging Face hub
        tables.append(folder.parent / MANIFEST)
    try:
        named = {name for table in tables if table.is_file() for name in encoders_of_table(table)}
    except (OSError, ValueError) as error:
        raise ImageError(f"the manifest of {folder} cannot be read: {error}") from None
    return tuple(sorted(named))
