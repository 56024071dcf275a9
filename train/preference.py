"""Train the preference model: photographs of faces against their distorted copies.

    python train/preference.py --config train/configs/preference.yaml --out runs/preference

Nobody is asked what is beautiful: a photograph is better than itself distorted. Both members of a pair have
the same resolution, so that a small picture is not a bad one. Goes on from the last checkpoint in the run
folder; batches depend on (seed, step) alone.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from idgen.config import program_arguments
from idgen.data.images import FaceTable, load_faces, split_people
from idgen.data.places import data_file
from idgen.data.views import ViewConfig, jittered_views
from idgen.errors import ConfigError, TrainingError
from idgen.preference.distort import DISTORTIONS, Distortion, resample
from idgen.preference.model import (
    CROP_PX,
    PreferenceModel,
    folded,
    preference_loss,
    score_of,
    write_preference,
)
from idgen.preference.ranking import SIDES_PX, at_side, mean_score, shares_of_people, to_input
from idgen.training import MovingAverage, Progress, TrainingRun, batch_rows, step_generator

STILL = ViewConfig(max_rotation_deg=0.0, max_scale=0.0, max_shift_px=0.0)
CARELESS = ViewConfig(max_rotation_deg=4.0, max_scale=0.05, max_shift_px=2.5)


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Everything that decides a run."""

    faces: Path | None = None  # Parquet; faces_train.parquet in the folder IDGEN_FACES if not given
    seed: int = 0
    steps: int = 1600
    groups: int = 4  # of photographs in a batch; each has a resolution of its own
    group_size: int = 4
    copies: int = 3  # kinds of distortion that each photograph meets in a step
    careless_share: float = 0.35  # of the groups are cut as by a careless detector
    min_side_px: int = 56  # of the crop: a whole picture of 64 pixels
    dealt_twice: tuple[str, ...] = ("eye", "halo")  # ranked worst by a model that met all equally often
    min_strength: float = 0.6  # of the distortions, log-uniform; 1 is what is tested
    max_strength: float = 1.6
    others_weight: float = 0.3  # of the pairs of a photograph and the copy of another one
    widths: tuple[int, ...] = (32, 32, 64, 96)
    num_blocks: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    ema_decay: float = 0.998
    num_threads: int = 1
    log_every: int = 20
    evaluate_every: int = 800
    evaluate_pictures: int = 64  # of people set aside, while it trains

    def __post_init__(self) -> None:
        if any(width % 32 for width in self.widths):
            # torch 2.13 damages memory in the backward pass of channels_last layers of 4 or 8 channels
            raise ConfigError(f"widths must be multiples of 32, got {self.widths}")
        if not 8 <= self.min_side_px <= CROP_PX:
            raise ConfigError(f"min_side_px must be in [8, {CROP_PX}], got {self.min_side_px}")
        if self.group_size < 2 or self.groups < 2 or self.copies < 1:
            raise ConfigError(
                "two groups of two photographs with one copy each are the least that can be compared"
            )
        if unknown := set(self.dealt_twice) - set(DISTORTIONS):
            raise ConfigError(f"dealt_twice names no kind of distortion: {', '.join(sorted(unknown))}")
        if not 0 < self.min_strength <= self.max_strength:
            raise ConfigError(
                f"0 < min_strength <= max_strength is needed, got {self.min_strength}, {self.max_strength}"
            )


def kinds_of(config: PreferenceConfig, generator: torch.Generator) -> list[list[Distortion]]:
    """The kinds that each group meets: warps for every second group, the others for the rest.

    A group has one better member for all its kinds, which warps need resampled.
    """
    dealt: list[list[Distortion]] = []
    for is_warp in (False, True):
        names = [*DISTORTIONS, *config.dealt_twice]
        kinds = [DISTORTIONS[name] for name in names if DISTORTIONS[name].is_warp == is_warp]
        num_groups = len(range(int(is_warp), config.groups, 2))
        order = torch.cat([torch.randperm(len(kinds), generator=generator) for _ in range(config.copies)])
        order = order.repeat(num_groups)[: num_groups * config.copies]
        dealt += [[kinds[k] for k in part] for part in order.split(config.copies)]
    return dealt


def drawn_side(config: PreferenceConfig, draw: float) -> int:
    """The resolution of a group, from a number in [0, 1): in 2 of 5 the smallest, in 1 the largest.

    The small ones are mini's, and there is least to see in them.
    """
    spread = min(max((draw - 0.4) / 0.4, 0.0), 1.0)
    return config.min_side_px + round(spread * (CROP_PX - config.min_side_px))


def make_batch(table: FaceTable, config: PreferenceConfig, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is compared in step ``step``.

    Returns:
        The photographs (G, P, 3, 112, 112), their distorted copies (G, K, P, 3, 112, 112), and the numbers
        of the distortions (G, K).
    """
    generator = step_generator(config.seed, step)
    rows = batch_rows(len(table), config.groups * config.group_size, step, config.seed)
    images = torch.from_numpy(table.images[rows]).permute(0, 3, 1, 2).float() / 255
    better, worse, dealt = [], [], kinds_of(config, generator)
    for photos, kinds in zip(images.split(config.group_size), dealt, strict=True):
        draw = torch.rand(2, generator=generator).tolist()
        side = drawn_side(config, draw[0])
        views = CARELESS if draw[1] < config.careless_share else STILL
        crops = at_side(jittered_views(photos, views, generator), side)
        photo, shift = resample(crops, generator) if kinds[0].is_warp else (crops, None)
        better.append(to_input(photo))
        span = math.log(config.max_strength / config.min_strength)
        strengths = config.min_strength * (span * torch.rand(len(kinds), generator=generator)).exp()
        copies = [
            to_input(kind(crops, generator, strength, shift=shift))
            for kind, strength in zip(kinds, strengths.tolist(), strict=True)
        ]
        worse.append(torch.stack(copies))
    number = {name: i for i, name in enumerate(DISTORTIONS)}
    kind_numbers = torch.tensor([[number[kind.name] for kind in kinds] for kinds in dealt])
    return torch.stack(better), torch.stack(worse), kind_numbers


def objective(
    model: PreferenceModel, better: Tensor, worse: Tensor, kind: Tensor, others_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Bradley-Terry on the scores, and on the fault that a copy has.

    Besides its own copies a photograph meets those of others, so that scores compare across people.
    """
    num_better = better.shape[0] * better.shape[1]
    both = torch.cat([better.flatten(0, 1), worse.flatten(0, 2)])
    faults = model.faults(both.contiguous(memory_format=torch.channels_last))
    high = faults[:num_better].reshape(*better.shape[:2], -1)[:, None].expand(-1, worse.shape[1], -1, -1)
    low = faults[num_better:].reshape(*worse.shape[:3], -1)  # (G, K, P, kinds), as `high`
    chosen = kind[:, :, None, None].expand(*worse.shape[:3], 1)

    def loss_against(photo: Tensor) -> Tensor:
        fault = preference_loss(-photo.gather(-1, chosen), -low.gather(-1, chosen))
        return preference_loss(score_of(photo), score_of(low)).mean() + fault.mean()

    own = loss_against(high)
    # a neighbour in the same group shares the resolution, one of the next group has another
    others = (loss_against(high.roll(1, dims=2)) + loss_against(high.roll(1, dims=0))) / 2
    right = (score_of(high) > score_of(low)).float().mean()
    terms = {"loss": own.detach(), "others": others.detach(), "right": right}
    return own + others_weight * others, terms


def rate(step: int, config: PreferenceConfig) -> float:
    """Share of the full learning rate: a linear start, then a cosine down to 1 %."""
    start = min(1.0, (step + 1) / config.warmup_steps)
    return start * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def build_model(config: PreferenceConfig) -> PreferenceModel:
    """The model with random weights, as it is trained."""
    return PreferenceModel(config.widths, config.num_blocks, tuple(DISTORTIONS), normalise=True)


def averaged(
    average: MovingAverage, config: PreferenceConfig, reference_score: float = 0.0
) -> PreferenceModel:
    """The model with averaged weights and without normalisation, for evaluation and export."""
    model = build_model(config)
    model.load_state_dict(average.of("model"))
    return folded(model.eval(), reference_score)


def accuracies(model: nn.Module, held: FaceTable) -> dict[str, float]:
    """Share of pairs ranked right, a mean over people, for every kind and resolution."""
    return {
        f"{name} {side_px}": float(shares_of_people(model, held, kind, side_px).mean())
        for name, kind in DISTORTIONS.items()
        for side_px in SIDES_PX
    }


def train(run: TrainingRun, config: PreferenceConfig, seen: FaceTable, held: FaceTable) -> PreferenceModel:
    """Fit the model; returns it folded, with averaged weights and its reference score."""
    torch.manual_seed(config.seed)
    model = build_model(config).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    average, progress = MovingAverage({"model": model}, config.ema_decay), Progress()
    some = held.subset(np.random.default_rng(0).permutation(len(held))[: config.evaluate_pictures].tolist())
    if state := run.load("checkpoint"):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.weights, progress = state["average"], Progress(**state["progress"])
    for name in ("train", "held_out"):
        run.rewind(name, progress.step)

    while progress.step < config.steps:
        better, worse, kind = make_batch(seen, config, progress.step)
        loss, terms = objective(model, better, worse, kind, config.others_weight)
        if not loss.isfinite():
            raise TrainingError(f"the loss is {loss.item()} at step {progress.step}; lower the rates")
        loss.backward()
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate(progress.step, config)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.images_seen += better[:, :, 0, 0, 0].numel()
        average.update({"model": model}, progress.step)
        is_last = progress.step == config.steps
        if is_last or progress.step % config.log_every == 0:
            run.log("train", progress, {name: value.item() for name, value in terms.items()})
        if not is_last and progress.step % config.evaluate_every == 0:
            run.log("held_out", progress, accuracies(averaged(average, config), some))
        if run.checkpoint_due(progress.step, config.steps):
            run.save("checkpoint", {
                "model": model.state_dict(), "average": average.weights, "progress": asdict(progress),
                "optimizer": optimizer.state_dict(),
            })  # fmt: skip
    model = averaged(average, config, mean_score(averaged(average, config), held))
    run.log("held_out", progress, accuracies(model, held))
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on, and write `preference.safetensors` into the run folder."""
    arguments = program_arguments(PreferenceConfig, __doc__ or "", argv)
    if arguments.dry_run:
        return 0
    config = arguments.config
    torch.set_num_threads(config.num_threads)
    run = TrainingRun(arguments.out, config)
    seen, held = split_people(load_faces(data_file(config.faces, "IDGEN_FACES", "faces_train.parquet")))
    model = train(run, config, seen, held)
    write_preference(arguments.out / "preference.safetensors", model)
    print(f"saved {arguments.out / 'preference.safetensors'} (reference score {model.reference_score:.3f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
