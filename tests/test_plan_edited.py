"""The commands around a plan, as users type them: edit it with pandas, give it a distribution, be refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from small_plans import DATA, column, counted, grammar
from synthesizing import LENIENT, models_opened_once

from idgen.cli import main
from idgen.errors import ConfigError
from idgen.synth import planning
from idgen.synth.plan import Plan
from idgen.synth.plan_diff import diff_plans
from idgen.synth.planning import make_plan

PLAN = ["synthesize", "plan", "--people", "4", "--pictures", "5"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: with a grammar and a plan of four people, five pictures each."""
    monkeypatch.chdir(tmp_path)
    Path("grammar.yaml").write_text(yaml.safe_dump(DATA, sort_keys=False))
    make_plan(grammar(), 4, 5, 0).write("plan.parquet")
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line in which a command is refused."""
    assert main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("idgen: ")


# ---- edited with pandas


def test_a_plan_edited_with_pandas_is_compared_and_made(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pandas = pytest.importorskip("pandas")  # drops the metadata
    frame = pandas.read_parquet("plan.parquet")
    frame.loc[0, "prompt"] = "a man in the rain"
    frame.to_parquet("edited.parquet")
    assert main(["synthesize", "diff", "plan.parquet", "edited.parquet"]) == 1
    said = capsys.readouterr().out
    assert "edited.parquet has no metadata of a plan; that of plan.parquet is taken" in said
    assert "1 pictures changed, 0 added, 0 removed" in said
    assert "-> 'a man in the rain'" in said

    made_so = [
        "synthesize",
        "--plan",
        "edited.parquet",
        "--out",
        "out",
        "--steps",
        "1",
        *LENIENT,
        "--dry-run",
    ]
    line = "name the plan that it was edited from: `idgen synthesize --plan-like FILE`"
    with models_opened_once():
        assert line in refusal(capsys, *made_so)
        assert main([*made_so, "--plan-like", "plan.parquet"]) == 0
    assert "20 pictures of 4 people" in capsys.readouterr().out


def test_an_index_that_pandas_added_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pandas = pytest.importorskip("pandas")
    pandas.read_parquet("plan.parquet").iloc[[0, 3, 4]].to_parquet("edited.parquet")
    assert "__index_level_0__ is no column of this plan; write it with `index=False`" in refusal(
        capsys, "synthesize", "diff", "plan.parquet", "edited.parquet"
    )


def test_a_negative_prompt_of_a_plan_keeps_adults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table("plan.parquet")
    place = table.column_names.index("negative_prompt")
    cells = ["blurry, child"] * 19 + ["grown-up"]
    pq.write_table(table.set_column(place, "negative_prompt", [cells]), "edited.parquet")
    assert refusal(capsys, "synthesize", "diff", "plan.parquet", "edited.parquet").startswith(
        "edited.parquet: row 19: negative_prompt: 'grown up' steers away from adults"
    )


def test_a_plan_of_its_own_differs_not_from_the_dataset_that_was_made_so() -> None:
    alone, made = make_plan(grammar(), 4, 5, 0), make_plan(grammar(), 4, 5, 0, source={"source": "pca"})
    assert diff_plans(alone, made).is_empty
    other = make_plan(grammar(), 4, 5, 0, source={"source": "uniform"})
    assert list(diff_plans(other, made).head) == ["source"]


# ---- a distribution


def planned(*words: str) -> Plan:
    """The plan that a command writes."""
    assert main([*PLAN, "--grammar", "grammar.yaml", "--out", "new.parquet", *words]) == 0
    return Plan.read("new.parquet")


def test_a_plan_follows_the_weights_of_a_file(folder: Path) -> None:
    Path("like-real.yaml").write_text("pose: {ahead: 6, left: 3, right: 1}\nhair: {dark: 1, grey: 1}")
    plan = planned("--distribution", "like-real.yaml")
    assert counted(plan, "pose") == {"ahead": 12, "left": 6, "right": 2}
    assert set(column(plan, "hair")) == {"dark", "grey"}
    assert plan.grammar.axes["pose"].weights == (6, 3, 1)


def test_a_plan_follows_a_labelled_set(folder: Path) -> None:
    labels = {"file": list("abcdefghij"), "pose": ["left"] * 9 + ["right"], "light": ["dim"] * 10}
    pq.write_table(pa.table(labels), "real.parquet")
    plan = planned("--distribution", "real.parquet")
    assert counted(plan, "pose") == {"left": 18, "right": 2}
    assert counted(plan, "light") == {"dim": 20}


def test_a_dataset_follows_a_distribution(folder: Path) -> None:
    from pipelines.synthesize import read_command, read_or_make_plan

    Path("like-real.yaml").write_text("pose: {ahead: 6, left: 3, right: 1}")
    config, *_ = read_command([*PLAN[2:], "--distribution", "like-real.yaml", "--grammar", "grammar.yaml",
                               "--out", "out"])  # fmt: skip
    assert counted(read_or_make_plan(config), "pose") == {"ahead": 12, "left": 6, "right": 2}


def test_distributions_that_cannot_be_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*PLAN, "--grammar", "grammar.yaml", "--out", "new.parquet", "--distribution"]
    assert refusal(capsys, *words, "no.yaml") == "cannot read the distribution no.yaml: there is no such file"
    Path("wrong.yaml").write_text("poze: {left: 1}")
    assert refusal(capsys, *words, "wrong.yaml").startswith("wrong.yaml: there is no axis 'poze'; did you")
    pq.write_table(pa.table({"yaw": [1.0]}), "real.parquet")
    assert refusal(capsys, *words, "real.parquet").startswith(
        "real.parquet has no column that is named like an axis (who, hair, glasses, pose, expression, light)"
    )


# ---- what cannot be


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["diff", "plan.parquet", "plan.parquet", "--rows", "-1"], "--rows must be from 0 up, got -1"),
        (["plan", "--like", "x", "--people", "9"], "--like says how many people and pictures there are; it "
         "goes without --people, got 9"),
        (["plan", "--people", "9", "--pictures", "1", "--least", "5"], "--least 5 goes with --like"),
        (["plan", "--like", "x", "--least", "0"], "--least must be from 1 up, got 0"),
        ([*PLAN[1:], "--out", "q.csv"], "a plan is a Parquet file: --out must end in .parquet, got q.csv"),
        ([*PLAN[1:], "--grammar", "no.yaml", "--out", "q.parquet"], "cannot read the grammar no.yaml: "
         "No such file or directory; leave the grammar out"),
        (["plan", "--people", "2000000000", "--pictures", "4000000", "--out", "q.parquet"],
         "a plan of 8,000,000,000,000,000 pictures of 2,000,000,000 people takes 1,117,"),
        (["--plan", "plan.parquet", "--name", "mine", "--out", "o"], "--plan says which pictures are made; "
         "it goes without --name"),
        (["--people", "1", "--pictures", "1", "--plan-like", "plan.parquet", "--out", "o"], "--plan-like "
         "plan.parquet goes with --plan"),
    ],
)  # fmt: skip
def test_it_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert refusal(capsys, "synthesize", *words).startswith(line)
    assert not Path("o").exists()


def test_memory_that_ends_meanwhile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(planning, "deal", full)
    with pytest.raises(ConfigError, match=r"^a plan of 20 pictures of 4 people takes 0\.0 GiB of memory at "
                       r"least, which is more than is free; plan several datasets"):  # fmt: skip
        make_plan(grammar(), 4, 5, 0)
