"""Edits as users ask for them: `idgen generate --edit` with mini, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from generating import astronaut

from idgen import mini
from idgen.cli import main
from idgen.editing.directions import read_directions
from idgen.editing.editor import Editor, open_editor
from idgen.encoders.arcface import load_encoder
from idgen.encoders.wplus import load_wplus
from idgen.errors import ConfigError, EncoderMismatchError, IdentityError
from idgen.faces.detect import Detector, load_detector
from idgen.identity import Feature, Identity
from idgen.provenance import read_provenance
from idgen.storage import write_bytes


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "somebody.png"
    astronaut().save(path)
    return path


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector("mini")


@pytest.fixture(scope="module")
def editor() -> Editor:
    return open_editor(mini.BASE, edit="smile=-3,turn=+2")


def test_an_edit_moves_the_code_and_leaves_the_person(
    editor: Editor, photo: Path, detector: Detector
) -> None:
    code = editor.read([photo], detector)
    moved = editor.edited(code).value - code.value
    wanted = -3 * editor.directions["smile"].value + 2 * editor.directions["turn"].value
    np.testing.assert_allclose(moved, wanted, atol=1e-5)
    effects = editor.effects(code, detector, [load_encoder("judge")])
    assert [effect.edit for effect in effects] == ["smile=-3", "turn=+2", "smile=-3,turn=+2"]
    (smile,), (turn,), (both,) = (list(effect.similarity.values()) for effect in effects)
    assert 0.5 < smile < 0.995
    assert 0.5 < turn < 0.995
    assert both < max(smile, turn)


def test_several_photos_are_averaged_and_saved_codes_are_read(
    editor: Editor, photo: Path, detector: Detector, tmp_path: Path
) -> None:
    code = editor.read([photo], detector)
    other = Feature(code.encoder, code.kind, np.zeros_like(code.value))
    Identity((other,)).save(tmp_path / "who.safetensors")
    mean = editor.read([photo, tmp_path / "who.safetensors"], detector)
    np.testing.assert_allclose(mean.value, code.value / 2, atol=1e-6)


def test_nothing_is_edited_where_nothing_is_asked(photo: Path, detector: Detector) -> None:
    plain = open_editor(mini.BASE)
    code = plain.read([photo], detector)
    assert plain.edited(code) is code
    assert plain.effects(code, detector, [load_encoder("judge")]) == []


def test_a_saved_identity_without_a_code_is_refused(
    editor: Editor, detector: Detector, tmp_path: Path
) -> None:
    vector = np.zeros(4, np.float32)
    vector[0] = 1
    Identity.from_vector(vector, f"other@{'0' * 12}").save(tmp_path / "who.safetensors")
    with pytest.raises(
        IdentityError, match=r"who.safetensors holds no W\+ code of wplus_mini@.*give a photo"
    ):
        editor.read([tmp_path / "who.safetensors"], detector)


def test_an_unknown_direction_shows_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no direction 'smlie'; did you mean 'smile'"):
        open_editor(mini.BASE, edit="smlie=2")


def test_another_model_needs_its_own_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(--wplus, --wplus-adapter, --directions\)"):
        open_editor(tmp_path, edit="smile=2")
    with pytest.raises(ConfigError, match=r"\(--wplus, --wplus-adapter\)"):
        open_editor(tmp_path)


def test_an_adapter_of_face_vectors_is_refused() -> None:
    encoder = read_encoder_of(mini.ADAPTER)
    with pytest.raises(EncoderMismatchError, match=encoder):
        open_editor(mini.BASE, edit="smile=2", adapter=mini.ADAPTER)


def read_encoder_of(path: Path) -> str:
    return json.loads(path.with_suffix(".json").read_text())["encoder"].partition("@")[0]


def test_an_adapter_of_another_generator_is_refused(tmp_path: Path) -> None:
    card = json.loads(mini.WPLUS_ADAPTER.with_suffix(".json").read_text())
    copy = tmp_path / mini.WPLUS_ADAPTER.name
    write_bytes(copy, mini.WPLUS_ADAPTER.read_bytes())
    copy.with_suffix(".json").write_text(json.dumps({**card, "encoder": f"e4e@{'1' * 12}"}))
    with pytest.raises(EncoderMismatchError, match="e4e@111111111111"):
        open_editor(mini.BASE, edit="smile=2", adapter=copy)


def test_minis_files_belong_together() -> None:
    encoder, directions = load_wplus("mini"), read_directions(mini.DIRECTIONS)
    assert set(directions) == {"smile", "turn", "woman"}
    assert {direction.encoder for direction in directions.values()} == {encoder.id}


def test_the_command_edits_and_says_what_is_left_of_the_person(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--face", str(photo), "--prompt", "a person", "--count", "1", "--steps", "3"]
    assert main([*words, "--edit", "smile=-3,turn=+4", "--out", str(tmp_path / "edited")]) == 0
    said = capsys.readouterr().out
    assert "smile=-3: similarity to the unedited person 0." in said
    assert "smile=-3,turn=+4: similarity to the unedited person 0." in said
    record = json.loads((tmp_path / "edited" / "run.json").read_text())
    assert [effect["edit"] for effect in record["run"]["edits"]] == [
        "smile=-3",
        "turn=+4",
        "smile=-3,turn=+4",
    ]
    assert record["command"]["edit"] == "smile=-3,turn=+4"
    assert record["command"]["wplus"] == load_wplus("mini").id
    assert read_provenance(tmp_path / "edited" / "0000.png").edit == "smile=-3,turn=+4"
    # the same command once more finds everything done, and says the same
    assert main([*words, "--edit", "smile=-3,turn=+4", "--out", str(tmp_path / "edited")]) == 0
    assert "smile=-3: similarity to the unedited person" in capsys.readouterr().out
    # another edit is another run
    assert main([*words, "--edit", "smile=-2", "--out", str(tmp_path / "edited")]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--edit", "smlie=2"], "idgen: there is no direction 'smlie'; did you mean 'smile'"),
        (["--edit", "smile"], "idgen: an edit is written NAME=AMOUNT"),
        (["--directions", "d.pt"], "idgen: --directions says what can be edited; say what is"),
        (["--edit", "smile=1", "--wplus", "nowhere.pt"], "idgen: no such file: nowhere.pt"),
        (
            ["--edit", "smile=1", "--directions", "nowhere.pt"],
            "idgen: no such file of directions: nowhere.pt",
        ),
        (["--wplus", "mini", "--wplus-scale", "-1"], "idgen: --wplus-scale must be between 0 and 10, got -1"),
    ],
)
def test_mistakes_are_answered_in_a_line(
    words: list[str], line: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--face", str(photo), "--prompt", "a person", "--out", str(tmp_path / "x")]
    assert main([*command, *words]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_pickle_with_code_is_refused_and_does_not_run(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "it ran",)

    torch.save({"smile": Evil()}, tmp_path / "evil.pt")
    command = [
        "generate",
        "--face",
        str(photo),
        "--prompt",
        "x",
        "--edit",
        "smile=1",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*command, "--directions", str(tmp_path / "evil.pt")]) == 2
    assert "evil.pt" in capsys.readouterr().err
    assert not (tmp_path / "it ran").exists()
