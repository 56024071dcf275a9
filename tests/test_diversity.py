"""Precision, recall, density, coverage and Vendi score against the packages of their authors."""

import numpy as np
import pytest
from PIL import Image
from prdc import compute_prdc
from scipy.ndimage import laplace
from skimage import data
from vendi_score import vendi

from idgen.errors import MeasureError
from idgen.metrics import diversity
from idgen.metrics.diversity import manifold, vendi_score
from idgen.metrics.sharpness import laplacian_variance


def drawn(num: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (num, dim))


@pytest.mark.parametrize("shift", [0.0, 0.4, 5.0])
@pytest.mark.parametrize("k", [1, 5])
def test_manifold_is_that_of_prdc(shift: float, k: int) -> None:
    made, real = drawn(120, 6, 0, shift), drawn(90, 6, 1)
    ours = manifold(made, real, k=k)
    expected = compute_prdc(real_features=real, fake_features=made, nearest_k=k)
    for name, value in expected.items():
        assert getattr(ours, name) == pytest.approx(value), name


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = drawn(70, 5, 0, 0.3), drawn(50, 5, 1)
    whole = manifold(made, real)
    for size in (1, 7, 50):
        monkeypatch.setattr(diversity, "BLOCK", size)
        assert manifold(made, real) == whole


def test_manifold_far_from_the_origin() -> None:
    """A common offset is no distance: cancellation must not make it one."""
    made, real = drawn(60, 4, 0, 0.3), drawn(50, 4, 1)
    assert manifold(made + 1e5, real + 1e5) == manifold(made, real)


def test_all_equal_pictures() -> None:
    """Balls of no size hold nothing, as in prdc."""
    ours = manifold(np.ones((8, 3)), np.ones((9, 3)))
    assert (ours.precision, ours.recall, ours.density, ours.coverage) == (0, 0, 0, 0)


@pytest.mark.parametrize(("num", "dim"), [(40, 8), (10, 30), (1, 5)])
def test_vendi_score_is_that_of_its_package(num: int, dim: int) -> None:
    features = drawn(num, dim, 0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert vendi_score(features) == pytest.approx(vendi.score_dual(unit), rel=1e-9)
    assert vendi_score(3 * features) == pytest.approx(vendi_score(features))


def test_vendi_score_counts_different_pictures() -> None:
    assert vendi_score(np.ones((7, 4))) == pytest.approx(1)
    assert vendi_score(np.eye(6)) == pytest.approx(6)
    assert vendi_score(np.repeat(np.eye(3), 5, axis=0)) == pytest.approx(3)


def test_pictures_that_cannot_be_compared() -> None:
    with pytest.raises(MeasureError, match="6 pictures at least"):
        manifold(np.zeros((5, 3)), np.zeros((9, 3)))
    with pytest.raises(MeasureError, match="one width"):
        manifold(np.zeros((9, 3)), np.zeros((9, 2)))
    with pytest.raises(MeasureError, match="1 pictures at least"):
        vendi_score(np.zeros((0, 3)))
    with pytest.raises(MeasureError, match="picture 1 are all zero"):
        vendi_score(np.array([[1.0, 0], [0, 0]]))
    with pytest.raises(MeasureError, match="picture 0 are not"):
        manifold(np.full((9, 3), np.inf), np.zeros((9, 3)))


def test_sharpness_is_the_variance_of_scipys_laplacian() -> None:
    picture = Image.fromarray(data.astronaut()).resize((97, 64))
    grey = np.asarray(picture.convert("L"), dtype=float)
    assert laplacian_variance(picture) == pytest.approx(laplace(grey, mode="mirror").var())
    assert laplacian_variance(picture.resize((24, 16)).resize((97, 64))) < laplacian_variance(picture) / 5
    assert laplacian_variance(Image.new("RGB", (9, 9), "red")) == 0
