r"""Draw pictures of the people of a table, with a manifest of who, from which photo, with which prompt.

    idgen evaluate draw --faces $IDGEN_FACES/faces_test.parquet --people 150 --count 4 --out runs/with
    idgen evaluate consistency runs/with --references $IDGEN_FACES/faces_test.parquet --out runs/with-report

One photo each of people who have another one as well; prompts drawn from ten; seeds count on. For controls:
``--id-scale 0`` leaves the identity out, ``--shuffle`` conditions each person's pictures on somebody else,
``--real`` draws nothing and takes other photos of the same people: what a perfect model would give.
``--new`` draws people who do not exist: vectors from ``--source`` (pca: mini's distribution), each below the
encoder's threshold at FMR 1e-4 to every photo of the table and to each other, and far from people who
refused.
Started again, the command goes on with the people who are missing.
"""

import argparse
import json
from collections.abc import Sequence
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
from idgen.encoders.base import FaceEncoder
from idgen.encoders.thresholds import threshold_at
from idgen.errors import ConfigError
from idgen.identity import Identity
from idgen.opening import hide_loading_bars, model_folder, open_kit, open_model
from idgen.pipeline import IDPipeline, IDPipelineXL
from idgen.reference import embed_crop
from idgen.report.sheet import Tile, contact_sheet
from idgen.runs import file_sha256, keep_settings
from idgen.storage import replacing, write_json
from idgen.synth.identities import STRICT, separated_people
from idgen.synth.sources import load_source

PROMPTS = prompts_for("a person")
SETTINGS = "draw.json"
PIECE = 256  # photos that are looked at at once
SHEET_PEOPLE, SHEET_PX = 12, 128


@dataclass(frozen=True, kw_only=True)
class Person:
    """Whose pictures are drawn, and from whose photo."""

    identity: str
    reference: str  # file of the photo that the pictures will be compared with
    row: (
        int  # of the photo that conditions, another person's where identities are shuffled; or a new person's
    )


def choose_people(table: FaceTable, num_people: int, seed: int, *, shuffle: bool) -> list[Person]:
    """One photo of each of ``num_people`` people who have another one as well, drawn by ``seed``.

    Raises:
        ConfigError: if the table has fewer such people.
    """
    people = {name: rows for name, rows in table.people().items() if len(rows) > 1}
    if not 2 <= num_people <= len(people):
        raise ConfigError(
            f"--people must be from 2 to {len(people)} (those with two photos), got {num_people}"
        )
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(sorted(people))[:num_people]
    rows = [people[name][rng.integers(len(people[name]))] for name in chosen]
    conditioning = np.roll(rows, 1) if shuffle else rows  # nobody keeps his own
    return [
        Person(identity=str(name), reference=table.files[row], row=int(source))
        for name, row, source in zip(chosen, rows, conditioning, strict=True)
    ]


def invent_people(table: FaceTable, encoder: FaceEncoder, options: argparse.Namespace) -> np.ndarray:
    """Vectors (``options.people``, D) of new people, far from each other and from every photo of the table.

    Raises:
        ConfigError: if the encoder has no threshold in its card.
        EncoderMismatchError: if the source is of another encoder, or somebody who refused is not known by it.
        MeasureError: if there is no room for so many.
    """
    limit = threshold_at(encoder, STRICT)
    people = load_source(options.source, encoder=encoder.id, dim=encoder.dim)
    store = options.out / "gallery.npy"
    if not store.exists():
        pieces = [range(i, min(i + PIECE, len(table))) for i in range(0, len(table), PIECE)]
        bar = tqdm(pieces, desc="looking at the photos", disable=None)
        vectors = np.concatenate([encoder.encode(table.crops(list(rows))).unit.numpy() for rows in bar])
        with replacing(store) as file:
            np.save(file, vectors)
    return separated_people(
        people, options.people, max_cosine=limit, seed=options.seed, gallery=np.load(store),
        max_gallery_cosine=limit, encoder=encoder, out=options.out / "people",
    )  # fmt: skip


def draw(
    pipe: IDPipeline | IDPipelineXL, who: Identity, number: int, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The pictures of one person, written; their rows of the manifest."""
    rng = np.random.default_rng([options.seed, number])
    prompts = [PROMPTS[i] for i in rng.integers(len(PROMPTS), size=options.count)]
    seeds = [options.seed + 1000 * number + i for i in range(options.count)]
    given = {"num_inference_steps": options.steps, "guidance_scale": options.guidance,
             "id_guidance_scale": options.id_guidance}  # fmt: skip
    settings = {name: value for name, value in given.items() if value is not None}
    images = pipe(
        prompts, identity=[who] * len(prompts), id_scale=options.id_scale, seed=seeds, **settings
    ).images
    folder.mkdir(exist_ok=True)
    rows = []
    for i, (image, prompt, seed) in enumerate(zip(images, prompts, seeds, strict=True)):
        path = folder / f"{i:03d}.png"
        with replacing(path) as file:
            image.save(file, "PNG")
        rows.append({"path": f"{folder.name}/{path.name}", "sha256": file_sha256(path), "prompt": prompt,
                     "seed": seed})  # fmt: skip
    return rows


def take(table: FaceTable, person: Person, folder: Path, count: int) -> list[dict[str, Any]]:
    """Up to ``count`` photos of one person other than the reference, written; their rows of the manifest."""
    folder.mkdir(exist_ok=True)
    others = [row for row in table.people()[person.identity] if table.files[row] != person.reference]
    rows = []
    for i, row in enumerate(others[:count]):
        path = folder / f"{i:03d}.png"
        with replacing(path) as file:
            Image.fromarray(table.images[row]).save(file, "PNG")
        rows.append({"path": f"{folder.name}/{path.name}", "sha256": file_sha256(path)})
    return rows


def write_sheet(folder: Path, rows: list[dict[str, Any]], count: int) -> None:
    """The first people, one a row, or two where they are narrow, for the eye."""
    tiles = []
    for row in rows[: count * SHEET_PEOPLE]:
        with Image.open(folder / row["path"]) as image:
            tiles.append(Tile(image=image.convert("RGB"), title=row["identity"]))
    with replacing(folder / "sheet.png") as file:
        contact_sheet(tiles, columns=count if count > 4 else 2 * count, tile_px=SHEET_PX).save(file, "PNG")


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True, help="Parquet of portraits")
    parser.add_argument("--held-out", action="store_true", help="the tenth of the people set aside")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--adapter", type=Path, help="FaceID file (the one that came with the model)")
    parser.add_argument("--encoder", help="conditions the pictures (the one that the adapter names)")
    parser.add_argument("--people", type=int, default=150)
    parser.add_argument("--count", type=int, default=4, help="pictures a person (4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--id-scale", type=float, default=1.0)
    parser.add_argument("--shuffle", action="store_true", help="condition on another person")
    parser.add_argument("--real", action="store_true", help="take other photos, draw nothing")
    parser.add_argument("--new", action="store_true", help="people who do not exist, far from all of FACES")
    parser.add_argument(
        "--source", default="pca", metavar="SPEC", help="of --new: pca[:FILE], vmf:FILE, uniform, file:FILE"
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--id-guidance", type=float, help="of the identity apart from the text's")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    if options.new and (options.real or options.shuffle):
        raise ConfigError("--new people have no other photos: neither --real nor --shuffle goes with it")
    if options.count < 1:
        raise ConfigError(f"--count must be at least 1, got {options.count}")
    return options


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Choose people, draw those who are missing, write the manifest."""
    options = read_options(argv)
    table = load_faces(options.faces)
    table = split_people(table)[1] if options.held_out else table
    folder = model_folder(options.model)
    kit = open_kit(folder, adapter=options.adapter, encoder=options.encoder)
    encoder = kit.encoder
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    keep_settings(options.out, SETTINGS, {**settings, "encoder": encoder.id})
    if options.new:
        vectors = invent_people(table, encoder, options)
        people = [Person(identity=f"new-{i:04d}", reference="", row=i) for i in range(len(vectors))]
    else:
        vectors = np.zeros((0, encoder.dim))
        people = choose_people(table, options.people, options.seed, shuffle=options.shuffle)
    hide_loading_bars()
    pipe = open_model(folder, kit.adapter)
    pipe.set_progress_bar_config(disable=True)  # one bar for the whole run instead
    rows = []
    for number, person in enumerate(tqdm(people, desc="drawing", unit="person", disable=None)):
        own = options.out / person.identity
        done = own / "rows.json"
        if not done.exists():
            if options.real:
                made = take(table, person, own, options.count)
            else:
                who = (
                    Identity.from_vector(vectors[person.row], encoder.id)
                    if options.new
                    else embed_crop(table.crops([person.row])[0], encoder)
                )
                made = draw(pipe, who, number, own, options)
            write_json(done, made)
        rows += [
            {"identity": person.identity, "reference": person.reference, **row}
            for row in json.loads(done.read_text())
        ]
    write_manifest(options.out, rows, () if options.real else (encoder.id,))
    write_sheet(options.out, rows, options.count)
    print(f"{len(rows)} pictures of {len(people)} people in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
