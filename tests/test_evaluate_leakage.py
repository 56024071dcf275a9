"""`idgen evaluate leakage` and `thresholds`: from files to a report, a list, a card."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import skimage.data
from PIL import Image

from idgen.cli import main as idgen
from idgen.encoders.arcface import OnnxFaceEncoder, mini_encoder
from idgen.encoders.card import EncoderCard, read_encoder_card, write_encoder_card
from idgen.metrics.leakage import impostor_thresholds
from idgen.mini import FACES


def face(colour: int, shift: int, turn: int = 0) -> Image.Image:
    """An aligned crop: one photograph in other colours, cut a little differently; not of six people, but told
    apart by the recogniser."""
    whole = Image.fromarray(skimage.data.astronaut()).crop((150, 20, 310, 180))
    pixels = np.roll(np.asarray(whole), colour % 3, axis=2)
    pixels = 255 - pixels if colour >= 3 else pixels
    return Image.fromarray(pixels).rotate(turn).crop((shift, 0, 157 + shift, 157)).resize((112, 112))


def folder(root: Path, people: dict[str, int], shifts: tuple[int, ...]) -> Path:
    for name, colour in people.items():
        (root / name).mkdir(parents=True)
        for shift in shifts:
            face(colour, shift).save(root / name / f"{shift}.png")
    return root


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    made = folder(root / "made", {"new": 0, "copied": 1}, (0, 1))
    Image.new("RGB", (112, 112)).save(made / "new" / "2.png")
    return {
        "made": made,
        "gallery": folder(root / "gallery", {"ben": 1, "cleo": 2}, (1, 2)),  # ben is "copied"
        "control": folder(root / "control", {"dan": 3, "cleo": 2}, (0, 2)),  # cleo is in the gallery
        "calibrate": folder(root / "calibrate", {str(i): i for i in range(6)}, tuple(range(5))),
    }


def leakage(out: Path, sets: dict[str, Path], *words: str) -> dict[str, Any]:
    paths = ["--gallery", str(sets["gallery"]), "--aligned", "--galleries-aligned", "--out", str(out)]
    assert idgen(["evaluate", "leakage", str(sets["made"]), *paths, *words]) == 0
    return json.loads((out / "report.json").read_text())


def listed(out: Path) -> list[dict[str, str]]:
    with (out / "quarantine.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_copied_person_is_found(sets: dict[str, Path], tmp_path: Path) -> None:
    report = leakage(tmp_path, sets, "--control", str(sets["control"]))
    measures = report["measures"]
    card = read_encoder_card(mini_encoder())
    assert card is not None
    thresholds = card.thresholds
    assert measures["mini/gallery 1/threshold at FMR 1e-4"]["value"] == thresholds["1e-4"]
    assert measures["mini/gallery 1/pictures: highest"]["value"] > 0.999  # one of them is in the gallery
    nearest = report["per_identity"]["mini/gallery 1/similarity to the nearest"]
    assert nearest["copied"] > 0.95 > nearest["new"]
    rows = listed(tmp_path)
    found = {(row["kind"], row["name"]): row for row in rows if row["identity"] == "copied"}
    assert set(found) == {("picture", "copied/0.png"), ("picture", "copied/1.png"), ("identity", "copied")}
    assert found["picture", "copied/1.png"]["neighbour"] == "ben/1.png"
    assert found["picture", "copied/1.png"]["similarity"] == "1.0000"
    assert report["data"]["to quarantine"] == rows
    page = (tmp_path / "report.html").read_text()
    assert "copied/1.png and ben/1.png" in page


def test_an_encoder_that_had_a_part_in_the_pictures_is_marked(sets: dict[str, Path], tmp_path: Path) -> None:
    report = leakage(tmp_path, sets, "--made-by", mini_encoder().id)
    assert report["tables"][0]["columns"] == ["measure", "mini (related)", "judge"]
    assert "mini/gallery 1/pictures: highest" in report["measures"]  # names for programs stay as they are


def test_people_of_the_gallery_are_no_control(sets: dict[str, Path], tmp_path: Path) -> None:
    measures = leakage(tmp_path, sets, "--control", str(sets["control"]))["measures"]
    assert measures["mini/gallery 1/control: highest"]["value"] < 0.99  # cleo would be at 1
    leakage(tmp_path / "without", sets)
    assert "no control" in " ".join(
        json.loads((tmp_path / "without" / "report.json").read_text())["warnings"]
    )


def test_calibrated_thresholds_are_those_of_all_impostor_pairs(sets: dict[str, Path], tmp_path: Path) -> None:
    """Twenty-five pairs of each two people: too few for these rates, and said so."""
    report = leakage(tmp_path, sets, "--calibrate", str(sets["calibrate"]))
    assert report["measures"]["mini/gallery 1/threshold at FMR 1e-3"]["value"] is None
    assert report["measures"]["mini/gallery 1/pictures: above FMR 1e-3"]["value"] is None
    assert "--calibrate" in report["measures"]["mini/gallery 1/pictures: above FMR 1e-3"]["note"]
    assert any("no threshold" in warning for warning in report["warnings"])
    assert listed(tmp_path) == []
    assert (tmp_path / "quarantine.csv").read_text().startswith("kind,name,identity,similarity,threshold")


def test_a_face_that_is_not_found_has_no_neighbour(sets: dict[str, Path], tmp_path: Path) -> None:
    """Without --aligned faces are looked for, and the black picture shows none."""
    words = ["--gallery", str(sets["gallery"]), "--galleries-aligned", "--out", str(tmp_path)]
    assert idgen(["evaluate", "leakage", str(sets["made"]), *words]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["measures"]["face found"]["value"] < 1
    assert any("have no neighbour" in warning for warning in report["warnings"])


def test_faiss_gives_the_same_report(sets: dict[str, Path], tmp_path: Path) -> None:
    blocks = leakage(tmp_path / "a", sets)
    faiss = leakage(tmp_path / "b", sets, "--search", "faiss")
    assert blocks["measures"] == faiss["measures"]


def test_thresholds_go_into_the_card(sets: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "mine.onnx"
    shutil.copy(FACES / "rec_mini.onnx", own)
    write_encoder_card(own, EncoderCard(encoder=OnnxFaceEncoder(own).id, taught_by=("teacher@123456789abc",)))
    words = ["--encoder", str(own), "--aligned", "--write-card", "--out", str(tmp_path / "r")]
    assert idgen(["evaluate", "thresholds", str(sets["calibrate"]), *words]) == 0
    card = read_encoder_card(OnnxFaceEncoder(own))
    assert card is not None
    assert card.taught_by == ("teacher@123456789abc",)  # kept
    assert "all 375 pairs of two people" in card.thresholds_from
    assert card.thresholds == {}  # 375 pairs let not ten through at a hundredth


def test_thresholds_of_more_people(tmp_path: Path, sets: dict[str, Path]) -> None:
    many = folder(tmp_path / "many", {str(i): i for i in range(6)}, tuple(range(14)))
    assert idgen(["evaluate", "thresholds", str(many), "--aligned", "--out", str(tmp_path / "r")]) == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    value = report["measures"]["mini/threshold at FMR 1e-2"]["value"]
    crops = [np.asarray(face(c, s)) for c in range(6) for s in range(14)]
    encoded = mini_encoder().encode(_tensor(crops)).unit.numpy()
    assert value == pytest.approx(impostor_thresholds(encoded, np.arange(84) // 14, (1e-2,))[1e-2], abs=1e-9)
    assert not (FACES / "rec_mini.json").read_text().count("many")  # the card is not touched unasked


def _tensor(crops: list[np.ndarray]) -> Any:
    import torch

    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255


def test_minis_card_names_its_teacher_and_no_folder() -> None:
    card = read_encoder_card(mini_encoder())
    assert card is not None
    assert card.taught_by[0].startswith("teacher_recognizer@")
    assert card.thresholds["1e-3"] < card.thresholds["1e-4"] < 1
    assert "/" not in card.thresholds_from


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gallery", "nothing"], "no such folder"),
        (["--gallery", "GALLERY", "--control", "nothing"], "no such folder"),
        (["--gallery", "GALLERY", "--encoder", "nothing.onnx"], "nothing.onnx"),
    ],
)
def test_wrong_input(
    words: list[str], said: str, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(sets["gallery"]) if word == "GALLERY" else word for word in words]
    aligned = ["--aligned", "--galleries-aligned", "--out", str(tmp_path / "r")]
    assert idgen(["evaluate", "leakage", str(sets["made"]), *words, *aligned]) == 2
    assert said in capsys.readouterr().err


def test_one_person_has_no_impostors(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = folder(tmp_path / "one", {"ann": 0}, (0, 1))
    assert idgen(["evaluate", "thresholds", str(one), "--aligned", "--out", str(tmp_path / "r")]) == 2
    assert "shows 1 people" in capsys.readouterr().err


def test_a_card_needs_an_onnx_with_a_teacher_asked_for(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--taught-by", "mini", "--out", str(tmp_path)]
    assert idgen(["evaluate", "thresholds", str(sets["calibrate"]), *words]) == 2
    assert "add --write-card" in capsys.readouterr().err
    assert onnx.load(FACES / "rec_mini.onnx")  # and the network is whole
