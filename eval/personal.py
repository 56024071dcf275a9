r"""Train a LoRA of each of some people by several methods, and draw them: is a method better, beside chance?

    idgen evaluate personal --faces $IDGEN_FACES/faces_test.parquet --people 10 --seeds 3 \
        --method dreambooth --method id_booth --set optimizer.steps=60 --out runs/personal
    idgen evaluate consistency runs/personal/id_booth --references runs/personal/unseen ... --out REPORT

Of each person with enough photos half are trained on and half are never seen: those lie in OUT/unseen. A
METHOD is one of train/configs, or NAME=FILE; all have the same --set, photos, prior pictures and seeds. The
pictures of a method go into OUT/METHOD, with a manifest, drawn from ten prompts. Started again, the command
goes on where it was.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from idgen.config import Parser
from idgen.data.images import FaceTable, load_faces, split_people
from idgen.data.manifest import write_manifest
from idgen.data.prompts import prompts_for
from idgen.encoders.arcface import load_encoder
from idgen.errors import ConfigError, TrainingError
from idgen.opening import hide_loading_bars, model_folder
from idgen.pipeline import IDPipeline, IDPipelineXL, open_pipeline
from idgen.runs import file_sha256, keep_settings
from idgen.storage import replacing, write_json
from idgen.tuning.lora import WEIGHTS_NAME
from idgen.tuning.prior import prior_pictures

SETTINGS = "personal.json"
CONFIGS = Path(__file__).parents[1] / "train" / "configs"
SUBJECT, CLASS_PROMPT = "sks person", "photo of a person"
UNSEEN, TRAIN = "unseen", "photos"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One LoRA."""

    method: str
    config: Path
    person: str
    seed: int

    def folder(self, out: Path) -> Path:
        """Where its run lies."""
        return out / "runs" / self.method / f"{self.person}-{self.seed}"


def read_methods(named: Sequence[str]) -> dict[str, Path]:
    """``id_booth`` or ``NAME=FILE`` -> its configuration.

    Raises:
        ConfigError: if there is no such file, or a name comes twice.
    """
    methods: dict[str, Path] = {}
    for text in named:
        name, _, file = text.partition("=")
        path = Path(file) if file else CONFIGS / f"{name}.yaml"
        if not path.is_file():
            raise ConfigError(f"--method {text}: there is no file {path}")
        if name in methods or name in (UNSEEN, TRAIN, "runs", "prior"):
            raise ConfigError(f"--method {text}: the name {name} is taken; write NAME=FILE")
        methods[name] = path
    if not methods:
        raise ConfigError("--method is missing: give at least one, such as id_booth")
    return methods


def choose_photos(
    table: FaceTable, num_people: int, least: int, seed: int
) -> dict[str, tuple[list[int], list[int]]]:
    """People and their rows, half to train on, half never seen.

    Raises:
        ConfigError: if there are not as many people with ``least`` photos.
    """
    people = {name: rows for name, rows in table.people().items() if len(rows) >= least}
    if not 1 <= num_people <= len(people):
        raise ConfigError(
            f"--people must be from 1 to {len(people)} (those with {least} photos), got {num_people}"
        )
    rng = np.random.default_rng(seed)
    chosen = {}
    for name in sorted(rng.permutation(sorted(people))[:num_people].tolist()):
        rows = rng.permutation(people[name]).tolist()
        chosen[name] = (sorted(rows[: len(rows) // 2]), sorted(rows[len(rows) // 2 :]))
    return chosen


def write_photos(
    table: FaceTable, chosen: Mapping[str, tuple[Sequence[int], Sequence[int]]], out: Path
) -> None:
    """Both halves as PNG, in a folder for each person."""
    for name, halves in chosen.items():
        for place, rows in zip((TRAIN, UNSEEN), halves, strict=True):
            folder = out / place / name
            folder.mkdir(parents=True, exist_ok=True)
            for i, row in enumerate(rows):
                with replacing(folder / f"{i:03d}.png") as file:
                    Image.fromarray(table.images[row]).save(file, "PNG")


def train(job: Job, options: argparse.Namespace, prior: Path) -> None:
    """Train one LoRA in a process of its own, as anybody would; what is there is not trained again.

    Raises:
        TrainingError: if the program fails.
    """
    folder = job.folder(options.out)
    if (folder / WEIGHTS_NAME).is_file():
        return
    settings = {"seed": job.seed, "aligned": "true", "samples.every": 0, "prior.folder": prior,
                "prior.count": options.prior, "prior.prompt": CLASS_PROMPT, "model": options.model,
                "prompt": f"photo of {SUBJECT}", "encoder": options.encoder}  # fmt: skip
    pairs = [f"{name}={value}" for name, value in settings.items()] + options.set
    command = [sys.executable, "-m", "idgen", "train", "lora", "--config", str(job.config),
               "--photos", str(options.out / TRAIN / job.person), "--skip-bad", "--out", str(folder),
               *(word for pair in pairs for word in ("--set", pair))]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise TrainingError(f"training {job.method} of {job.person} failed: {said[0]}")


@torch.no_grad()
def draw(pipe: IDPipeline | IDPipelineXL, job: Job, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The pictures of one LoRA, written; their rows of the manifest."""
    kept = job.folder(options.out) / "rows.json"
    if kept.exists():
        return json.loads(kept.read_text())
    prompts = prompts_for(SUBJECT)
    first = job.seed * options.count  # each seed goes on with the prompts where the one before it ended
    said = [prompts[(first + i) % len(prompts)] for i in range(options.count)]
    seeds = [options.seed + 1000 * job.seed + i for i in range(options.count)]
    pipe.load_lora_weights(str(job.folder(options.out)))
    images = []
    for start in range(0, options.count, 5):
        part = slice(start, start + 5)
        images += pipe(said[part], seed=seeds[part], num_inference_steps=options.steps).images
    pipe.unload_lora_weights()
    folder = options.out / job.method / job.person
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (image, prompt, seed) in enumerate(zip(images, said, seeds, strict=True)):
        path = folder / f"{job.seed}-{i:03d}.png"
        with replacing(path) as file:
            image.save(file, "PNG")
        rows.append({"identity": job.person, "path": f"{job.person}/{path.name}", "prompt": prompt,
                     "seed": seed, "sha256": file_sha256(path)})  # fmt: skip
    write_json(kept, rows)
    return rows


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True, help="Parquet of aligned portraits")
    parser.add_argument("--held-out", action="store_true", help="the tenth of the people set aside")
    parser.add_argument("--method", action="append", default=[], help="of train/configs, or NAME=FILE")
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--photos", type=int, default=10, help="a person needs as many at least (10)")
    parser.add_argument("--seeds", type=int, default=3, help="LoRAs of each person and method (3)")
    parser.add_argument("--count", type=int, default=6, help="pictures of each LoRA (6)")
    parser.add_argument("--prior", type=int, default=100, help="prior pictures, drawn once (100)")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--encoder", default="mini", help="whose vectors the terms compare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of denoising, when drawing")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all methods")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    for name in ("seeds", "count", "prior"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.photos < 4:
        raise ConfigError(f"--photos must be at least 4: two to train on, got {options.photos}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Choose people, train what is missing, draw what is missing, write the manifests."""
    options = read_options(argv)
    methods = read_methods(options.method)
    table = load_faces(options.faces)
    table = split_people(table)[1] if options.held_out else table
    chosen = choose_photos(table, options.people, options.photos, options.seed)
    encoder = load_encoder(options.encoder)
    # methods may be added later; the rest is the same for all of them
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "method")}
    keep_settings(options.out, SETTINGS, settings)
    write_photos(table, chosen, options.out)
    hide_loading_bars()
    folder = model_folder(options.model)
    pipe = open_pipeline(folder)
    pipe.unload_adapter()
    prior_pictures(
        pipe, options.out / "prior", prompt=CLASS_PROMPT, count=options.prior, seed=options.seed, model=folder
    )
    prior = next((options.out / "prior").iterdir())
    jobs = [Job(method=method, config=config, person=person, seed=seed)
            for seed in range(options.seeds) for person in chosen
            for method, config in methods.items()]  # fmt: skip
    rows: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for job in tqdm(jobs, desc="LoRAs", unit="LoRA", disable=None):
        train(job, options, prior)
        rows[job.method] += draw(pipe, job, options)
    for method, made in rows.items():
        write_manifest(options.out / method, made, (encoder.id,))
    print(f"{len(jobs)} LoRAs of {len(chosen)} people by {', '.join(methods)} in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
