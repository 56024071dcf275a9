"""The probe against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from idgen.errors import MeasureError
from idgen.metrics.probe import fit_probe


def drawn(num: int, dim: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(num) < share
    vectors = rng.normal(size=(num, dim))
    vectors[:, 0] += 1.5 * truth
    return vectors, truth


@pytest.mark.parametrize(("share", "penalty"), [(0.5, 1.0), (0.1, 1.0), (0.3, 0.01)])
def test_the_probe_is_that_of_scikit_learn(share: float, penalty: float) -> None:
    vectors, truth = drawn(400, 6, share, 0)
    ours = fit_probe(vectors, truth, penalty=penalty)
    theirs = LogisticRegression(C=1 / penalty, class_weight="balanced", tol=1e-10, max_iter=5000)
    theirs.fit(vectors, truth)
    np.testing.assert_allclose(ours.weight, theirs.coef_[0], atol=1e-4)
    assert ours.bias == pytest.approx(float(theirs.intercept_[0]), abs=1e-4)
    np.testing.assert_allclose(ours.probability(vectors), theirs.predict_proba(vectors)[:, 1], atol=1e-5)


def test_separable_faces_are_learned_without_end() -> None:
    vectors = np.array([[1.0, 0], [2.0, 1], [-1.0, 0], [-2.0, 1]])
    probe = fit_probe(vectors, np.array([True, True, False, False]))
    assert np.isfinite(probe.weight).all()
    assert (probe.probability(vectors) > 0.5).tolist() == [True, True, False, False]


def test_a_probe_needs_both_kinds_and_finite_vectors() -> None:
    with pytest.raises(MeasureError, match="yes for 3 of 3"):
        fit_probe(np.eye(3), np.ones(3, bool))
    with pytest.raises(MeasureError, match="finite"):
        fit_probe(np.full((2, 2), np.nan), np.array([True, False]))
