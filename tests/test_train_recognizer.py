"""`idgen train recognizer`: it learns, goes on after a kill, exports, and looks at test pairs at the end."""

import csv
import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from face_tables import write_table
from made_dataset import ABOUT, rows_of
from one_process import begin
from PIL import Image
from recognizer_runs import arguments, lines, load_program, people, record
from safetensors import safe_open

from idgen.cli import main
from idgen.config import from_mapping, read_yaml
from idgen.encoders.arcface import onnx_encoder
from idgen.recognition import validation
from idgen.recognition.corpus import labelled_faces, read_labelled
from idgen.synth.shards import write_shard
from idgen.training import Progress, TrainingRun

LEARNING = ("steps=24", "batch_size=16", "evaluate_every=6", "margin=0", "scale=16", "degraded=false",
            "adam_rate=0.05", "muon_rate=0.05")  # fmt: skip


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred people of three pictures."""
    return write_table(tmp_path_factory.mktemp("faces") / "faces.parquet", *people(100, 3))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pairs of other people, in five folds, and their pictures."""
    folder = tmp_path_factory.mktemp("pairs")
    table = write_table(folder / "test.parquet", *people(20, 2, seed=9))
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", "file_a", "file_b", "same"])
        for person in range(20):
            writer.writerow([person // 4, f"{2 * person}.png", f"{2 * person + 1}.png", 1])
            other = 2 * (person // 4 * 4 + (person + 1) % 4)
            writer.writerow([person // 4, f"{2 * person}.png", f"{other}.png", 0])
    return folder / "pairs.csv", table


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    return load_program()


def mean_of_last(folder: Path) -> float:
    return sum(line["loss"] for line in lines(folder / "train.jsonl")[-6:]) / 6


def test_it_learns_true_names_better_than_permuted_ones(
    program: SimpleNamespace, faces: Path, tmp_path: Path
) -> None:
    program.main(arguments(faces, tmp_path / "true", *LEARNING))
    log, held = (lines(tmp_path / "true" / f"{name}.jsonl") for name in ("train", "held_out"))
    assert [line["step"] for line in log] == list(range(1, 25))
    assert mean_of_last(tmp_path / "true") < sum(line["loss"] for line in log[:6]) / 6 - 1
    assert [line["step"] for line in held] == [6, 12, 18, 24]
    assert max(line["accuracy"] for line in held) > 0.8
    result = record(tmp_path / "true", "result")
    best = max(held, key=lambda line: line["accuracy"])  # the first of equals
    assert (result["best"]["step"], result["best"]["accuracy"]) == (best["step"], best["accuracy"])
    assert result["last"]["step"] == 24
    data = record(tmp_path / "true", "data")
    assert len(data.pop("sha256")) == 64
    assert data == {
        "pictures": 270, "people": 90, "held_out_pictures": 30, "held_out_people": 10, "without_face": 0,
        "names_without_face": [],
    }  # fmt: skip
    program.main(arguments(faces, tmp_path / "shuffled", *LEARNING, "shuffle_identities=true"))
    assert mean_of_last(tmp_path / "true") < mean_of_last(tmp_path / "shuffled") - 0.5


def test_best_and_last_are_kept_in_every_form(program: SimpleNamespace, faces: Path, tmp_path: Path) -> None:
    program.main(arguments(faces, tmp_path, "steps=4", "evaluate_every=2", "mirrored=true"))
    config = from_mapping(program.RecognizerConfig, read_yaml(tmp_path / "config.yaml"))
    crops = torch.rand(3, 3, 112, 112)
    for name in ("best", "last"):
        weights = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        with safe_open(tmp_path / f"{name}.safetensors", framework="pt") as file:
            assert set(file.keys()) == set(weights)
            assert all(torch.equal(file.get_tensor(key), weights[key]) for key in weights)
            assert file.metadata()["backbone"] == "squeezenet"
        network = program.exported(program.finished(weights, config), config).eval()
        with torch.no_grad():
            meant = torch.nn.functional.normalize(network(crops * 2 - 1))
        encoder = onnx_encoder(tmp_path / f"{name}.onnx")
        for shown in (crops, crops.flip(-1)):
            torch.testing.assert_close(encoder.encode(shown).unit, meant, atol=1e-4, rtol=0)
        assert 0.9999 < record(tmp_path, "result")[name]["cosine_to_network"]["least"] <= 1.00001


# What a checkpoint must bring back: rows of centres that take turns, with their momentum, and the lengths
# that AdaFace remembers; Muon and AdamW, dropout and a miner that draw; in both the best so far.
PARTIAL = ("head=adaface", "centre_share=0.3", "optimizer=sgd", "schedule=steps", "drops=[0.5]")
MINER = ("head=distance_margin", "pictures_each=4")
LENGTH = ("steps=8", "evaluate_every=4")


def check_equal(whole: Path, parts: Path) -> None:
    """All that two runs leave behind, bit for bit."""
    for name, steps in (("train", range(1, 9)), ("held_out", (4, 8))):
        assert [line["step"] for line in lines(parts / f"{name}.jsonl")] == list(steps)
    for name in ("best.safetensors", "best.onnx", "last.safetensors", "last.onnx"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    states = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (whole, parts)]
    assert states[0]["head"].keys() == states[1]["head"].keys()
    for key, value in states[0]["head"].items():
        assert torch.equal(value, states[1]["head"][key]), key
    assert states[0]["best"] == states[1]["best"]


def test_killed_and_started_again_it_ends_with_the_same_weights(
    program: SimpleNamespace, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idgen.training.CHECKPOINT_EVERY", 3)
    program.main(arguments(faces, tmp_path / "whole", *PARTIAL, *LENGTH))
    command = arguments(faces, tmp_path / "killed", *PARTIAL, *LENGTH)
    process = begin(program.main, command)
    log = tmp_path / "killed" / "train.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) >= 5) and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "result.json").exists()
    program.main(command)
    check_equal(tmp_path / "whole", tmp_path / "killed")


def test_interrupted_and_started_again_a_miner_draws_the_same(
    program: SimpleNamespace, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idgen.training.CHECKPOINT_EVERY", 3)
    program.main(arguments(faces, tmp_path / "whole", *MINER, *LENGTH))
    log = program.TrainingRun.log

    def stop(run: TrainingRun, name: str, progress: Progress, terms: Mapping[str, float]) -> None:
        log(run, name, progress, terms)
        if progress.step == 5:
            raise KeyboardInterrupt

    command = arguments(faces, tmp_path / "parts", *MINER, *LENGTH)
    monkeypatch.setattr(program.TrainingRun, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        program.main(command)
    monkeypatch.setattr(program.TrainingRun, "log", log)
    program.main(command)
    check_equal(tmp_path / "whole", tmp_path / "parts")


def test_the_test_pairs_are_measured_at_the_end_as_evaluate_does(
    program: SimpleNamespace, faces: Path, pairs: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    order: list[str] = []
    log, verify = program.TrainingRun.log, validation.verify_pairs
    monkeypatch.setattr(program.TrainingRun, "log", lambda *a: (order.append(a[1]), log(*a)))
    monkeypatch.setattr(
        validation, "verify_pairs", lambda *a, **k: (order.append("pairs"), verify(*a, **k))[1]
    )
    listed, table = pairs
    program.main(arguments(faces, tmp_path / "run", f"pairs={listed}", f"pairs_pictures={table}"))
    assert order == ["train", "train", "held_out", "pairs", "pairs"]
    command = ["evaluate", "verification", "--pairs", str(listed), "--pictures", str(table), "--aligned"]
    encoder = str(tmp_path / "run" / "last.onnx")
    assert main([*command, "--encoder", encoder, "--out", str(tmp_path / "report")]) == 0
    measures = record(tmp_path / "report", "report")["measures"]
    own = record(tmp_path / "run", "result")["last"]["pairs"]
    for short, long in (("accuracy", "accuracy"), ("standard_error", "standard error"),
                        ("tar_at_far_0.01", "TAR at FAR 0.01")):  # fmt: skip
        assert own[short] == pytest.approx(measures[f"last/{long}"]["value"], abs=1e-12), short
    assert own["face_found"] == 1


def test_what_is_verified_during_training_can_be_measured_again(
    program: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idgen.training.has_bfloat16", lambda device: False)  # as `evaluate` computes
    images, names = people(100, 3)
    for row, (pixels, name) in enumerate(zip(images, names, strict=True)):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{row}.png")
    program.main(arguments(tmp_path / "photos", tmp_path / "run", *LEARNING))
    command = ["evaluate", "verification", "--pairs", str(tmp_path / "run" / "held_out_pairs.csv"),
               "--pictures", str(tmp_path / "photos"), "--aligned"]  # fmt: skip
    assert (
        main([*command, "--encoder", str(tmp_path / "run" / "last.onnx"), "--out", str(tmp_path / "r")]) == 0
    )
    measures = record(tmp_path / "r", "report")["measures"]
    during = lines(tmp_path / "run" / "held_out.jsonl")[-1]
    for short, long in (("accuracy", "accuracy"), ("standard_error", "standard error"),
                        ("tar_at_far_0.01", "TAR at FAR 0.01")):  # fmt: skip
        assert during[short] == pytest.approx(measures[f"last/{long}"]["value"], abs=1e-9), short


def test_every_format_trains_the_same(program: SimpleNamespace, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "dataset.json").write_text(json.dumps({**ABOUT, "num_shards": 1}))
    write_shard(made, 0, rows_of(range(100), size_px=112))
    losses = {}
    for form in ("made", "folder", "webdataset", "parquet", "recordio", "lmdb"):
        data, run = tmp_path / form, tmp_path / f"run on {form}"
        if form != "made":
            assert main(["synthesize", "export", str(made), "--to", form, "--out", str(data)]) == 0
        program.main(arguments(data, run, "steps=1", "leave_out_singles=true"))
        losses[form] = lines(run / "train.jsonl")[0]["loss"]
        assert record(run, "data")["people"] == 90
        assert record(run, "data")["without_face"] == 0
    assert losses == dict.fromkeys(losses, losses["made"])


def test_pictures_lose_rectangles_as_often_as_is_said(program: SimpleNamespace, faces: Path) -> None:
    table, _ = labelled_faces(read_labelled(faces))
    person = np.zeros(len(table), np.int64)
    shown = {
        share: program.make_batch(
            table, person, program.RecognizerConfig(erase_share=share, degraded=False), 0, None
        )[0]
        for share in (0.0, 0.3, 1.0)
    }
    changed = {share: (views != shown[0.0]).flatten(1).any(dim=1).sum() for share, views in shown.items()}
    assert changed[0.0] == 0
    assert 20 < changed[0.3] < 60
    assert changed[1.0] > 115  # of 128; a rectangle may lie where the picture has its colour already


def test_two_datasets_and_the_histogram_of_another(
    program: SimpleNamespace, faces: Path, tmp_path: Path
) -> None:
    images, names = people(50, 2, seed=3)
    other = write_table(tmp_path / "other.parquet", images, names)
    joined = arguments(faces, tmp_path / "both", f"data=[{faces},{other}]", "steps=1")[2:]  # no --data
    program.main(joined)
    data = record(tmp_path / "both", "data")
    assert (data["people"], data["held_out_people"]) == (135, 15)
    assert data["pictures"] + data["held_out_pictures"] == 300 + 100
    program.main(arguments(faces, tmp_path / "like", f"match_histogram={other}", "steps=1"))
    data = record(tmp_path / "like", "data")
    assert (data["people"], data["pictures"]) == (45, 90)
    assert (data["people_wanted"], data["pictures_wanted"]) == (45, 90)
