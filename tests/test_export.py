"""`idgen synthesize export`, `import` and `check`: what every format has, and what is refused."""

import fcntl
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from made_dataset import ABOUT, files_of_at_most, kept_pictures, make_dataset, plain_png

from idgen.commands.datasets import check_main, export_main, import_main
from idgen.data.pictures import read_pictures
from idgen.errors import (
    ConfigError,
    RunFolderError,
    StorageError,
)
from idgen.synth.dataset import Dataset
from idgen.synth.export.base import exporters
from idgen.synth.export.exporting import export_dataset
from idgen.synth.export.reading import open_labelled
from idgen.synth.shards import write_shard

FORMATS = ["folder", "webdataset", "parquet", "recordio", "lmdb"]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "made")


def export(made: Path, to: str, out: Path, *words: str) -> Path:
    assert export_main([str(made), "--to", to, "--out", str(out), *words]) == 0
    return out


def table_of(path: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(path).to_pylist()


# ---- what every format has


@pytest.mark.parametrize("to", FORMATS)
def test_every_export_has_manifest_labels_datasheet_and_checksums(
    made: Path, tmp_path: Path, to: str
) -> None:
    out = export(made, to, tmp_path / "out")
    expected = kept_pictures()
    rows = table_of(out / "manifest.parquet")
    assert [row["key"] for row in rows] == list(expected)
    for row in rows:
        assert row["sha256"] == hashlib.sha256(expected[row["key"]]).hexdigest()
        assert row["label"] == int(row["identity"]) == int(row["key"][:5])
        assert row["decision"] == "kept"
        assert row["seed"] == 1000 * row["person"] + row["picture"]
    assert json.loads((out / "labels.json").read_text()) == {f"{i:05d}": i for i in range(6)}
    about = json.loads((out / "export.json").read_text())
    assert (about["to"], about["num_pictures"], about["num_people"]) == (to, 15, 6)
    assert about["dataset"] == ABOUT
    sheet = (out / "DATASHEET.md").read_text()
    assert f"| format | {to} |" in sheet
    checked = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {line.removesuffix(": OK") for line in checked.stdout.splitlines()} == files - {"SHA256SUMS"}
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_every_export_comes_back(
    made: Path, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(made, to, tmp_path / "out")
    expected = kept_pictures()
    found = open_labelled(out)
    assert [(p.identity, p.read_bytes()) for p in found.pictures] == [(k[:5], v) for k, v in expected.items()]
    assert found.encoder_ids == ("mini@0123456789ab",)
    assert all(picture.data is None for picture in found.pictures)

    assert import_main([str(out), "--out", str(tmp_path / "back")]) == 0
    back = read_pictures(tmp_path / "back")
    assert [(p.identity, p.read_bytes()) for p in back.pictures] == [(k[:5], v) for k, v in expected.items()]
    assert back.encoder_ids == found.encoder_ids
    assert json.loads((tmp_path / "back" / "labels.json").read_text()) == {f"{i:05d}": i for i in range(6)}
    assert check_main([str(tmp_path / "back")]) == 0

    assert import_main([str(out), "--out", str(tmp_path / "alone.parquet")]) == 0
    rows = table_of(tmp_path / "alone.parquet")
    assert [row["identity"] for row in rows] == [key[:5] for key in expected]
    assert [row["sha256"] for row in rows] == [hashlib.sha256(v).hexdigest() for v in expected.values()]
    assert len({row["key"] for row in rows}) == len(rows)
    assert "15 pictures of 6 people" in capsys.readouterr().out
    assert check_main([str(out)]) == 0
    assert f"{out}: all well;" in capsys.readouterr().out


def test_a_manifest_of_files_leads_to_them(made: Path, tmp_path: Path) -> None:
    out = export(made, "folder", tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    import_main([str(out), "--out", str(tmp_path / "elsewhere" / "m.parquet")])
    found = read_pictures(tmp_path / "elsewhere" / "m.parquet")
    assert [p.read_bytes() for p in found.pictures] == list(kept_pictures().values())
    assert found.pictures[0].prompt == "a man"
    assert found.pictures[0].labels["expression"] == "neutral"


def test_sets_of_strangers_are_imported_with_their_own_names(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": plain_png(i), "path": f"{i}.png"}, "label": i % 2, "age": 20 + i}
        for i in range(4)
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    import_main([str(tmp_path / "set.parquet"), "--out", str(tmp_path / "out")])
    found = read_pictures(tmp_path / "out")
    assert [(p.identity, p.name) for p in found.pictures] == [
        (who, f"{who}/{number:06d}.png") for who in "01" for number in range(2)
    ]
    assert [p.labels["age"] for p in found.pictures] == [20, 22, 21, 23]
    assert found.pictures[1].labels["key"] == "set/2"


def test_webp_and_jpeg_keep_their_bytes(tmp_path: Path) -> None:
    for kind, formats in (("webp", ["folder", "webdataset", "parquet", "lmdb"]), ("jpg", FORMATS)):
        made = make_dataset(tmp_path / kind, kind=kind)
        expected = kept_pictures(kind=kind)
        for to in formats:
            out = export(made, to, tmp_path / f"{kind} {to}")
            assert [p.read_bytes() for p in open_labelled(out).pictures] == list(expected.values())


# ---- the datasheet


def test_the_datasheet_repeats_and_counts_and_makes_nothing_up(made: Path, tmp_path: Path) -> None:
    sheet = (export(made, "folder", tmp_path / "out") / "DATASHEET.md").read_text()
    size = sum(map(len, kept_pictures().values()))
    for line in (
        "# Datasheet of made",
        "| people | 6 |",
        f"| pictures | 15 (15 png; {size / 1e6:.1f} MB) |",
        "| finished shards | 2 of 3 |",
        "| models.0.licence | research only |",
        "| licences.pictures | research only |",
        "| encoder_ids | mini@0123456789ab |",
        "| kept | 15 | 83.3 % |",
        "| no face | 3 | 16.7 % |",
        "| planned | 18 |  |",
        "| expression | angry | 6 | 6 | 100.0 % |",
        "| expression | smiling | 6 | 3 | 50.0 % |",
        "| similarity | 15 | 0.600 | 0.500 | 0.500 | 0.600 | 0.700 | 0.700 |",
        "| similarity.inter.mean | 0.012 |",
        "| leakage.nearest_training_photo | 0.370 |",
        "| seed | 7 |",
        "15 of 15 pictures carry IPTC's mark",
        "| aligned | no: the pictures are byte for byte those that were made |",
    ):
        assert line in sheet, line
    assert "not measured" in sheet.partition("## Other numbers")[2].partition("##")[0]


def test_a_dataset_that_says_nothing_has_a_datasheet_that_says_so(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "dataset.json").write_text("{}")
    write_shard(made, 0, [({"identity": "a|b", "key": "k", "decision": "kept"}, plain_png(1))])
    sheet = (export(made, "webdataset", tmp_path / "out") / "DATASHEET.md").read_text()
    parts = {part.split("\n")[0]: part for part in sheet.split("## ")}
    assert "not recorded" in parts["Models and data it was made from"]
    assert "not recorded: ask its maker before you use it" in parts["Licences"]
    assert parts["Similarity"].count("not measured") == 2
    assert "not measured" in parts["Leakage audit"]
    assert "0 of 1 pictures carry IPTC's mark" in parts["Provenance"]
    assert "No attributes are in the manifest" in parts["Quotas"]


def test_what_a_dataset_says_cannot_break_the_tables(tmp_path: Path) -> None:
    about = {"note": "a | b\n## c <script>", "nested": [{"x": [1, 2]}], "flag": True, "none": None}
    made = make_dataset(tmp_path / "made", about=about)
    sheet = (export(made, "folder", tmp_path / "out") / "DATASHEET.md").read_text()
    assert "| note | a \\| b \\#\\# c \\<script\\> |" in sheet
    assert "| nested.0.x | 1, 2 |" in sheet
    assert "| flag | yes |\n| none | none |" in sheet


# ---- whole or not there


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_stop_in_the_middle_leaves_nothing(
    made: Path, tmp_path: Path, to: str, stop: type[BaseException]
) -> None:
    told = 0

    def advance(_: int) -> None:
        nonlocal told
        told += 1
        if told == 8:
            raise stop

    with pytest.raises(stop):
        export_dataset(Dataset.open(made), tmp_path / "out", to, exporters.build(to), advance=advance)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


@pytest.mark.parametrize(
    ("to", "room"), [*((to, 500) for to in FORMATS), *((to, 20_000) for to in FORMATS[1:])]
)
def test_a_full_disk_leaves_nothing(made: Path, tmp_path: Path, to: str, room: int) -> None:
    with (
        files_of_at_most(room),
        pytest.raises(StorageError, match=r"was not written: .*nothing was left behind"),
    ):
        export(made, to, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_a_full_disk_while_importing(made: Path, tmp_path: Path) -> None:
    with files_of_at_most(500), pytest.raises(StorageError, match="nothing was left behind"):
        import_main([str(made), "--out", str(tmp_path / "out")])
    with files_of_at_most(500), pytest.raises(StorageError, match="nothing was left behind"):
        import_main([str(made), "--out", str(tmp_path / "out.parquet")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_what_a_killed_export_left_is_replaced(made: Path, tmp_path: Path) -> None:
    left = tmp_path / "out.partial"
    left.mkdir()
    (left / ".idgen-partial").touch()
    (left / "train-000000.tar").write_bytes(b"half")
    out = export(made, "folder", tmp_path / "out")
    assert not (out / "train-000000.tar").exists()
    assert not left.exists()


def test_somebody_elses_partial_folder_is_left_alone(made: Path, tmp_path: Path) -> None:
    left = tmp_path / "out.partial"
    left.mkdir()
    (left / "thesis.txt").write_text("years of work")
    with pytest.raises(
        RunFolderError, match=r"out.partial exists and is not of idgen; remove it, or choose another"
    ):
        export(made, "folder", tmp_path / "out")
    assert (left / "thesis.txt").read_text() == "years of work"


def test_two_exports_to_one_folder_keep_out_of_each_others_way(made: Path, tmp_path: Path) -> None:
    left = tmp_path / "out.partial"
    left.mkdir()
    with (left / ".idgen-partial").open("wb") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(RunFolderError, match=r"another process is filling .*out.partial; wait for it"):
            export(made, "folder", tmp_path / "out")
        assert left.exists()


def test_an_output_that_is_there_is_not_touched(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(made, "lmdb", out)  # an empty one is fine
    before = (out / "SHA256SUMS").read_bytes()
    for again in (
        lambda: export(made, "folder", out),
        lambda: import_main([str(made), "--out", str(out)]),
    ):
        with pytest.raises(
            RunFolderError, match=r"out exists and is not empty; choose another --out, or remove it"
        ):
            again()
    assert (out / "SHA256SUMS").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file exists and is not empty"):
        export(made, "folder", tmp_path / "file")
    (tmp_path / "m.parquet").write_text("")
    with pytest.raises(ConfigError, match=r"m.parquet exists; choose another --out"):
        import_main([str(made), "--out", str(tmp_path / "m.parquet")])
