"""What the training programs are tested with: worlds with people in them, whole commands, logs."""

import functools
import json
from pathlib import Path

import numpy as np
import torch
from generating import World, astronaut
from PIL import Image, ImageOps

from idgen.identity import Identity
from idgen.pipeline import IDPipeline

CONFIGS = Path(__file__).parents[1] / "train" / "configs"
SMALL = {
    "optimizer.steps": "3", "optimizer.checkpoint_every": "3", "optimizer.log_every": "1",
    "framing": "aligned", "samples.every": "0", "detect_in_prediction": "false",
}  # fmt: skip


@functools.cache
def nobodies(numbers: tuple[int, ...], count: int) -> list[list[Image.Image]]:
    """``count`` pictures by mini of each of some people who do not exist: the same faces each time.

    Six steps: faces are found as surely as after mini's 20, and people are as far apart.
    """
    pipe = IDPipeline.from_pretrained("mini")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.adapter is not None
    faces = []
    for number in numbers:
        vector = np.random.default_rng(number).standard_normal(128).astype(np.float32)
        who = Identity.from_vector(vector / np.linalg.norm(vector), pipe.adapter.card.encoder)
        seeds = list(range(count))
        drawn = pipe(["a photo of a person"] * count, identity=who, seed=seeds, num_inference_steps=6)
        faces.append(drawn.images)
    return faces


def add_one_person(world: World) -> None:
    """``photos``: four of one person; ``others``: four pictures of somebody who does not exist."""
    photos, others = world.root / "photos", world.root / "others"
    photos.mkdir()
    others.mkdir()
    face = astronaut().crop((100, 0, 400, 300))
    views = {"a": face, "b": ImageOps.mirror(face), "c": face.rotate(8), "d": ImageOps.autocontrast(face)}
    for name, view in views.items():
        view.save(photos / f"{name}.png")
    for i, image in enumerate(nobodies((3,), 4)[0]):
        image.resize((256, 256)).save(others / f"n{i}.png")


def add_people(world: World) -> None:
    """``people``: a folder for each of four people, one real, three who do not exist."""
    face = astronaut().crop((100, 0, 400, 300))
    names = ("bert", "carl", "dora")
    faces = dict(zip(names, nobodies(tuple(ord(name[0]) for name in names), 2), strict=True))
    for name, views in {"anna": [face, ImageOps.mirror(face), face.rotate(8)], **faces}.items():
        (world.root / "people" / name).mkdir(parents=True)
        for i, view in enumerate(views):
            view.resize((192, 192)).save(world.root / "people" / name / f"{i}.png")


def assigned(*settings: dict[str, str]) -> list[str]:
    """``--set`` for each; the last one counts."""
    together = {name: value for some in settings for name, value in some.items()}
    return [word for name, value in together.items() for word in ("--set", f"{name}={value}")]


def lora_command(
    world: World, out: Path, *settings: str, model: str = "sd", preset: str = "id_booth"
) -> list[str]:
    """`idgen train lora`: three small steps, unless ``settings`` say otherwise."""
    own = {"prior.count": "2", "prior.folder": str(world.root / "others"), "encoder": str(world.encoder),
           "judge": str(world.judge)}  # fmt: skip
    given = dict(setting.split("=", 1) for setting in settings)
    return ["train", "lora", "--config", str(CONFIGS / f"{preset}.yaml"), "--photos",
            str(world.root / "photos"), "--model", str(world.root / model), "--out", str(out),
            *assigned(SMALL, own, given)]  # fmt: skip


def adapter_command(
    world: World, out: Path, *settings: str, model: str = "sd", preset: str = "ip_adapter_faceid"
) -> list[str]:
    """`idgen train adapter`: three small steps, unless ``settings`` say otherwise."""
    own = {"optimizer.batch_size": "4", "held_out": "0.25", "encoder": str(world.encoder),
           "judge": str(world.judge)}  # fmt: skip
    given = dict(setting.split("=", 1) for setting in settings)
    return ["train", "adapter", "--config", str(CONFIGS / f"{preset}.yaml"), "--faces",
            str(world.root / "people"), "--model", str(world.root / model), "--out", str(out),
            *assigned(SMALL, own, given)]  # fmt: skip


def log_of(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def check_every_weight_trains(folder: Path) -> list[str]:
    """Each weight of the run has a finite gradient that is not zero all over; the names of the weights."""
    state = torch.load(folder / "state.pt", weights_only=True)
    moments = state["optimizer"]["state"]
    assert len(moments) == len(state["weights"]) > 0
    for name, number in zip(state["weights"], moments, strict=True):
        mean = moments[number]["exp_avg"]  # of the gradients so far
        assert bool(mean.isfinite().all() & mean.any()), name
    return list(state["weights"])
