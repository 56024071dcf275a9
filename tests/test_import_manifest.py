"""`idgen synthesize import` of what `export` wrote: the manifest comes back, value for value."""

import re
from pathlib import Path
from typing import Any

import msgpack
import pyarrow as pa
import pyarrow.parquet
import pytest
from made_dataset import kept_pictures, make_dataset, plain_png, rows_of
from test_export_reading import write_lmdb, write_tar

from idgen.commands.datasets import export_main, import_main
from idgen.errors import ConfigError, IdgenError, ImageError
from idgen.synth.export.reading import open_labelled

FORMATS = ["folder", "webdataset", "parquet", "recordio", "lmdb"]


def rows_in(path: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(path).to_pylist()


def kinds_in(path: Path) -> dict[str, str]:
    return {field.name: str(field.type) for field in pyarrow.parquet.read_schema(path)}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "made")


def exported(made: Path, to: str) -> Path:
    out = made.parent / to
    assert export_main([str(made), "--to", to, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("to", ["dataset", *FORMATS])
@pytest.mark.parametrize("out", ["back", "back.parquet"])
def test_seeds_prompts_keys_and_the_rest_come_back(made: Path, tmp_path: Path, to: str, out: str) -> None:
    source = made if to == "dataset" else exported(made, to)
    assert import_main([str(source), "--out", str(tmp_path / out)]) == 0
    manifest = tmp_path / out / "manifest.parquet" if out == "back" else tmp_path / out
    expected = [row for row, data in rows_of(range(6)) if data is not None]
    found = rows_in(manifest)
    assert [{name: row[name] for name in expected[0]} for row in found] == expected
    assert [row["key"] for row in found] == list(kept_pictures())
    kinds = kinds_in(manifest)
    for name in ("seed", "person", "picture"):
        assert kinds[name] == "int64"
    assert kinds["similarity"] == "double"
    if out == "back":  # where something lay in the set that was imported is said no more
        assert not {"tar", "record", "entry"} & kinds.keys()
        again = tmp_path / "again"
        assert import_main([str(tmp_path / out), "--out", str(again)]) == 0
        assert rows_in(again / "manifest.parquet") == found


def test_seeds_beyond_the_numbers_that_a_float_holds_and_flags_come_back(tmp_path: Path) -> None:
    rows = [{"image": plain_png(i), "identity": "a", "seed": 2**62 + i, "flipped": bool(i)} for i in range(2)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    import_main([str(tmp_path / "set.parquet"), "--out", str(tmp_path / "m.parquet")])
    found = rows_in(tmp_path / "m.parquet")
    assert [(row["seed"], row["flipped"]) for row in found] == [(2**62, False), (2**62 + 1, True)]


@pytest.mark.parametrize(("to", "place"), [("recordio", "record"), ("lmdb", "entry")])
def test_a_manifest_of_another_set_is_refused(made: Path, tmp_path: Path, to: str, place: str) -> None:
    out = exported(made, to)
    table = pyarrow.parquet.read_table(out / "manifest.parquet")
    labels = [5 - label for label in table["label"].to_pylist()]
    column = table.column_names.index("label")
    table = table.set_column(column, "label", pa.array(labels))
    pyarrow.parquet.write_table(table, out / "manifest.parquet")
    message = (
        rf"manifest.parquet gives the {place} \d+ the class number 5, .* gives it 0: they are of different"
    )
    with pytest.raises(ConfigError, match=message):
        import_main([str(out), "--out", str(tmp_path / "back")])
    assert len(open_labelled(out)) == 15  # who only looks at the pictures is not concerned
    (out / "manifest.parquet").unlink()
    assert import_main([str(out), "--out", str(tmp_path / "back")]) == 0
    (out / "manifest.parquet").write_bytes(b"no table")
    with pytest.raises(ImageError, match=r"manifest.* cannot be read|manifest.* is not a Parquet file"):
        import_main([str(out), "--out", str(tmp_path / "other")])


@pytest.mark.parametrize("columns", [{"identity": ["a"], "path": ["a.png"]}, {"record": [1, 1]}])
def test_a_manifest_of_somebody_else_says_nothing(
    made: Path, tmp_path: Path, columns: dict[str, list[Any]]
) -> None:
    out = exported(made, "recordio")
    pyarrow.parquet.write_table(pa.table(columns), out / "manifest.parquet")
    assert import_main([str(out), "--out", str(tmp_path / "m.parquet")]) == 0
    assert [row["key"] for row in rows_in(tmp_path / "m.parquet")][:2] == ["01", "02"]


# ---- where a manifest alone leads


@pytest.mark.parametrize("to", ["dataset", *FORMATS])
def test_a_manifest_that_cannot_be_opened_says_so(
    made: Path, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = made if to == "dataset" else exported(made, to)
    out = tmp_path / "m.parquet"
    import_main([str(source), "--out", str(out)])
    last = capsys.readouterr().out.splitlines()[-1]
    if to == "folder":
        assert last == f"{out}: 15 pictures of 6 people"
        assert [p.read_bytes() for p in open_labelled(out).pictures] == list(kept_pictures().values())
        return
    assert f"{out} lists pictures that lie inside {source}, and cannot be opened instead of it" in last
    with pytest.raises(ConfigError, match=r"neither holds pictures nor says where they lie.* --out DIR`"):
        open_labelled(out)


def test_what_is_no_picture_is_no_row_of_a_manifest(tmp_path: Path) -> None:
    junk = b"not a picture at all"
    values = {b"0": [junk, 0], b"__keys__": [b"0"]}
    write_lmdb(tmp_path / "train.lmdb", {key: msgpack.packb(v) or b"" for key, v in values.items()})
    write_tar(tmp_path / "x.tar", {"a/0.png": junk})
    for source in ("train.lmdb", "x.tar"):
        said = []
        for out in ("out", "out.parquet"):
            with pytest.raises(IdgenError, match="is neither PNG, JPEG nor WebP") as caught:
                import_main([str(tmp_path / source), "--out", str(tmp_path / out)])
            said.append(str(caught.value))
        assert said[0] == said[1]
    (tmp_path / "people" / "a").mkdir(parents=True)
    (tmp_path / "people" / "a" / "0.png").write_bytes(junk)
    with pytest.raises(ImageError, match=re.escape("0.png")):
        import_main([str(tmp_path / "people"), "--out", str(tmp_path / "out.parquet")])
    assert not (tmp_path / "out.parquet").exists()
