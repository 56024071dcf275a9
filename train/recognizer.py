r"""Train a face recogniser on labelled people.

    idgen train recognizer --config train/configs/recognizer.yaml --data DATASET --out RUN
    idgen train recognizer --config train/configs/recognizer.yaml --data DATASET --out RUN \
        --set head=adaface --set pairs=pairs.csv --set pairs_pictures=faces.parquet
    idgen train recognizer --config train/configs/judge.yaml --out runs/judge

A tenth of the people is set aside: on pairs of them the best weights are chosen. The pairs of `pairs` are
looked at once, after training. The run folder receives best and last as ONNX (insightface and idgen open
it), safetensors and .pt (as insightface's arcface_torch saves backbones), and result.json. With judge.yaml
the last one is mini's judge: the second eye, which learned from the names of people alone and never from the
recogniser that conditions. Goes on from the last checkpoint in the run folder; views depend on (seed, step)
alone.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgen.config import program_arguments
from idgen.data.images import FaceTable
from idgen.data.pairs import folds_of, read_pairs
from idgen.data.pictures import Picture
from idgen.data.places import data_file
from idgen.data.sampler import PersonSampler
from idgen.data.views import ViewConfig, degrade, erase, jittered_views
from idgen.encoders.arcface import onnx_encoder
from idgen.errors import ConfigError, IdgenError, TrainingError
from idgen.pixels import to_pixel_values
from idgen.recognition import corpus, validation
from idgen.recognition.export import Stored, export_recogniser, export_similarity
from idgen.recognition.heads import build_head
from idgen.recognition.networks import build_backbone, read_backbone, write_backbone
from idgen.recognition.optimize import Schedule, muon_and_adam, rate_share, sgd
from idgen.recognition.partial import PartialHead
from idgen.recognition.squeeze import Mirrored
from idgen.storage import write_json
from idgen.synth.export.reading import open_labelled
from idgen.training import (
    MovingAverage,
    Progress,
    TrainingRun,
    batch_rows,
    reduced_precision,
    step_generator,
)

MAX_SEED = 2**43  # a seed times 1,000,003 is still one that torch takes


@dataclass(frozen=True, kw_only=True)
class RecognizerConfig:
    """Everything that decides a run."""

    data: tuple[Path, ...] | Path | None = None  # datasets; faces_train.parquet of IDGEN_FACES if not given
    detector: str = "mini"  # finds faces in pictures that are not 112 or 128 pixels square
    realign: bool = False  # look for faces in those too
    leave_out_singles: bool = False  # people with one picture
    match_histogram: Path | None = None  # keep as many pictures a person as this dataset has
    shuffle_identities: bool = False  # names permuted among the training pictures: a control
    pairs: Path | None = None  # measured once, at the end; as in `idgen evaluate verification`
    pairs_pictures: Path | None = None
    seed: int = 0
    device: str = "cpu"  # auto, cpu, cuda, cuda:N
    backbone: str = "squeezenet"
    dim: int = 128
    widths: tuple[int, ...] | None = None  # the backbone's own if not given, and so are the next two
    blocks: tuple[int, ...] | None = None
    dropout: float | None = None
    start: Path | None = None  # weights of the backbone to begin with
    mirrored: bool = False  # the exported network looks at the mirror image of a face too
    head: str = "cosface"
    margin: float | None = None  # the head's own if not given, and so is the scale
    scale: float | None = None
    margin_from: float = 0.3  # share of the steps over which the margin grows from nothing; 0: it is whole
    centre_share: float = 1.0  # of the people take part in a step
    steps: int = 3000
    epochs: int | None = None  # in place of steps
    batch_size: int = 128
    pictures_each: int = 1  # of a person in a batch; 1 draws pictures whoever they show
    erase_share: float = 0.3  # of the views lose a rectangle
    degraded: bool = True  # other light and colour, noise, small sizes; else views are cut, mirrored, erased
    views: ViewConfig = field(default_factory=ViewConfig)
    optimizer: Literal["muon", "sgd"] = "muon"
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    weight_decay: float = 0.05  # of AdamW
    sgd_rate: float = 0.1
    sgd_momentum: float = 0.9
    sgd_decay: float = 5e-4
    clip: float | None = None  # highest norm of the backbone's gradient
    schedule: Schedule = "cosine"
    drops: tuple[float, ...] = ()  # shares of the steps at which the schedule "steps" falls to a tenth
    warmup_steps: int = 100
    ema_decay: float = 0.998
    num_threads: int = 1
    log_every: int = 20
    evaluate_every: int = 300
    stored: Stored = "float32"  # weights in the ONNX files

    def __post_init__(self) -> None:
        for name in ("dim", "steps", "batch_size", "pictures_each", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"epochs must be at least 1, got {self.epochs}")
        if self.batch_size < 2 or self.batch_size % self.pictures_each:
            raise ConfigError(
                f"batch_size must be at least 2 and a multiple of pictures_each ({self.pictures_each}), "
                f"got {self.batch_size}"
            )
        for name in ("erase_share", "margin_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("muon_rate", "adam_rate", "sgd_rate", "weight_decay", "sgd_decay", "warmup_steps"):
            value, least = getattr(self, name), "positive" if name.endswith("_rate") else "from 0 up"
            if not 0 <= value < math.inf or (least == "positive" and not value):
                raise ConfigError(f"{name} must be {least} and finite, got {value}")
        if not 0 <= self.seed < MAX_SEED:
            raise ConfigError(f"seed must be from 0 to {MAX_SEED - 1}, got {self.seed}")
        if (self.schedule == "steps") != bool(self.drops) or not all(0 < drop < 1 for drop in self.drops):
            raise ConfigError(
                "drops are shares of the steps, in (0, 1), for schedule: steps alone; "
                f"got {list(self.drops)} and {self.schedule}"
            )
        if not 0 <= self.ema_decay < 1 or not 0 <= self.sgd_momentum < 1:
            raise ConfigError("ema_decay and sgd_momentum must be in [0, 1)")
        if (self.clip is not None and not 0 < self.clip < math.inf) or self.num_threads < 1:
            raise ConfigError("clip must be positive and num_threads at least 1")
        has_pictures = self.pairs is not None and self.pairs.suffix == ".bin"  # of insightface: holds them
        if (self.pairs is None or has_pictures) != (self.pairs_pictures is None):
            raise ConfigError(
                "pairs_pictures says where the pictures of pairs lie: give both, or pairs alone as a .bin; "
                f"got {self.pairs} and {self.pairs_pictures}"
            )

    @property
    def sources(self) -> list[Path]:
        """The datasets."""
        if isinstance(self.data, tuple):
            return list(self.data)
        return [data_file(self.data, "IDGEN_FACES", "faces_train.parquet")]


def make_batch(
    table: FaceTable, person: np.ndarray, config: RecognizerConfig, step: int, sampler: PersonSampler | None
) -> tuple[Tensor, Tensor]:
    """Views (B, 3, 112, 112) in [0, 1] of step ``step`` and the number of the person in each, (B,)."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    rows = sampler.rows(step) if sampler else batch_rows(len(table), config.batch_size, step, config.seed)
    images = torch.from_numpy(table.images[rows]).permute(0, 3, 1, 2).float() / 255
    views = jittered_views(images, config.views, generator)
    if config.degraded:
        views = degrade(views, config.views, generator)
    return erase(views, config.erase_share, generator), torch.from_numpy(person[rows])


def build_network(config: RecognizerConfig) -> nn.Module:
    """The network with random weights."""
    return build_backbone(
        config.backbone, dim=config.dim, widths=config.widths, blocks=config.blocks, dropout=config.dropout
    )


def head_of(config: RecognizerConfig, num_people: int) -> nn.Module:
    """The head, which is thrown away after training."""
    head = build_head(config.head, config.dim, num_people, margin=config.margin, scale=config.scale)
    return head if config.centre_share == 1 else PartialHead(head, config.centre_share)


def optimizers_of(
    network: nn.Module, head: nn.Module, config: RecognizerConfig
) -> list[torch.optim.Optimizer]:
    """With their full rates."""
    if config.optimizer == "sgd":
        return sgd(network, head, rate=config.sgd_rate, momentum=config.sgd_momentum, decay=config.sgd_decay)
    return muon_and_adam(
        network, head, muon_rate=config.muon_rate, adam_rate=config.adam_rate, decay=config.weight_decay
    )


def finished(weights: dict[str, Tensor], config: RecognizerConfig) -> nn.Module:
    """The network with these weights, for evaluation and export."""
    network = build_network(config)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def exported(network: nn.Module, config: RecognizerConfig) -> nn.Module:
    """What the ONNX files compute."""
    return Mirrored(network) if config.mirrored else network


def measure(network: nn.Module, held: FaceTable, config: RecognizerConfig) -> dict[str, float]:
    """The numbers of `idgen evaluate verification` on pairs of people whom the training does not see."""
    embedding = validation.embed_rows(exported(network, config), held, np.arange(len(held)), bfloat16=True)
    return validation.held_out_numbers(F.normalize(embedding, dim=1).numpy(), held)


def check(config: RecognizerConfig) -> None:
    """Refuse settings that do not go together, before anything is read."""
    with torch.device("meta"):  # no memory, no time
        network, head = build_network(config), head_of(config, 2)
        optimizers_of(network, head, config)
    if head.needs_pairs and config.pictures_each < 2:
        raise ConfigError(
            f"the head {config.head} compares pictures of a person: pictures_each must be at least 2, got 1"
        )
    if config.start is not None:
        read_backbone(build_network(config), config.start)
    if config.pairs is not None:
        folds_of(read_pairs(config.pairs, config.pairs_pictures))


def material(
    run: TrainingRun, config: RecognizerConfig, pictures: Sequence[Picture], counts: Sequence[int]
) -> tuple[FaceTable, FaceTable]:
    """Pictures to train on, and those of the people set aside; data.json says how many there are.

    Args:
        run: whose folder keeps what was found.
        config: the run's.
        pictures: all of them.
        counts: how many the people are to have; nothing for all they have.
    """
    table, lost = corpus.labelled_faces(
        pictures, detector=config.detector, store=run.folder / "seen", realign=config.realign
    )
    seen, held = corpus.split_sources(table, len(config.sources))
    del table  # else the pictures are in memory three times over while some are chosen
    seen = corpus.choose(seen, corpus.Choice(
        pictures_like=counts, leave_out_singles=config.leave_out_singles,
        shuffle_identities=config.shuffle_identities, seed=config.seed,
    ))  # fmt: skip
    number = {"pictures": len(seen), "people": len(seen.people()), "held_out_pictures": len(held),
              "held_out_people": len(held.people()), "without_face": len(lost)}  # fmt: skip
    if counts:
        number |= {"pictures_wanted": sum(counts), "people_wanted": len(counts)}
    corpus.keep_data(run.folder / "data.json", {**number, "names_without_face": lost}, (seen, held))
    validation.write_held_out_pairs(run.folder / "held_out_pairs.csv", held)  # refuses too few people
    print("data  " + "  ".join(f"{name} {count}" for name, count in number.items()), flush=True)
    return seen, held


def sampler_of(
    seen: FaceTable, person: np.ndarray, head: nn.Module, config: RecognizerConfig
) -> PersonSampler | None:
    """Who draws batches of several pictures a person; None where pictures are drawn whoever they show."""
    if config.pictures_each == 1:
        return None
    singles = int((np.bincount(person) == 1).sum())
    if head.needs_pairs and singles:
        raise ConfigError(
            f"{singles} of {person.max() + 1} people have one picture, and the head {config.head} compares "
            "pictures of a person: leave_out_singles: true leaves them out"
        )
    people = config.batch_size // config.pictures_each
    return PersonSampler(person, people=people, pictures=config.pictures_each, seed=config.seed)


def train(
    run: TrainingRun, config: RecognizerConfig, seen: FaceTable, held: FaceTable
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Fit the network; the averaged weights at the end, and step and accuracy of the best ones."""
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    names, person = np.unique(seen.identities, return_inverse=True)
    network = build_network(config).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    head = head_of(config, len(names))
    if config.start is not None:
        read_backbone(network, config.start)
    network, head = network.to(device), head.to(device)
    sampler = sampler_of(seen, person, head, config)
    optimizers = optimizers_of(network, head, config)
    full_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    average, progress = MovingAverage({"network": network}, config.ema_decay), Progress()
    best = {"step": 0, "accuracy": -1.0}
    if state := run.load("checkpoint"):
        network.load_state_dict(state["network"])
        head.load_state_dict(state["head"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average.weights = {name: value.to(device) for name, value in state["average"].items()}
        progress, best = Progress(**state["progress"]), state["best"]
    for name in ("train", "held_out"):
        run.rewind(name, progress.step)

    while progress.step < config.steps:
        step = progress.step
        torch.manual_seed(step_generator(config.seed, step).initial_seed())  # of dropout, centres and miners
        views, label = make_batch(seen, person, config, step, sampler)
        pixel_values = to_pixel_values(views).contiguous(memory_format=torch.channels_last).to(device)
        with reduced_precision(device):
            embedding = network(pixel_values)
        rise = config.margin_from * config.steps
        strength = min(1.0, step / rise) if rise else 1.0
        loss = head(embedding, label.to(device), strength).mean()
        if not loss.isfinite():
            raise TrainingError(f"loss is {loss.item()} at step {step}; try a smaller rate or margin")
        loss.backward()
        if config.clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        share = rate_share(step, config.steps, schedule=config.schedule, warmup_steps=config.warmup_steps,
                           drops=config.drops)  # fmt: skip
        for full_rate, optimizer in zip(full_rates, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = full_rate * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.images_seen += len(views)
        average.update({"network": network}, progress.step)
        is_last = progress.step == config.steps
        if is_last or progress.step % config.log_every == 0:
            run.log("train", progress, {"loss": loss.item()})
        if is_last or progress.step % config.evaluate_every == 0:
            said = measure(finished(average.of("network"), config).to(device), held, config)
            run.log("held_out", progress, said)
            if said["accuracy"] > best["accuracy"]:
                best = {"step": progress.step, **said}
                run.save("best", average.of("network"))
        if run.checkpoint_due(progress.step, config.steps):
            run.save("checkpoint", {
                "network": network.state_dict(), "head": head.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "average": average.weights, "progress": asdict(progress), "best": best,
            })  # fmt: skip
    return average.of("network"), best


def export(
    run: TrainingRun, name: str, weights: dict[str, Tensor], held: FaceTable, config: RecognizerConfig
) -> dict[str, Any]:
    """Write ``<name>.onnx`` and ``<name>.safetensors``; what they measure on the pairs, once."""
    network, path = finished(weights, config), run.folder / f"{name}.onnx"
    write_backbone(network, path.with_suffix(".safetensors"), {
        "backbone": config.backbone, "dim": str(config.dim), "input": "RGB (x - 127.5) / 127.5, 112 x 112",
    })  # fmt: skip
    whole = exported(network, config).eval()
    export_recogniser(whole, path, config.stored)
    least, mean = export_similarity(path, whole, to_pixel_values(held.crops(np.arange(min(64, len(held))))))
    result: dict[str, Any] = {"cosine_to_network": {"least": least, "mean": mean}}
    if config.pairs is not None:
        pairs = read_pairs(config.pairs, config.pairs_pictures)
        result["pairs"] = validation.verify_pairs(
            onnx_encoder(path), pairs, detector=config.detector, store=run.folder / "seen"
        )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on, and export."""
    arguments = program_arguments(
        RecognizerConfig,
        __doc__ or "",
        argv,
        settings={"data": "dataset of any format: folder of people, Parquet, WebDataset, RecordIO, LMDB"},
    )
    if arguments.dry_run:
        return 0
    config: RecognizerConfig = arguments.config
    torch.set_num_threads(config.num_threads)
    if config.device != "cpu":
        from idgen.opening import choose_device  # imports the pipelines

        config = replace(config, device=choose_device(config.device))
    TrainingRun.check(arguments.out, config)
    check(config)
    pictures = corpus.read_sources(config.sources, open_labelled)
    counts = corpus.histogram_of(config.match_histogram, open_labelled) if config.match_histogram else []
    run = TrainingRun(arguments.out, config)
    try:
        seen, held = material(run, config, pictures, counts)
        if config.epochs is not None:
            config = replace(config, steps=config.epochs * -(-len(seen) // config.batch_size))
        last, best = train(run, config, seen, held)
    except IdgenError:
        run.abandon()
        raise
    run.save("last", last)
    result: dict[str, Any] = {"best": best, "last": {"step": config.steps}}
    for name in ("best", "last"):
        weights = run.load(name)
        assert weights is not None
        result[name] |= export(run, name, weights, held, config)
    write_json(run.folder / "result.json", result)
    for name, found in result.items():
        accuracy = f", pairs {found['pairs']['accuracy']:.4f}" if "pairs" in found else ""
        print(f"{name}: step {found['step']}{accuracy}; saved {run.folder / name}.onnx")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
