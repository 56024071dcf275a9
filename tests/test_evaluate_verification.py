"""`idgen evaluate verification`: from a list of pairs to a report."""

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import skimage.data
import torch
from PIL import Image

from idgen import mini
from idgen.cli import main as idgen
from idgen.encoders.arcface import mini_encoder
from idgen.encoders.flipped import FlipTest
from idgen.report.write import read_report


def faces() -> list[Image.Image]:
    """Crops of 112 pixels: one photograph in three colours, each shifted in four ways."""
    whole = Image.fromarray(skimage.data.astronaut()).crop((150, 20, 310, 180))
    crops = []
    for colour in range(3):
        pixels = np.roll(np.asarray(whole), colour, axis=2)
        for shift in range(4):
            crops.append(Image.fromarray(pixels).crop((shift, 0, 157 + shift, 157)).resize((112, 112)))
    return crops


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `.bin` of those crops: pairs of one colour and of two."""
    encoded = []
    for crop in faces():
        stream = io.BytesIO()
        crop.save(stream, "PNG")
        encoded.append(stream.getvalue())
    pairs = [(4 * p + i, 4 * p + i + 1, True) for p in range(3) for i in range(3)]
    pairs += [(i, 4 + i, False) for i in range(4)] + [(4 + i, 8 + i, False) for i in range(4)]
    order = np.random.default_rng(0).permutation(len(pairs))
    rows = [pairs[i] for i in order]
    path = tmp_path_factory.mktemp("pairs") / "drawn.bin"
    path.write_bytes(pickle.dumps(([encoded[i] for a, b, _ in rows for i in (a, b)], [s for *_, s in rows])))
    return path


def run(*words: str | Path) -> dict[str, Any]:
    assert idgen(["evaluate", "verification", *map(str, words)]) == 0
    return json.loads((Path(words[-1]) / "report.json").read_text())


def test_bin_becomes_a_report(listed: Path, tmp_path: Path) -> None:
    report = run("--pairs", listed, "--flip-test", "--grid", "arcface", "--out", tmp_path / "r")
    measures = report["measures"]
    assert measures["mini+flip/accuracy"]["value"] == 1.0  # colours are far apart, shifts are not
    assert measures["mini+flip/area under the ROC curve"]["value"] == 1.0
    assert len(report["per_identity"]["mini+flip/accuracy"]) == 10
    assert report["settings"]["grid"] == "arcface"
    assert read_report(tmp_path / "r").kind == "verification"
    assert (tmp_path / "r" / "report.html").stat().st_size > 10_000


def test_flip_test_adds_the_mirror_image() -> None:
    crops = torch.stack([torch.from_numpy(np.array(c)).permute(2, 0, 1) / 255 for c in faces()[:3]])

    class Lopsided:
        """mini looking at the left half only, so that the mirror image differs."""

        name, sha256, licence, crop, dim = "half", "0" * 64, "", mini_encoder().crop, mini_encoder().dim
        id = "half@000000000000"

        def encode(self, crops: torch.Tensor) -> Any:
            return mini_encoder().encode(crops * (torch.arange(112) < 56))

    both = FlipTest(Lopsided()).encode(crops)  # pyright: ignore[reportArgumentType]
    raw = Lopsided().encode(crops).raw + Lopsided().encode(crops.flip(-1)).raw
    torch.testing.assert_close(both.raw, raw)
    torch.testing.assert_close(both.unit, torch.nn.functional.normalize(raw))
    assert not torch.allclose(both.unit, Lopsided().encode(crops).unit, atol=0.05)
    torch.testing.assert_close(FlipTest(Lopsided()).encode(crops.flip(-1)).unit, both.unit)  # pyright: ignore[reportArgumentType]


def test_real_pairs(faces_folder: Path, weights_folder: Path, tmp_path: Path) -> None:
    """Every fortieth pair of the test file, by mini; more of them: `test_encoders.py`."""
    lines = (faces_folder / "pairs_test.csv").read_text().splitlines()
    kept = [lines[0], *(line for i, line in enumerate(lines[1:]) if i % 40 == 0)]
    (tmp_path / "some.csv").write_text("\n".join(kept) + "\n")
    words = ("--pictures", faces_folder / "faces_test.parquet", "--aligned")
    report = run("--pairs", tmp_path / "some.csv", *words, "--out", tmp_path / "r")
    assert report["measures"]["mini/area under the ROC curve"]["value"] > 0.97
    assert report["measures"]["mini/accuracy"]["value"] > 0.8  # six pairs a fold say little
    assert report["settings"]["folds"] == 10


def test_files_of_one_name_are_compared_pair_by_pair(listed: Path, tmp_path: Path) -> None:
    """Trainings all write best.onnx: here mini's, and one that sees nothing."""
    trained, blind = tmp_path / "runs" / "a" / "best.onnx", tmp_path / "runs" / "b" / "best.onnx"
    for path in (trained, blind):
        path.parent.mkdir(parents=True)
    shutil.copy(mini.FACES / "rec_mini.onnx", trained)
    model = onnx.load(trained)
    weights = next(w for w in model.graph.initializer if len(w.dims) == 4)
    nothing = np.zeros(tuple(weights.dims), np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(nothing, weights.name))
    onnx.save(model, blind)

    words = ("--encoder", trained, "--encoder", blind, "--encoder", trained)
    measures = run("--pairs", listed, *words, "--out", tmp_path / "r")["measures"]
    accuracy = [measures[f"{name}/accuracy"]["value"] for name in ("a-best", "b-best")]
    difference = measures["b-best/accuracy less a-best"]
    assert accuracy[0] == 1.0 > accuracy[1]
    assert difference["value"] == pytest.approx(accuracy[1] - 1.0)
    assert difference["interval"][0] <= difference["value"] <= difference["interval"][1] <= 0


@pytest.mark.parametrize(
    ("same", "said"),
    [
        ([True, True], "all 2 pairs are of one person"),
        ([False], "all 1 pairs are of two people"),
    ],
)
def test_pairs_of_one_kind(
    same: list[bool], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.bin").write_bytes(pickle.dumps(([b"x"] * 2 * len(same), same)))
    assert (
        idgen(["evaluate", "verification", "--pairs", str(tmp_path / "p.bin"), "--out", str(tmp_path)]) == 2
    )
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folds", "said"), [(("1", "1"), "two are needed"), (("1", ""), "1 of 2 pairs name no fold")]
)
def test_folds_that_do_not_do(
    folds: tuple[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces()[0].save(tmp_path / "a.png")
    rows = "".join(f"a.png,a.png,{same},{fold}\n" for same, fold in zip("10", folds, strict=True))
    (tmp_path / "p.csv").write_text("file_a,file_b,same,fold\n" + rows)
    words = ["--pairs", str(tmp_path / "p.csv"), "--pictures", str(tmp_path), "--out", str(tmp_path / "r")]
    assert idgen(["evaluate", "verification", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
