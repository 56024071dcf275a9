"""What a dataset says of its models' training data, from dataset.json to the datasheet."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_dataset import ABOUT, make_dataset

from idgen import mini
from idgen.commands.datasets import export_main
from idgen.opening import Kit, open_kit
from idgen.synth import training_data
from idgen.synth.origin import made_from
from idgen.synth.training_data import data_of_people


@pytest.fixture(scope="module")
def kit() -> Kit:
    return open_kit(mini.BASE)


def section(sheet: str, title: str) -> str:
    return sheet.partition(f"## {title}")[2].partition("\n## ")[0]


def test_the_sheet_names_the_data_of_each_embedded_model_and_of_the_people(kit: Kit, tmp_path: Path) -> None:
    assert kit.judge is not None
    about = {**ABOUT, **made_from(kit, mini.BASE, "mini"), "sources": {"people": "pca", "galleries": 0}}
    made = make_dataset(tmp_path / "made", about=about)
    assert export_main([str(made), "--to", "folder", "--out", str(tmp_path / "out")]) == 0
    said = section((tmp_path / "out" / "DATASHEET.md").read_text(), "Models and data it was made from")
    for line in (
        f"| data.mini (base model) | {training_data.BASE} |",
        f"| data.faceid_mini (adapter) | {training_data.ADAPTER} |",
        f"| data.{kit.encoder.id} (encoder that conditions) | {training_data.ENCODER} |",
        f"| data.mini (detector) | {training_data.DETECTOR} |",
        f"| data.{kit.judge.id} (encoder that only measures) | {training_data.JUDGE} |",
        f"| data.people (pca) | {training_data.PEOPLE} |",
    ):
        assert line in said, line


def test_of_other_models_the_sheet_says_that_it_does_not_know(kit: Kit, tmp_path: Path) -> None:
    other: Any = SimpleNamespace(
        adapter=SimpleNamespace(path=Path("own.safetensors"), sha256="ab" * 32, card=kit.adapter.card),
        encoder=SimpleNamespace(id="mini@0123456789ab", licence="?"),  # of that name, and not that one
        detector=SimpleNamespace(name="mini", licence="unknown: that of the file"),
        judge=None,
    )
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    found = made_from(other, folder, "own")
    assert len(found["data"]) == len(found["models"]) == 4
    assert set(found["data"].values()) == {"unknown: see the model's card"}


def test_what_the_sources_of_people_were_fitted_to() -> None:
    pca, unknown = training_data.PEOPLE, training_data.UNKNOWN_PEOPLE
    uniform = "none: every direction is alike"
    assert data_of_people("pca") == {"pca": pca}
    assert data_of_people("pca:own.safetensors") == {"pca:own.safetensors": unknown}
    assert data_of_people("mixture:0.8*pca,0.2*uniform") == {"pca": pca, "uniform": uniform}
    assert data_of_people("interpolation:vmf:x.npz") == {"vmf:x.npz": unknown}
    assert data_of_people("nonsense:") == {"nonsense:": unknown}


@pytest.mark.parametrize(
    ("text", "card", "words"),
    [
        (training_data.BASE, "base/README.md", ["13,398 portraits", "weak machine labels", "CelebA"]),
        (training_data.ADAPTER, "base/README.md", ["13,398 portraits"]),
        (training_data.ENCODER, "faces/rec_mini.md", ["foamliu/MobileFaceNet", "MS-Celeb-1M", "CelebA"]),
        (training_data.JUDGE, "judge/judge.md", ["13,398 portraits", "teacher", "CelebA"]),
        (training_data.DETECTOR, "faces/det_mini.md", ["13,395 portraits", "YuNet", "patterns", "CelebA"]),
        (training_data.PEOPLE, "README.md", ["4,353", "one mean face vector each", "CelebA"]),
    ],
)
def test_the_cards_say_the_same(text: str, card: str, words: list[str]) -> None:
    """Whoever trains a part again writes its card; this text must follow."""
    said = " ".join((mini.ROOT / card).read_text().split())
    for word in words:
        assert word in text, word
        assert word in said, word
