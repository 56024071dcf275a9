"""`idgen synthesize` on a disk that is really full: a small one in memory, where that is allowed."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_dataset import rows_of
from synthesizing import about, command, contents, models_opened_once, whole_dataset

from idgen.cli import main
from idgen.errors import StorageError
from idgen.synth.embeddings import write_embeddings
from idgen.synth.identities import separated_people
from idgen.synth.shards import VECTORS_FACT, read_shards, write_shard
from idgen.synth.sources import UniformSphere
from idgen.synth.wording import bytes_as_text, number_of

PAGE = 4096  # bytes: what such a disk gives out at once


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted: that takes root and a system that allows it")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Filler:
    """A file that takes all room of a disk but some; made before the rest, so that it can give room back."""

    def __init__(self, disk: Path) -> None:
        self.path, self.disk = disk / "filler", disk

    def leave(self, num_pages: int) -> None:
        """From now on so many pages are free."""
        self.path.unlink(missing_ok=True)
        free = shutil.disk_usage(self.disk).free - num_pages * PAGE
        with self.path.open("wb") as file:
            file.write(bytes(max(0, free)))


def test_whatever_is_written_of_a_shard_when_the_disk_is_full_it_is_whole_or_absent(
    disk: Path, tmp_path: Path
) -> None:
    """The room grows by a page at a time: vectors, tar, table and JSON each meet the end of it."""
    rows = list(rows_of(range(6), size_px=64))
    vectors = np.random.default_rng(0).standard_normal((18, 512)).astype(np.float32)
    seen = {row["key"]: {"eye": vector} for (row, data), vector in zip(rows, vectors, strict=True) if data}

    def write(folder: Path) -> None:
        facts = {VECTORS_FACT: write_embeddings(folder, 0, seen)}
        write_shard(folder, 0, rows, facts=facts)

    filler, out, refused = Filler(disk), disk / "dataset", list[str]()
    for num_pages in range(200):
        filler.leave(num_pages)
        try:
            write(out)
            break
        except StorageError as error:
            said = str(error)
        found = re.fullmatch(
            r"(\S+) was not written: No space left on device; nothing was left behind|"
            r"cannot write into \S+: No space left on device",
            said,
        )
        assert found, said
        refused.append(Path(found[1] or "folder").suffix)
        assert not list(out.rglob(".idgen-*"))
        assert read_shards(out) == ()
        shutil.rmtree(out, ignore_errors=True)
    assert {".safetensors", ".tar", ".parquet", ".json"} <= set(refused)
    write(tmp_path / "elsewhere")
    assert contents(out) == contents(tmp_path / "elsewhere")


def test_people_are_found_on_a_disk_that_fills_up(disk: Path) -> None:
    source, filler = UniformSphere(encoder="test@0123456789ab", dim=128), Filler(disk)
    whole = separated_people(source, 1500, max_cosine=0.4)
    stopped = 0
    for num_pages in (0, 10, 50, 50, 50, 50, 50):
        filler.leave(num_pages)
        try:
            found = separated_people(source, 1500, max_cosine=0.4, out=disk / "people")
            break
        except StorageError as error:
            stopped += "people in it stay" in str(error)
    assert stopped > 2
    np.testing.assert_array_equal(found, whole)


def test_the_command_says_what_is_free_and_what_is_needed_and_goes_on(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filler, out, refused = Filler(disk), disk / "dataset", list[str]()
    words = command(tmp_path / "dataset", "--out", str(out))
    with models_opened_once():
        for num_pages in (0, 20, 30, 3, 9, 9, 300):
            filler.leave(num_pages)
            code = main(words)
            if code == 0:
                break
            assert code == 2
            said = capsys.readouterr().err.splitlines()[-1]
            found = re.fullmatch(
                r"idgen: (\S+) (was not|cannot be) written: No space left on device; .*; free there: "
                r"[\d.]+ kB(; needed for [123] shards? more: (about|at most) [\d.]+ kB)?; "
                r"the same command goes on \([0123] of 3 shards (is|are) there\)",
                said,
            )
            assert found, said
            refused.append(Path(found[1]).name)
            assert not list(out.rglob(".idgen-*"))
        assert about(out)["finished"], refused
        assert {"dataset.json", "people"} < set(refused)
        assert any(name.startswith("0000") for name in refused)
        assert contents(out) == contents(whole_dataset())


def test_numbers_have_their_units() -> None:
    numbers = [
        number_of(1, "shard"),
        number_of(0, "shard"),
        number_of(1, "person"),
        number_of(12_000, "person"),
    ]
    assert numbers == ["1 shard", "0 shards", "1 person", "12,000 people"]
    sizes = [bytes_as_text(size) for size in (0, 450, 999_000, 1_234_567, 1_570_000_000, 3 * 10**15)]
    assert sizes == ["0 kB", "0.45 kB", "999 kB", "1.23 MB", "1.57 GB", "3,000 TB"]
