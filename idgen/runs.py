"""The folder of a run that makes pictures: what was asked, how far it came, and going on after a stop.

A folder holds ``run.json`` and the pictures ``0000.png``, ``0001.png``, ... . The record is written before
the first picture and again after each one, whole or not at all: it is right whenever the run is stopped.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from idgen.errors import RunFolderError, StorageError
from idgen.storage import write_json

RECORD = "run.json"
FORMAT = 1  # of run.json; a reader refuses what is newer than itself

Plain = dict[str, Any]  # what JSON can hold


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sha256(folder: Path) -> str:
    """One sha256 for a model in the diffusers layout: of the names and contents of what is loaded.

    That is the settings at its top, and those of its components with their weights: safetensors where a
    component has them, as diffusers prefers, else pickles.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [folder / name for name in index if not name.startswith("_") and (folder / name).is_dir()]
    files = list(folder.glob("*.json"))
    for part in parts:
        files += [*part.glob("*.json"), *part.glob("*.txt")]
        files += list(part.glob("*.safetensors")) or list(part.glob("*.bin"))
    lines = [f"{path.relative_to(folder).as_posix()} {file_sha256(path)}" for path in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def short_hash(values: Mapping[str, Any]) -> str:
    """Eight hex digits that stand for plain data: equal data, equal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def default_folder(home: Path, prompt: str, command: Mapping[str, Any]) -> Path:
    """A folder below ``home`` named after the command, so that the same command finds what it has made."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    return home / f"{words or 'pictures'}-{short_hash(command)}"


def read_record(folder: Path) -> Plain | None:
    """The record of the run in a folder; None if the folder is new or empty.

    Hidden files do not count: file managers leave some, and so does a process that was killed while it wrote.

    Raises:
        RunFolderError: if the folder is a file, holds other things than a run, or its record cannot be read.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is a file; pictures go into a folder")
    path = folder / RECORD
    if not path.exists():
        there = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if not there:
            return None
        raise RunFolderError(
            f"{folder} holds other files ({_first(there)}) and no run; choose another folder"
        )
    return _parse_record(path)


def _parse_record(path: Path) -> Plain:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["idgen_run"]
        if version > FORMAT:
            raise RunFolderError(
                f"{path} was written by a newer idgen (format {version}, this one reads {FORMAT})"
            )
        if not isinstance(record["command"], dict) or not isinstance(record["pictures"], list):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RunFolderError):
            raise
        raise RunFolderError(f"{path} is not the record of a run of idgen; choose another folder") from None
    return record


def _first(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


class PictureRun:
    """One run that makes ``count`` pictures in a folder, new or to be finished.

    What is resumed is a whole planned micro-batch: a batch of which one picture is missing is computed again,
    because only an equal micro-batch gives pictures equal bit for bit. Pictures that are there are kept.
    """

    def __init__(self, folder: Path, command: Mapping[str, Any], count: int) -> None:
        """Look at ``folder``; nothing is written yet.

        Args:
            folder: where the pictures go; it need not exist.
            command: everything that decides the pictures, as plain data. Another command is refused.
            count: number of pictures planned.

        Raises:
            RunFolderError: if the folder holds other files or another run, or a picture of it was changed.
        """
        self.folder = folder
        self.command: Plain = json.loads(json.dumps(command))  # as it will be read back: lists, not tuples
        self.count = count
        self.details: Plain = {}
        self.pictures: dict[int, Plain] = {}
        record = read_record(folder)
        if record is not None:
            self._go_on(record)

    def _go_on(self, record: Plain) -> None:
        before, now = record["command"], self.command
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            what = "; ".join(
                f"{k}: {_brief(before.get(k))} there, {_brief(now.get(k))} now" for k in changed[:3]
            )
            raise RunFolderError(
                f"{self.folder} holds another run ({what}); choose another folder, or repeat its command"
            )
        self.details = record.get("run", {})
        names = {self.path(i).name: i for i in range(self.count)}
        for entry in record["pictures"]:
            path = self.folder / entry["file"]
            if path.name in names and path.exists():
                self._check_unchanged(path, entry["sha256"])
                self.pictures[names[path.name]] = entry

    def _check_unchanged(self, path: Path, sha256: str) -> None:
        if file_sha256(path) != sha256:
            raise RunFolderError(f"{path} was changed after it was made; move it away to have it made again")

    def path(self, index: int) -> Path:
        """Where picture ``index`` goes."""
        return self.folder / f"{index:04d}.png"

    @property
    def is_finished(self) -> bool:
        """Whether every planned picture is there."""
        return len(self.pictures) == self.count

    def batches(self, batch_size: int) -> list[list[int]]:
        """The planned micro-batches of which a picture is missing, each whole."""
        starts = range(0, self.count, batch_size)
        planned = [list(range(start, min(start + batch_size, self.count))) for start in starts]
        return [batch for batch in planned if any(i not in self.pictures for i in batch)]

    @contextmanager
    def saying_how_far(self) -> Iterator[None]:
        """A block in which Ctrl-C says what is there, and how to go on."""
        try:
            yield
        except KeyboardInterrupt:
            done = f"{len(self.pictures)} of {self.count} pictures are in {self.folder}"
            print(f"idgen: {done}; the same command goes on from there", file=sys.stderr)
            raise

    def start(self, details: Mapping[str, Any]) -> None:
        """Make the folder and write the record.

        Args:
            details: what else a reader wants to know, as plain data: resolved settings, versions, hashes.
                Those of the first start are kept when a run goes on.

        Raises:
            StorageError: if that is not possible; a folder made for it is removed again.
        """
        self.details = self.details or dict(details)
        is_new = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the folder {self.folder}: {error.strerror or error}") from None
        try:
            self._write()
        except StorageError:
            if is_new:
                self.folder.rmdir()
            raise

    def add(self, index: int, what: Mapping[str, Any]) -> None:
        """Take up picture ``index``, which lies at its path by now, with what is known about it.

        Raises:
            StorageError: if the record cannot be written; the older one stays.
        """
        path = self.path(index)
        self.pictures[index] = {"file": path.name, "sha256": file_sha256(path), **what}
        self._write()

    def _write(self) -> None:
        record = {
            "idgen_run": FORMAT,
            "finished": self.is_finished,
            "pictures_planned": self.count,
            "pictures_written": len(self.pictures),
            "command": self.command,
            "run": self.details,
            "pictures": [self.pictures[i] for i in sorted(self.pictures)],
        }
        write_json(self.folder / RECORD, record)


def _brief(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def keep_settings(folder: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Write what decides the content of a folder into it, or refuse a folder that something else decided.

    Args:
        folder: made if it is not there.
        name: of the JSON file.
        settings: compared as text.

    Raises:
        RunFolderError: if it was made with other settings, or holds other files.
        StorageError: if it cannot be written.
    """
    path, plain = folder / name, {key: str(value) for key, value in sorted(settings.items())}
    if path.exists():
        before = json.loads(path.read_text())
        changed = [key for key in plain if before.get(key) != plain[key]]
        if changed:
            raise RunFolderError(f"{folder} was made with other settings ({', '.join(changed)})")
    # a hidden file is what a write left that was cut off
    elif folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise RunFolderError(f"{folder} holds other files; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, plain)
