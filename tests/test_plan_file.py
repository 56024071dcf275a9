"""The file of a plan: written, edited, read again, compared; each wrong edit is named by its row."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_plans import DATA, column, grammar

from idgen.errors import ConfigError, StorageError
from idgen.synth.plan import Plan
from idgen.synth.plan_diff import diff_plans
from idgen.synth.planning import make_plan


@pytest.fixture
def plan() -> Plan:
    return make_plan(grammar(), 5, 4, 7, source={"file": "people.safetensors", "sha256": "0" * 64})


Edit = Callable[[pa.Table], pa.Table]


def put(name: str, row: int, value: object) -> Edit:
    """Write one cell."""

    def edit(table: pa.Table) -> pa.Table:
        cells = table[name].to_pylist()
        cells[row] = value
        return fill(name, cells)(table)

    return edit


def fill(name: str, cells: Sequence[Any]) -> Edit:
    """Write a whole column, a new one at the end."""
    return lambda table: (
        table.set_column(table.column_names.index(name), name, [cells])
        if name in table.column_names
        else table.append_column(name, [cells])
    )


def edited(plan: Plan, path: Path, *edits: Edit) -> Path:
    """The file of a plan after somebody edited it."""
    plan.write(path)
    table = pq.read_table(path)
    for edit in edits:
        table = edit(table)
    pq.write_table(table.replace_schema_metadata(pq.read_schema(path).metadata), path)
    return path


def test_it_is_read_as_it_was_written(plan: Plan, tmp_path: Path) -> None:
    plan.write(tmp_path / "plan.parquet")
    back = Plan.read(tmp_path / "plan.parquet")
    assert back.table.to_pylist() == plan.table.to_pylist()
    assert (back.seed, back.given, back.source) == (7, ("who",), plan.source)
    assert back.grammar.sha256 == plan.grammar.sha256
    assert back.plan_sha256 == plan.plan_sha256
    assert back.summary() == plan.summary()
    assert list(back.people()) == list(plan.people())
    assert back.grammar.axes["light"].weights == (2, 1)
    assert diff_plans(plan, back).is_empty
    schema = pq.read_schema(tmp_path / "plan.parquet")
    kinds = {"person": pa.int32(), "picture": pa.int32(), "seed": pa.int64()}
    assert all(field.type == kinds.get(field.name, pa.string()) for field in schema)
    head = json.loads(schema.metadata[b"idgen_plan"])
    assert (head["format"], head["seed"], head["grammar_sha256"]) == (1, 7, plan.grammar.sha256)


def test_its_hash_does_not_hang_on_how_the_file_is_written(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    plan.write(path)
    table = pq.read_table(path)
    shuffled = table.take(np.random.default_rng(0).permutation(len(plan))).select(table.column_names[::-1])
    narrow = shuffled.set_column(0, "light", shuffled["light"].dictionary_encode())
    narrow = narrow.set_column(narrow.column_names.index("seed"), "seed", narrow["seed"].cast(pa.uint64()))
    pq.write_table(narrow, path, compression="none", row_group_size=3)
    back = Plan.read(path)
    assert back.plan_sha256 == plan.plan_sha256
    assert back.table.to_pylist() == plan.table.to_pylist()
    for other in (
        make_plan(grammar(), 5, 4, 7),
        make_plan(grammar(negative="x"), 5, 4, 7, source=plan.source),
    ):
        assert other.plan_sha256 != plan.plan_sha256


def test_it_can_be_edited(plan: Plan, tmp_path: Path) -> None:
    edits = [
        put("prompt", 3, "a portrait that I wrote myself"),
        put("pose", 4, ""),
        put("seed", 19, 12),
        lambda table: pa.concat_tables([table.slice(10), table.slice(1, 9)]),
    ]
    back = Plan.read(edited(plan, tmp_path / "plan.parquet", *edits))
    assert len(back) == 19
    assert back.num_people == 5
    assert [person.person for person in back.people()] == [0, 1, 2, 3, 4]
    assert back.plan_sha256 != plan.plan_sha256
    assert {"axis": "pose", "value": "", "unit": "pictures", "wanted": 0.0, "planned": 1} in back.summary()
    found = diff_plans(plan, back)
    assert found.removed.tolist() == [0]
    assert len(found.added) == 0
    assert found.columns == {"seed": 1, "prompt": 1, "pose": 1}
    changes = list(found.rows())
    assert [(c.kind, c.identity, c.picture) for c in changes] == [
        ("changed", "new-000000", 3), ("changed", "new-000001", 0), ("changed", "new-000004", 3),
        ("removed", "new-000000", 0),
    ]  # fmt: skip
    assert changes[0].columns == {"prompt": (column(plan, "prompt")[3], "a portrait that I wrote myself")}
    assert changes[2].columns == {"seed": (column(plan, "seed")[19], 12)}
    assert changes[3].columns["person"] == (0, None)
    *_, last = diff_plans(back, plan).rows()
    assert (last.kind, last.identity, last.picture) == ("added", "new-000000", 0)


def test_plans_of_other_grammars_are_compared_too(plan: Plan) -> None:
    more = {**DATA["picture"], "frame": {"near": "near"}}
    texts = ["{who} {hair} {glasses} {pose} {expression} {light} {frame}"]
    other = make_plan(grammar(picture=more, templates=texts), 5, 4, 8)
    found = diff_plans(plan, other)
    assert set(found.head) == {"seed", "grammar_sha256", "grammar"}  # one says no source
    assert found.columns["frame"] == found.columns["seed"] == found.changed.shape[1] == 20
    assert next(found.rows()).columns["frame"] == (None, "near")


def test_metadata_that_an_editor_dropped_is_taken_from_the_plan_it_came_from(
    plan: Plan, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")  # drops the metadata, and is how many people edit tables
    plan.write(tmp_path / "plan.parquet")
    frame = pandas.read_parquet(tmp_path / "plan.parquet")
    frame.loc[0, "prompt"] = "mine"
    frame.to_parquet(tmp_path / "edited.parquet", index=False)
    line = "edited.parquet is no plan of idgen: its metadata has no idgen_plan; where an editor dropped its"
    with pytest.raises(ConfigError, match=line):
        Plan.read(tmp_path / "edited.parquet")
    back = Plan.read(tmp_path / "edited.parquet", like=tmp_path / "plan.parquet")
    assert column(back, "prompt")[0] == "mine"
    assert back.seed == 7
    with pytest.raises(
        ConfigError, match=r"edited.parquet is no plan of idgen: its metadata has no idgen_plan$"
    ):
        Plan.read(tmp_path / "plan.parquet", like=tmp_path / "edited.parquet")


WRONG = [
    (lambda table: table.drop_columns("seed"), " lacks the column seed; a plan has identity, person"),
    (lambda table: table.drop_columns("pose"), " lacks the column pose; a plan has identity, person"),
    (lambda table: table.rename_columns({"pose": "poze"}), ": poze is no column of this plan; did you mean"),
    (fill("shard", [0] * 20), ": shard is no column of this plan"),
    (lambda table: table.slice(0, 0), " plans no picture; a plan has one row at least"),
    (put("seed", 6, -4), ": row 6: seed must be from 0 up, got -4"),
    (put("picture", 7, -1), ": row 7: picture must be from 0 up, got -1"),
    (put("picture", 7, 2), ": row 7: picture 2 of new-000001 is planned twice"),
    (put("prompt", 5, None), ": row 5 has no prompt"),
    (fill("seed", ["x"] * 20), ": the column seed must be of type int64"),
    (fill("seed", [0.5] * 20), ": the column seed must be of type int64"),
    (put("pose", 2, "lft"), ": row 2: 'lft' is no value of pose; did you mean 'left'? (known: ahead,"),
    (put("hair", 1, "gone"), ": row 1: hair stays with a person: it is 'gone' here, and"),
    (put("identity", 4, "new-000000"), ": row 4: picture 0 of new-000000 is planned twice"),
    (put("identity", 4, "somebody"), ": row 5: person 1 is new-000001 here and somebody before (and 2"),
    (put("person", 9, 3), ": row 9: new-000002 is person 3 here and 2 before"),
    (put("identity", 0, "../up"), ": row 0: identity must be letters, digits, _ and -, got '../up'"),
    (put("prompt", 8, "a photo of a Girl"), ": row 8: prompt: 'girl' means a minor, and idgen plans"),
    (fill("prompt", ["a 15-year-old"] * 20), ": row 0: prompt: '15 year old' means a minor"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "line"), WRONG)
def test_an_edit_that_cannot_be_is_refused_with_its_row(
    plan: Plan, tmp_path: Path, edit: Edit, line: str
) -> None:
    path = edited(plan, tmp_path / "plan.parquet", edit)
    with pytest.raises(ConfigError) as error:
        Plan.read(path)
    assert str(error.value).startswith(f"{path}{line}")


def test_files_that_are_no_plans_are_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.parquet"
    with pytest.raises(ConfigError, match=r"^cannot read the plan .*plan.parquet: .*No such file"):
        Plan.read(path)
    path.write_text("no")
    with pytest.raises(ConfigError, match=r"^cannot read the plan .*plan.parquet"):
        Plan.read(path)

    def with_head(**changes: object) -> str:
        plan.write(path)
        head = {**plan.head, **changes}
        table = pq.read_table(path).replace_schema_metadata({"idgen_plan": json.dumps(head)})
        pq.write_table(table, path)
        with pytest.raises(ConfigError) as error:
            Plan.read(path)
        return str(error.value).replace(str(path), "")

    assert with_head(format=2) == " is a plan of format 2; this idgen reads format 1"
    assert with_head(seed="x").startswith(": the metadata idgen_plan is damaged")
    assert (
        with_head(grammar_sha256="0")
        == ": the grammar in its metadata was changed: its sha256 differs; plan again"
    )
    assert "means a minor" in with_head(grammar=grammar().to_data() | {"templates": ["a boy"]})


def test_a_plan_that_cannot_be_written_leaves_the_old_one(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write into"):
        plan.write(tmp_path / "nowhere" / "plan.parquet")
    plan.write(tmp_path / "plan.parquet")
    before = (tmp_path / "plan.parquet").read_bytes()
    make_plan(grammar(), 5, 4, 7, source=plan.source).write(tmp_path / "plan.parquet")
    assert (tmp_path / "plan.parquet").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["plan.parquet"]
