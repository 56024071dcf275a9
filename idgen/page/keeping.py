"""Where uploads and results lie: a private folder with names that nobody guesses, swept of what is old."""

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from idgen.errors import StorageError

PREFIX = "idgen-page-"
MARK = ".in-use"  # locked for as long as the page runs
KEEP_SECONDS = 3600.0
SWEEP_SECONDS = 60.0
NAME_BYTES = 18  # of chance in a name: 144 bits


class Keeping:
    """A folder that only its owner can read, whose files live for an hour.

    Args:
        root: of the folder.
        keep_seconds: how long a file lives, counted from when it was last written.
    """

    def __init__(self, root: Path, *, keep_seconds: float = KEEP_SECONDS) -> None:
        self.root = root
        self.keep_seconds = keep_seconds

    def new_folder(self) -> Path:
        """An empty folder for the results of one click.

        Raises:
            StorageError: if the disk has no room for it.
        """
        folder = self.root / secrets.token_urlsafe(NAME_BYTES)
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise StorageError(f"no folder for pictures can be made: {error.strerror or error}") from None
        return folder

    def sweep(self, now: float | None = None) -> int:
        """Remove files that are too old, then folders that are old and empty.

        Args:
            now: seconds since the epoch; if not given, the time.

        Returns:
            How many files were removed.
        """
        oldest = (time.time() if now is None else now) - self.keep_seconds
        removed = 0
        for folder, _, names in os.walk(self.root, topdown=False):
            for path in (Path(folder, name) for name in names if name != MARK):
                # A file may go while this looks at it, for gradio moves its uploads; one that cannot go now
                # (Windows keeps what is being read) goes next time, and is no reason to keep the others.
                with contextlib.suppress(OSError):
                    if path.lstat().st_mtime < oldest:
                        path.unlink()
                        removed += 1
            with contextlib.suppress(OSError):  # not empty, or just gone
                if Path(folder) != self.root and Path(folder).lstat().st_mtime < oldest:
                    Path(folder).rmdir()
        return removed


@contextlib.contextmanager
def private_folder(*, keep_seconds: float = KEEP_SECONDS) -> Iterator[Keeping]:
    """A `Keeping` for as long as the block runs, which everything temporary of this process goes into.

    A sweeper runs beside the block. At the end the folder is removed, and so are those of pages that were
    killed before they could do that.

    Raises:
        StorageError: if no folder can be made.
    """
    try:
        root = Path(tempfile.mkdtemp(prefix=PREFIX))  # for its owner alone
    except OSError as error:
        raise StorageError(f"no temporary folder can be made: {error.strerror or error}") from None
    keeping = Keeping(root, keep_seconds=keep_seconds)
    ended = threading.Event()

    def sweep_now_and_then() -> None:
        while not ended.wait(min(SWEEP_SECONDS, keep_seconds)):
            keeping.sweep()

    with (root / MARK).open("wb") as mark:
        _lock(mark.fileno())
        _remove_left_behind(root.parent)
        before = os.environ.get("GRADIO_TEMP_DIR"), tempfile.tempdir
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = str(root)
        sweeper = threading.Thread(target=sweep_now_and_then, name="sweeper", daemon=True)
        sweeper.start()
        try:
            yield keeping
        finally:
            ended.set()
            sweeper.join()
            _restore(*before)
            shutil.rmtree(root, ignore_errors=True)


def _restore(variable: str | None, folder: str | None) -> None:
    tempfile.tempdir = folder
    if variable is None:
        del os.environ["GRADIO_TEMP_DIR"]
    else:
        os.environ["GRADIO_TEMP_DIR"] = variable


def _lock(file: int) -> bool:
    """Whether the file could be locked; true as well where the system knows no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_left_behind(parent: Path) -> None:
    """Remove the folders of this user's pages that were killed: nobody holds their lock any more."""
    if os.name != "posix":
        return
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            status = folder.lstat()
            if status.st_uid == os.getuid() and not folder.is_symlink() and _is_left(folder, status.st_mtime):
                shutil.rmtree(folder)


def _is_left(folder: Path, changed: float) -> bool:
    if not (folder / MARK).exists():  # just being made, or emptied while gradio still wrote into it
        return time.time() - changed > SWEEP_SECONDS
    with (folder / MARK).open("rb") as mark:
        return _lock(mark.fileno())
