"""Files that are whole or not there: written under a temporary name, flushed, then renamed."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from idgen.errors import IdgenError, RunFolderError, StorageError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place only once it is whole on the disk.

    Whatever goes wrong inside the block, Ctrl-C included, an older file of that name stays as it was and the
    temporary one is removed.

    Raises:
        StorageError: if the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    # The name is chosen first and the file made inside the block: an interrupt may come at any moment.
    temporary = path.parent / f".idgen-{uuid.uuid4().hex[:12]}.tmp"
    try:
        try:
            file = temporary.open("xb")
        except OSError as error:
            raise StorageError(f"cannot write into {path.parent}: {_reason(error)}") from None
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except IdgenError:  # some are OSErrors too
        raise
    except OSError as error:
        raise StorageError(f"{path} was not written: {_reason(error)}; nothing was left behind") from None
    finally:
        temporary.unlink(missing_ok=True)


def lock(file: IO[bytes], busy: str) -> None:
    """Keep other processes out until the file is closed, or its process killed; POSIX only.

    Args:
        file: open; it stays as it is.
        busy: what to say where another process has it.

    Raises:
        RunFolderError: where that is so.
    """
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunFolderError(busy) from None


def write_bytes(path: str | Path, data: bytes) -> None:
    """Put ``data`` into the file ``path``, whole or not at all.

    Raises:
        StorageError: as for `replacing`.
    """
    with replacing(path) as file:
        file.write(data)


def write_json(path: str | Path, values: Any) -> None:  # noqa: ANN401 - plain data of any shape
    """Put plain data into the file ``path`` as indented JSON, whole or not at all.

    Raises:
        StorageError: as for `replacing`.
    """
    write_bytes(path, (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def sorted_header(data: bytes) -> bytes:
    """The same file with its metadata in order: safetensors shuffles it, and so changes the hash."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
