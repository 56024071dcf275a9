"""New identities: drawn from a distribution of real face vectors, each kept apart from all others.

Shapes: N real people, M photos to keep away from, P new people, D width of a face vector.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from idgen.errors import IdentityError, MeasureError
from idgen.metrics.scores import GRAIN, whole_numbers
from idgen.storage import write_bytes

FORMAT = "1"
CHUNK = 256  # candidates drawn at once; part of what a seed means
LEAST_ACCEPTED = 0.01  # of the candidates of the last WATCHED chunks; below it nobody is left to be found
WATCHED = 20


@dataclass(frozen=True, kw_only=True)
class PeopleDistribution:
    """``normalise(mean + factors z)`` with ``z ~ N(0, 1)``: the PCA Gaussian of Vec2Face (Wu et al. 2024).

    Attributes:
        encoder: id of the encoder whose vectors these are.
        mean: (D,).
        factors: (D, K), principal axes times standard deviations.
    """

    encoder: str
    mean: np.ndarray
    factors: np.ndarray

    def sample(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """(num, D) float32 of unit length."""
        drawn = self.mean + rng.standard_normal((num, self.factors.shape[1])) @ self.factors.T
        return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        # safetensors writes memory as it lies: a transposed array would come back scrambled
        tensors = {
            "mean": self.mean.astype(np.float32),
            "factors": np.ascontiguousarray(self.factors, np.float16),
        }
        write_bytes(path, save(tensors, {"idgen_people": FORMAT, "encoder": self.encoder}))


def fit_people(centres: np.ndarray, encoder: str) -> PeopleDistribution:
    """The distribution of people, from one unit vector of each.

    Args:
        centres: (N, D), such as the normalised mean vector of each person's photos.
        encoder: id of the encoder they are of.

    Raises:
        MeasureError: if there are fewer than two people, or vectors are not of unit length.
    """
    if len(centres) < 2:
        raise MeasureError(f"a distribution needs two people at least, got {len(centres)}")
    exact = whole_numbers(centres) / GRAIN
    mean = exact.mean(axis=0)
    _, scale, axes = np.linalg.svd(exact - mean, full_matrices=False)
    return PeopleDistribution(encoder=encoder, mean=mean, factors=axes.T * scale / np.sqrt(len(centres) - 1))


def load_people(path: Path) -> PeopleDistribution:
    """Read what `PeopleDistribution.save` wrote.

    Raises:
        IdentityError: if it is missing, damaged, or something else.
    """
    try:
        with safe_open(path, framework="np") as file:
            head = file.metadata() or {}
            if head.get("idgen_people") != FORMAT:
                raise IdentityError(f"{path} is no distribution of people of format {FORMAT}")
            mean, factors = (file.get_tensor(name).astype(np.float64) for name in ("mean", "factors"))
    except (OSError, SafetensorError) as error:
        raise IdentityError(f"cannot read the distribution of people {path}: {error}") from None
    return PeopleDistribution(encoder=head["encoder"], mean=mean, factors=factors)


def separated_people(
    people: PeopleDistribution,
    num: int,
    *,
    max_cosine: float,
    seed: int = 0,
    gallery: np.ndarray | None = None,
    max_gallery_cosine: float | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> np.ndarray:
    """New people, each below a cosine to every other and to every real photo, exactly.

    Candidates come in an order that depends on the seed alone; each is accepted if it keeps its distance from
    the gallery and from everybody accepted before. The first people of a larger number are therefore
    those of a smaller one.

    Args:
        people: where they are drawn from.
        num: P.
        max_cosine: between two new people, in (-1, 1].
        seed: of the candidates.
        gallery: (M, D) unit vectors to keep away from; zero rows are left out.
        max_gallery_cosine: to these; ``max_cosine`` if not given.
        advance: told how many were accepted after each chunk of candidates.

    Returns:
        (P, D) float32 of unit length.

    Raises:
        MeasureError: if nearly every candidate is refused: how many were found is said.
    """
    kept = np.zeros((0, people.mean.shape[0]))
    photos = whole_numbers(gallery) if gallery is not None else np.zeros_like(kept)
    photo_limit = (max_cosine if max_gallery_cosine is None else max_gallery_cosine) * GRAIN**2
    accepted: list[int] = []
    chunk = 0
    while len(kept) < num:
        drawn = whole_numbers(people.sample(CHUNK, np.random.default_rng([seed, chunk])))
        far = np.ones(CHUNK, bool)
        if len(photos):
            far &= (drawn @ photos.T).max(axis=1) < photo_limit
        fresh = _far_from_each_other(drawn[far], kept, max_cosine * GRAIN**2)
        kept = np.concatenate([kept, fresh])
        accepted.append(len(fresh))
        advance(min(len(fresh), num - len(kept) + len(fresh)))
        chunk += 1
        if len(accepted) >= WATCHED and sum(accepted[-WATCHED:]) < LEAST_ACCEPTED * WATCHED * CHUNK:
            raise MeasureError(
                f"only {len(kept)} of {num} new people were found below cosine {max_cosine:g}; of the last "
                f"{WATCHED * CHUNK} candidates {sum(accepted[-WATCHED:])} kept their distance. Ask for fewer"
            )
    return (kept[:num] / GRAIN).astype(np.float32)


def _far_from_each_other(drawn: np.ndarray, kept: np.ndarray, limit: float) -> np.ndarray:
    """Those of the candidates that keep their distance from ``kept`` and from those taken before them."""
    if len(kept):
        drawn = drawn[(drawn @ kept.T).max(axis=1) < limit]
    among = drawn @ drawn.T
    taken: list[int] = []
    for row in range(len(drawn)):
        if not taken or among[row, taken].max() < limit:
            taken.append(row)
    return drawn[taken]
