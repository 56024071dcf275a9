"""`idgen evaluate sweep`: strengths in, a frontier out, with mini itself."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import skimage.data
from one_process import commands_run_here
from PIL import Image

from idgen.cli import main as idgen
from idgen.errors import MeasureError


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people of two portraits each: parts of one photograph, in different colours."""
    path = tmp_path_factory.mktemp("faces") / "faces.parquet"
    portrait = Image.fromarray(skimage.data.astronaut()).crop((150, 30, 300, 180)).resize((128, 128))
    rows: list[dict[str, Any]] = []
    for number in range(4):
        file = path.with_name(f"{number}.png")
        Image.fromarray(np.roll(np.asarray(portrait), number // 2, axis=2)).rotate(number).save(file)
        labels = dict.fromkeys(("p_female", "p_happy", "yaw", "pitch", "roll"), 0.5)
        image = {"bytes": file.read_bytes(), "path": file.name}
        rows.append({"image": image, "file": file.name, "identity": f"person {number // 2}", **labels})
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_two_strengths_and_going_on(faces: Path, tmp_path: Path) -> None:
    words = ["evaluate", "sweep", "--faces", str(faces), "--people", "2", "--count", "2", "--steps", "2"]
    words += ["--scales", "0,1", "--out", str(tmp_path)]
    with commands_run_here():
        assert idgen(words) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (table,) = report["tables"]
    assert [row[0] for row in table["rows"]] == [0.0, 1.0]
    kept = json.loads((tmp_path / "scale-1-consistency" / "report.json").read_text())
    assert "similarity by judge" in table["columns"]
    column = table["columns"].index("similarity by mini (related)")
    assert table["rows"][1][column] == kept["measures"]["mini/similarity to the reference"]
    assert (tmp_path / "identity-against-prompt.png").stat().st_size > 5000
    drawn = "scale-?/*/*.png"
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob(drawn)}
    (tmp_path / "scale-1-quality" / "report.json").unlink()
    with commands_run_here():
        assert idgen(words) == 0  # measures what is missing, draws nothing again
    assert (tmp_path / "scale-1-quality" / "report.json").exists()
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob(drawn)} == before
    assert len(before) == 8


def test_each_evaluation_is_a_process_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "eval" / "sweep.py")))
    program.run("compare", "--help")
    assert "usage: idgen evaluate compare" in capfd.readouterr().out
    with pytest.raises(MeasureError, match=r"`idgen evaluate compare nowhere \.\.\.` did not succeed"):
        program.run("compare", "nowhere", "--out", tmp_path)
    assert "two reports at least" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scales", "1"], "two strengths at least"),
        (["--scales", "0,much"], "numbers between commas"),
        (["--people", "9"], "stopped: `idgen evaluate draw"),
    ],
)
def test_wrong_input(
    words: list[str], said: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with commands_run_here():
        assert idgen(["evaluate", "sweep", "--faces", str(faces), "--out", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err
