"""`idgen evaluate utility`: recognisers trained on made and on real people, compared on the same pairs."""

import csv
import json
import runpy
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from face_tables import write_table
from one_process import commands_run_here
from recognizer_runs import TINY, people, record

from idgen.cli import main
from idgen.errors import MeasureError
from idgen.metrics.bootstrap import resample_runs


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "eval" / "utility.py")))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Made and real people, pairs of others, and settings of a training of seconds."""
    folder = tmp_path_factory.mktemp("data")
    made = write_table(folder / "made, and [odd].parquet", *people(110, 3))
    images, names = people(120, 2, seed=1)
    more, same_names = people(20, 2, seed=1)  # twenty of them have four, ten have one
    real = write_table(folder / "real.parquet", images[:230] + more, names[:230] + same_names)
    tested = write_table(folder / "test.parquet", *people(40, 2, seed=9))
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", "file_a", "file_b", "same"])
        for person in range(40):
            writer.writerow([person // 4, f"{2 * person}.png", f"{2 * person + 1}.png", 1])
            writer.writerow(
                [person // 4, f"{2 * person}.png", f"{2 * (person // 4 * 4 + (person + 1) % 4)}.png", 0]
            )
    (folder / "config.yaml").write_text("steps: 9\n")
    given = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    return ["evaluate", "utility", str(made), "--real", str(real), "--pairs", str(folder / "pairs.csv"),
            "--pictures", str(tested), "--aligned", "--config", str(folder / "config.yaml"),
            *given]  # fmt: skip


def test_sets_are_trained_compared_and_kept(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--sets", "made-equal,real-equal,both", "--seeds", "1", "--out", str(tmp_path)]
    with commands_run_here():
        assert main([*words, *sets]) == 0
    assert "both-0: 3 of 3, 0 min left" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    table, compared = report["tables"]
    size = {row[0]: tuple(row[1:3]) for row in table["rows"]}
    data = {kind: record(tmp_path / f"{kind}-0", "data") for kind in size}
    assert size == {kind: (found["pictures"], found["people"]) for kind, found in data.items()}
    assert size["made-equal"] == size["real-equal"]
    assert size["both"][0] > 500  # nine tenths of 330 and 260, whoever is set aside
    assert [row[0] for row in compared["rows"]] == ["made-equal and real-equal"]
    accuracy = {kind: report["measures"][f"{kind}/accuracy"]["value"] for kind in size}
    difference = report["measures"]["made-equal less real-equal"]["value"]
    assert difference == pytest.approx(accuracy["made-equal"] - accuracy["real-equal"])
    assert record(tmp_path / "both-0", "result")["best"]["step"] == 2  # of --set, not of the file
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/best.onnx")}
    (tmp_path / "report.json").unlink()
    with commands_run_here():
        assert main([*words, *sets, "--sets", "both,real-equal"]) == 0  # reads what there is
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/best.onnx")} == before
    again = json.loads((tmp_path / "report.json").read_text())["measures"]
    assert again["both/accuracy"]["value"] == accuracy["both"]
    with commands_run_here():
        assert main([*words, *sets, "--sets", "both"]) == 0
    assert len(json.loads((tmp_path / "report.json").read_text())["tables"]) == 1  # nothing to compare
    shutil.copytree(tmp_path / "both-0", tmp_path / "real-0")  # by an older program, say
    for other in (["--sets", "both", "--set", "steps=3"], ["--sets", "real"]):
        capsys.readouterr()
        assert main([*words, *sets, *other]) == 2
        assert f"{other[1]}-0 was trained with other data or settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "data", "setting"),
    [
        ("made", "m", None),
        ("made-equal", "m", "match_histogram=r"),
        ("real-equal", "r", "match_histogram=m"),
        ("real", "r", None),
        ("shuffled", "m", "shuffle_identities=true"),
        ("both", None, 'data=["m", "r"]'),
    ],
)
def test_what_each_set_is(program: SimpleNamespace, kind: str, data: str | None, setting: str | None) -> None:
    options = SimpleNamespace(made=Path("m"), real=Path("r"), config=Path("c"), set=["steps=5"])
    words = program.Training(kind=kind, seed=4, folder=Path("o")).words(options)
    settings = [value for name, value in pairwise(words) if name == "--set"]
    expected = ["steps=5", "leave_out_singles=true", "seed=4", *([setting] if setting else [])]
    assert settings == expected
    assert [value for name, value in pairwise(words) if name == "--data"] == ([data] if data else [])


def test_a_training_that_fails_says_why(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with commands_run_here():
        assert main([*words, "--sets", "made", "--set", "head=none", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "made-0: " in said
    assert "none" in said
    assert str(tmp_path / "made-0.log") in said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--sets", "made,maid"], "got maid"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--jobs", "-1"], "--jobs must be at least 1, got -1"),
        (["--pairs", "nowhere.csv"], "nowhere.csv"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_wrong_input(
    wrong: list[str], said: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *wrong, "--out", str(tmp_path / "r")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_each_training_is_a_process_of_its_own(program: SimpleNamespace, tmp_path: Path) -> None:
    options = SimpleNamespace(
        made=tmp_path / "none", real=tmp_path / "none", config=tmp_path / "c.yaml", set=[], digests={}
    )
    options.config.write_text("haed: cosface")
    training = program.Training(kind="made", seed=3, folder=tmp_path / "made-3")
    with pytest.raises(MeasureError, match=r"made-3: .*haed is not a setting"):
        training.run(options)
    assert not training.is_done(options)
    # killed after the last file of a training and before its next word, it is known again
    training.folder.mkdir()
    (training.folder / "result.json").write_text("{}")
    assert training.is_done(options)
    options.digests = {"none": "other pictures"}
    with pytest.raises(MeasureError, match="was trained with other data or settings"):
        training.is_done(options)


def test_a_dataset_is_known_by_its_pictures(program: SimpleNamespace, tmp_path: Path) -> None:
    first = program.digest_of(write_table(tmp_path / "one.parquet", *people(4, 2)))
    assert program.digest_of(write_table(tmp_path / "same.parquet", *people(4, 2))) == first
    assert program.digest_of(write_table(tmp_path / "other.parquet", *people(4, 2, seed=1))) != first


def test_the_way_from_chance(program: SimpleNamespace) -> None:
    fold = np.repeat(np.arange(5), 20)
    rng = np.random.default_rng(0)
    right = {
        "made": (rng.random((2, 100)) < 0.7).astype(float),
        "real": (rng.random((3, 100)) < 0.8).astype(float),
    }
    table, measures = program.comparisons(right, fold, 0.5)
    one, other = right["made"].mean(), right["real"].mean()
    assert measures["made less real"].value == pytest.approx(one - other)
    assert measures["made / real above chance"].value == pytest.approx((one - 0.5) / (other - 0.5))
    better = [
        a > b for a, b in zip(right["made"].mean(0).tolist(), right["real"].mean(0).tolist(), strict=True)
    ]
    assert table.rows[0][3] == sum(better)
    chance = {"made": right["made"], "real": np.tile([0.0, 1.0], (1, 50))}
    assert np.isnan(program.comparisons(chance, fold, 0.5)[1]["made / real above chance"].value)


def test_draws_of_runs_and_people() -> None:
    first, second = np.array([[0.0, 1.0]]), np.array([[0.0, 1.0], [10.0, 11.0]])
    one, other = resample_runs(first, second, num_resamples=4000)
    assert sorted({*one.tolist()}) == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(
        (other - one) % 5, 0
    )  # the people are the same for both, the runs are drawn: 0, 5, 10
    assert {0.0, 5.0, 10.0} == set((other - one).tolist())
    assert one.mean() == pytest.approx(0.5, abs=0.03)
    assert (other - one).mean() == pytest.approx(5, abs=0.2)
    np.testing.assert_array_equal(other, resample_runs(first, second, num_resamples=4000)[1])
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(1, 3\)"):
        resample_runs(first, np.zeros((1, 3)))
