"""LMDB as the training code of HSFace and others of its family read it: one file ``train.lmdb``.

``__len__`` is the number of pictures, ``__keys__`` the list of their keys (``0``, ``1``, ... as bytes),
``__classnum__`` the number of people; the value of a key is ``[picture, class number]``, all in msgpack
(https://github.com/HaiyuWu/SOTA-Face-Recognition-Train-and-Test). Others of the family pickle instead
(``ImageFolderLMDB``): these are read as far as they hold plain data. The C library trusts the pages of a
file: open no LMDB of a stranger whose checksum you cannot compare.
"""

import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.data.pictures import Picture
from idgen.errors import ConfigError, ImageError, ModelNotFoundError
from idgen.synth.export.base import ALL_KINDS, Person, class_names, identities_of
from idgen.synth.export.beside import Beside
from idgen.synth.export.plain_pickle import read_plain_pickle

if TYPE_CHECKING:
    from types import ModuleType

    import lmdb
    import pyarrow

FILE = "train.lmdb"
FIRST_MAP_BYTES = 1 << 26  # doubled whenever it is full
PICKLE = 0x80  # the first byte of a pickle of protocol 2 and above; an empty map to msgpack


def _library(name: str) -> "ModuleType":
    """``lmdb`` or ``msgpack``.

    Raises:
        ModelNotFoundError: if it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ModelNotFoundError(f'{name} is not installed: `pip install "idgen[formats]"`') from None


class LMDBExporter:
    """Written without a lock file; equal sets give equal files."""

    kinds = ALL_KINDS

    def __init__(self) -> None:
        self.lmdb, self.msgpack = _library("lmdb"), _library("msgpack")

    def write(
        self, people: Iterable[Person], folder: Path, columns: "pyarrow.Schema"
    ) -> list[dict[str, Any]]:
        """Write the file; see `Exporter`."""
        del columns  # the manifest beside has them
        try:
            num = self._fill(folder / FILE, people)
        except self.lmdb.Error as error:  # what is raised for a full disk, and is no OSError
            raise OSError(str(error)) from None
        return [{"entry": str(i)} for i in range(num)]

    def _fill(self, path: Path, people: Iterable[Person]) -> int:
        """Write everybody; the number of pictures."""
        num = num_people = 0
        env = self.lmdb.open(str(path), subdir=False, map_size=FIRST_MAP_BYTES, lock=False, sync=False)
        try:
            for person in people:
                packed = [self.msgpack.packb([item.data, person.label]) for item in person.items]
                self._put(env, {str(num + i).encode(): value for i, value in enumerate(packed)})
                num, num_people = num + len(packed), num_people + 1
            keys = [str(i).encode() for i in range(num)]
            said = {b"__len__": num, b"__keys__": keys, b"__classnum__": num_people}
            self._put(env, {name: self.msgpack.packb(value) for name, value in said.items()})
            env.sync(True)
        finally:
            env.close()
        return num

    def _put(self, env: "lmdb.Environment", values: dict[bytes, bytes]) -> None:
        while True:
            try:
                with env.begin(write=True) as transaction:
                    for key, value in values.items():
                        transaction.put(key, value)
                return
            except self.lmdb.MapFullError:
                env.set_mapsize(env.info()["map_size"] * 2)

    def readme(self, datasheet: str, num_pictures: int) -> None:
        """No program reads a README.md here."""
        del datasheet, num_pictures


# ---- reading


class _Database:
    """An LMDB that is open in this process while anybody holds it: the library opens a file once only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = _library("lmdb")
        self.env, self.process = self._open(), os.getpid()

    def _open(self) -> "lmdb.Environment":
        try:
            env = self.library.open(
                str(self.path),
                subdir=self.path.is_dir(),
                readonly=True,
                lock=False,
                readahead=False,
                create=False,
            )
        except self.library.Error as error:
            raise ImageError(f"{self.path} is not an LMDB that can be read: {error}") from None
        file = self.path / "data.mdb" if self.path.is_dir() else self.path
        pages = env.info()["last_pgno"] + 1
        if pages * env.stat()["psize"] > file.stat().st_size:  # a read behind the end would kill the process
            env.close()
            raise ImageError(f"{file} is cut short: it should have {pages} pages")
        return env

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, if it has one."""
        if self.process != os.getpid():  # a worker: what was open before the fork is no good here
            self.env.close()
            self.env, self.process = self._open(), os.getpid()
        try:
            with self.env.begin() as transaction:
                return transaction.get(key)
        except self.library.Error as error:
            raise ImageError(f"{self.path} is damaged: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return _database, (self.path,)


_open_databases: "weakref.WeakValueDictionary[Path, _Database]" = weakref.WeakValueDictionary()


def _database(path: Path) -> _Database:
    path = path.resolve()
    found = _open_databases.get(path)
    if found is None:
        found = _open_databases[path] = _Database(path)
    return found


@dataclass(frozen=True, slots=True)
class Value:
    """A picture in an LMDB."""

    database: _Database
    key: bytes

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            ImageError: if it is not there, or damaged.
        """
        return _entry(self.database, self.key)[0]


def _entry(database: _Database, key: bytes) -> tuple[bytes, int]:
    """Picture and class number of a key: the first bytes of its list, and the first whole number."""
    source = f"{database.path}, key {key.decode('ascii', 'replace')}"
    value = _unpacked(database.get(key), source)
    parts = value if isinstance(value, list | tuple) else []
    data = next((part for part in parts if isinstance(part, bytes)), None)
    label = next((part for part in parts if type(part) is int), None)
    if data is None or label is None:
        raise ImageError(f"{source}: a list of a picture and a class number is needed")
    return data, label


def _unpacked(value: bytes | None, source: str) -> Any:  # noqa: ANN401 - plain data
    """What msgpack, or a pickle of plain data, holds."""
    if value is None:
        raise ImageError(f"{source} is not there")
    if value[:1] == bytes([PICKLE]) and len(value) > 1:
        return read_plain_pickle(value, source=source)
    try:
        return _library("msgpack").unpackb(value, raw=True, strict_map_key=False)
    except ValueError as error:
        raise ImageError(f"{source} is neither msgpack nor a pickle of plain data: {error}") from None


def read_lmdb(path: Path, *, with_labels: bool = False) -> list[Picture]:
    """The pictures of an LMDB of that family; their class numbers are read once, and so is the whole file.

    Args:
        path: the file, or its folder.
        with_labels: whether what the manifest of an export beside it says is kept too.

    Raises:
        ImageError: if it is damaged, or of another family.
        ConfigError: if a class number has no name, or the manifest is of another set.
        ModelNotFoundError: if lmdb is not installed.
    """
    database = _database(path)
    keys = _unpacked(database.get(b"__keys__"), f"{path}, key __keys__")
    if not isinstance(keys, list | tuple) or not all(isinstance(key, bytes | str) for key in keys):
        raise ImageError(f"{path}: __keys__ must be a list of keys")
    keys = [key.encode() if isinstance(key, str) else key for key in keys]
    if len(set(keys)) != len(keys):
        raise ConfigError(f"{path}: __keys__ names a key twice")
    labels = [_entry(database, key)[1] for key in keys]
    beside = path if path.is_dir() else path.parent
    people = identities_of(labels, class_names(beside), source=path)
    width = len(str(len(keys)))
    pictures = [
        Picture(identity=identity, name=f"{number:0{width}d}", stored=Value(database, key))
        for number, (key, identity) in enumerate(zip(keys, people, strict=True))
    ]
    if not with_labels:
        return pictures
    manifest = Beside(beside, "entry", source=path)
    return [
        manifest.describe(picture, key.decode("ascii", "replace"), label)
        for picture, key, label in zip(pictures, keys, labels, strict=True)
    ]
