"""Intervals by resampling people, never pairs: pairs of one person are not independent.

Shapes: P people.
"""

from dataclasses import dataclass

import numpy as np


def interval_over_people(
    values: np.ndarray, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over people (Efron 1979).

    Args:
        values: (P,) one number a person, for instance the mean over that person's pictures.
        level: coverage, in (0, 1).
        num_resamples: draws of P people with replacement.
        seed: of the draws.

    Returns:
        (lower, upper) end.

    Raises:
        ValueError: if there are no people.
    """
    if len(values) == 0:
        raise ValueError("an interval needs at least one person, got none")
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(values), size=(num_resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much more one run gives than another, on the same people.

    Attributes:
        mean: of the second less the first.
        interval: 95 % percentile interval over people.
        p: two-sided: twice the smaller share of resampled means on one side of 0, at least 2 / (draws + 1).
        num_people: who have a number in both.
    """

    mean: float
    interval: tuple[float, float]
    p: float
    num_people: int


def paired_difference(
    first: np.ndarray, second: np.ndarray, *, num_resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Paired bootstrap of the mean difference (Efron and Tibshirani 1993, chapter 16).

    Args:
        first: (P,) one number a person; NaN where there is none.
        second: (P,) of the same people, in the same order.
        num_resamples: draws of people with replacement.
        seed: of the draws.

    Raises:
        ValueError: if fewer than two people have a number in both.
    """
    change = (second - first)[~np.isnan(first) & ~np.isnan(second)]
    if len(change) < 2:
        raise ValueError(f"a paired test needs two people with a number in both runs, got {len(change)}")
    rng = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, 500):  # of many people not all draws fit into memory at once
        draws = rng.integers(len(change), size=(min(500, num_resamples - start), len(change)))
        means[start : start + len(draws)] = change[draws].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    side = min((means <= 0).sum(), (means >= 0).sum())
    return Difference(
        mean=float(change.mean()),
        interval=(float(low), float(high)),
        p=float(min(1.0, 2 * (side + 1) / (num_resamples + 1))),
        num_people=len(change),
    )


def resample_runs(
    first: np.ndarray, second: np.ndarray, *, num_resamples: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Means of two methods that ran several times on the same people, for draws of people and of runs.

    Each draw takes the same people for both and, since a run of the one has nothing to do with a run of the
    other, runs for each on its own.

    Args:
        first: (R1, P) one number a run and person (or fold of people).
        second: (R2, P) of the same people, in the same order.
        num_resamples: N draws with replacement.
        seed: of the draws.

    Returns:
        (N,) and (N,).

    Raises:
        ValueError: if there are no runs, no people, or not the same number of people.
    """
    if first.shape[1:] != second.shape[1:] or not first.size or not second.size:
        raise ValueError(f"runs on the same people are needed, got {first.shape} and {second.shape}")
    rng = np.random.default_rng(seed)
    people = rng.integers(first.shape[1], size=(num_resamples, 1, first.shape[1]))
    means = []
    for values in (first, second):
        runs = rng.integers(len(values), size=(num_resamples, len(values), 1))
        means.append(values[runs, people].mean(axis=(1, 2)))
    return means[0], means[1]


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values corrected for their number (Holm 1979): (T,) in [0, 1], monotone in the ones given."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return corrected
