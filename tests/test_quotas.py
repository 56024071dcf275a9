"""Quotas: exact by Hamilton's method, fair to each person; arrangements: nobody's pictures alike."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from idgen.synth.arrange import Rules, arrange, exchange_between
from idgen.synth.quotas import deal, largest_remainder, whole_weights

WEIGHTS = (0, 1, 1, 1, 2, 3, 0.5, 0.1, 7.25)


def drawn(rng: np.random.Generator, most: int) -> list[float]:
    weights = rng.choice(WEIGHTS, rng.integers(1, most)).tolist()
    return weights if any(weights) else [1.0] * len(weights)


def slowly(weights: list[float], total: int) -> list[int]:
    """Hamilton's method as it is told: floors first, then the largest remainders."""
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [total * weight / sum(exact) for weight in exact]
    counts = [int(share) for share in shares]
    while sum(counts) < total:
        most = max(range(len(counts)), key=lambda value: (shares[value] - counts[value], -value))
        counts[most] += 1
    return counts


def test_largest_remainder_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        weights, total = drawn(rng, 9), int(rng.integers(0, 200))
        counts = largest_remainder(whole_weights(weights), total)
        assert counts == slowly(weights, total)
        assert sum(counts) == total


def test_equal_remainders_go_in_the_order_given() -> None:
    assert largest_remainder([1, 1, 1], 4) == [2, 1, 1]
    assert largest_remainder([1, 1, 1], 4, [2, 0, 1]) == [1, 1, 2]
    assert largest_remainder([6, 6, 2], 10) == [4, 4, 2]  # the Alabama paradox:
    assert largest_remainder([6, 6, 2], 11) == [5, 5, 1]  # one seat more, and the third value has one less


def test_a_decimal_means_what_is_written() -> None:
    assert whole_weights([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert whole_weights([3.0, 1e-1]) == [30, 1]
    assert whole_weights([0, 4, 6]) == [0, 2, 3]


def test_what_is_dealt_adds_up_and_is_fair_to_everybody() -> None:
    rng = np.random.default_rng(1)
    for trial in range(400):
        weights = drawn(rng, 8)
        sizes = rng.integers(1, 12, rng.integers(1, 30))
        dealt = deal(weights, sizes, np.random.default_rng(trial))
        counts = np.bincount(dealt, minlength=len(weights)).tolist()
        total, whole = int(sizes.sum()), whole_weights(weights)
        assert sum(counts) == total
        remainders = [total * weight % sum(whole) for weight in whole]
        for method in (
            counts,
            slowly(weights, total),
        ):  # the same up to ties: equal remainders were rounded up
            more = [count - total * weight // sum(whole) for count, weight in zip(method, whole, strict=True)]
            assert set(more) <= {0, 1}
            rounded_up = sorted(remainder for remainder, one in zip(remainders, more, strict=True) if one)
            assert rounded_up == sorted(remainders)[len(remainders) - sum(more) :]
        bound = 1 if len({weight for weight in weights if weight}) == 1 else 3
        for own in np.split(dealt, np.cumsum(sizes)[:-1]):
            share = len(own) * np.array(whole) / sum(whole)
            assert (np.abs(np.bincount(own, minlength=len(weights)) - share) < bound).all()


def test_more_people_change_nothing_but_the_last_period() -> None:
    rng = np.random.default_rng(2)
    for trial in range(200):
        weights, size = drawn(rng, 6), int(rng.integers(1, 8))
        few, many = (deal(weights, np.full(num, size), np.random.default_rng(trial)) for num in (9, 23))
        period = sum(whole_weights(weights))
        is_equal = len({weight for weight in weights if weight}) == 1
        kept = len(few) if is_equal else len(few) // period * period
        np.testing.assert_array_equal(few[:kept], many[:kept])


def test_two_pictures_of_a_person_meet_all_pairs_of_values() -> None:
    dealt = deal([1, 1, 1, 1], np.full(3000, 2), np.random.default_rng(0)).reshape(-1, 2)
    pairs = Counter(tuple(sorted(pair)) for pair in dealt.tolist())
    assert set(pairs) == set(itertools.combinations(range(4), 2))
    assert min(pairs.values()) > 400  # of 500 each on average


# ---- arrangements


def dealt_columns(weights: list[list[float]], sizes: np.ndarray, seed: int) -> np.ndarray:
    return np.stack([deal(w, sizes, np.random.default_rng([seed, axis])) for axis, w in enumerate(weights)])


def different(columns: np.ndarray) -> int:
    return len(set(zip(*columns.tolist(), strict=True)))


NOTHING = Rules(())


def most_different(columns: list[list[int]], rules: Rules = NOTHING) -> int:
    """By trying every arrangement; 0 where all have something that is forbidden."""
    others = [set(itertools.permutations(column)) for column in columns[1:]]
    arrangements = (np.array([columns[0], *chosen]) for chosen in itertools.product(*others))
    return max((different(a) for a in arrangements if not rules.broken(a).any()), default=0)


def test_a_persons_pictures_are_as_different_as_any_arrangement_makes_them() -> None:
    rng = np.random.default_rng(3)
    for trial in range(120):
        num_axes = int(rng.integers(1, 4))
        sizes = np.array([rng.integers(1, 6 if num_axes < 3 else 5)])
        columns = dealt_columns(
            [rng.choice([1, 1, 2, 3], rng.integers(1, 4)).tolist() for _ in range(num_axes)], sizes, trial
        )
        before = columns.tolist()
        assert not arrange(columns, sizes, range(num_axes), NOTHING, trial)
        assert [sorted(column) for column in columns.tolist()] == [sorted(column) for column in before]
        assert different(columns) == most_different(before)


def test_with_equal_weights_no_combination_comes_again_before_all_have_come() -> None:
    rng = np.random.default_rng(4)
    for trial in range(60):
        num_values = rng.integers(1, 5, rng.integers(1, 5))
        combinations = int(np.prod(num_values))
        sizes = rng.integers(1, 2 * combinations + 2, rng.integers(1, 12))
        columns = dealt_columns([[1.0] * num for num in num_values], sizes, trial)
        arrange(columns, sizes, range(len(num_values)), NOTHING, trial)
        for own in np.split(columns, np.cumsum(sizes)[:-1], axis=1):
            _, counts = np.unique(own, axis=1, return_counts=True)
            assert counts.max() <= -(-own.shape[1] // combinations)


def test_with_room_to_spare_nothing_comes_twice_whatever_the_weights() -> None:
    weights = [[2, 1, 1], [1, 2], [3, 1, 1, 1, 1, 1], [3.0, 1, 1, 1]]
    sizes = np.full(300, 25)
    columns = dealt_columns(weights, sizes, 0)
    arrange(columns, sizes, range(4), NOTHING, 0)
    assert all(different(own) == 25 for own in np.split(columns, 300, axis=1))


def test_axes_that_meet_are_independent_of_each_other() -> None:
    sizes = np.full(2000, 7)
    columns = dealt_columns([[1, 1, 1], [2, 1, 1], [1, 1]], sizes, 0)
    arrange(columns, sizes, range(3), NOTHING, 0)
    for first, second in itertools.combinations(columns, 2):
        table = np.zeros((3, 3))
        np.add.at(table, (first, second), 1)
        table = table[:, table.any(axis=0)]
        expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
        np.testing.assert_allclose(table, expected, rtol=0.05)


def random_rules(rng: np.random.Generator, num_values: np.ndarray) -> Rules:
    pairs = [
        sorted(rng.choice(len(num_values), 2, replace=False).tolist()) for _ in range(rng.integers(1, 3))
    ]
    return Rules(tuple(tuple((axis, rng.random(num_values[axis]) < 0.5) for axis in pair) for pair in pairs))


def test_what_is_forbidden_is_avoided_wherever_an_arrangement_does() -> None:
    rng = np.random.default_rng(5)
    kept = 0
    for trial in range(60):
        num_axes = int(rng.integers(2, 4))
        sizes = np.full(rng.integers(1, 3), rng.integers(1, 3 if num_axes == 3 else 4))
        num_values = rng.integers(2, 4, num_axes)
        columns = dealt_columns([rng.choice([1, 1, 2], num).tolist() for num in num_values], sizes, trial)
        before, rules = columns.tolist(), random_rules(rng, num_values)
        is_possible = most_different(before, rules) > 0
        is_left = arrange(columns, sizes, range(num_axes), rules, trial)
        if is_left and is_possible:
            is_left = bool(exchange_between(columns, range(num_axes), rules, np.random.default_rng(trial)))
        assert is_left == (not is_possible)
        assert [sorted(column) for column in columns.tolist()] == [sorted(column) for column in before]
        kept += is_possible
    assert 10 < kept < 50


def test_a_tight_circle_of_rules_is_solved() -> None:
    """Every value of one axis allows a single value of the other."""
    sizes, num = np.full(90, 4), 3
    columns = dealt_columns([[1.0] * num] * 2, sizes, 0)
    only = [((0, np.arange(num) == value), (1, np.arange(num) != value)) for value in range(num)]
    rules = Rules(tuple(only))
    if arrange(columns, sizes, range(2), rules, 0):
        assert exchange_between(columns, range(2), rules, np.random.default_rng(0)) == 0
    np.testing.assert_array_equal(columns[0], columns[1])


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
def test_the_size_of_a_chunk_changes_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, sizes = [[5, 1, 1], [3, 1], [3, 1, 1.0]], np.arange(1, 30) % 9 + 1
    rules = Rules((((0, np.array([0, 1, 0], bool)), (1, np.array([0, 1], bool))),))
    expected = dealt_columns(weights, sizes, 0)
    arrange(expected, sizes, range(3), rules, 0)
    monkeypatch.setattr("idgen.synth.arrange.CHUNK", chunk)
    columns = dealt_columns(weights, sizes, 0)
    arrange(columns, sizes, range(3), rules, 0)
    np.testing.assert_array_equal(columns, expected)
