"""Who is it? Pictures as probes against a gallery of known people.

Shapes: N probes, M gallery pictures, D width of a face vector.
"""

from dataclasses import dataclass

import numpy as np

BLOCK = 1024  # probes at once


@dataclass(frozen=True, kw_only=True)
class Identification:
    """One row a probe; a probe whose person the gallery does not hold has no numbers, NaN.

    Attributes:
        rank: (N,) place of the best picture of the right person among all gallery pictures, from 1.
        average_precision: (N,) mean over the right pictures of the share of right ones down to each.
        inverse_penalty: (N,) number of right pictures over the rank of the hardest one; its mean is mINP
            (Ye et al. 2021, https://arxiv.org/abs/2001.04193, eq. 8).
    """

    rank: np.ndarray
    average_precision: np.ndarray
    inverse_penalty: np.ndarray

    def within(self, rank: int) -> np.ndarray:
        """(N,) 1 where the right person is among the first ``rank``, else 0; NaN as above."""
        return np.where(np.isnan(self.rank), np.nan, self.rank <= rank)

    def cumulative_curve(self, max_rank: int) -> np.ndarray:
        """The CMC curve: (max_rank,) share of probes found within rank 1, 2, ...; NaN without any probe."""
        known = self.rank[~np.isnan(self.rank)]
        if not len(known):
            return np.full(max_rank, np.nan)
        return (known[:, None] <= np.arange(1, max_rank + 1)).mean(axis=0)


def identify(
    probes: np.ndarray,
    person: np.ndarray,
    gallery: np.ndarray | None = None,
    gallery_person: np.ndarray | None = None,
) -> Identification:
    """Rank the gallery for each probe by cosine, wrong people first where cosines are equal.

    The order of equals is against us on purpose: a picture without a face, whose vector is zero, is equally
    alike to everybody and must not count as found.

    Args:
        probes: (N, D) of unit length or zero.
        person: (N,) numbers.
        gallery: (M, D); without it each probe is compared with all others of its set, itself left out.
        gallery_person: (M,) numbers.
    """
    is_within = gallery is None
    gallery = probes if gallery is None else gallery
    gallery_person = person if is_within or gallery_person is None else gallery_person
    results = np.full((3, len(probes)), np.nan)
    for start in range(0, len(probes), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(probes)))
        cosines = probes[rows].astype(np.float64) @ gallery.T.astype(np.float64)
        for row, values in zip(rows, cosines, strict=True):
            right = gallery_person == person[row]
            if is_within:
                values, right = np.delete(values, row), np.delete(right, row)
            if right.any():
                results[:, row] = _of_probe(values, right)
    return Identification(rank=results[0], average_precision=results[1], inverse_penalty=results[2])


def _of_probe(cosines: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    """Best rank, average precision and inverse penalty of one probe."""
    order = np.lexsort((right, -np.round(cosines, 12)))  # rounded: equals up to the order of a sum are equal
    ranks = np.flatnonzero(right[order]) + 1
    found = np.arange(1, len(ranks) + 1)
    return float(ranks[0]), float((found / ranks).mean()), float(len(ranks) / ranks[-1])
