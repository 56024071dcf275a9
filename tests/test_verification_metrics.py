"""Verification accuracy against the definition, written as loops."""

import numpy as np
import pytest

from idgen.metrics.verification import accuracy_at, best_threshold, fold_accuracies


def random_pairs(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    same = rng.random(num) < 0.5
    similarity = np.round(rng.normal(0.4 * same, 0.3), 1)  # rounded: many equal values
    return similarity, same, rng.integers(0, 5, num)


def count_right(similarity: np.ndarray, same: np.ndarray, threshold: float) -> int:
    return sum((s >= threshold) == t for s, t in zip(similarity.tolist(), same.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_decides_more_pairs_rightly(seed: int) -> None:
    similarity, same, _ = random_pairs(60, seed)
    values = np.unique(similarity)
    candidates = [values[0] - 1, *(values[1:] + values[:-1]) / 2, values[-1] + 1]
    best = max(count_right(similarity, same, c) for c in candidates)
    assert count_right(similarity, same, best_threshold(similarity, same)) == best


def test_each_fold_is_judged_by_the_others() -> None:
    similarity, same, fold = random_pairs(200)
    expected = []
    for n in range(5):
        others = [i for i in range(200) if fold[i] != n]
        threshold = best_threshold(similarity[others], same[others])
        mine = [i for i in range(200) if fold[i] == n]
        expected.append(count_right(similarity[mine], same[mine], threshold) / len(mine))
    np.testing.assert_allclose(fold_accuracies(similarity, same, fold), expected)


def test_separable_pairs_are_all_right() -> None:
    similarity, same = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])
    assert 0.2 < best_threshold(similarity, same) < 0.8
    assert accuracy_at(similarity, same, best_threshold(similarity, same)) == 1.0
    assert fold_accuracies(similarity, same, np.array([0, 1, 0, 1])).tolist() == [1.0, 1.0]


def test_pairs_of_one_kind() -> None:
    similarity = np.array([0.1, 0.5])
    assert best_threshold(similarity, np.array([True, True])) < 0.1
    assert best_threshold(similarity, np.array([False, False])) > 0.5


def test_one_fold_is_refused() -> None:
    with pytest.raises(ValueError, match="two are needed, got 1"):
        fold_accuracies(np.array([0.1]), np.array([True]), np.array([3]))
