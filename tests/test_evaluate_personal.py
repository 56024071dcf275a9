"""LoRAs of several people by several methods: who is trained on what, going on after a stop, wrong input."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from face_tables import portrait, write_table
from one_process import commands_run_here

from idgen.data.pictures import read_pictures
from idgen.errors import ConfigError, RunFolderError, TrainingError

ROOT = Path(__file__).parents[1]
PHOTOS = 4


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "eval" / "personal.py")))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people of four portraits each, and one of three: one photograph, in different colours."""
    images = [
        (np.roll(portrait(), number // PHOTOS, axis=2) // (1 + number % PHOTOS / 10)).astype(np.uint8)
        for number in range(11)
    ]
    people = [f"person {number // PHOTOS}" for number in range(11)]
    return write_table(tmp_path_factory.mktemp("faces") / "faces.parquet", images, people)


def command(faces: Path, out: Path, *more: str) -> list[str]:
    given = {"--faces": faces, "--people": 1, "--photos": PHOTOS, "--seeds": 1, "--count": 2, "--prior": 2,
             "--steps": 1, "--set": "optimizer.steps=1", "--out": out}  # fmt: skip
    return [*(str(word) for pair in given.items() for word in pair), *more]


def test_each_method_trains_and_draws_the_same_people(
    program: SimpleNamespace, faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "personal"
    quick = ("--set", "prior.count=2")
    twice = ("--method", "dreambooth", "--method", f"again={ROOT / 'train' / 'configs' / 'dreambooth.yaml'}")
    with commands_run_here():
        assert program.main(command(faces, out, *quick, *twice)) == 0
    (person,) = (path.name for path in (out / "photos").iterdir())
    assert person in ("person 0", "person 1")  # the third has too few photos
    seen = {path.read_bytes() for path in (out / "photos" / person).iterdir()}
    unseen = {path.read_bytes() for path in (out / "unseen" / person).iterdir()}
    assert len(seen) == len(unseen) == 2
    assert not seen & unseen
    drawn = read_pictures(out / "dreambooth")
    assert [picture.identity for picture in drawn.pictures] == [person] * 2
    assert drawn.encoder_ids[0].startswith("mini@")
    assert drawn.pictures[0].prompt == "a photo of sks person"
    first = {picture.name: picture.read_bytes() for picture in drawn.pictures}
    assert {p.name: p.read_bytes() for p in read_pictures(out / "again").pictures} == first  # the same method

    run = next((out / "runs" / "again").iterdir())
    trained = (run / "pytorch_lora_weights.safetensors").stat().st_mtime_ns
    (run / "rows.json").unlink()
    program.main(command(faces, out, *quick, *twice))  # draws what is missing, trains nothing again
    assert (run / "pytorch_lora_weights.safetensors").stat().st_mtime_ns == trained
    assert {p.name: p.read_bytes() for p in read_pictures(out / "again").pictures} == first
    with pytest.raises(RunFolderError, match=r"other settings \(count\)"):
        program.main([*command(faces, out, *quick, *twice), "--count", "3"])


def test_what_cannot_be_is_said_before_anything_is_written(
    program: SimpleNamespace, faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "personal"
    with pytest.raises(ConfigError, match="--people must be from 1 to 2"):
        program.main([*command(faces, out, "--method", "dreambooth"), "--people", "3"])
    with pytest.raises(ConfigError, match="--method is missing"):
        program.main(command(faces, out))
    with pytest.raises(ConfigError, match=r"there is no file .*nobooth"):
        program.main(command(faces, out, "--method", "nobooth"))
    with pytest.raises(ConfigError, match="the name dreambooth is taken"):
        program.main(command(faces, out, "--method", "dreambooth", "--method", "dreambooth"))
    assert not out.exists()


def test_a_training_that_fails_is_named(program: SimpleNamespace, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "personal"
    bad = ("--method", "dreambooth", "--set", "lora.rank=0")
    said = r"training dreambooth of person .* failed: .*rank"
    with commands_run_here(), pytest.raises(TrainingError, match=said):
        program.main(command(faces, out, *bad))
    assert json.loads((out / "personal.json").read_text())["people"] == "1"
