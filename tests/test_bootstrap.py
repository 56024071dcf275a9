import numpy as np
import pytest

from idgen.metrics.bootstrap import interval_over_people


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
