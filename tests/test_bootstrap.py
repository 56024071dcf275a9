import numpy as np
import pytest

from idgen.metrics.bootstrap import holm, interval_over_people, paired_difference


def test_the_interval_agrees_with_resampling_in_a_loop() -> None:
    values = np.random.default_rng(1).normal(size=30)
    rng = np.random.default_rng(0)
    draws = rng.integers(30, size=(2000, 30))
    means = sorted(sum(values[i] for i in draw) / 30 for draw in draws)
    low, high = interval_over_people(values)
    assert low == pytest.approx(np.quantile(means, 0.025))
    assert high == pytest.approx(np.quantile(means, 0.975))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        low, high = interval_over_people(rng.normal(size=60), num_resamples=400, seed=seed)
        hits += low <= 0 <= high
    assert 175 <= hits <= 199


def test_nobody_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one person"):
        interval_over_people(np.array([]))


def test_paired_difference_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=25), rng.normal(0.3, 1, size=25)
    found = paired_difference(first, second, num_resamples=1000, seed=5)
    draws = np.random.default_rng(5).integers(25, size=(500, 25)).tolist()
    rng = np.random.default_rng(5)
    draws = [*rng.integers(25, size=(500, 25)).tolist(), *rng.integers(25, size=(500, 25)).tolist()]
    change = (second - first).tolist()
    means = sorted(sum(change[i] for i in draw) / 25 for draw in draws)
    assert found.mean == pytest.approx(sum(change) / 25)
    assert found.interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    side = min(sum(m <= 0 for m in means), sum(m >= 0 for m in means))
    assert found.p == pytest.approx(2 * (side + 1) / 1001)


def test_pairing_finds_what_two_intervals_hide() -> None:
    """People differ by 1, the runs by 0.1: only the paired test sees it."""
    rng = np.random.default_rng(4)
    first = rng.normal(size=40)
    second = first + 0.1 + 0.05 * rng.normal(size=40)
    assert paired_difference(first, second).p < 0.001
    a, b = interval_over_people(first), interval_over_people(second)
    assert a[1] > b[0]  # the intervals overlap


def test_no_difference_is_found_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(6)
    small = [
        paired_difference(rng.normal(size=50), rng.normal(size=50), num_resamples=500, seed=i).p < 0.05
        for i in range(300)
    ]
    assert 4 <= sum(small) <= 32


def test_people_without_a_number_are_left_out_of_both() -> None:
    first, second = np.array([1.0, np.nan, 3.0, 4.0]), np.array([2.0, 9.0, np.nan, 4.5])
    found = paired_difference(first, second)
    assert (found.num_people, found.mean) == (2, 0.75)
    same = paired_difference(first, first)
    assert (same.mean, same.p) == (0, 1)
    with pytest.raises(ValueError, match="two people"):
        paired_difference(first[:2], second[:2])


def test_holm_by_hand() -> None:
    assert holm(np.array([0.04, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert holm(np.array([])).tolist() == []
