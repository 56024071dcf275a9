"""train/detector.py: targets and losses against their definitions; the program run, stopped, gone on with."""

import io
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from idgen.data.images import LABELS
from idgen.errors import ConfigError
from idgen.faces.boxes import iou
from idgen.faces.scrfd_loss import anchors, assign, detection_terms, paired_iou, quality_focal_loss, targets

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "train" / "detector.py"
TINY = """
width: 8
neck_width: 8
steps: 4
batch_size: 4
scene_px: 64
large_every: 2
num_backgrounds: 3
background_px: 128
save_every: 2
log_every: 1
"""


def faces_of(*boxes: tuple[float, float, float, float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values = torch.tensor(boxes).reshape(-1, 4)
    middles = (values[:, :2] + values[:, 2:]) / 2
    return values, middles[:, None].repeat(1, 5, 1), torch.ones(len(values), dtype=torch.bool)


@pytest.mark.parametrize("size", [14, 16, 23, 40, 77, 130, 300, 500])
def test_every_face_has_anchors_of_about_its_size(size: float) -> None:
    boxes = torch.tensor([[31.0, 17.0, 31.0 + size, 17.0 + size]])
    face = assign(boxes, torch.tensor([True]), 544, 544)
    centres, sizes, _ = anchors(544, 544)
    chosen = face == 0
    assert 1 <= chosen.sum() <= 60
    octaves = (sizes[chosen] / min(max(size, 16), 512)).log2().abs()
    assert octaves.max() <= 0.75
    middle = boxes[0, :2] + size / 2
    assert (centres[chosen] - middle).norm(dim=1).min() <= 32 / math.sqrt(2)


def test_faces_do_not_share_anchors_and_the_rest_is_background() -> None:
    boxes, _, clear = faces_of((10, 10, 50, 50), (60, 60, 180, 200))
    face = assign(boxes, clear, 256, 256)
    assert set(face.tolist()) == {-2, -1, 0, 1}
    assert (face == -1).float().mean() > 0.8
    assert (assign(boxes[:0], clear[:0], 256, 256) == -1).all()


def test_around_an_unclear_face_nothing_is_judged() -> None:
    boxes, _, _ = faces_of((40, 40, 100, 100))
    face = assign(boxes, torch.tensor([False]), 128, 128)
    centres, _, _ = anchors(128, 128)
    inside = (centres - 70).norm(dim=1) <= 30
    assert (face[inside] == -2).all()
    assert (face[~inside] == -1).all()


def test_paired_iou_equals_the_general_one() -> None:
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 50, (2, 20, 2)), rng.uniform(5, 60, (2, 20, 2))
    first, second = np.concatenate([corner, corner + size], axis=2).astype(np.float32)
    ours, distance = paired_iou(torch.from_numpy(first), torch.from_numpy(second))
    np.testing.assert_allclose(ours.numpy(), np.diag(iou(first, second)), atol=1e-5)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        shift = math.dist((a[:2] + a[2:]) / 2, (b[:2] + b[2:]) / 2)
        diagonal = math.dist(np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:]))
        assert distance[i].item() == pytest.approx(ours[i].item() - shift**2 / diagonal**2, abs=1e-5)


def test_quality_focal_loss_equals_its_formula() -> None:
    logits, quality = torch.randn(30), torch.rand(30)
    expected = []
    for logit, y in zip(logits.tolist(), quality.tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        expected.append((y - p) ** 2 * -(y * math.log(p) + (1 - y) * math.log(1 - p)))
    torch.testing.assert_close(quality_focal_loss(logits, quality), torch.tensor(expected))


def test_a_perfect_prediction_costs_nothing_and_a_shifted_one_does() -> None:
    wanted = targets([faces_of((20, 24, 60, 70)), faces_of()], 96, 96)
    centres, _, _ = anchors(96, 96)
    positive = wanted.face >= 0
    logits = torch.where(positive, 30.0, -30.0)
    distances = torch.cat([centres - wanted.boxes[..., :2], wanted.boxes[..., 2:] - centres], dim=2)
    offsets = wanted.landmarks - centres.repeat(1, 5)
    perfect = detection_terms((logits, distances, offsets), wanted, 96, 96)
    assert all(abs(term.item()) < 1e-5 for term in perfect.values())
    shifted = detection_terms(
        (logits, distances + torch.tensor([8.0, 0, -8, 0]), offsets + 4), wanted, 96, 96
    )
    assert shifted["box"] > 0.1
    assert shifted["landmarks"] > 0.01
    missed = detection_terms((-logits, distances, offsets), wanted, 96, 96)
    assert missed["score"] > 1


# --- the program -------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_run(tmp_path: Path) -> list[str]:
    """Arguments of a tiny run on views of one public portrait, whose labels lie in the run folder already."""
    face = Image.fromarray(astronaut()[40:196, 148:304]).resize((128, 128))
    marks = np.array([[57, 57], [99, 63], [74, 87], [53, 101], [91, 106]], np.float32) * (128 / 156)
    rows = []
    for i in range(6):
        stream = io.BytesIO()
        Image.fromarray((np.asarray(face) * (0.6 + 0.08 * i)).astype(np.uint8)).save(stream, "PNG")
        rows.append(
            {"image": {"bytes": stream.getvalue(), "path": None}, "file": f"{i}", "identity": f"{i % 3}"}
        )
    table = pa.Table.from_pylist([{**row, **dict.fromkeys(LABELS, 0.5)} for row in rows])
    pq.write_table(table, tmp_path / "faces.parquet")
    labels = {
        "rows": torch.arange(6),
        "boxes": torch.tensor([[27.0, 11.0, 103.0, 113.0]]).repeat(6, 1),
        "landmarks": torch.from_numpy(marks)[None].repeat(6, 1, 1),
    }
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
        torch.save(labels, tmp_path / name / "labels.pt")
    (tmp_path / "tiny.yaml").write_text(f"{TINY}\nfaces: {tmp_path / 'faces.parquet'}\n")
    return ["--config", str(tmp_path / "tiny.yaml"), "--out"]


def run(arguments: list[str], out: Path, *, stop_at: int | None = None) -> None:
    """Run the program; with ``stop_at`` it is interrupted when it asks for the batch of that step."""
    program: dict[str, Any] = runpy.run_path(str(PROGRAM))
    main = program["main"]
    batch_of = main.__globals__["batch_of"]

    def interrupted(step: int, *rest: Any) -> Any:
        if step == stop_at:
            raise KeyboardInterrupt
        return batch_of(step, *rest)

    main.__globals__["batch_of"] = interrupted
    main([*arguments, str(out)])


def test_program_runs_and_going_on_equals_not_stopping(tiny_run: list[str], tmp_path: Path) -> None:
    run(tiny_run, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run, tmp_path / "stopped", stop_at=3)  # after the checkpoint of step 2
    run(tiny_run, tmp_path / "stopped")
    checkpoints = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("straight", "stopped")
    ]
    assert checkpoints[0]["progress"] == checkpoints[1]["progress"]
    for kind in ("net", "average"):
        for key, value in checkpoints[0][kind].items():
            assert torch.equal(value, checkpoints[1][kind][key]), f"{kind} {key}"
    files = [(tmp_path / name / "det_mini.onnx").read_bytes() for name in ("straight", "stopped")]
    assert files[0] == files[1]
    assert len((tmp_path / "straight" / "detector.jsonl").read_text().splitlines()) == 4


def test_training_lowers_the_loss(tiny_run: list[str], tmp_path: Path) -> None:
    import json

    (tmp_path / "tiny.yaml").write_text((tmp_path / "tiny.yaml").read_text().replace("steps: 4", "steps: 80"))
    run(
        [
            *tiny_run[:-1],
            "--set",
            "large_every=0",
            "--set",
            "warmup_steps=5",
            "--set",
            "learning_rate=0.01",
            "--out",
        ],
        tmp_path / "straight",
    )
    lines = [json.loads(line) for line in (tmp_path / "straight" / "detector.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_dry_run_prints_the_settings(
    tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(PROGRAM))["main"]([*tiny_run, str(tmp_path / "dry"), "--dry-run"])
    assert "neck_width: 8" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


def test_wrong_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = runpy.run_path(str(PROGRAM))["main"]
    with pytest.raises(ConfigError, match="scene_px must be a multiple of 32, got 100"):
        main(["--set", "scene_px=100", "--out", str(tmp_path / "a")])
    with pytest.raises(ConfigError, match=r"config\.step is not a setting; did you mean 'steps'"):
        main(["--set", "step=1", "--out", str(tmp_path / "a")])
    monkeypatch.delenv("IDGEN_FACES", raising=False)
    with pytest.raises(ConfigError, match=r"faces_train\.parquet is needed: set IDGEN_FACES"):
        main(["--out", str(tmp_path / "a")])
