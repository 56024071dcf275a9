"""Intervals by resampling people, never pairs: pairs of one person are not independent.

Shapes: P people.
"""

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
