"""`idgen evaluate consistency`: from files to a report, with real networks on drawn and on real faces."""

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
from PIL import Image

from idgen.cli import main as idgen
from idgen.data.groups import group_names
from idgen.data.pictures import Picture
from idgen.encoders.arcface import judge_encoder, mini_encoder
from idgen.errors import ConfigError
from idgen.metrics.persons import mean_by_person, share_accepted, spread_about_centre
from idgen.report.write import read_report

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("faces_are_remembered")


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "eval" / "consistency.py")))


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three "people": one photograph in three colours, cut in three ways; one picture shows no face."""
    root = tmp_path_factory.mktemp("people")
    whole = Image.fromarray(skimage.data.astronaut())
    for person in range(3):
        (root / f"person {person}").mkdir()
        for number in range(3):
            shift = 12 * number
            image = whole.crop((120 - shift, 10, 340 - shift, 230)).resize((160, 160))
            pixels = np.roll(np.asarray(image), person, axis=2)
            if (person, number) == (2, 2):
                pixels = np.full_like(pixels, 128)
            Image.fromarray(pixels).save(root / f"person {person}" / f"{number}.png")
    return root


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_pictures_against_references(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    assert (
        idgen(["evaluate", "consistency", str(people), "--references", str(people), "--out", str(out)]) == 0
    )
    report = report_of(out)
    assert report["measures"]["face found"]["value"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert report["data"]["without face"] == ["person 2/2.png"]
    assert any("No face was found in 11.1%" in text for text in report["warnings"])
    assert any("1 of 9 reference photos" in text for text in report["warnings"])
    own = report["per_identity"]["mini/similarity to the reference"]
    # person 2: two pictures are compared with the two photos that show a face, the third counts as 0
    vectors = [mini_vector(people / "person 2" / f"{i}.png") for i in range(2)]
    alike = float(vectors[0] @ vectors[1])
    assert own["person 2"] == pytest.approx(2 * (1 + alike) / 2 / 3, abs=1e-4)
    assert "Is it the same person?" in capsys.readouterr().out
    assert (out / "report.html").exists()
    assert len(report["figures"]) == 4


def mini_vector(path: Path) -> np.ndarray:
    from idgen.faces.detect import load_detector
    from idgen.faces.photo import read_face

    crop, _, _ = read_face(path, load_detector("mini"), "largest")
    return mini_encoder().encode(crop[None]).unit[0].numpy()


def test_the_named_photo_is_the_reference_and_others_show_what_was_copied(
    people: Path, tmp_path: Path
) -> None:
    photos = {"identity": [], "path": []}
    for person in range(2):
        for number in (0, 1):
            photos["identity"].append(f"person {person}")
            photos["path"].append(str(people / f"person {person}" / f"{number}.png"))
    pa.parquet.write_table(pa.table(photos), tmp_path / "photos.parquet")
    made = {
        "identity": ["person 0", "person 1"],
        "path": [str(people / f"person {i}" / "0.png") for i in range(2)],  # copies of the reference
        "reference": [str(people / f"person {i}" / "0.png") for i in range(2)],
        "encoder": [mini_encoder().id, judge_encoder().id],
    }
    pa.parquet.write_table(pa.table(made), tmp_path / "made.parquet")
    words = [str(tmp_path / "made.parquet"), "--references", str(tmp_path / "photos.parquet")]
    assert idgen(["evaluate", "consistency", *words, "--out", str(tmp_path / "report")]) == 0
    report = report_of(tmp_path / "report")
    assert report["measures"]["mini/similarity to the reference"]["value"] == pytest.approx(1, abs=1e-5)
    gap = report["measures"]["mini/copy-paste gap"]["value"]
    beside = report["measures"]["mini/similarity to another photo"]["value"]
    assert gap == pytest.approx(1 - beside, abs=1e-5)
    assert gap > 0.01
    assert report["measures"]["mini/eer"]["value"] is None  # one picture a person: no pairs of their own
    assert report["data"]["related"] == [mini_encoder().id, judge_encoder().id]
    assert any("Every encoder here conditioned" in text for text in report["warnings"])
    assert any(column.startswith("mini (related)") for column in report["tables"][0]["columns"])


def test_an_interrupted_evaluation_does_not_look_again(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", "consistency", str(people), "--out", str(tmp_path)]
    assert idgen(words) == 0
    first = report_of(tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("looked at again")

    monkeypatch.setattr("idgen.encoders.gallery._look", refuse)
    assert idgen(words) == 0
    assert report_of(tmp_path) == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no such folder"),
        (["{people}", "--encoder", "mimi"], "no encoder 'mimi'"),
        (["{people}", "--references", "{empty}"], "holds no picture"),
        (["{people}", "--references", "{strangers}"], "no reference of the 3 people"),
        (["{people}", "--groups", "age"], "no picture has the label 'age'"),
        (["{people}", "--block", "0"], "--block must be at least 1"),
        (["{people}", "--other-photos", "{people}"], "give these too"),
        (["{people}", "--aligned"], "has 160 x 160 pixels"),
        (["{people}", "--threshold", "0.3"], "a cosine, as mini=0.27; got '0.3'"),
        (["{people}", "--threshold", "mini=2"], "got 'mini=2'"),
        (["{people}", "--threshold", "jugde=0.2"], "no such encoder here (known are mini, judge)"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "strangers" / "somebody").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "strangers" / "somebody" / "0.png")
    places = {"people": people, "empty": tmp_path / "empty", "strangers": tmp_path / "strangers"}
    given = [word.format(**places) for word in words]
    assert idgen(["evaluate", "consistency", *given, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert "Traceback" not in "".join(said)


def test_degenerate_sets_have_defined_values(people: Path, tmp_path: Path) -> None:
    for name, pictures in {"one person": ["0", "1"], "one picture": ["0"]}.items():
        folder = tmp_path / name / "somebody"
        folder.mkdir(parents=True)
        for number in pictures:
            (folder / f"{number}.png").write_bytes((people / "person 0" / f"{number}.png").read_bytes())
        out = tmp_path / f"{name} report"
        assert idgen(["evaluate", "consistency", str(tmp_path / name), "--out", str(out)]) == 0
        measures = read_report(out).measures
        assert np.isnan(measures["mini/eer"].value)
        assert "needs pairs" in measures["mini/eer"].note
        assert np.isnan(measures["mini/similarity within"].value) == (len(pictures) == 1)


def test_a_threshold_gives_the_shares_accepted(people: Path, tmp_path: Path) -> None:
    words = ["evaluate", "consistency", str(people), "--references", str(people), "--out", str(tmp_path)]
    assert idgen([*words, "--threshold", "mini=0.999"]) == 0
    each = json.loads((tmp_path / "report.json").read_text())["per_identity"]
    # each of a person's pictures is itself among the references, and hardly equals the others
    assert each["mini/accepted as on the reference"]["person 0"] == pytest.approx(1 / 3)
    assert each["mini/accepted as somebody else on the reference"]["person 0"] == 0
    assert idgen([*words, "--threshold", "mini=-1"]) == 0
    each = json.loads((tmp_path / "report.json").read_text())["per_identity"]
    assert each["mini/accepted as on the reference"]["person 0"] == 1
    # the picture without a face is accepted by nobody
    assert each["mini/accepted as on the reference"]["person 2"] == pytest.approx(2 / 3)


def test_shares_accepted_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    photos, vectors = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, 9, 4)))
    vectors[3] = 0
    whose, person = np.arange(9) % 3, np.arange(9) % 4
    own, others = share_accepted(photos, whose, vectors, person, -0.05)
    for row in range(9):
        hits = [float(p @ vectors[row]) >= -0.05 and row != 3 for p in photos]
        mine = [hit for hit, who in zip(hits, whose, strict=True) if who == person[row]]
        rest = [hit for hit, who in zip(hits, whose, strict=True) if who != person[row]]
        assert others[row] == pytest.approx(np.mean(rest))
        assert np.isnan(own[row]) if not mine else own[row] == pytest.approx(np.mean(mine))


def test_means_and_spread_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    person = np.array([0, 2, 0, 2, 2, 3])
    values = np.array([1.0, 2.0, np.nan, 4.0, 6.0, np.nan])
    np.testing.assert_array_equal(mean_by_person(values, person, 4), [1, np.nan, 4, np.nan])
    vectors = rng.normal(size=(6, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[4] = 0
    found = spread_about_centre(vectors, person, 4)
    centre = (vectors[1] + vectors[3]) / 2
    expected = np.mean([np.sum((vectors[i] - centre) ** 2) for i in (1, 3)])
    assert found[2] == pytest.approx(expected)
    assert np.isnan(found[[1, 3]]).all()


def test_groups_are_formed_where_labels_are_clear() -> None:
    labels = [{"p_female": 0.9, "yaw": 20.0, "source": "a"}, {"p_female": 0.5, "yaw": 0.0}, {"p_female": 0.1}]
    pictures = [Picture(identity="x", name=str(i), labels=values) for i, values in enumerate(labels)]
    assert group_names("p_female", pictures) == ["female", "", "not female"]
    assert group_names("yaw", pictures) == ["to the left", "ahead", ""]
    assert group_names("source", pictures) == ["a", "", ""]
    with pytest.raises(ConfigError, match="known are p_female, source, yaw"):
        group_names("age", pictures)
