"""Distil mini's recogniser from a teacher.

    python train/distill.py --config train/configs/distill.yaml --out runs/distill

The student, a small plain ResNet, learns to put a face where the teacher puts it. Its pictures are views of
the training faces (mirrored, jittered, blended with another face), each labelled by the teacher itself; the
student sees a darker, bluer, blurred or much smaller copy of what the teacher saw, and is asked for the same
answer. What is exported looks at a face and at its mirror image.

Goes on from the checkpoint in the run folder. At the end `rec_mini.onnx` and `student.pt` lie there.

Shapes: B batch, D embedding width, C channels, H height, W width. Views are RGB in [0, 1].
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgen.config import program_arguments
from idgen.data.images import FaceTable, load_faces, split_people
from idgen.data.places import data_file
from idgen.data.views import CROP_PX, ViewConfig, blend, degrade, jittered_views
from idgen.errors import ConfigError
from idgen.pixels import to_pixel_values
from idgen.recognition.backbone import SmallResNet, Symmetric
from idgen.recognition.export import export_recogniser
from idgen.recognition.muon import Muon
from idgen.recognition.validation import embed_rows, held_out_numbers
from idgen.recognition.whitening import whitening
from idgen.training import MovingAverage, Progress, TrainingRun, reduced_precision


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    faces: Path | None = None  # Parquet; faces_train.parquet in the folder IDGEN_FACES if not given
    teacher: Path | None = (
        None  # ONNX, RGB 0..255 -> unit embedding; or teacher_recognizer.onnx in IDGEN_WEIGHTS
    )
    teacher_maps: tuple[str, ...] = ()  # tensors inside the teacher that the student's maps have to predict
    seed: int = 0
    steps: int = 3000
    batch_size: int = 96
    chunk_batches: int = 4  # so many batches of views are labelled by the teacher at once ...
    chunk_repeats: int = 2  # ... and each is used so often, degraded in another way
    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: tuple[int, ...] = (1, 2, 2)
    head_width: int = 512
    muon_rate: float = 0.02
    adam_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 60
    ema_decay: float = 0.998
    map_weight: float = 0.5
    relation_weight: float = 2.0
    whitening_exponent: float = 0.25
    whitening_shrinkage: float = 0.2
    whitening_pictures: int = 8  # a person at most
    num_threads: int = 1
    bfloat16: bool = True
    log_every: int = 20
    evaluate_every: int = 300
    save_every: int = 250
    views: ViewConfig = field(default_factory=ViewConfig)

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.widths) - 1:
            raise ConfigError(f"widths must name the stem and {len(self.blocks)} stages, got {self.widths}")
        if any(width % 16 for width in self.widths):
            # torch 2.13 damages memory in the backward pass of channels_last layers of 4 or 8 channels
            raise ConfigError(f"widths must be multiples of 16, got {self.widths}")
        if min(self.steps, self.batch_size, self.chunk_batches, self.chunk_repeats) < 1:
            raise ConfigError("steps, batch_size, chunk_batches and chunk_repeats must be at least 1")


class Predictors(nn.Module):
    """1x1 convolutions from the student's maps to the teacher's of the same size; for training only."""

    def __init__(self, widths: tuple[int, ...], shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        sides = [CROP_PX // 2 ** (i + 1) for i in range(len(widths))]
        if unknown := [shape for shape in shapes if shape[-1] not in sides]:
            raise ConfigError(
                f"teacher_maps must be {sides} pixels wide, as the student's are, got {unknown}"
            )
        self.stage_of = [sides.index(shape[-1]) for shape in shapes]
        pairs = zip(self.stage_of, shapes, strict=True)
        self.layers = nn.ModuleList([nn.Conv2d(widths[stage], shape[0], 1) for stage, shape in pairs])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One prediction for every map of the teacher."""
        return [layer(maps[stage]) for layer, stage in zip(self.layers, self.stage_of, strict=True)]


class Teacher:
    """A recogniser in ONNX that also shows some of its inner maps."""

    def __init__(self, path: Path, maps: tuple[str, ...], num_threads: int) -> None:
        import onnxruntime

        model = onnx.load(path)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in maps)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, views: Tensor) -> list[Tensor]:
        """(B, 3, 112, 112) in [0, 1] -> [embedding (B, D), maps (B, C, H, W)...]."""
        pixels = np.ascontiguousarray((views * 255).numpy())
        return [
            torch.from_numpy(np.asarray(output)) for output in self._session.run(None, {self._input: pixels})
        ]


def batches(
    table: FaceTable, teacher: Teacher, config: Config, first_step: int
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Degraded views with the teacher's answers to the clean ones, for every step from ``first_step`` on.

    They depend on (seed, step) alone, so a run that was interrupted sees what it would have seen.
    """
    per_chunk = config.chunk_batches * config.chunk_repeats
    for chunk in range(first_step // per_chunk, math.ceil(config.steps / per_chunk)):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + chunk)
        num_views = config.chunk_batches * config.batch_size
        rows = torch.randint(len(table), (num_views,), generator=generator).numpy()
        images = torch.from_numpy(table.images[rows]).permute(0, 3, 1, 2).float() / 255
        views = jittered_views(images, config.views, generator)
        views = blend(views, config.views.blend_share, generator)
        parts = [teacher(part) for part in views.split(config.batch_size)]
        answers = [torch.cat(answer) for answer in zip(*parts, strict=True)]
        order = torch.cat(
            [torch.randperm(num_views, generator=generator) for _ in range(config.chunk_repeats)]
        )
        for i, index in enumerate(order.split(config.batch_size)):
            degraded = degrade(views[index], config.views, generator)
            if chunk * per_chunk + i >= first_step:
                yield degraded, [answer[index] for answer in answers]


def objective(
    embedding: Tensor, maps: list[Tensor], answers: list[Tensor], config: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scalar to minimise, and its named terms.

    distance: one minus the cosine to the teacher's embedding. relation: squared error of all cosines within
    the batch (relational distillation, Park et al. 2019). maps: the share of the variance of each channel of
    the teacher's maps that is left unexplained (hints, Romero et al. 2015).
    """
    target = F.normalize(answers[0], dim=1)
    unit = F.normalize(embedding.float(), dim=1)
    distance = 1 - (unit * target).sum(dim=1).mean()
    relation = (unit @ unit.T - target @ target.T).square().mean()
    unexplained = torch.zeros(())
    for predicted, wanted in zip(maps, answers[1:], strict=True):
        error = (predicted.float() - wanted).square().mean(dim=(0, 2, 3))
        unexplained = unexplained + (error / wanted.var(dim=(0, 2, 3)).clamp_min(1e-6)).mean() / len(maps)
    loss = distance + config.relation_weight * relation + config.map_weight * unexplained
    terms = {"distance": distance, "relation": relation, "maps": unexplained}
    return loss, {name: term.detach() for name, term in terms.items()}


def rate(step: int, config: Config) -> float:
    """Share of the full learning rates at a step: linear start, then a cosine down to 1 %."""
    start = min(1.0, (step + 1) / config.warmup_steps)
    return start * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


class Distillation:
    """Student, optimisers and progress: what a checkpoint holds."""

    def __init__(self, config: Config, dim: int, map_shapes: list[tuple[int, ...]]) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.student = SmallResNet(config.widths, config.blocks, config.head_width, dim)
        self.predictors = Predictors(config.widths, map_shapes)
        self.student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.average = MovingAverage({"student": self.student}, config.ema_decay)
        matrices = self.student.matrices()
        chosen = {id(p) for p in matrices}
        rest = [*self.student.parameters(), *self.predictors.parameters()]
        rest = [p for p in rest if id(p) not in chosen]
        adam = torch.optim.AdamW(rest, config.adam_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99))
        self.optimizers = [Muon(matrices, config.muon_rate), adam]
        self.full_rates = [config.muon_rate, config.adam_rate]
        self.progress = Progress()

    def step(self, views: Tensor, answers: list[Tensor]) -> dict[str, float]:
        """One update; the named terms of its loss."""
        pixel_values = to_pixel_values(views).contiguous(memory_format=torch.channels_last)
        with reduced_precision(torch.device("cpu"), wanted=self.config.bfloat16):
            maps = self.student.maps(pixel_values)
            predicted = self.predictors(maps)
            embedding = self.student.head(maps[-1])
        loss, terms = objective(embedding, predicted, answers, self.config)
        values = {name: value.item() for name, value in terms.items()}
        if not loss.isfinite():
            raise FloatingPointError(f"loss is {loss.item()} at step {self.progress.step}: {values}")
        loss.backward()
        for full_rate, optimizer in zip(self.full_rates, self.optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = full_rate * rate(self.progress.step, self.config)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.images_seen += len(views)
        self.average.update({"student": self.student}, self.progress.step)
        return values

    def averaged(self) -> SmallResNet:
        """The student with averaged weights, for evaluation and export."""
        config = self.config
        student = SmallResNet(config.widths, config.blocks, config.head_width, self.student.dim)
        student.load_state_dict(self.average.of("student"))
        return student.eval().requires_grad_(False)

    def state(self) -> dict[str, object]:
        """Everything a run needs to go on."""
        return {
            "student": self.student.state_dict(),
            "predictors": self.predictors.state_dict(),
            "average": self.average.weights,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
        }

    def load(self, state: dict) -> None:
        """Go on where ``state`` was taken."""
        self.student.load_state_dict(state["student"])
        self.predictors.load_state_dict(state["predictors"])
        self.average.weights = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])


def evaluate(student: nn.Module, table: FaceTable, targets: Tensor, config: Config) -> dict[str, float]:
    """Cosine to the teacher, and accuracy on pairs, of people that the training does not see."""
    embedding = F.normalize(
        embed_rows(student, table, np.arange(len(table)), bfloat16=config.bfloat16), dim=1
    )
    return {
        "cosine": (embedding * targets).sum(dim=1).mean().item(),
        "accuracy": held_out_numbers(embedding.numpy(), table)["accuracy"],
    }


@torch.no_grad()
def whiten(student: SmallResNet, table: FaceTable, config: Config) -> None:
    """Build into the last layer what makes pictures of one person vary less than people do."""
    people = [rows[: config.whitening_pictures] for rows in table.people().values() if len(rows) > 1]
    embedding = embed_rows(Symmetric(student), table, np.concatenate(people), bfloat16=config.bfloat16)
    owner = torch.repeat_interleave(torch.tensor([len(rows) for rows in people]))
    centre, matrix = whitening(
        embedding, owner, exponent=config.whitening_exponent, shrinkage=config.whitening_shrinkage
    )
    last = student.head[-1]
    assert isinstance(last, nn.Linear)
    last.bias.copy_(matrix @ (last.bias - centre))
    last.weight.copy_(matrix @ last.weight)


def teacher_of(table: FaceTable, teacher: Teacher, config: Config) -> Tensor:
    """The teacher's embeddings (N, D) of a whole table."""
    parts = np.array_split(np.arange(len(table)), 1 + len(table) // config.batch_size)
    return torch.cat([teacher(table.crops(rows))[0] for rows in parts])


def train(task: Distillation, teacher: Teacher, seen: FaceTable, held: FaceTable, run: TrainingRun) -> None:
    """The loop, from wherever the run stands to its last step."""
    config, progress = task.config, task.progress
    targets = teacher_of(held, teacher, config)
    for views, answers in batches(seen, teacher, config, progress.step):
        if progress.step >= config.steps:
            break
        terms = task.step(views, answers)
        is_last = progress.step == config.steps
        if is_last or progress.step % config.log_every == 0:
            run.log("train", progress, terms)
        if is_last or progress.step % config.evaluate_every == 0:
            run.log("held_out", progress, evaluate(Symmetric(task.averaged()), held, targets, config))
        if is_last or progress.step % config.save_every == 0:
            run.save("checkpoint", task.state())


def main(argv: list[str] | None = None) -> None:
    """Build, train, export."""
    arguments = program_arguments(Config, "Distil mini's recogniser from a teacher.", argv)
    config = arguments.config
    if arguments.dry_run:
        return
    torch.set_num_threads(config.num_threads)
    run = TrainingRun(arguments.out, config)
    seen, held = split_people(load_faces(data_file(config.faces, "IDGEN_FACES", "faces_train.parquet")))
    path = data_file(config.teacher, "IDGEN_WEIGHTS", "teacher_recognizer.onnx")
    teacher = Teacher(path, config.teacher_maps, config.num_threads)
    shapes = [tuple(answer.shape[1:]) for answer in teacher(held.crops([0]))]
    task = Distillation(config, shapes[0][0], shapes[1:])
    if state := run.load("checkpoint"):
        task.load(state)
    train(task, teacher, seen, held, run)
    student = task.averaged()
    whiten(student, seen, config)
    targets = teacher_of(held, teacher, config)
    run.log("whitened", task.progress, evaluate(Symmetric(student), held, targets, config))
    run.save("student", student.state_dict())
    export_recogniser(Symmetric(student), arguments.out / "rec_mini.onnx")


if __name__ == "__main__":
    main()
