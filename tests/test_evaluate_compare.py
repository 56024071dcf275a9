"""`idgen evaluate compare`: reports in, a table and a paired test out."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from idgen.cli import main as idgen
from idgen.metrics.bootstrap import holm, paired_difference
from idgen.report.document import Measure, Report
from idgen.report.write import write_report


def report(shift: float = 0.0, seed: int = 0) -> Report:
    rng = np.random.default_rng(7)  # the same people in every report
    alike, found = rng.normal(0.3, 0.2, 30), rng.random(30)
    alike = alike + shift + 0.02 * np.random.default_rng(seed).normal(size=30)
    people = [f"p{i}" for i in range(30)]
    per_identity = {
        "judge/similarity": dict(zip(people, alike.tolist(), strict=True)),
        "face found": dict(zip(people, found.tolist(), strict=True)),
    }
    means = {name: float(np.mean(list(values.values()))) for name, values in per_identity.items()}
    return Report(
        kind="consistency",
        title="Is the person kept?",
        subject="60 pictures of 30 people",
        settings={"detector": "mini"},
        measures={name: Measure(value=mean) for name, mean in means.items()}
        | {"judge/eer": Measure(value=0.1)},
        per_identity=per_identity,
    )


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / name for name in ("plain", "better", "same")]
    for number, (folder, shift) in enumerate(zip(folders, (0, 0.1, 0), strict=True)):
        write_report(report(shift, number), folder)
    return folders


def compare(tmp_path: Path, *words: str | Path) -> int:
    return idgen(["evaluate", "compare", *map(str, words), "--out", str(tmp_path / "out")])


def test_three_runs(runs: list[Path], tmp_path: Path) -> None:
    assert compare(tmp_path, *runs) == 0
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    first, *others = [report(shift, number) for number, shift in enumerate((0, 0.1, 0))]
    sorted_people = sorted(first.per_identity["face found"])
    for name, other in zip(("better", "same"), others, strict=True):
        pair = [np.array([r.per_identity["judge/similarity"][who] for who in sorted_people])
                for r in (first, other)]  # fmt: skip
        expected = paired_difference(*pair)
        measure = written["measures"][f"{name}/judge/similarity/difference"]
        assert measure["value"] == pytest.approx(expected.mean)
        assert measure["interval"] == pytest.approx(expected.interval)
    tables = {table["title"]: table for table in written["tables"]}
    row = {row[0]: row for row in tables["better less plain"]["rows"]}["judge/similarity"]
    others_p = paired_difference(*[np.array(list(first.per_identity["face found"].values()))] * 2).p
    assert row[4] == pytest.approx(holm(np.array([row[3], others_p]))[0])
    assert row[4] < 0.001
    same = {row[0]: row for row in tables["same less plain"]["rows"]}["judge/similarity"]
    assert same[4] > 0.05
    assert tables["Side by side"]["columns"] == ["measure", "plain", "better", "same"]


def test_markdown_and_csv_say_the_same(runs: list[Path], tmp_path: Path) -> None:
    assert compare(tmp_path, *runs[:2], "--measures", "judge/*") == 0
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| measure | plain | better |" in text
    assert "| judge/eer | 0.100 | 0.100 |" in text
    assert "face found" not in text
    with (tmp_path / "out" / "compare.csv").open() as file:
        rows = {(row["measure"], row["run"]): row for row in csv.DictReader(file)}
    values = report(0.1, 1).per_identity["judge/similarity"].values()
    assert float(rows["judge/similarity", "better"]["value"]) == pytest.approx(sum(values) / 30)
    assert float(rows["judge/similarity", "better"]["difference"]) == pytest.approx(0.1, abs=0.02)
    assert rows["judge/similarity", "plain"]["difference"] == ""
    assert rows["judge/eer", "better"]["p"] == ""  # has no value of each person: not tested


def test_unlike_runs_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = report(), report(0.1)
    fewer = {name: dict(list(people.items())[:20]) for name, people in other.per_identity.items()}
    fewer["face found"]["p3"] = math.nan
    other = replace(other, settings={"detector": "yunet"}, per_identity=fewer)
    write_report(first, tmp_path / "a")
    write_report(other, tmp_path / "b")
    assert compare(tmp_path, tmp_path / "a", tmp_path / "b" / "report.json") == 0
    out = capsys.readouterr().out
    assert "measured with another detector" in out
    assert "b has 20 people, a 30, 20 of them in both" in out
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["tables"][1]["rows"]
    assert {row[0]: row[2] for row in rows} == {"judge/similarity": 20, "face found": 19}


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_report(report(), tmp_path / name / "report")
    assert compare(tmp_path, tmp_path / "x" / "report", tmp_path / "y" / "report") == 0
    table = json.loads((tmp_path / "out" / "report.json").read_text())["tables"][0]
    assert table["columns"] == ["measure", "x/report", "y/report"]
    words = ["--name", "old", "--name", "new"]
    assert compare(tmp_path, tmp_path / "x" / "report", tmp_path / "y" / "report", *words) == 0
    table = json.loads((tmp_path / "out" / "report.json").read_text())["tables"][0]
    assert table["columns"] == ["measure", "old", "new"]


def test_wrong_input(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(replace(report(), kind="quality"), tmp_path / "other")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "report.json").write_text("[]")
    for words, said in (
        ([runs[0]], "two reports at least"),
        ([runs[0], runs[0]], "given twice"),
        ([runs[0], tmp_path / "other"], "of one kind can be compared, these are of consistency, quality"),
        ([runs[0], tmp_path / "nothing"], "cannot read the report"),
        ([runs[0], tmp_path / "text"], "is not a report of idgen"),
        ([runs[0], runs[1], "--name", "a"], "once for each of the 2 runs"),
        ([runs[0], runs[1], "--measures", "rank-*"], "have in common: judge/similarity"),
    ):
        assert compare(tmp_path, *words) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
