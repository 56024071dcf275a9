"""The optimizer's side of a training loop: accumulation, processes, averages, checkpoints, the log."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from idgen.errors import ConfigError, TrainingError
from idgen.training import Progress, TrainingRun

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STATE = "state"  # name of the checkpoint
LOG = "log"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and how long it runs; batch sizes are those of all processes and accumulated pieces together.

    Attributes:
        steps: of the optimizer.
        batch_size: pictures of the people in a step.
        prior_batch_size: prior pictures in a step, where there are any.
        accumulation: pieces that a process cuts its share into, to save memory; the result is the same.
        learning_rate: highest.
        schedule: of the rate: "cosine" or "linear" to 0, or "constant".
        warmup_steps: over which the rate rises from 0.
        weight_decay: of AdamW.
        clip: highest norm of the gradient.
        ema_decay: of the moving average of the weights that is saved in their place; 0 for none.
        precision: "no" (float32), "bf16" or "fp16": what accelerate calls mixed precision.
        checkpoint_every: steps.
        log_every: steps.
    """

    steps: int = 1000
    batch_size: int = 1
    prior_batch_size: int = 1
    accumulation: int = 1
    learning_rate: float = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 1e-2
    clip: float = 1.0
    ema_decay: float = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    checkpoint_every: int = 200
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.prior_batch_size < 0 or self.warmup_steps < 0:
            raise ConfigError("prior_batch_size and warmup_steps must not be negative")
        if not (self.learning_rate > 0 and self.clip > 0 and self.weight_decay >= 0):
            raise ConfigError("learning_rate and clip must be greater than 0, weight_decay at least 0")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be in [0, 1), got {self.ema_decay}")

    def rate_at(self, step: int) -> float:
        """The learning rate of step ``step``, counted from 0."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        done = max(0.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return self.learning_rate * rise * fall[self.schedule]


class Optimization:
    """Everything between the loss and the weights; the loop itself stands in the program."""

    def __init__(
        self,
        run: TrainingRun | None,
        config: OptimizerConfig,
        accelerator: Accelerator,
        model: nn.Module,
        trained: Mapping[str, Tensor],
    ) -> None:
        """Prepare, and go on from the checkpoint in the run folder where there is one.

        Args:
            run: folder of the run; None in processes that write nothing.
            config: settings.
            accelerator: devices, processes, precision.
            model: holds the weights that train; ``self.model`` is what the loop must call.
            trained: those weights, by name.
        """
        self.run, self.config, self.accelerator, self.trained = run, config, accelerator, trained
        optimizer = torch.optim.AdamW(
            trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.average = {name: value.detach().clone() for name, value in trained.items()}
        self.progress = Progress()
        self._said: list[dict[str, float]] = []
        self._board: SummaryWriter | None = None

    @property
    def num_parts(self) -> int:
        """Equal parts that a global batch is cut into."""
        return self.accelerator.num_processes * self.config.accumulation

    def resume(self, folder: Path) -> None:
        """Take up the checkpoint in ``folder``, in every process; the log forgets what will be done again."""
        path = folder / f"{STATE}.pt"
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            with torch.no_grad():
                for name, value in self.trained.items():
                    value.copy_(state["weights"][name])
                    self.average[name].copy_(state["average"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.progress = Progress(**state["progress"])
        if self.run is not None:
            self.run.rewind(LOG, self.progress.step)
            self._board = _open_board(folder / "tensorboard", self.progress.step)

    def steps(self) -> Iterator[int]:
        """The steps that are left, counted from 0."""
        while self.progress.step < self.config.steps:
            yield self.progress.step

    def parts(self) -> Iterator[tuple[int, AbstractContextManager[Any]]]:
        """This process's parts of a global batch, and the block to compute each in."""
        own = self.config.accumulation
        for piece in range(own):
            index = self.accelerator.process_index * own + piece
            waits = piece < own - 1  # gradients are exchanged once, after the last piece
            yield index, self.accelerator.no_sync(self.model) if waits else nullcontext()

    def backward(self, loss: Tensor, said: Mapping[str, float]) -> None:
        """Gradients of one part."""
        self._said.append({**said, "loss": float(loss.detach())})
        self.accelerator.backward(loss / self.config.accumulation)

    def update(self, num_images: int) -> dict[str, float]:
        """Move the weights by what all parts said; the mean of what they said.

        Raises:
            TrainingError: if a term or the gradient is not finite; the weights stay as they were.
        """
        said = _mean(gather_object(self._said))
        self._said = []
        self._check(said, [name for name, value in said.items() if not math.isfinite(value)])
        norm = float(self.accelerator.clip_grad_norm_(list(self.trained.values()), self.config.clip) or 0.0)
        if self.config.precision != "fp16" and not math.isfinite(norm):  # fp16: the scaler skips such a step
            self._check(said, ["the gradient"])
        rate = self.config.rate_at(self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.images_seen += num_images
        self._move_average()
        return {**said, "grad_norm": norm, "learning_rate": rate}

    def _check(self, said: Mapping[str, float], bad: list[str]) -> None:
        if not bad:
            return
        self.optimizer.zero_grad(set_to_none=True)
        terms = [name for name in bad if name != "loss"] or bad
        last = self.progress.step - self.progress.step % self.config.checkpoint_every
        kept = f"the weights of step {last} are kept" if last else "no weights were written yet"
        raise TrainingError(
            f"step {self.progress.step + 1}: {', '.join(terms)} is not finite (loss {said['loss']:g}); "
            f"{kept}. Try a smaller learning_rate, a smaller weight of that term, or precision: no"
        )

    @torch.no_grad()
    def _move_average(self) -> None:
        step = self.progress.step
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))  # the first steps are soon forgotten
        for name, value in self.trained.items():
            self.average[name].lerp_(value, 1 - decay)

    def record(self, said: Mapping[str, float], *, always: bool = False) -> None:
        """A line of the log, every so many steps."""
        step = self.progress.step
        due = step % self.config.log_every == 0 or step == self.config.steps or always
        if self.run is None or not due:
            return
        self.run.log(LOG, self.progress, said)
        assert self._board is not None
        for name, value in said.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def save_if_due(self) -> bool:
        """A checkpoint, every so many steps and at the end; whether one was written."""
        step = self.progress.step
        if step % self.config.checkpoint_every and step != self.config.steps:
            return False
        if self.run is not None:
            scaler = self.accelerator.scaler
            self.run.save(STATE, {
                "weights": {name: value.detach().cpu() for name, value in self.trained.items()},
                "average": {name: value.cpu() for name, value in self.average.items()},
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
                "progress": vars(self.progress),
            })  # fmt: skip
        return True

    @property
    def result(self) -> dict[str, Tensor]:
        """The weights to keep: averaged, where that is asked for."""
        return self.average if self.config.ema_decay else dict(self.trained)


def _open_board(folder: Path, step: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "training writes a log for TensorBoard, which is not installed: pip install 'idgen[train]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _mean(said: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each number over the parts that said it."""
    names = dict.fromkeys(name for part in said for name in part)
    return {name: sum(values) / len(values) for name in names
            if (values := [part[name] for part in said if name in part])}  # fmt: skip
