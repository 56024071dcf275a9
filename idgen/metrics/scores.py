"""All pairs of faces, exactly: how alike are pictures of one person, and of two people?

Features to statistics. Vectors are rounded to multiples of 2^-26, finer than float32 itself; then every
cosine is a whole number of 2^-52 and float64 adds it up without rounding (Cauchy and Schwarz keep each
partial sum below 2^53). Histograms, extremes and counts are therefore the same for every block size and
every order.

Shapes: N pictures, M pictures of the other side, D width of a face vector, P people, K bins.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from idgen.errors import MeasureError

NUM_BINS = 20_000  # over [-1, 1]: a ten-thousandth wide
NUM_COARSE = 1_000  # of these, for each person, the bootstrap is made
BLOCK = 2048  # pictures a side: 34 MB of cosines at once
GRAIN = 2.0**26


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The cosines of one kind of pairs.

    Attributes:
        histogram: (K,) int64; bin k holds cosines from ``edges[k]`` to below ``edges[k + 1]``.
        total: sum of the cosines.
        squares: sum of their squares.
        lowest: the smallest, NaN without any.
        highest: the largest, NaN without any.
        person_histogram: (P, coarse bins) float64, of the pairs that a person takes part in.
        person_total: (P,) sum of those cosines.
    """

    histogram: np.ndarray
    total: float
    squares: float
    lowest: float
    highest: float
    person_histogram: np.ndarray
    person_total: np.ndarray

    @property
    def count(self) -> int:
        """Number of pairs."""
        return int(self.histogram.sum())

    @property
    def mean(self) -> float:
        """Mean cosine; NaN without pairs."""
        return self.total / self.count if self.count else float("nan")

    @property
    def std(self) -> float:
        """Standard deviation of the cosines (of the population); NaN without pairs."""
        if not self.count:
            return float("nan")
        return float(np.sqrt(max(0.0, self.squares / self.count - self.mean**2)))

    @property
    def person_count(self) -> np.ndarray:
        """(P,) number of pairs that each person takes part in."""
        return self.person_histogram.sum(axis=1)

    @property
    def person_mean(self) -> np.ndarray:
        """(P,) mean cosine of a person's pairs; NaN without any."""
        count = self.person_count
        return np.divide(self.person_total, count, out=np.full(len(count), np.nan), where=count > 0)


@dataclass(frozen=True, kw_only=True)
class PairStatistics:
    """Genuine pairs (one person) and impostor pairs (two people).

    Attributes:
        genuine: as said.
        impostor: as said.
        genuine_within_impostors: genuine pairs not above the highest impostor, exactly: FNMR at FMR 0 times
            their number.
    """

    genuine: Scores
    impostor: Scores
    genuine_within_impostors: int

    @property
    def edges(self) -> np.ndarray:
        """(K + 1,) borders of the bins."""
        return np.linspace(-1.0, 1.0, len(self.genuine.histogram) + 1)


def memory_bytes(num_people: int, dim: int, num_pictures: int, *, block: int = BLOCK) -> int:
    """What `pair_statistics` needs at most, roughly: blocks of cosines, bins of people, rounded vectors."""
    blocks = 6 * 8 * block * block
    return blocks + 2 * 8 * num_people * NUM_COARSE + 8 * num_pictures * dim


def pair_statistics(
    vectors: np.ndarray,
    person: np.ndarray,
    others: np.ndarray | None = None,
    other_person: np.ndarray | None = None,
    *,
    num_people: int | None = None,
    block: int = BLOCK,
) -> PairStatistics:
    """Statistics of all pairs within a set, or of all pairs between two.

    Args:
        vectors: (N, D) of unit length, or zero where no face was found: such a pair has cosine 0.
        person: (N,) numbers in [0, P).
        others: (M, D), for instance references; then pairs are (picture, other), N x M of them. Without it
            they are the N (N - 1) / 2 pairs of different pictures.
        other_person: (M,) numbers in [0, P).
        num_people: P; the largest number and one where it is not given.
        block: pictures a side that are compared at once. The result does not depend on it.

    Raises:
        MeasureError: for vectors that are not finite or longer than 1, or shapes that do not fit.
    """
    exact = _of_people(vectors, person)
    is_within = others is None
    other_exact = exact if is_within else _of_people(others, other_person)
    other_person = person if is_within else other_person
    assert other_person is not None
    people = num_people or int(max(person.max(initial=-1), other_person.max(initial=-1))) + 1
    # Sorted by person, pictures of one person are neighbours, and most blocks hold impostors only.
    order, other_order = np.argsort(person, kind="stable"), np.argsort(other_person, kind="stable")
    exact, person = exact[order], person[order]
    other_exact, other_person = other_exact[other_order], other_person[other_order]

    impostor = _Collector(people)
    for rows, columns in _blocks(len(exact), len(other_exact), block, is_within):
        _add_impostors(impostor, exact, person, other_exact, other_person, rows, columns, is_within)
    genuine, highest = _Collector(people), impostor.highest
    within = 0
    for number, cosines in _genuine(exact, person, other_exact, other_person, is_within):
        genuine.add(cosines, np.full(len(cosines), number), None)
        within += int((cosines <= highest).sum()) if np.isfinite(highest) else 0
    return PairStatistics(
        genuine=genuine.scores(), impostor=impostor.scores(), genuine_within_impostors=within
    )


def _of_people(vectors: np.ndarray, person: np.ndarray | None) -> np.ndarray:
    if vectors.ndim != 2 or person is None or len(person) != len(vectors):
        shape = None if person is None else person.shape
        raise MeasureError(f"vectors must be (N, D) and people (N,), got {vectors.shape} and {shape}")
    return whole_numbers(vectors)


def whole_numbers(vectors: np.ndarray) -> np.ndarray:
    """Unit or zero vectors (N, D) in units of 2^-26, whole numbers in float64.

    Raises:
        MeasureError: for vectors that are not finite, or longer than 1.
    """
    exact = vectors.astype(np.float64)
    length = np.linalg.norm(exact, axis=1)
    if not np.isfinite(length).all():
        raise MeasureError(f"face vectors must be finite, row {int((~np.isfinite(length)).argmax())} is not")
    if len(length) and length.max() > 1 + 1e-4:
        raise MeasureError(
            f"face vectors must be of unit length or zero, got one of length {length.max():.4g}"
        )
    return np.rint(exact / np.maximum(length, 1e-12)[:, None] * (length > 0)[:, None] * GRAIN)


def _blocks(rows: int, columns: int, block: int, is_within: bool) -> Iterator[tuple[slice, slice]]:
    for top in range(0, rows, block):
        for left in range(top if is_within else 0, columns, block):
            yield slice(top, min(top + block, rows)), slice(left, min(left + block, columns))


def _add_impostors(
    collector: "_Collector",
    exact: np.ndarray,
    person: np.ndarray,
    other_exact: np.ndarray,
    other_person: np.ndarray,
    rows: slice,
    columns: slice,
    is_within: bool,
) -> None:
    cosines = np.clip(exact[rows] @ other_exact[columns].T / GRAIN**2, -1.0, 1.0)
    own, other = person[rows], other_person[columns]
    meets = own[0] <= other[-1] and other[0] <= own[-1]  # both are sorted
    if not meets and not (is_within and rows == columns):
        collector.add_block(cosines, own, other)
        return
    wanted = own[:, None] != other[None, :]
    if is_within and rows == columns:
        wanted &= np.triu(np.ones_like(wanted), 1)
    at = np.nonzero(wanted)
    collector.add(cosines[at], own[at[0]], other[at[1]])


def _genuine(
    exact: np.ndarray, person: np.ndarray, other_exact: np.ndarray, other_person: np.ndarray, is_within: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Cosines of the pairs of each person, in turn."""
    for number in np.unique(person):
        own = exact[np.searchsorted(person, number) : np.searchsorted(person, number, "right")]
        start, stop = (np.searchsorted(other_person, number, side) for side in ("left", "right"))
        for top in range(0, len(own), BLOCK):
            part = own[top : top + BLOCK]
            cosines = np.clip(part @ other_exact[start:stop].T / GRAIN**2, -1.0, 1.0)
            if is_within:
                cosines = cosines[np.triu_indices(len(part), 1 + top, cosines.shape[1])]
            yield int(number), cosines.ravel()


class _Collector:
    """Adds cosines up."""

    def __init__(self, num_people: int) -> None:
        self.histogram = np.zeros(NUM_BINS, np.int64)
        self.person_histogram = np.zeros((num_people, NUM_COARSE), np.float64)
        self.person_total = np.zeros(num_people)
        self.total = self.squares = 0.0
        self.lowest, self.highest = np.inf, -np.inf

    def add(self, cosines: np.ndarray, own: np.ndarray, other: np.ndarray | None) -> None:
        """Any cosines (n,) with the people of each."""
        if not len(cosines):
            return
        coarse = self._count(cosines)
        shape = self.person_histogram.shape
        for people in (own, other) if other is not None else (own,):
            counted = _counted(people.astype(np.int32) * shape[1] + coarse, shape[0] * shape[1])
            self.person_histogram += counted.reshape(shape)
            self.person_total += np.bincount(people, weights=cosines, minlength=shape[0])

    def add_block(self, cosines: np.ndarray, own: np.ndarray, other: np.ndarray) -> None:
        """A whole block (n, m) of pairs between people ``own`` (n,) and ``other`` (m,), both sorted."""
        coarse = self._count(cosines)
        for people, axis in ((own, 1), (other, 0)):
            names, local = np.unique(people, return_inverse=True)
            start = local.astype(np.int32) * NUM_COARSE
            key = coarse + (start[:, None] if axis == 1 else start)
            self.person_histogram[names] += _counted(key, len(names) * NUM_COARSE).reshape(-1, NUM_COARSE)
            self.person_total[names] += np.bincount(local, weights=cosines.sum(axis=axis))

    def _count(self, cosines: np.ndarray) -> np.ndarray:
        """Add to the whole, and return the coarse bin of each."""
        bins = np.minimum((cosines * (NUM_BINS / 2) + NUM_BINS / 2).astype(np.int32), NUM_BINS - 1)
        self.histogram += _counted(bins, NUM_BINS)
        self.total += float(cosines.sum())
        self.squares += float(np.vdot(cosines, cosines))
        self.lowest = min(self.lowest, float(cosines.min()))
        self.highest = max(self.highest, float(cosines.max()))
        return bins // (NUM_BINS // NUM_COARSE)

    def scores(self) -> Scores:
        has_any = self.histogram.any()
        return Scores(
            histogram=self.histogram,
            total=self.total,
            squares=self.squares,
            lowest=self.lowest if has_any else float("nan"),
            highest=self.highest if has_any else float("nan"),
            person_histogram=self.person_histogram,
            person_total=self.person_total,
        )


def _counted(bins: np.ndarray, num_bins: int) -> np.ndarray:
    """How often each number occurs; three times as fast as NumPy, which copies the numbers to 64 bits."""
    return torch.bincount(torch.from_numpy(bins.reshape(-1)), minlength=num_bins).numpy()
