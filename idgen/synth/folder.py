"""The folder of a dataset while it is made: what was asked, which shards are there, and how it goes on.

``dataset.json`` is written before anything else and says what was asked. A shard exists once its own JSON
does. Whatever a stop left half done is noticed at the next start, said, and made again.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from idgen.errors import RunFolderError, StorageError
from idgen.runs import short_hash
from idgen.storage import lock, write_json
from idgen.synth.dataset import ABOUT, PEOPLE, PLAN, damage_beside_shards
from idgen.synth.shards import FOLDER, DamagedShardError, read_shard, read_shards, shard_file
from idgen.synth.vectors import VECTORS
from idgen.synth.wording import bytes_as_text, number_of

FORMAT = 1
LOCK = ".lock"
EPOCH = "SOURCE_DATE_EPOCH"  # https://reproducible-builds.org/specs/source-date-epoch/
TEMPORARY = ".idgen-*.tmp"  # of `idgen.storage.replacing`
WAY_OUT = ". Delete "  # begins what a user would do about a damaged shard, who wants it made again
FULL = (errno.ENOSPC, errno.EDQUOT)  # what a full disk, or a full share of it, answers


class DatasetFolder:
    """A dataset that is to be made, or finished.

    Args:
        path: of the folder; it need not exist.
        command: everything that decides the pictures, as plain data. Another command is refused.
        num_shards: planned.

    Attributes:
        about: what dataset.json says.
        damaged: a line on each shard that is there and cannot be used; it will be made again.

    Raises:
        RunFolderError: if the folder holds other files, or a dataset of another command.
    """

    def __init__(self, path: Path, command: Mapping[str, Any], num_shards: int) -> None:
        self.path, self.num_shards = path, num_shards
        self.command: dict[str, Any] = json.loads(json.dumps(command))  # as it will be read back
        self.about: dict[str, Any] = {}
        self.damaged: list[str] = []
        found = self._read()
        if found is not None:
            self._refuse_others(found)
            self.about = found

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; a dataset is a folder")
        file = self.path / ABOUT
        if not file.is_file():
            there = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
            if not there:
                return None
            raise RunFolderError(
                f"{self.path} holds other files ({', '.join(there[:3])}) and no dataset; choose another --out"
            )
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            version, _ = about["idgen_dataset"], about["command"].keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise RunFolderError(
                f"{file} does not say by which command it was made; choose another --out"
            ) from None
        if version > FORMAT:
            raise RunFolderError(
                f"{file} was written by a newer idgen (format {version}, this one reads {FORMAT})"
            )
        return about

    def _refuse_others(self, about: Mapping[str, Any]) -> None:
        before, now = about["command"], self.command
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            what = "; ".join(
                f"{k}: {_brief(before.get(k))} there, {_brief(now.get(k))} now" for k in changed[:3]
            )
            raise RunFolderError(
                f"{self.path} holds a dataset of other settings ({what}); choose another --out, or repeat "
                "its command"
            )

    @property
    def started(self) -> str:
        """When the dataset was begun, which all its pictures carry; now, if it was not."""
        return self.about.get("started") or _now()

    @property
    def facts(self) -> dict[str, Any]:
        """Kept with each shard: by which command it was made."""
        return {"command": short_hash(self.command)}

    @property
    def is_finished(self) -> bool:
        """Whether everything is there, the findings too. Sizes are looked at, and no checksums."""
        beside = (self.path / PLAN, self.path / PEOPLE / VECTORS)
        return bool(self.about.get("finished")) and all(map(Path.is_file, beside)) and not self.missing()

    def summary(self) -> str:
        """What is there, in one line."""
        shards = read_shards(self.path)
        kept, planned = (sum(getattr(s, name) for s in shards) for name in ("num_kept", "num_planned"))
        people = sum(shard.num_people for shard in shards)
        return (
            f"{number_of(kept, 'picture')} of {number_of(people, 'person')} kept, of {planned:,} planned, in "
            f"{number_of(len(shards), 'shard')}"
        )

    def give_up(self, error: DamagedShardError) -> str:
        """Let a damaged shard go, so that it is made again; what was wrong, for a message."""
        error.path.unlink(missing_ok=True)
        what, _, _ = str(error).partition(WAY_OUT)
        return what

    def give_up_damaged(self) -> list[str]:
        """Read everything, and let go of what is not what was written: what was wrong. Inside `locked`.

        Raises:
            StorageError: if that is not possible.
        """
        from tqdm import tqdm

        lines = []
        for number in tqdm(range(self.num_shards), "checking", unit="shard", disable=None, leave=False):
            path = shard_file(self.path / FOLDER, number, "json")
            try:
                if path.exists():
                    read_shard(path).check()
            except DamagedShardError as error:
                lines.append(self.give_up(error))
        lines += damage_beside_shards(self.path, self.about)
        if lines and self.about.get("finished"):
            self._write_finished(False)
        return lines

    def how_to_go_on(self, error: BaseException, num_pictures: int, most_bytes: int) -> str:
        """What is there, and after a full disk what it still has and what the rest needs; for a message.

        Args:
            error: that stopped the work.
            num_pictures: that the missing shards are to have.
            most_bytes: of one picture, as long as no shard is there to tell.
        """
        missing = self.missing()
        done = self.num_shards - len(missing)
        there = f"{done} of {number_of(self.num_shards, 'shard')} {'is' if done == 1 else 'are'} there"
        way = f"the same command goes on ({there})"
        if not any(os.strerror(code) in str(error) for code in FULL):
            return way
        numbers = set(range(self.num_shards)) - set(missing)
        whole = [read_shard(shard_file(self.path / FOLDER, number, "json")) for number in numbers]
        planned = sum(shard.num_planned for shard in whole)
        each = sum(sum(s.num_bytes.values()) for s in whole) / planned if planned else most_bytes
        free = f"free there: {bytes_as_text(shutil.disk_usage(self.path).free)}"
        if missing:
            need = f"{'about' if planned else 'at most'} {bytes_as_text(math.ceil(each * num_pictures))}"
            free += f"; needed for {number_of(len(missing), 'shard')} more: {need}"
        return f"{free}; {way}"

    def missing(self) -> list[int]:
        """Numbers of the shards that are to be made. Of those that are there, the sizes are looked at."""
        self.damaged = []
        return [number for number in range(self.num_shards) if not self._is_there(number)]

    def _is_there(self, number: int) -> bool:
        path = shard_file(self.path / FOLDER, number, "json")
        if not path.exists():
            return False
        try:
            shard = read_shard(path)
        except StorageError as error:
            what, _, _ = str(error).partition(WAY_OUT)
            self.damaged.append(f"{what}; it is made again")
            return False
        if {name: shard.facts.get(name) for name in self.facts} != self.facts:
            self.damaged.append(f"{path} is of another command; the shard is made again")
            return False
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A block in which no other process works here; what stopped ones left half written is removed.

        Raises:
            RunFolderError: if another one does.
            StorageError: if the folder cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = (self.path / LOCK).open("wb")
        except OSError as error:
            raise StorageError(f"cannot write into {self.path}: {error.strerror or error}") from None
        with held:
            lock(held, f"another process works in {self.path}; wait for it, or choose another --out")
            for left in self.path.rglob(TEMPORARY):
                left.unlink()
            yield

    def start(self, details: Mapping[str, Any]) -> None:
        """Write dataset.json, if it is not there.

        Args:
            details: what a reader wants to know from the start: models, licences, versions.

        Raises:
            StorageError: if that is not possible.
        """
        if self.about:
            return
        self.about = {
            "idgen_dataset": FORMAT,
            "finished": False,
            "started": self.started,
            "num_shards": self.num_shards,
            **json.loads(json.dumps(details)),
            "command": self.command,
        }
        write_json(self.path / ABOUT, self.about)

    def finish(self) -> None:
        """Write down that nothing is missing, beside what others have added to dataset.json meanwhile.

        Raises:
            StorageError: if that is not possible.
        """
        self._write_finished(True)

    def _write_finished(self, is_finished: bool) -> None:
        self.about = {**json.loads((self.path / ABOUT).read_text(encoding="utf-8")), "finished": is_finished}
        write_json(self.path / ABOUT, self.about)


def _now() -> str:
    """The time that all pictures carry: now, or what the environment says for builds that are repeated."""
    given = os.environ.get(EPOCH, "")
    moment = datetime.fromtimestamp(int(given), UTC) if given.isdecimal() else datetime.now(UTC)
    return moment.isoformat(timespec="seconds")


def _brief(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
