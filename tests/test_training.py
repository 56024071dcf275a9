"""The parts that every training program shares."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from idgen.errors import RunFolderError
from idgen.training import MovingAverage, Progress, TrainingRun, batch_rows, step_generator


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
