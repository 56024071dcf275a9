"""A linear probe: can a yes-or-no label be read off a face vector?

Shapes: N faces, D width of a face vector.
"""

from dataclasses import dataclass

import numpy as np

from idgen.errors import MeasureError

MAX_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Probe:
    """``p = 1 / (1 + exp(-(x . weight + bias)))``."""

    weight: np.ndarray  # (D,)
    bias: float

    def probability(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) -> (N,) in (0, 1)."""
        return 1 / (1 + np.exp(-(vectors @ self.weight + self.bias)))


def fit_probe(vectors: np.ndarray, truth: np.ndarray, *, penalty: float = 1.0) -> Probe:
    """Logistic regression with both answers weighed alike, by Newton's method.

    Minimises ``sum w_i log(1 + exp(-t_i (x_i . weight + bias))) + penalty / 2 |weight|^2`` with ``t`` =
    +-1 and ``w_i = N / (2 N_t)`` (King and Zeng 2001); the bias is not penalised.

    Args:
        vectors: (N, D).
        truth: (N,) booleans.
        penalty: 1 / C of scikit-learn.

    Raises:
        MeasureError: if an answer does not occur, or vectors are not finite.
    """
    yes = truth.astype(bool)
    if yes.all() or not yes.any():
        raise MeasureError(f"a probe learns from both answers, got yes for {int(yes.sum())} of {len(yes)}")
    if not np.isfinite(vectors).all():
        raise MeasureError("a probe learns from finite vectors")
    x = np.concatenate([vectors.astype(np.float64), np.ones((len(vectors), 1))], axis=1)
    share = np.where(yes, len(yes) / (2 * yes.sum()), len(yes) / (2 * (~yes).sum()))
    ridge = penalty * np.eye(x.shape[1])
    ridge[-1, -1] = 0
    solution = np.zeros(x.shape[1])
    for _ in range(MAX_STEPS):
        p = 1 / (1 + np.exp(-(x @ solution)))
        gradient = x.T @ (share * (p - yes)) + ridge @ solution
        curvature = (x * (share * p * (1 - p))[:, None]).T @ x + ridge
        step = np.linalg.solve(curvature, gradient)
        solution -= step
        if np.abs(step).max() < 1e-10:
            break
    return Probe(weight=solution[:-1], bias=float(solution[-1]))
