"""The optimiser Muon for convolutions; the rest of a network stays with AdamW."""

import torch
from torch import Tensor, nn

from idgen.training import has_bfloat16


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before a step.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. A convolution counts as the matrix
    (outputs, inputs x kernel); ``torch.optim.Muon`` takes true matrices only.

    Args:
        parameters: weights of two axes or more.
        lr: length of a step, as a spectral norm.
        momentum: share of the old direction that is kept, in [0, 1).
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                mean = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(mean, group["momentum"]).flatten(1)
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                weight.add_(orthogonal(update).view_as(weight), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor, num_iterations: int = 5) -> Tensor:
    """Singular values pushed towards 1, directions kept: the quintic Newton-Schulz iteration of Muon.

    The coefficients are Jordan's: they trade exactness (values end between about 0.7 and 1.2) for speed.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x.to(torch.bfloat16 if has_bfloat16(x.device) else matrix.dtype) / (x.norm() + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if is_tall else x).to(matrix.dtype).contiguous()
