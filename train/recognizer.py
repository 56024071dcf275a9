"""Train a face recogniser on labelled people.

    python train/recognizer.py --config train/configs/judge.yaml --out runs/judge

With this configuration it becomes mini's judge: the second eye, which learned from the names of people alone
and never from the recogniser that conditions. Goes on from the last checkpoint in the run folder; views
depend on (seed, step) alone.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgen.config import program_arguments
from idgen.data.images import FaceTable, load_faces, split_people
from idgen.data.places import data_file
from idgen.data.views import ViewConfig, degrade, erase, jittered_views
from idgen.errors import ConfigError
from idgen.pixels import to_pixel_values
from idgen.recognition.export import export_recogniser
from idgen.recognition.margins import MarginHead
from idgen.recognition.muon import Muon
from idgen.recognition.squeeze import SqueezeNet112, mirrored_mean
from idgen.recognition.validation import embed_rows, held_out_accuracy
from idgen.training import (
    MovingAverage,
    Progress,
    TrainingRun,
    batch_rows,
    reduced_precision,
    step_generator,
)


@dataclass(frozen=True, kw_only=True)
class RecognizerConfig:
    """Everything that decides a run."""

    faces: Path | None = None  # Parquet; faces_train.parquet in the folder IDGEN_FACES if not given
    seed: int = 0
    steps: int = 3000
    batch_size: int = 128
    dim: int = 128
    widths: tuple[int, ...] = (64, 128, 256, 384)
    blocks: tuple[int, ...] = (2, 3, 3, 2)
    dropout: float = 0.2
    margin_kind: str = "cosface"
    margin: float = 0.35
    margin_from: float = 0.3  # share of the steps over which the margin grows from nothing
    scale: float = 32.0
    erase_share: float = 0.3  # of the views lose a rectangle
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    ema_decay: float = 0.998
    num_threads: int = 1
    log_every: int = 20
    evaluate_every: int = 300
    views: ViewConfig = field(default_factory=ViewConfig)

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.widths) or len(self.widths) < 1:
            raise ConfigError(f"widths and blocks name the same stages, got {self.widths} and {self.blocks}")
        if any(width % 32 for width in self.widths):
            # torch 2.13 damages memory in the backward pass of channels_last layers of 4 or 8 channels
            raise ConfigError(f"widths must be multiples of 32, got {self.widths}")
        if not 0 <= self.erase_share <= 1 or not 0 < self.margin_from <= 1:
            raise ConfigError("erase_share must be in [0, 1] and margin_from in (0, 1]")


class Mirrored(nn.Module):
    """The network that is exported: the mean over a face and its mirror image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> (B, D)."""
        return mirrored_mean(self.network, pixel_values)


def make_batch(
    table: FaceTable, person: np.ndarray, config: RecognizerConfig, step: int
) -> tuple[Tensor, Tensor]:
    """Views (B, 3, 112, 112) in [0, 1] of step ``step`` and the number of the person in each, (B,)."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    rows = batch_rows(len(table), config.batch_size, step, config.seed)
    images = torch.from_numpy(table.images[rows]).permute(0, 3, 1, 2).float() / 255
    views = degrade(jittered_views(images, config.views, generator), config.views, generator)
    return erase(views, config.erase_share, generator), torch.from_numpy(person[rows])


def rate(step: int, config: RecognizerConfig) -> float:
    """Share of the full learning rates: a linear start, then a cosine down to 1 %."""
    start = min(1.0, (step + 1) / config.warmup_steps)
    return start * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def build_network(config: RecognizerConfig) -> SqueezeNet112:
    """The network with random weights."""
    return SqueezeNet112(config.widths, config.blocks, config.dim, config.dropout)


def optimizers_of(
    network: nn.Module, head: nn.Module, config: RecognizerConfig
) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions behind the first, AdamW for everything else."""
    matrices = [p for p in network.parameters() if p.ndim == 4][1:]
    chosen = {id(p) for p in matrices}
    rest = [p for module in (network, head) for p in module.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, config.adam_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    return [Muon(matrices, config.muon_rate), adam]


def averaged(average: MovingAverage, config: RecognizerConfig) -> SqueezeNet112:
    """The network with averaged weights, for evaluation and export."""
    network = build_network(config)
    network.load_state_dict(average.of("network"))
    return network.eval().requires_grad_(False)


def measure(network: nn.Module, held: FaceTable) -> dict[str, float]:
    """Accuracy on pairs of people whom the training does not see."""
    embedding = embed_rows(Mirrored(network), held, np.arange(len(held)), bfloat16=True)
    return {"accuracy": held_out_accuracy(F.normalize(embedding, dim=1).numpy(), held)}


def train(run: TrainingRun, config: RecognizerConfig, seen: FaceTable, held: FaceTable) -> SqueezeNet112:
    """Fit the network; returns it with averaged weights."""
    torch.manual_seed(config.seed)
    names, person = np.unique(seen.identities, return_inverse=True)
    network = build_network(config).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    head = MarginHead(
        config.dim, len(names), kind=config.margin_kind, margin=config.margin, scale=config.scale
    )
    optimizers = optimizers_of(network, head, config)
    full_rates = [config.muon_rate, config.adam_rate]
    average, progress = MovingAverage({"network": network}, config.ema_decay), Progress()
    if state := run.load("checkpoint"):
        network.load_state_dict(state["network"])
        head.load_state_dict(state["head"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average.weights, progress = state["average"], Progress(**state["progress"])

    while progress.step < config.steps:
        torch.manual_seed(step_generator(config.seed, progress.step).initial_seed())  # of the dropout
        views, label = make_batch(seen, person, config, progress.step)
        pixel_values = to_pixel_values(views).contiguous(memory_format=torch.channels_last)
        with reduced_precision(torch.device("cpu")):
            embedding = network(pixel_values)
        strength = min(1.0, progress.step / (config.margin_from * config.steps))
        loss = head(embedding, label, strength).mean()
        if not loss.isfinite():
            raise FloatingPointError(f"loss is {loss.item()} at step {progress.step}")
        loss.backward()
        for full_rate, optimizer in zip(full_rates, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = full_rate * rate(progress.step, config)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.images_seen += len(views)
        average.update({"network": network}, progress.step)
        is_last = progress.step == config.steps
        if is_last or progress.step % config.log_every == 0:
            run.log("train", progress, {"loss": loss.item()})
        if is_last or progress.step % config.evaluate_every == 0:
            run.log("held_out", progress, measure(averaged(average, config), held))
        if run.checkpoint_due(progress.step, config.steps):
            run.save("checkpoint", {
                "network": network.state_dict(), "head": head.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "average": average.weights, "progress": asdict(progress),
            })  # fmt: skip
    return averaged(average, config)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on, and export to `recognizer.onnx` in the run folder."""
    arguments = program_arguments(RecognizerConfig, __doc__ or "", argv)
    if arguments.dry_run:
        return 0
    config = arguments.config
    torch.set_num_threads(config.num_threads)
    run = TrainingRun(arguments.out, config)
    seen, held = split_people(load_faces(data_file(config.faces, "IDGEN_FACES", "faces_train.parquet")))
    network = train(run, config, seen, held)
    export_recogniser(Mirrored(network), arguments.out / "recognizer.onnx")
    print(f"saved {arguments.out / 'recognizer.onnx'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
