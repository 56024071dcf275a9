"""FID and KID against torchmetrics, with features of our own."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from idgen.errors import MeasureError
from idgen.metrics.frechet import frechet_distance, gaussian, kernel_distance


class AsIs(nn.Module):
    """A feature network whose features are the pixels."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).double()[:, : self.num_features]


def drawn(num: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1 + 0.2 * seed, (num, dim)) @ np.diag(np.linspace(0.2, 2, dim))


def as_images(features: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(features)[:, :, None, None]


@pytest.mark.parametrize(("num", "other"), [(400, 300), (20, 30)])  # the second: singular covariances
def test_frechet_distance_is_that_of_torchmetrics(num: int, other: int) -> None:
    made, real = drawn(num, 48, 0), drawn(other, 48, 1, 0.3)
    metric = FrechetInceptionDistance(feature=AsIs(48), normalize=True).set_dtype(torch.float64)
    metric.update(as_images(real), real=True)
    metric.update(as_images(made), real=False)
    ours = frechet_distance(gaussian(made), gaussian(real))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)


def test_kernel_distance_is_that_of_torchmetrics() -> None:
    made, real = drawn(200, 32, 0), drawn(200, 32, 1, 0.3)
    metric = KernelInceptionDistance(feature=AsIs(32), subsets=1, subset_size=200, normalize=True)
    metric = metric.set_dtype(torch.float64)
    metric.update(as_images(real), real=True)
    metric.update(as_images(made), real=False)
    expected, _ = metric.compute()
    ours, spread = kernel_distance(made, real)
    assert ours == pytest.approx(float(expected), rel=1e-9)
    assert spread == 0


def test_subsets_agree_with_the_whole_in_the_mean() -> None:
    made, real = drawn(300, 16, 0), drawn(260, 16, 1, 0.5)
    whole, _ = kernel_distance(made[:260], real)
    mean, spread = kernel_distance(made, real, subset_size=80, num_subsets=200)
    assert abs(mean - whole) < 3 * spread
    assert spread > 0
    assert kernel_distance(made, real, subset_size=80) == kernel_distance(made, real, subset_size=80)


def test_a_set_is_at_no_distance_of_itself() -> None:
    features = drawn(50, 60, 0)
    same = gaussian(features)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-6)
    assert kernel_distance(features, features)[0] < 0  # unbiased: the diagonal is left out on one side


def test_all_equal_features_have_a_distance() -> None:
    one, other = np.ones((5, 3)), np.zeros((4, 3))
    assert frechet_distance(gaussian(one), gaussian(other)) == pytest.approx(3)
    assert kernel_distance(one, other)[0] == pytest.approx(8 + 1 - 2)


@pytest.mark.parametrize(
    ("made", "real", "said"),
    [
        (np.zeros((1, 4)), np.zeros((5, 4)), "2 pictures at least"),
        (np.zeros((5, 4)), np.zeros((5, 3)), "one width"),
        (np.array([[1.0, 2], [np.nan, 1]]), np.zeros((5, 2)), "picture 1 are not"),
        (np.zeros((0, 4)), np.zeros((5, 4)), "2 pictures at least"),
    ],
)
def test_features_that_cannot_be_compared(made: np.ndarray, real: np.ndarray, said: str) -> None:
    with pytest.raises(MeasureError, match=said):
        frechet_distance(gaussian(made), gaussian(real))
    with pytest.raises(MeasureError, match=said):
        kernel_distance(made, real)
