"""Do made pictures vary, and do they look like real ones? By the neighbours that they have among features.

Shapes: N made pictures, M real ones, D features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idgen.errors import MeasureError
from idgen.metrics.frechet import checked_features

BLOCK = 1024  # rows of a distance matrix at once


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    With ``B(x, k)`` the ball about x that reaches its k-th neighbour in its own set:

    Attributes:
        precision: share of made pictures in the ball of any real one.
        recall: share of real pictures in the ball of any made one.
        density: mean over made pictures of the number of real balls that hold it, divided by k.
        coverage: share of real pictures whose ball holds a made one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(made: np.ndarray, real: np.ndarray, *, k: int = 5) -> Manifold:
    """The four numbers of two sets of features (N, D) and (M, D), by Euclidean distances.

    Of duplicates each is a neighbour of the others. The size of the blocks changes nothing.

    Raises:
        MeasureError: if a set has no k + 1 pictures, or features are not finite or of different widths.
    """
    made, real = checked_features(made, at_least=k + 1), checked_features(real, at_least=k + 1)
    if made.shape[1] != real.shape[1]:
        raise MeasureError(f"features of one width are needed, got {made.shape[1]} and {real.shape[1]}")
    made_radius, real_radius = _radii(made, k), _radii(real, k)
    num_real_balls = np.zeros(len(made), int)
    in_made_ball, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, distance in _distances(real, made):
        inside = distance < real_radius[rows, None]
        num_real_balls += inside.sum(axis=0)
        in_made_ball[rows] = (distance < made_radius[None]).any(axis=1)
        covered[rows] = inside.any(axis=1)
    return Manifold(
        precision=float((num_real_balls > 0).mean()),
        recall=float(in_made_ball.mean()),
        density=float(num_real_balls.mean() / k),
        coverage=float(covered.mean()),
    )


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """(N,) squared distance of each to its k-th neighbour, itself left out."""
    radii = np.zeros(len(features))
    for rows, distance in _distances(features, features):
        distance[np.arange(len(distance)), np.arange(rows.start, rows.stop)] = 0  # exactly
        radii[rows] = np.partition(distance, k, axis=1)[:, k]
    return radii


def _distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances in blocks of rows, from features less their common mean, which keeps them precise."""
    centre = b.mean(axis=0)
    a, b = a - centre, b - centre
    b_squared = np.square(b).sum(axis=1)
    for start in range(0, len(a), BLOCK):
        part = a[start : start + BLOCK]
        squared = np.square(part).sum(axis=1)[:, None] + b_squared[None] - 2 * part @ b.T
        yield slice(start, start + len(part)), np.maximum(squared, 0)


def vendi_score(features: np.ndarray) -> float:
    """How many different pictures there seem to be: ``exp(-sum l log l)`` (Friedman and Dieng 2023).

    ``l`` are the eigenvalues of the matrix of cosines divided by N; from 1 (all alike) to N.

    Args:
        features: (N, D); scaled to unit length here.

    Raises:
        MeasureError: if there are no pictures, or features that are not finite or zero.
    """
    exact = checked_features(features, at_least=1)
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    if not length.all():
        raise MeasureError(f"the features of picture {int((length == 0).argmax())} are all zero")
    unit = exact / length
    few = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit  # equal eigenvalues but zeros
    values = np.linalg.eigvalsh(few / len(unit))
    values = values[values > 1e-15]
    return float(np.exp(-(values * np.log(values)).sum()))


def picture_diversity(images: Tensor) -> float:
    """Mean over pairs of the root mean square difference of two pictures (N, 3, H, W); 0 for fewer than two.

    A model that has learned to please a reward with one picture for everybody shows it here first.
    """
    if len(images) < 2:
        return 0.0
    flat = images.float().flatten(1)
    distances = torch.pdist(flat) / flat.shape[1] ** 0.5
    return float(distances.mean())
