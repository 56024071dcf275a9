"""Fit the distribution that new people are drawn from: mean and principal axes of people's face vectors.

    idgen train people --out people.safetensors
    idgen train people --components 20 --out mixture.safetensors

One vector a person, the mean over the photos, of the people that training uses. Needs IDGEN_FACES
(faces_train.parquet). The file holds 128 + 128 x 128 numbers and no vector of anybody.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from idgen.config import Parser
from idgen.data.images import training_faces
from idgen.encoders.arcface import load_encoder
from idgen.errors import ConfigError
from idgen.metrics.leakage import centres
from idgen.synth.gaussian import fit_people
from idgen.synth.mises_fisher import fit_mises_fisher

PIECE = 256  # photos that are looked at at once


def main(argv: Sequence[str] | None = None) -> int:
    """Look, fit, save."""
    parser = Parser(description=__doc__)
    parser.add_argument("--faces", type=Path, help="Parquet of portraits (of IDGEN_FACES)")
    parser.add_argument("--encoder", default="mini", help="whose vectors (mini)")
    parser.add_argument(
        "--components", type=int, help="of a mixture of von Mises-Fisher distributions instead"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the mixture's beginning (0)")
    parser.add_argument("--out", type=Path, required=True, help="the file")
    options = parser.parse_args(argv)
    if options.components is not None and options.components < 1:
        raise ConfigError(f"--components must be at least 1, got {options.components}")
    table, encoder = training_faces(options.faces), load_encoder(options.encoder)
    pieces = [range(i, min(i + PIECE, len(table))) for i in range(0, len(table), PIECE)]
    bar = tqdm(pieces, desc="looking at the photos", disable=None)
    vectors = np.concatenate([encoder.encode(table.crops(list(rows))).unit.numpy() for rows in bar])
    number = {name: i for i, name in enumerate(table.people())}
    person = np.array([number[name] for name in table.identities])
    means = centres(vectors, person, len(number))
    people = (
        fit_people(means, encoder.id)
        if options.components is None
        else fit_mises_fisher(means, encoder.id, num_components=options.components, seed=options.seed)
    )
    people.save(options.out)
    print(f"{options.out}: the distribution of {len(number)} people by {encoder.id}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
