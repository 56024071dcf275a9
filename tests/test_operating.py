"""Error rates and their relatives: against scikit-learn, scipy and brute force."""

import numpy as np
import pytest
from sklearn.metrics import det_curve, matthews_corrcoef, roc_auc_score

from idgen.metrics import operating
from idgen.metrics.operating import bootstrap_intervals, operating_points
from idgen.metrics.scores import pair_statistics


def people(num_people: int, pictures: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(num_people), pictures)
    vectors = rng.normal(size=(num_people, 24))[person] + noise * rng.normal(size=(len(person), 24))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), person


def pairs_of(vectors: np.ndarray, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    i, j = np.triu_indices(len(person), 1)
    return (vectors[i] * vectors[j]).sum(axis=1), person[i] == person[j]


@pytest.mark.parametrize("noise", [0.4, 1.0, 2.0])
def test_numbers_are_those_of_scikit_learn(noise: float) -> None:
    vectors, person = people(30, 5, noise)
    cosines, same = pairs_of(vectors, person)
    found = operating_points(pair_statistics(vectors, person))
    assert found["auc"] == pytest.approx(roc_auc_score(same, cosines), abs=2e-4)
    fmr, fnmr, _ = det_curve(same, cosines)
    at = np.argmin(np.abs(fmr - fnmr))
    assert found["eer"] == pytest.approx((fmr[at] + fnmr[at]) / 2, abs=3e-3)
    for rate in (1e-2, 1e-3):
        threshold = np.sort(cosines[~same])[::-1][int(rate * (~same).sum())]  # one more would be too many
        assert found[f"fnmr_at_fmr_{rate:g}"] == pytest.approx((cosines[same] <= threshold).mean(), abs=7e-3)
        assert found[f"tar_at_far_{rate:g}"] == 1 - found[f"fnmr_at_fmr_{rate:g}"]
        assert found[f"threshold_at_fmr_{rate:g}"] == pytest.approx(threshold, abs=2e-4)
    highest = cosines[~same].max()
    assert found["fnmr_at_fmr_0"] == pytest.approx((cosines[same] <= highest).mean())
    assert matthews_corrcoef(same, cosines >= found["mcc_threshold"]) == pytest.approx(found["mcc"], abs=1e-6)
    for threshold in np.quantile(cosines, np.linspace(0.05, 0.999, 40)):
        assert matthews_corrcoef(same, cosines >= threshold) <= found["mcc"] + 3e-3


def test_moments_make_fisher_ratio_and_d_prime() -> None:
    vectors, person = people(20, 4, 1.0)
    cosines, same = pairs_of(vectors, person)
    g, i = cosines[same], cosines[~same]
    found = operating_points(pair_statistics(vectors, person))
    ratio = (g.mean() - i.mean()) ** 2 / (g.var() + i.var())
    assert found["fisher_ratio"] == pytest.approx(ratio, rel=1e-4)
    assert found["d_prime"] == pytest.approx(
        abs(g.mean() - i.mean()) / np.sqrt((g.var() + i.var()) / 2), rel=1e-4
    )


def test_separable_people_have_no_errors_and_hopeless_ones_half() -> None:
    vectors, person = people(10, 4, 0.01)
    found = operating_points(pair_statistics(vectors, person))
    assert (found["eer"], found["fnmr_at_fmr_0"], found["auc"], found["mcc"]) == (0, 0, 1, 1)
    all_equal = np.tile(np.eye(8)[:1], (12, 1))
    found = operating_points(pair_statistics(all_equal, np.repeat(np.arange(4), 3)))
    assert found["eer"] == pytest.approx(0.5)
    assert found["auc"] == pytest.approx(0.5)
    assert found["fnmr_at_fmr_0"] == 1
    assert found["mcc"] == 0
    assert np.isnan(found["fisher_ratio"])  # neither kind spreads, and they do not differ


def test_without_pairs_of_both_kinds_nothing_is_claimed() -> None:
    for person in (np.zeros(4, int), np.arange(4)):
        pairs = pair_statistics(np.eye(4), person)
        found = operating_points(pairs)
        undefined = ("eer", "auc", "d_prime", "mcc", "fnmr_at_fmr_0", "fnmr_at_fmr_0.01", "eer_threshold")
        assert all(np.isnan(found[name]) for name in undefined)
    assert bootstrap_intervals(pair_statistics(np.eye(1), np.zeros(1, int))) == {}


def test_intervals_are_those_of_resampling_people() -> None:
    """Against the bootstrap that really draws people, with impostor weights w_i w_j and no approximation."""
    vectors, person = people(40, 4, 1.2)
    found = bootstrap_intervals(pair_statistics(vectors, person), num_resamples=400)
    cosines, same = pairs_of(vectors, person)
    i, j = np.triu_indices(len(person), 1)
    rng = np.random.default_rng(5)
    drawn: dict[str, list[float]] = {"genuine_mean": [], "impostor_mean": [], "auc": [], "eer": []}
    for _ in range(200):  # a bound then scatters by a twentieth of the width, a fifth of what is allowed
        times = rng.multinomial(40, np.full(40, 1 / 40))
        weight = np.where(same, times[person[i]], times[person[i]] * times[person[j]])
        drawn["genuine_mean"].append(np.average(cosines[same], weights=weight[same]))
        drawn["impostor_mean"].append(np.average(cosines[~same], weights=weight[~same]))
        drawn["auc"].append(roc_auc_score(same, cosines, sample_weight=weight))
        fmr, fnmr, _ = det_curve(same, cosines, sample_weight=weight)
        at = np.argmin(np.abs(fmr - fnmr))
        drawn["eer"].append((fmr[at] + fnmr[at]) / 2)
    for name, values in drawn.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert found[name] == pytest.approx((low, high), abs=0.25 * (high - low)), name


def test_intervals_are_seeded_and_hold_the_number() -> None:
    vectors, person = people(25, 4, 1.0)
    pairs = pair_statistics(vectors, person)
    once, again = bootstrap_intervals(pairs, seed=3), bootstrap_intervals(pairs, seed=3)
    assert once == again
    assert once != bootstrap_intervals(pairs, seed=4)
    numbers = operating_points(pairs)
    for name in ("genuine_mean", "impostor_mean", "auc", "d_prime"):
        assert once[name][0] <= numbers[name] <= once[name][1]
    assert set(once) <= set(numbers)
    assert operating.FMRS == (1e-2, 1e-3)
