"""Far enough, exactly: against fractions, at the edge of the limit, whatever the size of blocks."""

from fractions import Fraction

import numpy as np
import pytest

from idgen.errors import MeasureError
from idgen.synth.separation import Crowd, RealPeople, doubt, first_come, reaches, too_near

DIM = 16


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def drawn(num: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((num, dim)))


def at_the_limit(num: int, limit: float, seed: int = 0) -> np.ndarray:
    """Pairs whose cosine differs from the limit by rounding to float32 alone, in mixed order."""
    rng = np.random.default_rng(seed + 1000)
    first = drawn(num, seed=seed).astype(float)
    across = rng.standard_normal((num, DIM))
    across -= (across * first).sum(axis=1, keepdims=True) * first
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    second = limit * first + np.sqrt(1 - limit**2) * across
    vectors = unit(np.concatenate([first, second])) * (1 + rng.uniform(-7e-7, 7e-7, (2 * num, 1)))
    return vectors.astype(np.float32)[rng.permutation(2 * num)]  # as much off unit length as may be


def exactly_near(a: np.ndarray, b: np.ndarray, limit: float) -> bool:
    """The definition in fractions: ``a . b`` or ``a . b / (|a| |b|)`` is at or above the limit."""
    x, y = ([Fraction(float(value)) for value in vector] for vector in (a, b))
    dot, bound = sum(p * q for p, q in zip(x, y, strict=True)), Fraction(limit)
    if dot >= bound:
        return True
    square = sum(p * p for p in x) * sum(q * q for q in y)
    above = dot * dot >= bound * bound * square
    return above if bound >= 0 and dot >= 0 else dot >= 0 or (bound < 0 and not dot * dot > bound**2 * square)


def by_fractions(candidates: np.ndarray, limit: float, real: np.ndarray, real_limit: float) -> np.ndarray:
    """One candidate after the other, compared with each accepted before."""
    kept: list[np.ndarray] = []
    for vector in candidates:
        far = not any(exactly_near(vector, other, real_limit) for other in real)
        if far and not any(exactly_near(vector, other, limit) for other in kept):
            kept.append(vector)
    return np.array(kept)


@pytest.mark.parametrize("limit", [0.7, 0.05, -0.04])
def test_a_crowd_is_what_a_loop_over_fractions_accepts(limit: float) -> None:
    candidates = at_the_limit(60, limit)
    gallery = at_the_limit(10, 0.5, seed=3)
    expected = by_fractions(candidates, limit, gallery, 0.5)
    real = RealPeople(name="gallery", vectors=gallery, max_cosine=0.5)
    for chunk, block in ((120, 2048), (17, 3), (1, 1)):
        crowd = Crowd(DIM, limit, capacity=200, real=[real], block=block)
        taken = [crowd.admit(candidates[i : i + chunk]) for i in range(0, len(candidates), chunk)]
        np.testing.assert_array_equal(crowd.vectors, expected)
        np.testing.assert_array_equal(np.concatenate(taken), expected)


def test_float32_alone_would_decide_some_of_these_pairs_wrongly() -> None:
    limit = 0.3
    vectors = at_the_limit(300, limit)
    cosines = vectors @ vectors.T
    rows, columns = np.nonzero(np.triu(np.abs(cosines - limit) < 1e-6, 1))
    exact = np.array(
        [exactly_near(vectors[r], vectors[c], limit) for r, c in zip(rows, columns, strict=True)]
    )
    mine = np.array([reaches(vectors[r], vectors[c], limit) for r, c in zip(rows, columns, strict=True)])
    assert len(rows) >= 300
    assert 0.2 < exact.mean() < 0.8
    np.testing.assert_array_equal(mine, exact)
    assert (exact != (cosines[rows, columns] >= np.float32(limit))).any()


def test_lengths_that_are_not_exactly_one_count() -> None:
    a, b = np.array([1 - 5e-7, 0], np.float32), np.array([0.5, np.sqrt(0.75)], np.float32)
    cosine = float(a.astype(float) @ b / np.linalg.norm(a.astype(float)) / np.linalg.norm(b.astype(float)))
    assert float(a.astype(float) @ b) < 0.5 - 2e-7  # the product alone is well below
    assert reaches(a, b, cosine - 1e-9)
    assert not reaches(a, b, cosine + 1e-9)


@pytest.mark.parametrize("dim", [2, 16, 512])
def test_no_float32_sum_is_further_off_than_doubt(dim: int) -> None:
    rng = np.random.default_rng(dim)
    same_sign = unit(np.abs(rng.standard_normal((100, dim))) + 1)  # the worst for rounding: sums only grow
    for vectors in (same_sign, drawn(100, dim)):
        exact = vectors.astype(float) @ vectors.T.astype(float)
        in_order = np.zeros((100, 100), np.float32)
        for number in range(dim):
            in_order += vectors[:, number : number + 1] * vectors[:, number]
        for computed in (vectors @ vectors.T, in_order):
            assert np.abs(computed - exact).max() < doubt(dim)
    assert doubt(dim) < 1e-4


def test_neighbours_are_found_in_every_block() -> None:
    others = drawn(100, seed=1)
    for row in range(100):
        found = too_near(others[row : row + 1], others, 0.999, block=7)
        assert found.tolist() == [True]
        assert too_near(others[row : row + 1], np.delete(others, row, axis=0), 0.999, block=7).tolist() == [
            False
        ]
    assert not too_near(others, others[:0], 0.5).any()


def test_those_who_came_first_stay() -> None:
    a, b, c = np.eye(3, DIM, dtype=np.float32)
    ab = unit((a + b)[None])[0]  # near to a and to b
    assert first_come(np.stack([a, ab, b, c]), 0.7).tolist() == [0, 2, 3]
    assert first_come(np.stack([ab, a, b, c]), 0.7).tolist() == [0, 3]
    assert first_come(np.stack([a, a, a]), 1.0).tolist() == [0]  # a limit of 1 leaves out twins alone
    assert first_come(np.zeros((0, DIM), np.float32), 0.5).tolist() == []


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (np.zeros((1, DIM), np.float32), "row 0 has length 0"),
        (np.full((1, DIM), np.nan, np.float32), "row 0 has length nan"),
        (np.eye(2, DIM, dtype=np.float32) * np.float32(1.001), "row 0 has length 1.001"),
        (np.eye(2, DIM), r"must be float32 \(N, 16\), got float64 \(2, 16\)"),
        (np.eye(2, 8, dtype=np.float32), r"got float32 \(2, 8\)"),
    ],
)
def test_candidates_that_cannot_be_compared(candidates: np.ndarray, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        Crowd(DIM, 0.5, capacity=8).admit(candidates)
