"""Does a made face belong to somebody? The nearest real one, exactly, and how near is too near.

Shapes: N pictures, M photos of the gallery, P people, D width of a face vector.
"""

from collections.abc import Callable, Sequence

import numpy as np

from idgen.errors import MeasureError
from idgen.metrics.scores import GRAIN, pair_statistics, whole_numbers

ROWS, COLUMNS = 1024, 4096  # of a block: 34 MB of cosines
PAIRS_PER_HIT = 10  # impostor pairs above a threshold that make it worth its name


def nearest(
    vectors: np.ndarray,
    gallery: np.ndarray,
    *,
    rows: int = ROWS,
    columns: int = COLUMNS,
    advance: Callable[[int], object] = lambda _: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The photo of a gallery that is most alike each picture, exactly.

    Cosines are added up without rounding, as in `idgen.metrics.scores`: the size of blocks changes nothing,
    and of equally near photos the first is named.

    Args:
        vectors: (N, D) of unit length, or zero where no face was found.
        gallery: (M, D) likewise.
        rows: pictures of a block.
        columns: photos of a block.
        advance: told how many pictures are done after each block.

    Returns:
        (N,) number of the photo, -1 where the picture shows no face; (N,) its cosine, there NaN.

    Raises:
        MeasureError: if no photo shows a face, the widths differ, or vectors are not of unit length.
    """
    known, exact = _checked(vectors, gallery)
    index, best = np.full(len(vectors), -1), np.full(len(vectors), np.nan)
    for top in range(0, len(vectors), rows):
        part = whole_numbers(vectors[top : top + rows])
        at, value = np.zeros(len(part), int), np.full(len(part), -np.inf)
        for left in range(0, len(exact), columns):
            cosines = part @ exact[left : left + columns].T
            first = cosines.argmax(axis=1)
            highest = cosines[np.arange(len(part)), first]
            better = highest > value
            at[better], value[better] = left + first[better], highest[better]
        face = part.any(axis=1)
        index[top : top + rows][face] = known[at[face]]
        best[top : top + rows][face] = value[face] / GRAIN**2
        advance(len(part))
    return index, best


def nearest_by_faiss(vectors: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `nearest` finds, by faiss (Douze et al. 2024) in float32.

    The photo may differ from that of `nearest` where two are equally near within 1e-6; the cosine is that of
    the photo named, without rounding.

    Raises:
        ImportError: if faiss is not installed.
        MeasureError: as `nearest`.
    """
    import faiss  # pyright: ignore[reportMissingTypeStubs] - optional

    known, exact = _checked(vectors, gallery)
    own = whole_numbers(vectors)
    index = faiss.IndexFlatIP(gallery.shape[1])  # exact: every vector is compared
    index.add((exact / GRAIN).astype(np.float32))  # pyright: ignore[reportCallIssue]
    _, found = index.search((own / GRAIN).astype(np.float32), 1)  # pyright: ignore[reportCallIssue]
    face = own.any(axis=1)
    cosine = np.einsum("nd,nd->n", own, exact[found[:, 0]]) / GRAIN**2
    return np.where(face, known[found[:, 0]], -1), np.where(face, cosine, np.nan)


def _checked(vectors: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the photos with a face, and their vectors as whole numbers."""
    if vectors.ndim != 2 or gallery.ndim != 2 or vectors.shape[1] != gallery.shape[1]:
        raise MeasureError(f"vectors of one width are needed, got {vectors.shape} and {gallery.shape}")
    known = np.flatnonzero(gallery.any(axis=1))
    if not len(known):
        raise MeasureError(f"none of the {len(gallery)} photos of the gallery shows a face")
    return known, whole_numbers(gallery[known])


def centres(vectors: np.ndarray, person: np.ndarray, num_people: int) -> np.ndarray:
    """The direction of each person's mean vector: (N, D), (N,) -> (P, D) of unit length.

    Pictures without a face (zero vectors) are left out; zero for people without any.
    """
    total = np.zeros((num_people, vectors.shape[1]))
    np.add.at(total, person, vectors.astype(np.float64))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.divide(total, length, out=np.zeros_like(total), where=length > 1e-9)


def impostor_thresholds(vectors: np.ndarray, person: np.ndarray, fmrs: Sequence[float]) -> dict[float, float]:
    """Cosines that a share of the pairs of two people reaches, from all such pairs.

    For each rate the lowest border of a bin (a ten-thousandth apart) at which FMR is at most that rate
    (ISO/IEC 19795-1).

    Args:
        vectors: (N, D) of unit length, or zero where no face was found: such pictures are left out.
        person: (N,) numbers of the people.
        fmrs: rates in (0, 1).

    Returns:
        Rate -> cosine; NaN where there are fewer than ten pairs for it to let through.

    Raises:
        MeasureError: for vectors that are not finite, or longer than 1.
    """
    face = vectors.any(axis=1)
    _, number = np.unique(person[face], return_inverse=True)
    histogram = pair_statistics(vectors[face], number).impostor.histogram
    at_or_above = np.append(np.cumsum(histogram[::-1])[::-1], 0)
    edges = np.linspace(-1.0, 1.0, len(histogram) + 1)
    return {fmr: _threshold(at_or_above, edges, fmr) for fmr in fmrs}


def _threshold(at_or_above: np.ndarray, edges: np.ndarray, fmr: float) -> float:
    allowed = fmr * at_or_above[0]
    if allowed < PAIRS_PER_HIT:
        return float("nan")
    return float(edges[np.argmax(at_or_above <= allowed + 1e-9)])
