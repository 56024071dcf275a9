"""From a set of pictures in any format to a manifest, or to a folder of people with one."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from idgen.data.pictures import MANIFEST, Picture, PictureSet
from idgen.errors import ConfigError
from idgen.storage import replacing, write_json
from idgen.synth.export.base import LABELS, folder_name
from idgen.synth.export.beside import PLACES
from idgen.synth.export.checksums import write_sums
from idgen.synth.export.output import whole_folder
from idgen.synth.shards import table_of
from idgen.synth.tars import PICTURE_SUFFIXES, picture_kind


def import_manifest(
    pictures: PictureSet, out: Path, *, advance: Callable[[int], object] = lambda _: None
) -> None:
    """Write a manifest of a set: identity, key, sha256, path where it is a file, and what else is known.

    Args:
        pictures: each is read once.
        out: the Parquet file.
        advance: told 1 after each picture.

    Raises:
        ImageError: if a picture cannot be read.
        ConfigError: if it is neither PNG, JPEG nor WebP, where it is no file of its own.
        StorageError: if the file cannot be written.
    """
    rows = []
    for picture, key in zip(pictures.pictures, _keys(pictures), strict=True):
        data = picture.read_bytes()
        if picture_kind(data) is None:
            if picture.path is None:
                raise _no_picture(pictures, picture)
            picture.open()  # whatever a file may be that is opened by its path
        row = _row(picture, data, key)
        if picture.path is not None:
            row["path"] = Path(os.path.relpath(picture.path.resolve(), out.resolve().parent)).as_posix()
        rows.append(row)
        advance(1)
    _write(out, rows, pictures.encoder_ids)


def import_folder(
    pictures: PictureSet, out: Path, *, advance: Callable[[int], object] = lambda _: None
) -> None:
    """Write a set as one folder a person, with manifest, class numbers and checksums.

    No byte of a picture changes. The pictures of a person are numbered; the manifest's column ``key`` has the
    keys that the set gives them, or else the names that they had.

    Args:
        pictures: each is read once.
        out: the folder to make.
        advance: told 1 after each picture.

    Raises:
        ImageError: if a picture cannot be read.
        ConfigError: if it is neither PNG, JPEG nor WebP, or an identity cannot be the name of a folder.
        RunFolderError: if ``out`` is not empty.
        StorageError: if the disk is full.
    """
    with whole_folder(out) as folder:
        rows = list(_unpacked(pictures, folder, advance))
        _write(folder / MANIFEST, rows, pictures.encoder_ids)
        write_json(folder / LABELS, {name: number for number, name in enumerate(sorted(pictures.people()))})
        write_sums(folder)


def _unpacked(
    pictures: PictureSet, folder: Path, advance: Callable[[int], object]
) -> Iterator[dict[str, Any]]:
    keys = _keys(pictures)
    for label, (identity, rows) in enumerate(sorted(pictures.people().items())):
        own = folder / folder_name(identity)
        own.mkdir()
        for number, row in enumerate(rows):
            picture = pictures.pictures[row]
            data = picture.read_bytes()
            kind = picture_kind(data)
            if kind is None:
                raise _no_picture(pictures, picture)
            file = own / f"{number:06d}{PICTURE_SUFFIXES[kind]}"
            file.write_bytes(data)
            said = _row(picture, data, keys[row]) | {"path": f"{own.name}/{file.name}", "label": label}
            yield {name: value for name, value in said.items() if name not in PLACES}
            advance(1)


def _no_picture(pictures: PictureSet, picture: Picture) -> ConfigError:
    return ConfigError(
        f"{pictures.source}: {picture.name} of {picture.identity} is neither PNG, JPEG nor WebP"
    )


def _keys(pictures: PictureSet) -> list[str]:
    """The keys that the set itself gives its pictures, if each has one of its own; or else their names."""
    own = [picture.labels.get("key") for picture in pictures.pictures]
    keys = [key for key in own if isinstance(key, str) and key]
    return keys if len(set(keys)) == len(own) else [picture.name for picture in pictures.pictures]


def _row(picture: Picture, data: bytes, key: str) -> dict[str, Any]:
    """What is known of a picture; its own columns win over labels of the same name."""
    own = {
        "identity": picture.identity,
        "key": key,
        "sha256": hashlib.sha256(data).hexdigest(),
        "prompt": picture.prompt,
        "reference": picture.reference,
    }
    return {**own, **picture.labels, **own}


def _write(path: Path, rows: list[dict[str, Any]], encoder_ids: tuple[str, ...]) -> None:
    import pyarrow.parquet  # heavy

    said = {"idgen": json.dumps({"encoder_ids": list(encoder_ids)})}
    with replacing(path) as file:
        pyarrow.parquet.write_table(table_of(rows).replace_schema_metadata(said), file)
