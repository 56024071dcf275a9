"""New people on disk while they are still being found: a folder that may be left at any moment.

``vectors.npy`` (P, D) float32 opens in NumPy at any time. ``chunks.jsonl`` has one line a chunk of
candidates: how many of it were accepted, and the checksum of their vectors. A line is written after its
vectors: what a stop tore, whether vectors without a line or half a line, is noticed, cut off and found again.

Shapes: P people, D width of a face vector.
"""

import contextlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from idgen.errors import IdgenError, RunFolderError, StorageError
from idgen.runs import keep_settings
from idgen.storage import lock
from idgen.synth.vectors import SETTINGS, VECTORS
from idgen.synth.wording import number_of

CHUNKS = "chunks.jsonl"


class PeopleFolder:
    """The folder, open for one process at a time; a context manager.

    Args:
        path: made if it is not there.
        settings: everything that decides who is accepted.
        dim: D.

    Raises:
        RunFolderError: if it was made with other settings, holds other files, or is in use.
        StorageError: if it cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], dim: int) -> None:
        self.path, self.dim = path, dim
        self.accepted: list[int] = []  # of each chunk that is done
        _keep(path, settings)
        self._chunks = _open(path / CHUNKS)
        try:
            lock(
                self._chunks,
                f"another process is finding people in {path}; wait for it, or choose another folder",
            )
            self._vectors = _open(path / VECTORS)
        except BaseException:
            self._chunks.close()
            raise
        self._head_bytes = len(_npy_head(0, dim))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._vectors.close()
        self._chunks.close()

    @property
    def most_people(self) -> int:
        """An upper bound of the people that `restore` will give."""
        return max(0, os.fstat(self._vectors.fileno()).st_size - self._head_bytes) // (4 * self.dim)

    def restore(self) -> Iterator[np.ndarray]:
        """The people (n, D) of each chunk that is whole; what stands behind the last of these is cut off.

        Raises:
            StorageError: if that is not possible.
        """
        self._chunks.seek(0)
        self._vectors.seek(self._head_bytes)
        whole = 0
        for line in self._chunks.readall().splitlines(keepends=True):
            data = self._vectors_of(line)
            if data is None:
                break
            whole += len(line)
            self.accepted.append(len(data) // (4 * self.dim))
            yield np.frombuffer(data, "<f4").reshape(-1, self.dim)
        with self._storing():
            self._chunks.truncate(whole)
            self._chunks.seek(whole)
            self._vectors.truncate(self._head_bytes + 4 * self.dim * sum(self.accepted))
            self._write_head()

    def _vectors_of(self, line: bytes) -> bytes | None:
        """The vectors that belong to a line; None where either is torn."""
        try:
            said = json.loads(line)
            number, size, checksum = said["chunk"], 4 * self.dim * said["accepted"], said["crc32"]
        except (ValueError, KeyError, TypeError):
            return None
        data = self._vectors.read(size)
        is_whole = line.endswith(b"\n") and number == len(self.accepted) and len(data) == size
        return data if is_whole and zlib.crc32(data) == checksum else None

    def append(self, people: np.ndarray) -> None:
        """Write down whom the next chunk brought: (n, D), none is a result too.

        Raises:
            StorageError: if that is not possible; those written before stay.
        """
        data = np.ascontiguousarray(people, "<f4").tobytes()
        line = {"chunk": len(self.accepted), "accepted": len(people), "crc32": zlib.crc32(data)}
        with self._storing():
            self._vectors.seek(0, os.SEEK_END)
            _write(self._vectors, data)
            _write(self._chunks, json.dumps(line).encode() + b"\n")
            self.accepted.append(len(people))
            self._write_head()

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """A block that writes; where it cannot, it says who is there."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be written: {error.strerror or error}; "
                f"{number_of(sum(self.accepted), 'person')} in it stay, and it goes on from there"
            ) from None

    def _write_head(self) -> None:
        self._vectors.seek(0)
        _write(self._vectors, _npy_head(sum(self.accepted), self.dim))


def _keep(path: Path, settings: Mapping[str, Any]) -> None:
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file; new people are kept in a folder")
    try:
        keep_settings(path, SETTINGS, settings)
    except RunFolderError as error:
        way = "" if "choose" in str(error) else "; repeat its command, choose another --out, or delete it"
        raise RunFolderError(f"{error}{way}") from None
    except IdgenError:  # some are OSErrors too
        raise
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {error.strerror or error}") from None
    except (ValueError, AttributeError):
        raise RunFolderError(
            f"{path / SETTINGS} is damaged: nobody can say how these people were found. Delete {path} to "
            "find them again, or choose another --out"
        ) from None


def _open(path: Path) -> io.FileIO:
    try:
        path.touch()
        return path.open("r+b", buffering=0)  # what a full disk refused must not be tried again on closing
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None


def _write(file: io.FileIO, data: bytes) -> None:
    """All of the data: one call may write a part."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _npy_head(num: int, dim: int) -> bytes:
    """The head of a NumPy file of float32 (num, dim): NumPy leaves room for the number of rows to grow."""
    stream = io.BytesIO()
    head = {"descr": "<f4", "fortran_order": False, "shape": (num, dim)}
    np.lib.format.write_array_header_1_0(stream, head)
    return stream.getvalue()
