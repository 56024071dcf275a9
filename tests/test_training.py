"""The parts that every training program shares."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from idgen.errors import RunFolderError
from idgen.training import MovingAverage, Progress, TrainingRun, batch_rows, step_generator, store_bytes


@dataclass(frozen=True, kw_only=True)
class Settings:
    rate: float = 0.1


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    TrainingRun(tmp_path, Settings())
    TrainingRun(tmp_path, Settings())
    with pytest.raises(RunFolderError, match="other settings"):
        TrainingRun(tmp_path, Settings(rate=0.2))


def test_checkpoints_come_back_whole(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path, Settings())
    assert run.load("weights") is None
    run.save("weights", {"w": torch.arange(3), "progress": vars(Progress(step=7))})
    loaded = run.load("weights")
    assert loaded is not None
    assert loaded["w"].tolist() == [0, 1, 2]
    assert Progress(**loaded["progress"]).step == 7
    assert not list(tmp_path.glob("*.tmp"))


def test_a_damaged_checkpoint_or_log_is_named(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path, Settings())
    run.save("weights", {"w": torch.arange(3000)})
    whole = (tmp_path / "weights.pt").read_bytes()
    for damaged in (whole[:2000], b"", b"no checkpoint"):
        (tmp_path / "weights.pt").write_bytes(damaged)
        with pytest.raises(RunFolderError, match=r"weights\.pt is damaged; delete it to begin anew"):
            run.load("weights")
    for line in (b'{"loss": 1}\n', b'{"step": \xff}\n', b"3}\n"):
        (tmp_path / "train.jsonl").write_bytes(line)
        with pytest.raises(RunFolderError, match=r"train\.jsonl is damaged"):
            run.rewind("train", 1)


def test_weights_in_bytes_compute_almost_the_same_in_a_quarter(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(1024, 8)
    )
    with torch.no_grad():
        network[2].weight[5] *= 100  # a channel of another scale keeps its own precision
    x = torch.randn(16, 3, 8, 8)
    path = tmp_path / "net.onnx"
    torch.onnx.export(network, (x,), path, input_names=["x"], opset_version=13, dynamo=False)
    before = path.stat().st_size
    store_bytes(path)
    assert path.stat().st_size < 0.35 * before
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    expected = network(x).detach()
    assert torch.nn.functional.cosine_similarity(torch.from_numpy(found), expected).min() > 0.9995
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    rebuilt = kept["2.weight_bytes"] * kept["2.weight_scale"][:, None, None, None]
    error = np.abs(rebuilt - network[2].weight.detach().numpy())
    assert (
        error <= kept["2.weight_scale"][:, None, None, None] * 0.5001
    ).all()  # half a step, channel by channel


def test_every_epoch_shows_every_row_once() -> None:
    seen = np.concatenate([batch_rows(10, 4, step, seed=3) for step in range(5)])
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_randomness_depends_on_seed_rank_and_step_alone() -> None:
    def draw(seed: int, step: int, rank: int = 0) -> float:
        return torch.rand(1, generator=step_generator(seed, step, rank=rank)).item()

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(1, 2), draw(2, 1), draw(1, 3), draw(1, 2, rank=1)}) == 4


def test_moving_average_agrees_with_a_loop() -> None:
    model = nn.Linear(2, 2)
    average = MovingAverage({"m": model}, decay=0.9)
    expected = model.weight.detach().clone()
    for step in range(1, 30):
        model.weight.data.add_(1.0)
        average.update({"m": model}, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.of("m")["weight"], expected)
