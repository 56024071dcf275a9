"""The programs of the W+ road, run as a user runs them, on variations of one free portrait."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from face_tables import portrait, write_table

from idgen.cli import main
from idgen.editing.directions import parse_edits, read_directions
from idgen.encoders.wplus import load_wplus
from idgen.training import TrainingRun

TINY = {
    "size_px": "16", "channels": "[16,16,16]", "widths": "[16,32]", "style_dim": "8", "bottleneck": "16",
    "growth": "[]", "batch_size": "4", "id_rows": "2", "encoders": "[mini]", "warmup_steps": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 portraits of 20 people, light or dark; "happy" says how light, and nothing else is known."""
    rng, images, light = np.random.default_rng(0), [], []
    for person in range(20):
        tint = rng.uniform(0.6, 1, size=3)
        for _ in range(4):
            light.append(float(rng.uniform(0.2, 1)))
            view = portrait()[:, ::-1] if person % 2 else portrait()
            images.append((view * tint * light[-1]).astype(np.uint8))
    people = [f"P{number // 4:02d}" for number in range(80)]
    known = {"p_happy": light, "yaw": rng.uniform(-30, 30, size=80).tolist()}
    return write_table(tmp_path_factory.mktemp("faces") / "faces.parquet", images, people, known)


def train(faces: Path, out: Path, **settings: str) -> int:
    words = [f"{name}={value}" for name, value in {"faces": str(faces), **TINY, **settings}.items()]
    return main(["train", "wplus", "--out", str(out), *(w for word in words for w in ("--set", word))])


@pytest.fixture(scope="module")
def trained(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wplus") / "run"
    assert train(faces, out, steps="150", id_rows="0", encoder_rate="0.002", ema_decay="0.9") == 0
    return out


def test_pictures_come_back_lighter_or_darker_as_they_were(trained: Path) -> None:
    log = [json.loads(line) for line in (trained / "wplus.jsonl").read_text().splitlines()]
    assert log[-1]["l1"] < 0.5 * log[0]["l1"] or log[-1]["l1"] < 0.15
    encoder = load_wplus(trained / "wplus.safetensors")
    crops = torch.from_numpy(portrait().copy()).permute(2, 0, 1)[None].float() / 255
    crops = torch.nn.functional.interpolate(crops, size=(16, 16), mode="area")
    light, dark = encoder.decode(encoder.encode(torch.cat([crops, 0.4 * crops]))).mean(dim=(1, 2, 3))
    assert float(light) > float(dark) + 0.1


def test_going_on_after_an_interruption_equals_not_stopping(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_after_two(_run: TrainingRun, step: int, _last: int) -> bool:
        if step > 2:
            raise KeyboardInterrupt
        return True

    assert train(faces, tmp_path / "whole", steps="4") == 0
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "checkpoint_due", stop_after_two)
        assert train(faces, tmp_path / "parts", steps="4") == 130
    assert train(faces, tmp_path / "parts", steps="4") == 0
    whole, parts = (torch.load(tmp_path / name / "wplus.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_small_pictures_come_first_and_a_discriminator_may_judge(faces: Path, tmp_path: Path) -> None:
    grown = {"size_px": "32", "channels": "[16,16,16,16]", "widths": "[16,16,32]", "growth": "[2]"}
    assert train(faces, tmp_path / "run", **grown, steps="4", adversarial="0.1") == 0
    assert load_wplus(tmp_path / "run" / "wplus.safetensors").num_layers == 8


def test_a_run_goes_on_from_another(faces: Path, trained: Path, tmp_path: Path) -> None:
    assert train(faces, tmp_path / "run", steps="1", start=str(trained), encoder_rate="1e-9") == 0
    before, after = (load_wplus(run / "wplus.safetensors").model for run in (trained, tmp_path / "run"))
    key = "encoder.to_vector.weight"
    assert torch.allclose(before.state_dict()[key], after.state_dict()[key], atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"channels": "[16,16]"}, "channels must name a width for each size"),
        ({"growth": "[9]"}, "growth (9,) begins at 16 pixels"),
        ({"encoders": "[]"}, "id_rows need encoders"),
        ({"start": "/nowhere"}, "is no run of this program"),
        ({"cooldown": "0"}, "cooldown must be in (0, 1]"),
    ],
)
def test_wrong_settings_are_one_line(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, str], said: str
) -> None:
    assert train(faces, tmp_path / "run", **{"steps": "2", **settings}) == 2
    assert said in capsys.readouterr().err


def test_a_direction_that_was_learned_makes_faces_lighter(faces: Path, trained: Path, tmp_path: Path) -> None:
    file, out = trained / "wplus.safetensors", tmp_path / "light.safetensors"
    command = ["train", "directions", "--wplus", str(file), "--faces", str(faces), "--out", str(out)]
    assert main([*command, "--label", "light=p_happy", "--label", "turn=yaw"]) == 0
    encoder, directions = load_wplus(file), read_directions(out)
    assert directions["light"].encoder == encoder.id
    code = encoder.feature(encoder.encode(torch.full((1, 3, 16, 16), 0.3))[0])
    means = [float(encoder.decode(directions.moved(code, parse_edits(f"light={a}"))).mean()) for a in (-2, 2)]
    assert means[1] > means[0] + 0.05


def test_labels_that_are_not_there_are_named(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train",
        "directions",
        "--wplus",
        "x",
        "--faces",
        str(faces),
        "--out",
        str(tmp_path / "d.safetensors"),
    ]
    assert main([*command, "--label", "smile=p_hapy"]) == 2
    assert "p_happy" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path / "d.npy")]) == 2
    assert "--out must end in .safetensors" in capsys.readouterr().err
