"""Who is too near whom, exactly: float32 compares all pairs, and what it cannot decide is added up exactly.

A sum of D products in float32, in whatever order, is wrong by ``D u / (1 - D u) |a| |b|`` at most, with
``u = 2^-24`` (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed. 2002, eq. 3.5). Pairs within
that of the limit are compared again: the product of two float32 numbers fits a float64 without rounding, and
`math.fsum` adds without rounding. So nothing depends on the size of blocks, or on who multiplies matrices.

Shapes: N candidates, M others, P accepted, D width of a face vector.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from idgen.errors import MeasureError
from idgen.synth.vectors import ROUNDING
from idgen.synth.wording import bytes_as_text, number_of

BLOCK = 2048  # others that candidates are compared with at once: 2 MB of cosines stay in the cache
# Added to the bound above: lengths differ from 1 by `ROUNDING`, and the limit itself is rounded to float32.
ALLOWANCE = 10 * ROUNDING
UNDECIDED = 2.0**-50  # more than the rounding errors of `reaches`: nearer to the limit counts as reaching it


@dataclass(frozen=True, kw_only=True, eq=False)
class RealPeople:
    """Vectors of real people that no new one may come near.

    Attributes:
        name: what they are called in messages and records.
        vectors: (M, D) float32 of unit length.
        max_cosine: new people stay below it.
    """

    name: str
    vectors: np.ndarray
    max_cosine: float


def reaches(a: np.ndarray, b: np.ndarray, limit: float) -> bool:
    """Whether the cosine of two float32 vectors (D,) of about unit length is at or above a limit.

    Both ``a . b`` and ``a . b / (|a| |b|)`` must be below it: rounded to float32, lengths are not exactly 1.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = math.sqrt(math.fsum(a * a) * math.fsum(b * b))
    return math.fsum(a * b) >= min(limit, limit * lengths) - UNDECIDED


def doubt(dim: int) -> float:
    """How far a float32 cosine may lie on the wrong side of a limit."""
    share = dim * 2.0**-24
    return share / (1 - share) * (1 + ROUNDING) ** 2 + ALLOWANCE


def too_near(candidates: np.ndarray, others: np.ndarray, limit: float, *, block: int = BLOCK) -> np.ndarray:
    """(N,) of bool: whose cosine to any of the others is at or above a limit.

    Args:
        candidates: (N, D) float32 of unit length.
        others: (M, D) likewise.
        limit: as said.
        block: others that are compared at once. The result does not depend on it.
    """
    near = np.zeros(len(candidates), bool)
    margin = doubt(candidates.shape[1])
    for start in range(0, len(others), block):
        left = np.flatnonzero(~near)
        if not len(left):
            break
        part = others[start : start + block]
        cosines = candidates[left] @ part.T
        highest = cosines.max(axis=1)
        near[left] = highest >= limit + margin
        for row in np.flatnonzero((highest >= limit - margin) & ~near[left]):
            doubtful = np.flatnonzero(cosines[row] >= limit - margin)
            near[left[row]] = any(reaches(candidates[left[row]], part[column], limit) for column in doubtful)
    return near


def first_come(candidates: np.ndarray, limit: float) -> np.ndarray:
    """Rows of the candidates (N, D) that are below the limit to all those taken before them."""
    margin = doubt(candidates.shape[1])
    cosines = candidates @ candidates.T
    near = np.triu(cosines >= limit + margin, 1)
    doubtful = np.triu(cosines >= limit - margin, 1) & ~near
    for row, column in np.argwhere(doubtful):
        near[row, column] = reaches(candidates[row], candidates[column], limit)
    taken = np.ones(len(candidates), bool)
    for row in np.flatnonzero(near.any(axis=1)):
        if taken[row]:
            taken &= ~near[row]
    return np.flatnonzero(taken)


class Crowd:
    """People in the order of their coming, each below a cosine to every other and to real people.

    Args:
        dim: D.
        max_cosine: between two of them.
        capacity: for how many there is room.
        real: nobody comes near these.
        block: others that candidates are compared with at once.
    """

    def __init__(
        self,
        dim: int,
        max_cosine: float,
        *,
        capacity: int,
        real: Sequence[RealPeople] = (),
        block: int = BLOCK,
    ) -> None:
        self.max_cosine, self.real, self.block = max_cosine, tuple(real), block
        try:
            self._room = np.empty((capacity, dim), np.float32)
        except MemoryError:  # `ulimit -v`, and machines that promise no more than they have
            raise MeasureError(
                f"there is no memory for {number_of(capacity, 'person')} of {dim} numbers each "
                f"({bytes_as_text(4 * capacity * dim)}); ask for fewer"
            ) from None
        self._num = 0

    def __len__(self) -> int:
        return self._num

    @property
    def vectors(self) -> np.ndarray:
        """(P, D) float32; a view."""
        return self._room[: self._num]

    def admit(self, candidates: np.ndarray) -> np.ndarray:
        """Take in those who keep their distance, one after the other.

        Args:
            candidates: (N, D) float32 of unit length.

        Returns:
            (n, D) those who were taken, in their order.

        Raises:
            MeasureError: if a candidate is not of unit length.
        """
        _check_candidates(candidates, self._room.shape[1])
        for people in self.real:
            near = too_near(candidates, people.vectors, people.max_cosine, block=self.block)
            candidates = candidates[~near]
        candidates = candidates[~too_near(candidates, self.vectors, self.max_cosine, block=self.block)]
        taken = candidates[first_come(candidates, self.max_cosine)]
        self.restore(taken)
        return taken

    def turned_away(self, candidates: np.ndarray) -> dict[str, int]:
        """How many of (N, D) come near which real people; who is near several counts for the first."""
        counts = {}
        for people in self.real:
            near = too_near(candidates, people.vectors, people.max_cosine, block=self.block)
            counts[people.name] = int(near.sum())
            candidates = candidates[~near]
        return counts

    def restore(self, people: np.ndarray) -> None:
        """Take in (n, D) people who were accepted before, without a look at them."""
        self._room[self._num : self._num + len(people)] = people
        self._num += len(people)


def _check_candidates(candidates: np.ndarray, dim: int) -> None:
    if candidates.dtype != np.float32 or candidates.ndim != 2 or candidates.shape[1] != dim:
        raise MeasureError(
            f"candidates must be float32 (N, {dim}), got {candidates.dtype} {candidates.shape}"
        )
    length = np.sqrt(np.einsum("nd,nd->n", candidates, candidates, dtype=np.float64))
    wrong = np.flatnonzero(~(np.abs(length - 1) <= ROUNDING))  # NaN is wrong too
    if len(wrong):
        raise MeasureError(
            f"candidates must be of unit length within {ROUNDING:g}; row {wrong[0]} has length "
            f"{length[wrong[0]]:.7g}"
        )
