"""`idgen evaluate follow`: does a trait come out? On faces whose trait is a colour."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import skimage.data
from PIL import Image

from idgen.cli import main as idgen


def face(colour: int, shift: int) -> np.ndarray:
    whole = Image.fromarray(skimage.data.astronaut()).crop((150, 20, 310, 180))
    crop = whole.crop((shift, 0, 150 + shift, 150)).resize((112, 112))
    return np.roll(np.asarray(crop), colour, axis=2)


def table(path: Path, people: dict[str, tuple[int, float]]) -> Path:
    """A table of two pictures a person: name -> (colour, label)."""
    path.parent.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, (name, (colour, label)) in enumerate(people.items()):
        for shift in (number, number + 3):
            file = path.parent / f"{path.stem}-{name}-{shift}.png"
            Image.fromarray(face(colour, shift)).save(file)
            rows.append({"identity": name, "path": file.name, "p_blue": label})
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    taught = {f"{side}{i}": (side, 0.05 + 0.9 * side) for i in range(5) for side in (0, 1)}
    taught["unclear"] = (1, 0.5)
    photos = {"eve": (0, 0.1), "fay": (1, 0.9), "gil": (1, 0.9), "hal": (0, 0.5)}
    made = {"eve": (0, 0.0), "fay": (1, 0.0), "gil": (0, 0.0), "hal": (0, 0.0)}  # gil comes out wrong
    return {
        "taught": table(root / "taught.parquet", taught),
        "photos": table(root / "photos.parquet", photos),
        "made": table(root / "made.parquet", made),
    }


def follow(sets: dict[str, Path], out: Path, *words: str) -> int:
    paths = ["--references", str(sets["photos"]), "--learn-from", str(sets["taught"]), "--out", str(out)]
    flags = ["--aligned", "--photos-aligned"]
    return idgen(["evaluate", "follow", str(sets["made"]), *paths, *flags, *words])


def test_the_trait_is_read_off_the_pictures(sets: dict[str, Path], tmp_path: Path) -> None:
    assert follow(sets, tmp_path, "--label", "p_blue", "--made-by", "mini@371ffa94143d") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    each = report["per_identity"]["judge/p_blue of pictures"]
    assert each == {"eve": 1.0, "fay": 1.0, "gil": 0.0, "hal": None}
    assert report["measures"]["judge/p_blue of photos"]["value"] == 1.0
    (shown,) = report["tables"]
    assert [row[0] for row in shown["rows"]] == ["mini (related)", "judge"]


@pytest.mark.parametrize(
    ("label", "said"), [("age", "no picture has the label 'age'"), ("p_female", "no picture has the label")]
)
def test_a_label_that_is_not_there(
    label: str, said: str, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(sets, tmp_path, "--label", label) == 2
    assert said in capsys.readouterr().err


def test_a_probe_answers_yes_or_no(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = table(tmp_path / "one" / "taught.parquet", {"a": (0, 0.1), "b": (1, 0.1)})
    assert follow({**sets, "taught": one}, tmp_path / "r", "--label", "p_blue") == 2
    assert "has the groups not blue" in capsys.readouterr().err
    strangers = table(tmp_path / "two" / "photos.parquet", {"zoe": (0, 0.1)})
    assert follow({**sets, "photos": strangers}, tmp_path / "r", "--label", "p_blue") == 2
    assert "nobody of" in capsys.readouterr().err
