"""New people from a mixture of von Mises-Fisher distributions, fitted to real people's vectors.

The density of a component on the unit sphere is ``c(kappa) exp(kappa mu . x)`` with
``log c = (D/2 - 1) log kappa - (D/2) log 2 pi - log I_{D/2-1}(kappa)`` (Banerjee et al. 2005, "Clustering on
the Unit Hypersphere using von Mises-Fisher Distributions", sec. 2,
https://www.jmlr.org/papers/v6/banerjee05a.html).

Shapes: N real people, D width of a face vector, K components.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from idgen.errors import ConfigError, IdentityError, MeasureError
from idgen.storage import sorted_header, write_bytes
from idgen.synth.vectors import unit_rows

FORMAT = "1"
LEAST_PEOPLE = 10  # of a component: the mean of fewer would carry their own face vectors into the file
MAX_STEPS = 200
TOLERANCE = 1e-6  # gain in mean log-likelihood below which the fit stands


@dataclass(frozen=True, kw_only=True)
class MisesFisherMixture:
    """Groups of people: a direction, how closely people lie about it, and their share.

    Attributes:
        encoder: id of the encoder whose vectors these are.
        means: (K, D) of unit length, mu.
        concentrations: (K,) kappa, not negative; 0 is the uniform distribution.
        weights: (K,) shares, positive, with sum 1.
    """

    encoder: str
    means: np.ndarray
    concentrations: np.ndarray
    weights: np.ndarray

    @property
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    def sample(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """(num, D) float32 of unit length."""
        component = rng.choice(len(self.weights), size=num, p=self.weights)
        along = np.empty(num)
        for number, kappa in enumerate(self.concentrations):
            own = component == number
            along[own] = sample_cosines(float(kappa), self.dim, int(own.sum()), rng)
        mean = self.means[component].astype(np.float64)
        across = rng.standard_normal((num, self.dim))
        across -= np.einsum("nd,nd->n", across, mean)[:, None] * mean
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        drawn = along[:, None] * mean + np.sqrt(1 - along**2)[:, None] * across
        return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)

    def log_density(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) of unit length -> (N, K): logarithm of each component's share of the density."""
        constants = [log_normaliser(float(kappa), self.dim) for kappa in self.concentrations]
        cosines = vectors.astype(np.float64) @ self.means.astype(np.float64).T
        return np.log(self.weights) + np.array(constants) + self.concentrations * cosines

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            StorageError: if it cannot be written.
        """
        tensors = {
            "means": np.ascontiguousarray(self.means, np.float32),
            "concentrations": self.concentrations.astype(np.float64),
            "weights": self.weights.astype(np.float64),
        }
        write_bytes(path, sorted_header(save(tensors, {"idgen_vmf": FORMAT, "encoder": self.encoder})))


def load_mises_fisher(path: Path) -> MisesFisherMixture:
    """Read what `MisesFisherMixture.save` wrote.

    Raises:
        IdentityError: if it is missing, damaged, or something else.
    """
    try:
        with safe_open(path, framework="np") as file:
            head = file.metadata() or {}
            if head.get("idgen_vmf") != FORMAT:
                raise IdentityError(f"{path} is no von Mises-Fisher mixture of people of format {FORMAT}")
            means, concentrations, weights = (
                file.get_tensor(name) for name in ("means", "concentrations", "weights")
            )
    except (OSError, SafetensorError) as error:
        raise IdentityError(f"cannot read the mixture of people {path}: {error}") from None
    return MisesFisherMixture(
        encoder=head["encoder"], means=means, concentrations=concentrations, weights=weights / weights.sum()
    )


# --- one component ----------------------------------------------------------------------------------------


def log_bessel(order: float, x: float) -> float:
    """``log I_order(x)`` of the modified Bessel function of the first kind, for order >= 0 and x > 0.

    The power series (NIST DLMF, https://dlmf.nist.gov/10.25.E2), whose terms are all positive, in logarithms:
    at order 255 and x = 10 the function itself is below the smallest float64.
    """
    half = math.log(x / 2)
    num_terms = math.ceil(x / 2 + 20 * math.sqrt(x / 2)) + 50  # terms fall from k = x / 2 on at the latest
    k = np.arange(1, num_terms)
    steps = 2 * half - np.log(k) - np.log(k + order)
    terms = order * half - math.lgamma(order + 1) + np.concatenate([[0.0], np.cumsum(steps)])
    return float(np.logaddexp.reduce(terms))


def log_normaliser(kappa: float, dim: int) -> float:
    """``log c(kappa)`` of the density on the sphere of D dimensions."""
    order = dim / 2 - 1
    if kappa == 0:  # one over the surface of the sphere
        return math.lgamma(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi)
    return order * math.log(kappa) - dim / 2 * math.log(2 * math.pi) - log_bessel(order, kappa)


def concentration(mean_length: np.ndarray, dim: int) -> np.ndarray:
    """Kappa from the length r of the mean of unit vectors: ``(r D - r^3) / (1 - r^2)``.

    Banerjee et al. 2005, eq. 4.4.
    """
    return (mean_length * dim - mean_length**3) / (1 - mean_length**2)


def sample_cosines(kappa: float, dim: int, num: int, rng: np.random.Generator) -> np.ndarray:
    """(num,) cosines between samples of one component and its direction.

    Algorithm VM* of Wood 1994, "Simulation of the von Mises Fisher distribution",
    https://doi.org/10.1080/03610919408813161.
    """
    rest = dim - 1
    b = rest / (2 * kappa + math.sqrt(4 * kappa**2 + rest**2))
    x = (1 - b) / (1 + b)
    c = kappa * x + rest * math.log(4 * b / (1 + b) ** 2)  # 1 - x^2 without cancellation
    found = np.empty(num)
    left = np.arange(num)
    while len(left):
        z = rng.beta(rest / 2, rest / 2, size=len(left))
        w = (1 - (1 + b) * z) / (1 - (1 - b) * z)
        accepted = kappa * w + rest * np.log1p(-x * w) - c >= np.log(1 - rng.random(len(left)))
        found[left[accepted]] = w[accepted]
        left = left[~accepted]
    return found


# --- fitting ----------------------------------------------------------------------------------------------


def fit_mises_fisher(
    centres: np.ndarray, encoder: str, *, num_components: int, seed: int = 0, max_steps: int = MAX_STEPS
) -> MisesFisherMixture:
    """The mixture of most likelihood near a beginning that the seed draws: expectation maximisation.

    soft-moVMF of Banerjee et al. 2005, sec. 3.2; it begins as k-means++ does (Arthur and Vassilvitskii 2007),
    with ``1 - cos`` as squared distance.

    Args:
        centres: (N, D) one unit vector of each person.
        encoder: id of the encoder they are of.
        num_components: K.
        seed: of the beginning.
        max_steps: of expectation maximisation; fewer where the likelihood stands still.

    Raises:
        ConfigError: if there are no components.
        IdentityError: if a vector is not of unit length.
        MeasureError: if there are too few people for so many components, or one came to hold too few.
    """
    if num_components < 1 or max_steps < 1:
        raise ConfigError(
            f"a mixture needs a component and a step, got {num_components} components, {max_steps} steps"
        )
    unit = unit_rows(centres, "people's vectors").astype(np.float64)
    if len(unit) < LEAST_PEOPLE * num_components:
        raise MeasureError(
            f"{num_components} components need {LEAST_PEOPLE} people each, got {len(unit)} people"
        )
    share = _nearest_centre(unit, num_components, np.random.default_rng(seed))
    before = -math.inf
    for _ in range(max_steps):
        fitted = _most_likely(unit, share, encoder)
        log_density = fitted.log_density(unit)
        total = np.logaddexp.reduce(log_density, axis=1)
        share = np.exp(log_density - total[:, None])
        if total.mean() - before < TOLERANCE:
            break
        before = float(total.mean())
    return fitted  # pyright: ignore[reportPossiblyUnboundVariable] - there is one step at least


def _nearest_centre(unit: np.ndarray, num_components: int, rng: np.random.Generator) -> np.ndarray:
    """(N, K) of 0 and 1: people to the nearest of K of them, who were drawn far from each other."""
    chosen = [int(rng.integers(len(unit)))]
    while len(chosen) < num_components:
        distance = np.maximum(1 - (unit @ unit[chosen].T).max(axis=1), 0)
        distance[chosen] = 0
        if not distance.any():
            raise MeasureError(f"there are only {len(chosen)} different people: ask for fewer components")
        chosen.append(int(rng.choice(len(unit), p=distance / distance.sum())))
    return np.eye(num_components)[(unit @ unit[chosen].T).argmax(axis=1)]


def _most_likely(unit: np.ndarray, share: np.ndarray, encoder: str) -> MisesFisherMixture:
    """The components of most likelihood, where (N, K) says how much of each person belongs to each."""
    people = share.sum(axis=0)
    if people.min() < LEAST_PEOPLE:
        raise MeasureError(
            f"a component came to hold {people.min():.1f} people, fewer than {LEAST_PEOPLE}: it would carry "
            "their own face vectors into the file. Ask for fewer components"
        )
    total = share.T @ unit
    length = np.linalg.norm(total, axis=1)
    mean_length = length / people
    if mean_length.max() > 1 - 1e-9:
        raise MeasureError("the people of a component have all the same vector: no distribution has that")
    return MisesFisherMixture(
        encoder=encoder,
        means=total / length[:, None],
        concentrations=concentration(mean_length, unit.shape[1]),
        weights=people / len(unit),
    )
