"""Verification accuracy against the definition, written as loops."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

from idgen.metrics.verification import (
    accuracy_at,
    best_threshold,
    contiguous_folds,
    decided_rightly,
    fold_accuracies,
    fold_means,
    grid_decided_rightly,
    roc,
    standard_error,
    tar_at_far,
)


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
    expected, right = [], {}
    for n in range(5):
        others = [i for i in range(200) if fold[i] != n]
        threshold = best_threshold(similarity[others], same[others])
        mine = [i for i in range(200) if fold[i] == n]
        expected.append(count_right(similarity[mine], same[mine], threshold) / len(mine))
        right |= {i: (similarity[i] >= threshold) == same[i] for i in mine}
    np.testing.assert_allclose(fold_accuracies(similarity, same, fold), expected)
    np.testing.assert_array_equal(decided_rightly(similarity, same, fold), [right[i] for i in range(200)])


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
    for protocol in (fold_accuracies, decided_rightly, grid_decided_rightly):
        with pytest.raises(ValueError, match="two are needed, got 1"):
            protocol(np.array([0.1]), np.array([True]), np.array([3]))


def harness(first: np.ndarray, second: np.ndarray, same: np.ndarray, num_folds: int) -> list[float]:
    """The protocol of insightface's arcface_torch, written from its description: vectors in, accuracies out.

    Squared distances of unit vectors; thresholds 0 to 4 by 0.01; below is "same"; folds of neighbours; the
    threshold with the best accuracy on the others, the first of equals.
    """
    distance = ((first - second) ** 2).sum(axis=1)
    accuracies = []
    for train, test in KFold(num_folds, shuffle=False).split(distance):
        best, chosen = -1.0, 0.0
        for threshold in np.arange(0, 4, 0.01):
            right = float(((distance[train] < threshold) == same[train]).mean())
            if right > best:
                best, chosen = right, threshold
        accuracies.append(float(((distance[test] < chosen) == same[test]).mean()))
    return accuracies


@pytest.mark.parametrize(("num_pairs", "noise"), [(200, 0.8), (203, 1.4), (90, 0.2)])
def test_grid_equals_the_harness_of_arcface(num_pairs: int, noise: float) -> None:
    rng = np.random.default_rng(num_pairs)
    same = rng.random(num_pairs) < 0.5
    first = rng.normal(size=(num_pairs, 32))
    other = np.where(same[:, None], first, rng.normal(size=(num_pairs, 32)))
    second = other + noise * rng.normal(size=(num_pairs, 32))
    first, second = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (first, second))
    fold = contiguous_folds(num_pairs)
    ours = fold_means(grid_decided_rightly(np.einsum("pd,pd->p", first, second), same, fold), fold)
    np.testing.assert_allclose(ours, harness(first, second, same, 10), atol=1e-12)
    assert standard_error(ours) == pytest.approx(np.std(ours) / 10**0.5)


def test_folds_of_neighbours_are_those_of_sklearn() -> None:
    for count in (10, 57, 200):
        expected = np.zeros(count, int)
        for number, (_, test) in enumerate(KFold(10).split(np.zeros(count))):
            expected[test] = number
        np.testing.assert_array_equal(contiguous_folds(count), expected)


@pytest.mark.parametrize("seed", range(3))
def test_roc_is_that_of_sklearn(seed: int) -> None:
    similarity, same, _ = random_pairs(300, seed)
    far, tar, threshold = roc(similarity, same)
    expected_far, expected_tar, _ = roc_curve(same, similarity, drop_intermediate=False)
    np.testing.assert_allclose(far, expected_far)
    np.testing.assert_allclose(tar, expected_tar)
    for at in range(1, len(threshold)):  # what the curve says, counted
        assert far[at] == pytest.approx((similarity[~same] >= threshold[at]).mean())
    assert np.trapezoid(tar, far) == pytest.approx(roc_auc_score(same, similarity))


def test_tar_at_far_counts() -> None:
    similarity = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    same = np.array([True, True, False, True, True, False])
    assert tar_at_far(similarity, same, 0.0)[0] == 0.5
    assert tar_at_far(similarity, same, 0.49)[0] == 0.5
    assert tar_at_far(similarity, same, 0.5)[0] == 1.0
    share, threshold = tar_at_far(similarity, ~same, 0.0)  # the highest is an impostor: nobody passes
    assert share == 0.0
    assert threshold > 0.9


@pytest.mark.parametrize("same", [True, False])
def test_roc_needs_both_kinds(same: bool) -> None:
    with pytest.raises(ValueError, match="needed"):
        roc(np.array([0.1, 0.2]), np.array([same, same]))


def test_all_equal_similarities() -> None:
    similarity, same = np.full(20, 0.3), np.arange(20) % 2 == 0
    fold = contiguous_folds(20)
    assert fold_means(grid_decided_rightly(similarity, same, fold), fold).tolist() == [0.5] * 10
    assert fold_accuracies(similarity, same, fold).tolist() == [0.5] * 10
    assert np.trapezoid(*roc(similarity, same)[1::-1]) == 0.5
