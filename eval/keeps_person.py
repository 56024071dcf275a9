r"""Does a model keep the person? References of unseen people, pictures of them, judged by another recogniser.

    python eval/keeps_person.py --faces $IDGEN_FACES/faces_test.parquet \
        --judge $IDGEN_WEIGHTS/second_recognizer.onnx --judge-detector yunet:$IDGEN_WEIGHTS/yunet.onnx

The judge has neither conditioned nor trained the model. A picture without a face counts as similarity 0.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from idgen.config import Parser
from idgen.data.images import FaceTable, load_faces, split_people
from idgen.encoders.arcface import load_encoder
from idgen.encoders.base import FaceEncoder
from idgen.faces.detect import Detector, load_detector
from idgen.identity import Identity
from idgen.metrics.bootstrap import interval_over_people
from idgen.metrics.consistency import find_crop
from idgen.pipeline import IDPipeline, IDPipelineXL, open_pipeline

PROMPTS = (
    "a photo of a person",
    "a portrait of a person, smiling",
    "a person, serious, looking straight ahead",
    "a photo of a person, looking to the left",
    "a photo of a person, looking to the right",
    "a close portrait of a person, white background",
    "a picture of a person, on a black background",
    "a portrait of a person in bright light",
    "a person, with a smile, blue background",
    "a photo of a person, not smiling, grey background",
)


def choose_references(table: FaceTable, num_people: int, seed: int) -> list[int]:
    """One row of each of ``num_people`` people who have another photo as well, drawn by ``seed``."""
    people = {name: rows for name, rows in table.people().items() if len(rows) > 1}
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(sorted(people))[:num_people]
    return [people[name][rng.integers(len(people[name]))] for name in chosen]


def generate(
    pipe: IDPipeline | IDPipelineXL, embedding: Tensor, encoder: FaceEncoder, options: argparse.Namespace
) -> list[list[Image.Image]]:
    """``options.count`` pictures a person; prompts are drawn from the ten, seeds count on."""
    rng = np.random.default_rng(options.seed)
    pictures = []
    for number, vector in enumerate(tqdm(embedding, desc="people")):
        prompts = [PROMPTS[i] for i in rng.integers(len(PROMPTS), size=options.count)]
        who = Identity.from_vector(vector.numpy(), encoder.id)
        settings = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
        pictures.append(
            pipe(
                prompts,
                identity=[who] * len(prompts),
                id_scale=options.id_scale,
                seed=[options.seed + 1000 * number + i for i in range(len(prompts))],
                **{name: value for name, value in settings.items() if value is not None},
            ).images
        )
    return pictures


def embed_pictures(
    pictures: list[list[Image.Image]], judge: FaceEncoder, detector: Detector
) -> tuple[np.ndarray, np.ndarray]:
    """Face vectors (P, K, D), zero where no face is found, and where one is: (P, K)."""
    vectors = np.zeros((len(pictures), len(pictures[0]), judge.dim), dtype=np.float32)
    for p, row in enumerate(tqdm(pictures, desc="judging")):
        for k, picture in enumerate(row):
            crop = find_crop(picture, detector)
            if crop is not None:
                vectors[p, k] = judge.encode(crop[None]).unit[0].numpy()
    return vectors, np.abs(vectors).sum(axis=-1) > 0


def summarise(vectors: np.ndarray, found: np.ndarray, references: np.ndarray) -> dict[str, object]:
    """Similarity to the own reference and to the other people's, with intervals over people, and rank-1."""
    similarity = np.einsum("pkd,qd->pkq", vectors, references)
    num_people = len(references)
    own = np.einsum("pkp->pk", similarity)
    others = (similarity.sum(axis=-1) - own) / (num_people - 1)
    rank_1 = (similarity.argmax(axis=-1) == np.arange(num_people)[:, None]) & found
    table = {
        "similarity to the reference": own,
        "similarity to other people": others,
        "rank-1": rank_1,
        "face found": found,
    }
    return {
        name: {"mean": float(values.mean()), "interval": interval_over_people(values.mean(axis=1))}
        for name, values in table.items()
    }


def sheet(pictures: list[list[Image.Image]], crops: Tensor, num_rows: int = 12) -> Image.Image:
    """Reference first, then the pictures, a row a person."""
    size = pictures[0][0].height
    image = Image.new("RGB", (size * (1 + len(pictures[0])), size * min(num_rows, len(pictures))))
    for row, (crop, own) in enumerate(zip(crops[:num_rows], pictures[:num_rows], strict=True)):
        array = (crop.permute(1, 2, 0) * 255).byte().numpy()
        image.paste(Image.fromarray(array).resize((size, size)), (0, row * size))
        for column, picture in enumerate(own):
            image.paste(picture, ((column + 1) * size, row * size))
    return image


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--faces", type=Path, required=True, help="Parquet of portraits")
    parser.add_argument(
        "--held-out", action="store_true", help="the tenth of the people that settings are chosen on"
    )
    parser.add_argument("--judge", required=True, help="recogniser that judges")
    parser.add_argument("--judge-detector", default="mini", help="detector that finds the faces")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--encoder", default="mini")
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--id-scale", type=float, default=1.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument(
        "--out", type=Path, help="folder for report.json and sheet.png; the sheet shows the references"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw people, make their pictures, judge them, print the table."""
    options = read_options(argv)
    torch.set_grad_enabled(False)
    table = load_faces(options.faces)
    table = split_people(table)[1] if options.held_out else table
    rows = choose_references(table, options.people, options.seed)
    crops = table.crops(rows)
    encoder, judge = load_encoder(options.encoder), load_encoder(options.judge)
    pipe = open_pipeline(options.model)
    pipe.set_progress_bar_config(disable=True)
    if options.adapter:
        pipe.load_adapter(options.adapter)
    pictures = generate(pipe, encoder.encode(crops).unit, encoder, options)
    vectors, found = embed_pictures(pictures, judge, load_detector(options.judge_detector))
    report = summarise(vectors, found, judge.encode(crops).unit.numpy())
    for name, value in report.items():
        assert isinstance(value, dict)
        low, high = value["interval"]
        print(f"{name:30s} {value['mean']:7.3f}   [{low:.3f}, {high:.3f}]")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "report.json").write_text(json.dumps({"people": len(rows), **report}, indent=1) + "\n")
        sheet(pictures, crops).save(options.out / "sheet.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
