"""Numbers of each person, over which intervals are taken.

Shapes: N pictures, P people, D width of a face vector.
"""

import numpy as np

from idgen.metrics.bootstrap import interval_over_people


def mean_by_person(values: np.ndarray, person: np.ndarray, num_people: int) -> np.ndarray:
    """Mean of a person's values: (N,) and (N,) -> (P,). NaN values are left out; NaN where none is left."""
    known = ~np.isnan(values)
    count = np.bincount(person[known], minlength=num_people)
    total = np.bincount(person[known], weights=values[known], minlength=num_people)
    return np.divide(total, count, out=np.full(num_people, np.nan), where=count > 0)


def spread_about_centre(vectors: np.ndarray, person: np.ndarray, num_people: int) -> np.ndarray:
    """ID2: mean squared distance of a person's face vectors to their mean.

    Args:
        vectors: (N, D) of unit length; zero vectors, of pictures without a face, are left out.
        person: (N,) numbers in [0, P).
        num_people: P.

    Returns:
        (P,) in [0, 1]: 0 where all pictures give one vector; NaN for people without two faces.
    """
    spread = np.full(num_people, np.nan)
    for number in range(num_people):
        own = vectors[(person == number) & vectors.any(axis=1)].astype(np.float64)
        if len(own) > 1:
            spread[number] = np.square(own - own.mean(axis=0)).sum(axis=1).mean()
    return spread


def mean_with_interval(values: np.ndarray, *, seed: int = 0) -> tuple[float, tuple[float, float] | None]:
    """Mean over people (P,), NaN left out, and its bootstrap interval; NaN and None without anybody."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), None
    return float(known.mean()), interval_over_people(known, seed=seed) if len(known) > 1 else None


def similarity_to(
    photos: np.ndarray, photo_person: np.ndarray, vectors: np.ndarray, person: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosine of each picture to photos of its own person and to those of all others: (N,) and (N,)."""
    own, others = np.full(len(vectors), np.nan), np.full(len(vectors), np.nan)
    for row, vector in enumerate(vectors.astype(np.float64)):
        cosines = photos @ vector
        is_own = photo_person == person[row]
        if is_own.any():
            own[row] = cosines[is_own].mean()
        if not is_own.all():
            others[row] = cosines[~is_own].mean()
    return own, others


def share_accepted(
    photos: np.ndarray, photo_person: np.ndarray, vectors: np.ndarray, person: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Share of photos of its own person, and of all others, that each picture is accepted against.

    Args:
        photos: (M, D) of unit length.
        photo_person: (M,) whom they show.
        vectors: (N, D) of the pictures; zero where no face was found, which nobody accepts.
        person: (N,) whom they should show.
        threshold: cosine from which on two faces are one person's.

    Returns:
        (N,) and (N,) in [0, 1]; NaN where there is no such photo.
    """
    own, others = np.full(len(vectors), np.nan), np.full(len(vectors), np.nan)
    for row, vector in enumerate(vectors.astype(np.float64)):
        accepted = (photos @ vector >= threshold) & vector.any()
        is_own = photo_person == person[row]
        if is_own.any():
            own[row] = accepted[is_own].mean()
        if not is_own.all():
            others[row] = accepted[~is_own].mean()
    return own, others
