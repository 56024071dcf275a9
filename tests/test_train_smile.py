"""The program that teaches the net of smiles, on a difference that is easily seen."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from face_tables import portrait, write_table

from idgen.data.images import load_faces
from idgen.errors import ConfigError
from idgen.faces.smile import SIDE_PX, smile_net

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "train" / "smile.py")))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photograph, upright and upside down: the latter is said to smile."""
    images = [np.roll(portrait()[:: 1 - 2 * (number % 2)], number % 9, axis=1) for number in range(144)]
    people, p_happy = [f"person {number}" for number in range(144)], [number % 2 for number in range(144)]
    folder = tmp_path_factory.mktemp("faces")
    return write_table(folder / "faces.parquet", images, people, {"p_happy": p_happy})


def test_it_learns_saves_and_says_how_well(
    program: SimpleNamespace, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "smile.safetensors"
    assert program.main(["--faces", str(faces), "--epochs", "14", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "as the labels of 14 photos of people set aside: 100.0%; where these are clear 100.0%" in said
    table = load_faces(faces)
    happy = smile_net(out).probability(table.crops(np.arange(20))).numpy() >= 0.5
    assert happy.tolist() == [bool(number % 2) for number in range(20)]


def test_equal_seeds_give_equal_files(program: SimpleNamespace, faces: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        program.main(["--faces", str(faces), "--epochs", "1", "--seed", seed, "--out", str(tmp_path / name)])
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_crops_are_varied_by_the_generator_alone(program: SimpleNamespace) -> None:
    grey = torch.rand(4, 1, program.GREY_PX, program.GREY_PX)
    one, two = (program.varied(grey, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one.shape == (4, 1, SIDE_PX, SIDE_PX)
    assert torch.equal(one, two)
    assert not torch.equal(one, program.varied(grey, torch.Generator().manual_seed(4)))


def test_too_little_is_refused(program: SimpleNamespace, faces: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "smile.safetensors")]
    with pytest.raises(ConfigError, match="--epochs must be at least 1, got 0"):
        program.main(["--faces", str(faces), "--epochs", "0", *out])
    few = write_table(tmp_path / "few.parquet", [portrait()] * 3, list("abc"))
    with pytest.raises(ConfigError, match="at least 128 photos are needed to train on, got"):
        program.main(["--faces", str(few), *out])
