"""Von Mises-Fisher mixtures: the density, the sampler and the fit, against SciPy and closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import special, stats

from idgen.errors import ConfigError, IdentityError, MeasureError
from idgen.synth.mises_fisher import (
    LEAST_PEOPLE,
    MisesFisherMixture,
    concentration,
    fit_mises_fisher,
    load_mises_fisher,
    log_bessel,
    log_normaliser,
    sample_cosines,
)

ENCODER = "test@0123456789ab"


def mixture(dim: int = 16) -> MisesFisherMixture:
    return MisesFisherMixture(
        encoder=ENCODER,
        means=np.eye(3, dim),
        concentrations=np.array([60.0, 120.0, 240.0]),
        weights=np.array([0.5, 0.3, 0.2]),
    )


@pytest.mark.parametrize("order", [0.0, 0.5, 7.0, 63.0, 255.0])
@pytest.mark.parametrize("x", [0.01, 1.0, 30.0, 700.0, 5000.0])
def test_the_bessel_function_is_that_of_scipy(order: float, x: float) -> None:
    scaled = special.ive(order, x)
    found = log_bessel(order, x)
    if scaled > 0:
        assert found == pytest.approx(math.log(scaled) + x, rel=1e-10, abs=1e-10)
    else:  # below the smallest float64: the first term of the series is nearly all
        assert found == pytest.approx(order * math.log(x / 2) - math.lgamma(order + 1), abs=x**2 / order)


@pytest.mark.parametrize("dim", [2, 3, 16])
@pytest.mark.parametrize("kappa", [0.5, 20.0, 300.0])
def test_the_density_is_that_of_scipy(dim: int, kappa: float) -> None:
    mean = np.eye(1, dim)[0]
    vectors = np.random.default_rng(0).standard_normal((20, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    one = MisesFisherMixture(
        encoder=ENCODER, means=mean[None], concentrations=np.array([kappa]), weights=np.ones(1)
    )
    expected = stats.vonmises_fisher(mean, kappa).logpdf(vectors)
    np.testing.assert_allclose(one.log_density(vectors)[:, 0], expected, rtol=1e-9, atol=1e-9)


def test_without_concentration_it_is_uniform() -> None:
    assert log_normaliser(0.0, 3) == pytest.approx(-math.log(4 * math.pi))
    assert log_normaliser(1e-6, 512) == pytest.approx(log_normaliser(0.0, 512), abs=1e-6)
    cosines = sample_cosines(0.0, 3, 20_000, np.random.default_rng(0))
    assert stats.kstest(cosines, stats.uniform(-1, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("kappa", [0.3, 5.0, 200.0])
def test_samples_follow_the_closed_form_in_three_dimensions(kappa: float) -> None:
    """Of the cosine w: ``(exp(kappa w) - exp(-kappa)) / (exp(kappa) - exp(-kappa))``."""
    cosines = sample_cosines(kappa, 3, 20_000, np.random.default_rng(1))

    def share_below(w: np.ndarray) -> np.ndarray:
        return (np.exp(kappa * (w - 1)) - np.exp(-2 * kappa)) / -np.expm1(-2 * kappa)

    assert stats.kstest(cosines, share_below).pvalue > 0.01


@pytest.mark.parametrize(("dim", "kappa"), [(2, 3.0), (128, 60.0), (512, 400.0)])
def test_samples_have_the_mean_cosine_of_their_concentration(dim: int, kappa: float) -> None:
    """``A(kappa) = I_{D/2}(kappa) / I_{D/2-1}(kappa)``."""
    expected = math.exp(log_bessel(dim / 2, kappa) - log_bessel(dim / 2 - 1, kappa))
    one = MisesFisherMixture(
        encoder=ENCODER, means=np.eye(1, dim), concentrations=np.array([kappa]), weights=np.ones(1)
    )
    drawn = one.sample(8000, np.random.default_rng(2))
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(drawn.astype(float), axis=1), 1, atol=1e-6)
    assert drawn[:, 0].mean() == pytest.approx(expected, abs=5 * float(drawn[:, 0].std()) / math.sqrt(8000))
    across = drawn[:, 1:].astype(float).mean(axis=0)  # the rest points everywhere
    assert np.abs(across).max() < 6 * drawn[:, 1:].std() / math.sqrt(8000)
    assert float(concentration(np.array(expected), dim)) == pytest.approx(
        kappa, rel=0.06 if dim == 2 else 0.005
    )


def test_each_component_is_drawn_by_its_weight() -> None:
    drawn = mixture().sample(20_000, np.random.default_rng(3))
    share = np.bincount(drawn[:, :3].argmax(axis=1), minlength=3) / len(drawn)
    np.testing.assert_allclose(share, [0.5, 0.3, 0.2], atol=0.015)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fit_recovers_the_mixture_that_was_drawn_from(seed: int) -> None:
    truth = mixture()
    fitted = fit_mises_fisher(
        truth.sample(6000, np.random.default_rng(4)), ENCODER, num_components=3, seed=seed
    )
    order = [int((fitted.means @ mean).argmax()) for mean in truth.means]
    assert sorted(order) == [0, 1, 2]
    cosines = (fitted.means[order] * truth.means).sum(axis=1)
    assert cosines.min() > 0.999
    np.testing.assert_allclose(fitted.concentrations[order], truth.concentrations, rtol=0.05)
    np.testing.assert_allclose(fitted.weights[order], truth.weights, atol=0.02)


def test_components_that_overlap_are_told_apart() -> None:
    """Where a border between the groups would cut through both, only soft shares find the concentrations."""
    angle = 0.5
    truth = MisesFisherMixture(
        encoder=ENCODER,
        means=np.array([[1.0, 0, 0, 0, 0, 0], [math.cos(angle), math.sin(angle), 0, 0, 0, 0]]),
        concentrations=np.array([15.0, 150.0]),
        weights=np.array([0.7, 0.3]),
    )
    fitted = fit_mises_fisher(truth.sample(20_000, np.random.default_rng(5)), ENCODER, num_components=2)
    order = np.argsort(fitted.concentrations)
    np.testing.assert_allclose(fitted.concentrations[order], truth.concentrations, rtol=0.1)
    np.testing.assert_allclose(fitted.weights[order], truth.weights, atol=0.03)
    assert (fitted.means[order] * truth.means).sum(axis=1).min() > 0.998


def test_each_step_makes_the_people_more_likely() -> None:
    people = mixture().sample(2000, np.random.default_rng(6))
    found = [
        fit_mises_fisher(people, ENCODER, num_components=3, seed=5, max_steps=steps).log_density(people)
        for steps in (1, 2, 4, 8, 50)
    ]
    likelihood = [float(np.logaddexp.reduce(each, axis=1).mean()) for each in found]
    assert np.diff(likelihood).min() > -1e-6  # the last step may lose a little: kappa is approximate
    assert likelihood[-1] - likelihood[0] > 0.001


def test_it_comes_back_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "people.safetensors"
    mixture().save(path)
    back = load_mises_fisher(path)
    assert (back.encoder, back.dim) == (ENCODER, 16)
    np.testing.assert_array_equal(
        back.sample(50, np.random.default_rng(0)), mixture().sample(50, np.random.default_rng(0))
    )
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(IdentityError, match="no von Mises-Fisher mixture"):
        load_mises_fisher(tmp_path / "other.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    for name in ("people", "nothing"):
        with pytest.raises(IdentityError, match=f"cannot read the mixture of people .*{name}"):
            load_mises_fisher(tmp_path / f"{name}.safetensors")


def test_a_file_carries_nobodys_own_vector() -> None:
    people = mixture().sample(200, np.random.default_rng(7))
    lonely = -np.eye(1, 16, dtype=np.float32)  # far from all: it would be a component of its own
    with pytest.raises(MeasureError, match=rf"came to hold [\d.]+ people, fewer than {LEAST_PEOPLE}"):
        fit_mises_fisher(np.concatenate([people, lonely]), ENCODER, num_components=4, seed=1)


@pytest.mark.parametrize(
    ("people", "settings", "error", "message"),
    [
        (np.eye(30), {"num_components": 0}, ConfigError, "got 0 components"),
        (np.eye(30), {"num_components": 1, "max_steps": 0}, ConfigError, "0 steps"),
        (np.eye(30), {"num_components": 4}, MeasureError, "4 components need 10 people each, got 30"),
        (2 * np.eye(30), {"num_components": 1}, IdentityError, "row 0 has length 2"),
        (np.tile(np.eye(1, 8), (30, 1)), {"num_components": 1}, MeasureError, "all the same vector"),
        (np.tile(np.eye(1, 8), (30, 1)), {"num_components": 2}, MeasureError, "only 1 different people"),
    ],
)
def test_what_cannot_be_fitted(
    people: np.ndarray, settings: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_mises_fisher(people, ENCODER, **settings)
