"""Where most new people come from: a normal distribution along the principal axes of real people's vectors.

Shapes: N real people, D width of a face vector, K principal axes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from idgen.errors import IdentityError, MeasureError
from idgen.storage import sorted_header, write_bytes

FORMAT = "1"
STEP = 2.0**24  # float16 factors are whole multiples of its inverse


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

    @property
    def dim(self) -> int:
        """D."""
        return len(self.mean)

    def sample(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """(num, D) float32 of unit length."""
        # Whole numbers whose sums stay below 2^53 are added up without rounding: no library for matrices,
        # and no number of threads, gives other people.
        normal = np.rint(rng.standard_normal((num, self.factors.shape[1])) * STEP)
        drawn = self.mean + normal @ np.rint(self.factors * STEP).T / STEP**2
        return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            StorageError: if it cannot be written.
        """
        # safetensors writes memory as it lies: a transposed array would come back scrambled
        tensors = {
            "mean": self.mean.astype(np.float32),
            "factors": np.ascontiguousarray(self.factors, np.float16),
        }
        head = {"idgen_people": FORMAT, "encoder": self.encoder}
        write_bytes(path, sorted_header(save(tensors, head)))


def fit_people(centres: np.ndarray, encoder: str) -> PeopleDistribution:
    """The distribution of people, from one unit vector of each.

    Args:
        centres: (N, D), such as the normalised mean vector of each person's photos.
        encoder: id of the encoder they are of.

    Raises:
        MeasureError: if there are fewer than two people, or vectors are not of unit length.
    """
    from idgen.metrics.scores import GRAIN, whole_numbers  # imports torch, which drawing does without

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
