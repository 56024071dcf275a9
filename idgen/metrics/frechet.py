"""Do made pictures follow the distribution of real ones? Distances between two sets of features.

Shapes: N made pictures, M real ones, D features.
"""

from dataclasses import dataclass

import numpy as np

from idgen.errors import MeasureError


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of a set of features, divided by N - 1."""

    mean: np.ndarray
    covariance: np.ndarray


def checked_features(features: np.ndarray, *, at_least: int) -> np.ndarray:
    """The features (N, D) as float64.

    Raises:
        MeasureError: if there are too few of them, or some are not finite.
    """
    if features.ndim != 2 or len(features) < at_least:
        raise MeasureError(f"features of {at_least} pictures at least are needed, got shape {features.shape}")
    if not np.isfinite(features).all():
        row = int((~np.isfinite(features).all(axis=1)).argmax())
        raise MeasureError(f"features must be finite, those of picture {row} are not")
    return features.astype(np.float64)


def gaussian(features: np.ndarray) -> Gaussian:
    """Mean and covariance of features (N, D).

    Raises:
        MeasureError: for fewer than two pictures, or features that are not finite.
    """
    exact = checked_features(features, at_least=2)
    return Gaussian(mean=exact.mean(axis=0), covariance=np.atleast_2d(np.cov(exact, rowvar=False)))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """FID: ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` (Heusel et al. 2017).

    The trace of the root is taken from the eigenvalues of ``S_a^(1/2) S_b S_a^(1/2)``, which is symmetric: no
    complex numbers where a covariance is singular.

    Raises:
        MeasureError: if the two have different widths.
    """
    if a.mean.shape != b.mean.shape:
        raise MeasureError(f"features of one width are needed, got {len(a.mean)} and {len(b.mean)}")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(np.maximum(product, 0)).sum()
    return float(np.square(a.mean - b.mean).sum() + trace)


def kernel_distance(
    made: np.ndarray, real: np.ndarray, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID: the unbiased squared MMD with kernel ``(x . y / D + 1)^3`` (Binkowski et al. 2018).

    Args:
        made: (N, D).
        real: (M, D).
        num_subsets: draws without replacement; one is enough where a subset is a whole set.
        subset_size: pictures a draw; at most N and M are taken.
        seed: of the draws.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        MeasureError: for fewer than two pictures, other widths, or features that are not finite.
    """
    made, real = checked_features(made, at_least=2), checked_features(real, at_least=2)
    if made.shape[1] != real.shape[1]:
        raise MeasureError(f"features of one width are needed, got {made.shape[1]} and {real.shape[1]}")
    size = min(subset_size, len(made), len(real))
    rng = np.random.default_rng(seed)
    values = [
        _mmd(made[rng.permutation(len(made))[:size]], real[rng.permutation(len(real))[:size]])
        for _ in range(1 if size == len(made) == len(real) else num_subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    n, width = x.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / width + 1) ** 3

    def off_diagonal(k: np.ndarray) -> float:
        return float((k.sum() - np.trace(k)) / (n * (n - 1)))

    return off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * float(kernel(x, y).mean())
