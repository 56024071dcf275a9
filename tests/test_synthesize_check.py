"""`idgen synthesize check` and `--repair`: whatever was damaged is named, and made again as it was."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from synthesizing import about, command, contents, models_opened_once, whole_dataset

from idgen.cli import main
from idgen.synth.plan import Plan


@pytest.fixture(scope="module", autouse=True)
def _models() -> Iterator[None]:
    with models_opened_once():
        yield


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished dataset of its own."""
    shutil.copytree(whole_dataset(), tmp_path / "dataset")
    return tmp_path / "dataset"


def flip(path: Path) -> None:
    """Damage that leaves the size as it was."""
    data = bytearray(path.read_bytes())
    data[-1 - len(data) // 4] ^= 1
    path.write_bytes(data)


def blank(path: Path) -> None:
    """The pages of a Parquet file; what stands at its end is whole, so that it can be opened."""
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(60) + data[64:])


def another_plan(path: Path) -> None:
    """One that can be read, and says something else."""
    plan = Plan.read(path)
    dataclasses.replace(plan, seed=plan.seed + 1).write(path)


def lose_shards(dataset: Path) -> None:
    """All files of two of three shards."""
    for file in [*dataset.glob("shards/00001.*"), *dataset.glob("shards/00002.*")]:
        file.unlink()


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda d: flip(d / "shards" / "00001.tar"), "00001.tar is not what was written: its sha256 differs"),
    (
        lambda d: flip(d / "shards" / "00001.safetensors"),
        "00001.safetensors is not what was written: its sha256",
    ),
    (lambda d: (d / "shards" / "00001.safetensors").unlink(), "00001.safetensors is missing. Delete "),
    (
        lambda d: (d / "shards" / "00001.safetensors").write_bytes(b"short"),
        "00001.safetensors has 5 bytes instead of ",
    ),
    (lose_shards, "dataset.json calls 3 shards finished, but 2 of them are missing (00001, 00002); the same"),
    (
        lambda d: (d / "plan.parquet").unlink(),
        "plan.parquet is missing; the same `idgen synthesize` command with",
    ),
    (lambda d: (d / "plan.parquet").write_bytes(b""), "cannot read the plan "),
    (lambda d: blank(d / "plan.parquet"), "plan.parquet cannot be read: "),
    (
        lambda d: another_plan(d / "plan.parquet"),
        "plan.parquet is not the plan of this dataset: its sha256 differs",
    ),
    (
        lambda d: (d / "people" / "vectors.npy").unlink(),
        "vectors.npy is missing; the same `idgen synthesize`",
    ),
    (
        lambda d: (d / "people" / "vectors.npy").write_bytes(b""),
        "vectors.npy or chunks.jsonl beside it cannot be read",
    ),
    (
        lambda d: flip(d / "people" / "vectors.npy"),
        "vectors.npy is not what was written: a checksum in chunks.jsonl differs",
    ),
    (lambda d: (d / "people" / "chunks.jsonl").unlink(), "chunks.jsonl is missing; "),
    (lambda d: (d / "people" / "chunks.jsonl").write_bytes(b""), "vectors.npy has "),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_the_check_names_what_is_damaged_and_changes_nothing(
    out: Path, damage: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(out)
    before = contents(out)
    assert main(["synthesize", "check", str(out)]) == 2
    said = capsys.readouterr()
    assert message in said.out + said.err
    assert "all well" not in said.out
    assert contents(out) == before


def test_the_check_names_every_damaged_shard(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (0, 2):
        (out / "shards" / f"{number:05d}.safetensors").unlink()
    flip(out / "shards" / "00001.tar")
    capsys.readouterr()
    assert main(["synthesize", "check", str(out)]) == 2
    said = "".join(capsys.readouterr())
    assert [said.count(f"shard {number:05d} of {out} is damaged") for number in range(3)] == [1, 1, 1]
    assert "calls 3 shards finished" not in said  # they are there


def test_what_is_damaged_is_made_again_on_demand(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = contents(out)
    flip(out / "shards" / "00000.safetensors")
    flip(out / "shards" / "00002.tar")
    flip(out / "people" / "vectors.npy")
    another_plan(out / "plan.parquet")
    words = command(out)
    assert main(words) == 0
    assert "is finished" in capsys.readouterr().out  # checksums are compared where that was asked for
    assert main([*words, "--repair"]) == 0
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.endswith("; it is made again")]
    assert [line.partition(": ")[2][:11] for line in lines[:2]] == ["shard 00000", "shard 00002"]
    assert "plan.parquet is not the plan of this dataset" in lines[2]
    assert "vectors.npy is not what was written" in lines[3]
    assert len(lines) == 4
    assert contents(out) == whole
    assert main(["synthesize", "check", str(out)]) == 0


def test_a_repair_that_is_stopped_goes_on(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the plan is damaged: nothing but dataset.json can say that there is something to do."""
    whole = contents(out)
    another_plan(out / "plan.parquet")

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Plan, "write", stopped)
        assert main([*command(out), "--repair"]) == 130
    assert not about(out)["finished"]
    assert main(command(out)) == 0
    assert contents(out) == whole


def test_a_repair_leaves_alone_what_is_whole(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
    assert main([*command(out), "--repair"]) == 0
    said = capsys.readouterr()
    assert "is finished: " in said.out
    assert "made again" not in said.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert main([*command(out), "--repair", "--dry-run"]) == 2
    assert "--dry-run changes nothing and --repair does; leave one of them out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["people/vectors.npy", "plan.parquet", "shards/00001.safetensors"])
def test_a_file_that_is_missing_is_made_again_by_the_same_command(out: Path, name: str) -> None:
    whole = contents(out)
    (out / name).unlink()
    assert main(command(out)) == 0
    assert contents(out) == whole
