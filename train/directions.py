"""Learn directions to edit faces along, from labelled photos: a smile, a turn of the head.

    idgen train directions --wplus FILE --faces $IDGEN_FACES/faces_train.parquet --out mine.safetensors
    idgen train directions --wplus FILE --faces PHOTOS --label smile=p_happy --out mine.safetensors

The codes of all photos are regressed on the labels (`idgen.editing.learn`); a tenth of the people is set
aside. Mirror images count too, with the sign of yaw and roll turned. A step of 1 along a direction is a
standard deviation of its label. `idgen.editing.directions.read_directions` opens the file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from idgen.config import Parser, nearest
from idgen.data.images import ARCFACE_MARGIN, LABELS, TURNS, FaceTable, load_faces, split_people
from idgen.editing.directions import Directions
from idgen.editing.learn import learn_directions
from idgen.encoders.wplus import WPlusEncoder, load_wplus
from idgen.errors import ConfigError
from idgen.faces.align import ARCFACE_TEMPLATE

PIECE = 32
USUAL = ("smile=p_happy", "turn=yaw", "woman=p_female")


def read_labels(named: Sequence[str]) -> dict[str, str]:
    """``smile=p_happy`` -> name of the direction and column of the table.

    Raises:
        ConfigError: if it is written in another way, or there is no such label.
    """
    labels: dict[str, str] = {}
    for text in named or USUAL:
        name, _, column = text.partition("=")
        if not name or not column:
            raise ConfigError(f"--label is written NAME=COLUMN, as in smile=p_happy, got {text!r}")
        if column not in LABELS:
            raise ConfigError(
                f"--label {text}: no label {column!r}{nearest(column, list(LABELS))} "
                f"(there is: {', '.join(LABELS)})"
            )
        labels[name] = column
    return labels


def codes_of(encoder: WPlusEncoder, table: FaceTable) -> np.ndarray:
    """(2 N, L, C) of all photos, then of their mirror images."""
    landmarks = ARCFACE_TEMPLATE.numpy() + ARCFACE_MARGIN
    codes: list[list[torch.Tensor]] = [[], []]
    for start in tqdm(range(0, len(table), PIECE), desc="reading faces", unit="piece", disable=None):
        part = [Image.fromarray(image) for image in table.images[start : start + PIECE]]
        crops = torch.stack([encoder.cut(image, landmarks) for image in part])
        codes[0].append(encoder.encode(crops))
        codes[1].append(encoder.encode(crops.flip(-1)))
    return torch.cat([*codes[0], *codes[1]]).numpy()


def both_ways(table: FaceTable, labels: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Labels (2 N,) of the photos and of their mirror images."""
    found = {}
    for name, column in labels.items():
        values = table.labels[column]
        found[name] = np.concatenate([values, -values if column in TURNS else values])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Read all photos, learn, save."""
    parser = Parser(description=__doc__)
    parser.add_argument("--wplus", type=Path, required=True, help="an encoder with its generator")
    parser.add_argument("--faces", type=Path, required=True, help="Parquet of labelled portraits")
    parser.add_argument(
        "--label", action="append", default=[], metavar="NAME=COLUMN", help=f"({' '.join(USUAL)})"
    )
    parser.add_argument(
        "--held-out", type=float, default=0.1, help="share of the people that is set aside (0.1)"
    )
    parser.add_argument("--out", type=Path, required=True, help="directions.safetensors")
    options = parser.parse_args(argv)
    if options.out.suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors, got {options.out.name}")
    labels, encoder = read_labels(options.label), load_wplus(options.wplus)
    table = split_people(load_faces(options.faces), held_out=options.held_out)[0]
    codes, truth = codes_of(encoder, table), both_ways(table, labels)
    directions = Directions(learn_directions(codes, truth, table.identities * 2, encoder.id))
    directions.save(options.out)
    print(f"{', '.join(directions)} in codes of {encoder.id}, from {len(table)} photos: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
