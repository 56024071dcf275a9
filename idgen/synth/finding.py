"""The people of a dataset: as many as its plan speaks of, far from each other and from everybody real."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from idgen.blocklist import Blocklist
from idgen.encoders.thresholds import threshold_at
from idgen.opening import Kit
from idgen.synth.identities import STRICT, separated_people
from idgen.synth.plan import Plan
from idgen.synth.sources import load_source
from idgen.synth.work import PEOPLE


def find_people(
    plan: Plan,
    kit: Kit,
    dataset: Path,
    *,
    source: str = "pca",
    max_cosine: float | None = None,
    seed: int = 0,
    galleries: Sequence[np.ndarray] = (),
    allow_unchecked: bool = False,
) -> np.ndarray:
    """Find whoever is missing in the folder of a dataset.

    Args:
        plan: which rows of the people it speaks of.
        kit: whose encoder conditions.
        dataset: the folder.
        source: where they are drawn from, as in `load_source`.
        max_cosine: between two of them; if not given, what the encoder's card says for a false match rate of
            1e-4, as for the galleries.
        seed: of the candidates.
        galleries: (M, D) each, real people that they keep away from.
        allow_unchecked: pass over people who refused and have no vector by this encoder.

    Returns:
        (P, D) float32 of unit length.

    Raises:
        IdgenError: as `separated_people` and `load_source` do.
    """
    from tqdm import tqdm

    encoder, num = kit.encoder, int(plan.numbers("person").max()) + 1
    people = load_source(source, encoder=encoder.id, dim=encoder.dim)
    refused = Blocklist.load()
    if allow_unchecked:
        known = {
            name: who
            for name, who in refused.people.items()
            if encoder.id in {feature.encoder for feature in who.features}
        }
        refused = Blocklist(known, refused.path)
    with tqdm(total=num, desc="finding people", unit="person", disable=None, leave=False) as bar:
        return separated_people(
            people,
            num,
            max_cosine=threshold_at(encoder, STRICT) if max_cosine is None else max_cosine,
            seed=seed,
            gallery=galleries,
            blocklist=refused,
            out=dataset / PEOPLE,
            advance=bar.update,
        )
