"""An output folder that is whole or not there: filled as ``OUT.partial``, renamed at the end."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from idgen.errors import IdgenError, RunFolderError, StorageError
from idgen.storage import lock

MARK = ".idgen-partial"  # in a folder that may be thrown away


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """The folder to fill; ``out`` exists only once the block has ended well.

    Whatever goes wrong inside, Ctrl-C included, what was filled is removed; after a kill it stays, and the
    next one that writes to ``out`` removes it.

    Raises:
        RunFolderError: if ``out`` is there and not empty, or ``OUT.partial`` is somebody else's.
        StorageError: if the disk is full, or the folder cannot be made.
    """
    out = out.expanduser()
    partial = out.with_name(f"{out.name}.partial")
    _check_free(out, partial)
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        mark = (partial / MARK).open("xb")
    except OSError as error:
        raise StorageError(f"cannot make the folder {partial}: {error.strerror or error}") from None
    try:
        with mark:
            lock(mark, _busy(partial))
            yield partial
            (partial / MARK).unlink()
        if os.name == "posix":
            os.sync()  # all of it is on the disk before it has its name
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except IdgenError:  # some are OSErrors too
        raise
    except OSError as error:
        raise StorageError(
            f"{out} was not written: {error.strerror or error}; nothing was left behind"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(out: Path, partial: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out} exists and is not empty; choose another --out, or remove it first")
    if partial.exists() and not (partial.is_dir() and (partial / MARK).exists()):
        raise RunFolderError(f"{partial} exists and is not of idgen; remove it, or choose another --out")
    if partial.exists():
        with (partial / MARK).open("rb") as mark:
            lock(mark, _busy(partial))


def _busy(partial: Path) -> str:
    return f"another process is filling {partial}; wait for it, or choose another --out"
