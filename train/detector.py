"""Train mini's face detector.

    python train/detector.py --config train/configs/detector.yaml --out runs/detector

A teacher finds box and landmarks in aligned portraits; these are pasted, turned, scaled and spoiled, onto
pictures without faces. Scenes depend on (seed, step) alone, so a run that was interrupted goes on as if it
had not been.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from idgen.config import program_arguments
from idgen.data.backgrounds import background
from idgen.data.images import load_faces, split_people
from idgen.data.places import data_file
from idgen.data.scenes import (
    Placement,
    Portrait,
    agreed_portrait,
    ellipse_mask,
    paste,
    placed_box,
    placed_landmarks,
    square_mask,
)
from idgen.errors import ConfigError
from idgen.faces.scrfd_loss import detection_terms, targets
from idgen.faces.scrfd_net import DetectorNet, ScrfdOutputs
from idgen.faces.yunet import YunetDetector
from idgen.training import MovingAverage, Progress, TrainingRun, reduced_precision, store_halves

TEACHER_PX = (192, 256, 320, 448)  # a portrait of 128 with its margin, 1 to 2.3 times as large
Faces = tuple[Tensor, Tensor, Tensor]  # boxes (N, 4), landmarks (N, 5, 2), is_clear (N,)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Everything that decides a run."""

    seed: int = 0
    faces: Path | None = None  # a Parquet of portraits; by default faces_train.parquet of $IDGEN_FACES
    teacher: Path | None = None  # YuNet as ONNX; by default yunet.onnx of $IDGEN_WEIGHTS
    start: Path | None = None  # checkpoint.pt of another run, whose averaged weights this one starts from
    num_threads: int = 1
    width: int = 48
    neck_width: int = 32
    steps: int = 3000
    batch_size: int = 48  # of small scenes
    scene_px: int = 256
    large_every: int = 4  # every so many steps the scenes are twice as large and a quarter as many
    num_backgrounds: int = 400
    background_px: int = 640
    min_face_px: float = 14.0
    landmark_weight: float = 10.0  # 5 brings the three terms to about the same size
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    ema_decay: float = 0.998
    threshold: float = 0.5  # score from which on something is a face; 0.5 in the exported file
    save_every: int = 250
    log_every: int = 50

    def __post_init__(self) -> None:
        if self.scene_px % 32 or self.scene_px <= 0:
            raise ConfigError(f"scene_px must be a multiple of 32, got {self.scene_px}")
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold must be in (0, 1), got {self.threshold}")
        if self.background_px < 2 * self.scene_px:
            raise ConfigError(f"background_px must be at least {2 * self.scene_px}, got {self.background_px}")


def labelled(run: TrainingRun, config: DetectorConfig) -> list[Portrait]:
    """Portraits of the people to train on; the teacher's answers are kept in the run folder."""
    table = split_people(load_faces(data_file(config.faces, "IDGEN_FACES", "faces_train.parquet")))[0]
    kept = run.load("labels")
    if kept is None:
        path = data_file(config.teacher, "IDGEN_WEIGHTS", "yunet.onnx")
        teachers = [YunetDetector(path, size_px=size_px) for size_px in TEACHER_PX]
        answers = {row: agreed_portrait(image, teachers) for row, image in enumerate(table.images)}
        found = {row: portrait for row, portrait in answers.items() if portrait is not None}
        kept = {
            "rows": torch.tensor(list(found)),
            "boxes": torch.from_numpy(np.stack([p.box for p in found.values()])),
            "landmarks": torch.from_numpy(np.stack([p.landmarks for p in found.values()])),
        }
        run.save("labels", kept)
    columns = zip(*(kept[name].numpy() for name in ("rows", "boxes", "landmarks")), strict=True)
    return [Portrait(image=table.images[row], box=box, landmarks=marks) for row, box, marks in columns]


def random_mask(rng: np.random.Generator, portrait: Portrait) -> np.ndarray:
    """The whole picture or an oval around the face, hard or soft, so that no border gives a paste away."""
    size_px = len(portrait.image)
    if rng.random() < 0.5:
        return square_mask(size_px, feather_px=rng.choice([0, rng.uniform(2, 16)]))
    return ellipse_mask(
        size_px, portrait.box, grow=rng.uniform(1.0, 1.3), feather=rng.choice([0.02, rng.uniform(0.1, 0.4)])
    )


def random_placement(
    rng: np.random.Generator, portrait: Portrait, scene_px: int, min_face_px: float
) -> Placement:
    """Any size up to a face that fills the scene, sizes uniform in octaves, mostly upright."""
    face_px = math.exp(rng.uniform(math.log(min_face_px), math.log(scene_px * 1.05)))
    angle = rng.uniform(-30, 30) if rng.random() < 0.5 else rng.normal(0, 8)
    slack = 0.35 * face_px  # a face may stick out a little; one that fills the scene stays near its middle
    low, high = min(slack, scene_px / 2), max(scene_px - slack, scene_px / 2)
    centre = (rng.uniform(low, high), rng.uniform(low, high))
    return Placement(scale=face_px / portrait.size_px, angle_rad=math.radians(angle), centre=centre)


def compose(
    rng: np.random.Generator, scene: np.ndarray, portraits: list[Portrait], config: DetectorConfig
) -> Faces:
    """Paste no, one or several faces into ``scene``; they do not cover each other."""
    wanted = int(rng.choice([0, 1, 2, 3, 5], p=[0.2, 0.44, 0.16, 0.1, 0.1]))
    scene_px = len(scene)
    boxes, landmarks, clear = np.zeros((0, 4), np.float32), [], []
    for _ in range(wanted):
        portrait = portraits[rng.integers(len(portraits))]
        portrait = portrait.mirrored() if rng.random() < 0.5 else portrait
        minimum = config.min_face_px * scene_px / config.scene_px
        placement = random_placement(rng, portrait, scene_px, minimum)
        box = placed_box(portrait, placement)
        if any(touch(box, other) for other in boxes):
            continue
        paste(scene, portrait, placement, random_mask(rng, portrait))
        inside = np.clip(box, 0, scene_px - 1)
        visible = (inside[2:] - inside[:2]).prod() / (box[2:] - box[:2]).prod()
        boxes = np.concatenate([boxes, box[None]])
        landmarks.append(placed_landmarks(portrait, placement))
        clear.append(bool(visible > 0.6))
    points = np.stack(landmarks) if landmarks else np.zeros((0, 5, 2), np.float32)
    return torch.from_numpy(boxes), torch.from_numpy(points), torch.tensor(clear, dtype=torch.bool)


def touch(box: np.ndarray, other: np.ndarray) -> bool:
    """Whether two boxes, each with a third of its size around it, overlap."""
    reach = (box[2:] - box[:2] + other[2:] - other[:2]) / 2 * 1.33
    return bool((np.abs(box[:2] + box[2:] - other[:2] - other[2:]) / 2 < reach).all())


def cut(rng: np.random.Generator, source: np.ndarray, size_px: int) -> np.ndarray:
    """A square of a background, whole or at half the resolution, mirrored, turned over, colours exchanged."""
    factor = 2 if len(source) >= 2 * size_px and rng.random() < 0.5 else 1
    top, left = rng.integers(0, len(source) - factor * size_px + 1, 2)
    piece = source[top : top + factor * size_px : factor, left : left + factor * size_px : factor]
    piece = piece[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    return np.ascontiguousarray(piece[..., rng.permutation(3)] if rng.random() < 0.3 else piece)


def spoil(rng: np.random.Generator, scene: np.ndarray) -> np.ndarray:
    """Another sharpness, colour, light, noise and compression; (S, S, 3) uint8 in and out."""
    image = Image.fromarray(scene)
    if rng.random() < 0.25:
        small = max(32, int(len(scene) / rng.uniform(1.2, 3)))
        image = image.resize((small, small), Image.Resampling.BILINEAR).resize(
            image.size, Image.Resampling.BICUBIC
        )
    if rng.random() < 0.1:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2)))
    if rng.random() < 0.4:
        grey = image.convert("L").convert("RGB")
        image = Image.blend(grey, image, max(0.0, rng.uniform(-0.4, 1.4)))
    image = image.point(tone_curves(rng))
    if rng.random() < 0.3:
        noise = rng.standard_normal(scene.shape, dtype=np.float32) * rng.uniform(0, 20)
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.35:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=int(rng.integers(25, 95)))
        image = Image.open(stream)
    return np.asarray(image)


def tone_curves(rng: np.random.Generator) -> list[int]:
    """Contrast, brightness, tint and gamma as one table of 256 levels for each colour."""
    level = np.linspace(0, 1, 256)[None]
    light = (level - 0.5) * rng.uniform(0.5, 1.3) + 0.5 + rng.uniform(-0.2, 0.2)
    tinted = np.clip(light * rng.uniform(0.85, 1.15, (3, 1)), 0, 1) ** rng.uniform(0.6, 1.6)
    return (tinted * 255).round().astype(int).ravel().tolist()


def batch_of(
    step: int, backgrounds: np.ndarray, portraits: list[Portrait], config: DetectorConfig
) -> tuple[Tensor, list[Faces]]:
    """Scenes of a step: pixel values (B, 3, S, S) as the network takes them, and the faces of each."""
    rng = np.random.default_rng([config.seed, 1, step])
    is_large = config.large_every > 0 and step % config.large_every == config.large_every - 1
    size_px = config.scene_px * (2 if is_large else 1)
    scenes, faces = [], []
    for _ in range(max(1, config.batch_size // 4) if is_large else config.batch_size):
        scene = cut(rng, backgrounds[rng.integers(len(backgrounds))], size_px)
        faces.append(compose(rng, scene, portraits, config))
        scenes.append(spoil(rng, scene))
    images = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2)
    return (images.float() - 127.5) / 128, faces


def learning_rate(step: int, config: DetectorConfig) -> float:
    """Linear warm-up, then a cosine to one percent."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    return config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def objective(
    net: DetectorNet, pixel_values: Tensor, faces: list[Faces], config: DetectorConfig
) -> tuple[Tensor, dict[str, float]]:
    """Scalar to minimise, and the named terms it is made of."""
    height, width = pixel_values.shape[-2:]
    with reduced_precision(torch.device("cpu")):
        predictions = net(pixel_values.contiguous(memory_format=torch.channels_last))
    terms = detection_terms(predictions, targets(faces, height, width), height, width)
    loss = terms["score"] + terms["box"] + config.landmark_weight * terms["landmarks"]
    return loss, {name: term.item() for name, term in terms.items()}


def export(net: DetectorNet, path: Path, *, threshold: float = 0.5) -> None:
    """Write the ONNX file that insightface's SCRFD and `idgen.faces.scrfd` open."""
    names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in (8, 16, 32)]
    axes: dict[str, dict[int, str]] = {"pixel_values": {2: "height", 3: "width"}}
    axes.update({name: {0: f"anchors_{name}"} for name in names})
    wrapped = ScrfdOutputs(net.to(memory_format=torch.contiguous_format), threshold=threshold).eval()  # pyright: ignore[reportCallIssue]
    example = torch.zeros(1, 3, 256, 320)
    torch.onnx.export(
        wrapped, (example,), str(path), opset_version=13, dynamo=False,
        input_names=["pixel_values"], output_names=names, dynamic_axes=axes,
    )  # fmt: skip
    store_halves(path)


def train(run: TrainingRun, config: DetectorConfig) -> DetectorNet:
    """The network with averaged weights."""
    torch.manual_seed(config.seed)
    portraits = labelled(run, config)
    rng = np.random.default_rng([config.seed, 0])
    backgrounds = np.stack(
        [background(rng, config.background_px, portraits) for _ in range(config.num_backgrounds)]
    )
    net = DetectorNet(config.width, config.neck_width).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if config.start is not None:
        kept = torch.load(config.start, map_location="cpu", weights_only=True)["average"]
        net.load_state_dict({name.removeprefix("net/"): value for name, value in kept.items()})
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    average, progress = MovingAverage({"net": net}, config.ema_decay), Progress()
    saved = run.load("checkpoint")
    if saved is not None:
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        average.weights, progress = saved["average"], Progress(**saved["progress"])

    while progress.step < config.steps:
        pixel_values, faces = batch_of(progress.step, backgrounds, portraits, config)
        loss, terms = objective(net, pixel_values, faces, config)
        if not loss.isfinite():
            raise FloatingPointError(f"loss is {loss.item()} at step {progress.step}: {terms}")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress.step, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        progress.step += 1
        progress.images_seen += len(pixel_values)
        average.update({"net": net}, progress.step)
        if progress.step % config.log_every == 0 or progress.step == config.steps:
            run.log("detector", progress, {"loss": loss.item(), **terms})
        if progress.step % config.save_every == 0 or progress.step == config.steps:
            run.save("checkpoint", {
                "net": net.state_dict(), "optimizer": optimizer.state_dict(),
                "average": average.weights, "progress": vars(progress),
            })  # fmt: skip

    net.load_state_dict(average.of("net"))
    return net


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on, and export to `det_mini.onnx` in the run folder."""
    arguments = program_arguments(DetectorConfig, "Train mini's face detector.", argv)
    if arguments.dry_run:
        return
    torch.set_num_threads(arguments.config.num_threads)
    run = TrainingRun(arguments.out, arguments.config)
    net = train(run, arguments.config)
    export(net, arguments.out / "det_mini.onnx", threshold=arguments.config.threshold)


if __name__ == "__main__":
    main()
