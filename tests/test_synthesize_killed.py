"""`idgen synthesize` killed anywhere, any number of times, or on a full disk: it ends with the same bytes."""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_dataset import files_of_at_most
from synthesizing import about, command, contents, forked, models_opened_once, whole_dataset

from idgen.cli import main


@pytest.fixture(scope="module", autouse=True)
def _models() -> Iterator[None]:
    with models_opened_once():
        yield


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """What an uninterrupted run leaves."""
    return contents(whole_dataset())


class Assassin:
    """Kills its own process where a file of some name is written, flushed or renamed; for a forked child.

    Args:
        moment: "half" of the nth piece that is written, "flush", "before" or "after" the renaming.
        name: end of the name that the file will have.
        nth: time that this happens.
    """

    def __init__(self, moment: str, name: str, nth: int = 1) -> None:
        self.moment, self.name, self.left = moment, name, nth

    def strike(self, moment: str, name: str) -> bool:
        """Whether it is time."""
        if moment == self.moment and name.endswith(self.name):
            self.left -= 1
        return self.left == 0

    def __call__(self) -> None:
        """Lie in wait: everything that writes goes through these four."""
        import idgen.storage
        import idgen.synth.people_folder

        replacing = idgen.storage.replacing
        assassin = self

        @contextlib.contextmanager
        def watched(path: Any) -> Iterator[Any]:
            name = Path(path).name
            with replacing(path) as file:
                yield _Watched(file, name, assassin)
                if assassin.strike("flush", name):
                    file.flush()
                    kill()
            if assassin.strike("after", name):
                kill()

        replace = pathlib.Path.replace

        def renamed(path: Path, target: Any) -> Any:
            if assassin.strike("before", Path(target).name):
                kill()
            return replace(path, target)

        appended = idgen.synth.people_folder._write

        def torn(file: Any, data: bytes) -> None:
            if assassin.strike("half", Path(file.name).name):
                file.write(data[: len(data) // 2])
                kill()
            appended(file, data)

        for module in list(sys.modules.values()):
            if getattr(module, "replacing", None) is replacing and module.__name__.startswith("idgen"):
                module.replacing = watched  # type: ignore[attr-defined]
        pathlib.Path.replace = renamed  # type: ignore[method-assign,assignment]
        idgen.synth.people_folder._write = torn


class _Watched:
    """A file that is written, whose writer may be killed in the middle of a piece."""

    def __init__(self, file: Any, name: str, assassin: Assassin) -> None:
        self._file, self._name, self._assassin = file, name, assassin

    def write(self, data: Any) -> int:
        if self._assassin.strike("half", self._name):
            self._file.write(bytes(data)[: len(data) // 2])
            self._file.flush()
            kill()
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def kill() -> None:
    """As the kernel does when there is no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = [
    ("before", "dataset.json", 1), ("half", "people.json", 1), ("half", "vectors.npy", 1),
    ("half", "chunks.jsonl", 1), ("half", "plan.parquet", 2),
    ("half", "00000.safetensors", 1), ("half", "00000.tar", 3),
    ("flush", "00000.tar", 1), ("after", "00000.tar", 1),
    ("half", "00000.parquet", 1), ("before", "00000.parquet", 1), ("half", "00000.json", 1),
    ("before", "00000.json", 1), ("after", "00000.json", 1),
    ("half", "00002.json", 1), ("half", "dataset.json", 1), ("before", "dataset.json", 2),
]  # fmt: skip


def test_killed_at_every_kind_of_moment_it_ends_with_the_same_bytes(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "dataset"
    for moment in MOMENTS:
        code = forked(command(out), Assassin(*moment))
        assert code == -signal.SIGKILL, f"{moment} did not come"
    assert not about(out)["finished"]
    assert main(command(out)) == 0
    assert contents(out) == whole


def test_killed_at_twenty_random_times_it_ends_with_the_same_bytes(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    drawn, kills, ended = random.Random(3), 0, 0

    def fresh() -> Path:
        (tmp_path / str(ended)).mkdir(exist_ok=True)
        return tmp_path / str(ended) / "dataset"

    while kills < 20:
        process = os.fork()
        if not process:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.dup2(2, 1)
            os._exit(main(command(fresh())))
        time.sleep(drawn.uniform(0.05, 1.0))
        os.kill(process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert code in (-signal.SIGKILL, 0)
        if code:
            kills += 1
        else:  # it had ended before it was killed; the next one begins anew
            assert contents(fresh()) == whole
            ended += 1
    assert main(command(fresh())) == 0
    assert contents(fresh()) == whole


def test_a_full_disk_is_said_and_the_same_command_goes_on(
    whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    with files_of_at_most(10_000):
        assert main(command(out)) == 2
    assert "people cannot be written: File too large; 0 people in it stay" in capsys.readouterr().err
    assert forked(command(out), Assassin("before", "00000.tar")) == -signal.SIGKILL
    largest = max(len(data) for name, data in whole.items() if name.endswith(".tar"))
    with files_of_at_most(largest - 1):
        assert main(command(out)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"idgen: \S+\.tar was not written: File too large; nothing was left behind; the same command goes on "
        r"\(. of 3 shards (is|are) there\)",
        said,
    ), said
    assert not list(out.rglob(".idgen-*"))
    assert main(command(out)) == 0
    assert contents(out) == whole


@pytest.mark.parametrize("suffix", ["tar", "parquet", "safetensors"])
def test_damage_that_only_checksums_tell_is_said_and_the_next_run_repairs_it(
    whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    """Killed between the last shard and the findings, which read everything; the file kept its size."""
    out = tmp_path / "dataset"
    shutil.copytree(whole_dataset(), out)
    (out / "dataset.json").write_text(json.dumps({**about(out), "finished": False}))
    file = out / "shards" / f"00001.{suffix}"
    file.write_bytes(bytes(len(file.read_bytes())))
    assert main(command(out)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"idgen: shard 00001 of {out} is damaged: ")
    assert said.endswith("; it is made again next time; the same command goes on (2 of 3 shards are there)")
    assert not (out / "shards" / "00001.json").exists()
    assert main(command(out)) == 0
    shards = {name: data for name, data in contents(out).items() if name.startswith("shards/")}
    assert shards == {name: data for name, data in whole.items() if name.startswith("shards/")}
