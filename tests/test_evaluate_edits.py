"""`idgen evaluate edits` on real people, where the data is there: the pictures of mini's own generator."""

import json
from pathlib import Path

import pytest
from PIL import Image

from idgen.cli import main


@pytest.fixture(scope="module")
def words(faces_folder: Path, weights_folder: Path) -> list[str]:
    return [
        "evaluate", "edits", "--faces", str(faces_folder / "faces_test.parquet"), "--people", "6",
        "--judge", str(weights_folder / "second_recognizer.onnx"),
        "--emotion", str(weights_folder / "emotion.onnx"),
        "--headpose", str(weights_folder / "headpose.onnx"),
        "--detector", f"yunet:{weights_folder / 'yunet.onnx'}",
    ]  # fmt: skip


def test_a_turn_turns_and_keeps_somebody(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--edit", "turn=6", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "turn=+6" in said
    measures = json.loads((tmp_path / "report.json").read_text())["measures"]
    assert measures["turn=+6/right"]["value"] >= 5 / 6
    assert measures["turn=+6/moved"]["value"] > 0.3
    assert measures["similarity/ratio"]["value"] > 0.5
    assert 0 < measures["turn=+6/kept"]["value"] < 1
    assert Image.open(tmp_path / "sheet.png").width > 6 * 128
    pictures = sorted((tmp_path / "pictures" / "turn=+6").iterdir())
    assert len(pictures) == 6
    # what is there is kept: a second run draws the picture that is missing, and says the same
    times = {path: path.stat().st_mtime_ns for path in pictures}
    pictures[0].unlink()
    before = (tmp_path / "report.json").read_text()
    assert main([*words, "--edit", "turn=6", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["measures"] == json.loads(before)["measures"]
    assert [p for p in pictures if p.stat().st_mtime_ns != times[p]] == pictures[:1]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--edit", "smlie=2"], "nobody here measures 'smlie'; did you mean 'smile'"),
        (["--edit", "woman=2"], "a probe that learns from labelled photos: --learn-from"),
        (["--edit", "smile=2", "--people", "1"], "--people must be from 2 to"),
        (["--wplus", "nothing.pt"], "no such file: nothing.pt"),
    ],
)
def test_mistakes_are_answered_in_a_line(
    words: list[str], more: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *more, "--out", str(tmp_path / "out")]) == 2
    assert line in capsys.readouterr().err
