"""Reading pictures that are to be measured: every layout, and what is refused."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from idgen.data.manifest import write_manifest
from idgen.data.pictures import read_pictures
from idgen.errors import ConfigError, ImageError


def png(colour: int, size_px: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size_px, size_px), (colour, 10, 20)).save(stream, "PNG")
    return stream.getvalue()


def test_a_folder_of_people(tmp_path: Path) -> None:
    for person in ("b", "a"):
        (tmp_path / person).mkdir()
        for number in (1, 0):
            (tmp_path / person / f"{number}.png").write_bytes(png(number))
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    found = read_pictures(tmp_path)
    assert [p.name for p in found.pictures] == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert found.people() == {"a": [0, 1], "b": [2, 3]}
    assert found.pictures[1].open().getpixel((0, 0)) == (1, 10, 20)
    assert found.encoder_ids == ()


def test_a_table_with_pictures_inside_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "faces.parquet"
    columns = {
        "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(3)],
        "file": ["c.png", "b.png", "a.png"],
        "identity": ["y", "x", "x"],
        "p_female": [0.1, 0.9, float("nan")],
        "source": ["one", "two", "two"],
    }
    pa.parquet.write_table(pa.table(columns), path)
    found = read_pictures(path)
    assert [(p.identity, p.name) for p in found.pictures] == [("x", "a.png"), ("x", "b.png"), ("y", "c.png")]
    assert [np.asarray(p.open())[0, 0, 0] for p in found.pictures] == [2, 1, 0]
    assert found.pictures[0].labels == {"source": "two"}  # what is unknown is no label
    assert found.pictures[1].labels == {"p_female": pytest.approx(0.9), "source": "two"}


def test_a_manifest_names_its_files_prompts_references_and_encoder(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0.png").write_bytes(png(7))
    columns = {
        "path": ["pictures/0.png"],
        "identity": ["x"],
        "prompt": ["a person"],
        "reference": ["r.webp"],
        "encoder": ["mini@123456789abc"],
    }
    pa.parquet.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    found = read_pictures(tmp_path)
    (picture,) = found.pictures
    assert (picture.prompt, picture.reference, picture.identity) == ("a person", "r.webp", "x")
    assert picture.open().getpixel((0, 0)) == (7, 10, 20)
    assert found.encoder_ids == ("mini@123456789abc",)


def test_what_only_a_later_row_knows_is_written_too(tmp_path: Path) -> None:
    rows = [{"identity": "x", "path": "a.png"}, {"identity": "y", "path": "b.png", "prompt": "a person"}]
    write_manifest(tmp_path, rows, ["mini@123456789abc"])
    table = pa.parquet.read_table(tmp_path / "manifest.parquet")
    assert table.column("prompt").to_pylist() == [None, "a person"]


def run_of(folder: Path, encoder: str) -> None:
    folder.mkdir(parents=True)
    (folder / "0000.png").write_bytes(png(1))
    (folder / "sheet.png").write_bytes(png(2))
    record = {
        "idgen_run": 1,
        "command": {"prompt": "a person, smiling", "encoder": encoder},
        "pictures": [{"file": "0000.png", "sha256": "", "seed": 5}],
    }
    (folder / "run.json").write_text(json.dumps(record))


def test_runs_of_idgen_count_their_own_pictures_only(tmp_path: Path) -> None:
    run_of(tmp_path / "anna", "mini@111111111111")
    run_of(tmp_path / "bert", "arcface@222222222222")
    one = read_pictures(tmp_path / "anna")
    assert [(p.identity, p.name, p.prompt) for p in one.pictures] == [
        ("anna", "anna/0000.png", "a person, smiling")
    ]
    both = read_pictures(tmp_path)
    assert sorted(both.people()) == ["anna", "bert"]
    assert both.encoder_ids == ("arcface@222222222222", "mini@111111111111")


def test_a_flat_folder_says_nothing_of_people(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    with pytest.raises(ConfigError, match="does not say who is who"):
        read_pictures(tmp_path)
    assert [p.identity for p in read_pictures(tmp_path, flat=True).pictures] == [""]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such folder"):
        read_pictures(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="holds no picture"):
        read_pictures(tmp_path)
    table = tmp_path / "other.parquet"
    pa.parquet.write_table(pa.table({"who": ["x"]}), table)
    with pytest.raises(ConfigError, match="needs the column identity"):
        read_pictures(table)
    table.write_bytes(b"not parquet")
    with pytest.raises(ImageError, match="not a Parquet file"):
        read_pictures(table)
    pa.parquet.write_table(pa.table({"identity": ["x"], "bytes": [b"\x89PNG broken"]}), table)
    with pytest.raises(ImageError, match="damaged"):
        read_pictures(table).pictures[0].open()
