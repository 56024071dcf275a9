"""The probe reads what is there, and nothing where nothing is."""

import builtins

import numpy as np
import pytest
from sklearn.svm import SVC

from idgen.errors import MeasureError
from idgen.metrics.probe import fit_probe


def on_the_sphere(num: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_probe_is_the_machine_of_scikit_learn_with_the_settings_that_it_names() -> None:
    vectors = on_the_sphere(300, 6, 0)
    truth = vectors[:, 0] > 0.3
    probe = fit_probe(vectors, truth)
    by_hand = SVC(class_weight="balanced", **probe.settings).fit(vectors, truth)
    unseen = on_the_sphere(200, 6, 1)
    assert (probe.says(unseen) == by_hand.predict(unseen)).all()
    assert (probe.says(unseen) == (unseen[:, 0] > 0.3)).mean() > 0.9


def test_a_trait_need_not_lie_in_one_direction() -> None:
    """Two directions mean yes: no plane through the sphere parts them from the rest."""
    vectors, unseen = on_the_sphere(600, 4, 0), on_the_sphere(400, 4, 1)

    def trait(x: np.ndarray) -> np.ndarray:
        return np.abs(x[:, 0]) > 0.6

    assert (fit_probe(vectors, trait(vectors)).says(unseen) == trait(unseen)).mean() > 0.9


def test_where_there_is_nothing_to_read_the_probe_says_so() -> None:
    truth = np.random.default_rng(2).random(300) < 0.3
    assert fit_probe(on_the_sphere(300, 6, 0), truth).balanced_accuracy == pytest.approx(0.5, abs=0.1)


def test_a_probe_needs_both_kinds_and_finite_vectors() -> None:
    with pytest.raises(MeasureError, match="at least 5 people of both answers, got yes for 3 of 30"):
        fit_probe(on_the_sphere(30, 3, 0), np.arange(30) < 3)
    with pytest.raises(MeasureError, match="finite"):
        fit_probe(np.full((20, 2), np.nan), np.arange(20) < 10)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *args: object, **settings: object) -> object:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return whole(name, *args, **settings)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MeasureError, match=r"idgen\[eval\]"):
        fit_probe(on_the_sphere(30, 3, 0), np.arange(30) < 15)
