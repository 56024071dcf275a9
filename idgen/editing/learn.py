"""Directions learned from labelled pictures: how a code changes, on average, as a label does.

Codes are regressed on the labels, all at once, so that what one direction changes another does not have to::

    w_i - m_p(i) = sum_k B_k (y_ik - n_p(i)k) + e_i

with the means m and n over the pictures of person p: what varies within people (a smile, a turn of the head)
is learned there, and has nothing of anybody's identity in it. What one person has only one of (the
presentation as woman or man) is learned between people, from their means. Unlike the normal of a boundary
(Shen et al. 2020, https://arxiv.org/abs/1907.10786), which tells groups apart by whatever tells best, B says
how they differ.

Shapes: N pictures, K labels, L layers and C width of the codes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from idgen.editing.directions import Direction
from idgen.errors import MeasureError

LEAST_PICTURES = 50


def learn_directions(
    codes: np.ndarray, labels: Mapping[str, np.ndarray], people: Sequence[str], encoder: str
) -> list[Direction]:
    """One direction for each label; a step of 1 along it is a standard deviation of the label.

    Args:
        codes: (N, L, C).
        labels: name -> (N,), NaN where unknown.
        people: (N,) whose picture each is.
        encoder: who made the codes, ``name@sha256[:12]``.

    Raises:
        MeasureError: if a label is known of fewer than 50 pictures that differ in it, or two labels say the
            same.
    """
    number = np.unique(np.asarray(people), return_inverse=True)[1]
    flat = codes.reshape(len(codes), -1).astype(np.float64)
    within = {name: y for name, y in labels.items() if _varies_within(y, number)}
    between = {name: y for name, y in labels.items() if name not in within}
    found: dict[str, np.ndarray] = {}
    if within:
        rows = np.isfinite(np.stack(list(within.values()))).all(axis=0)
        x, y = _centred(flat[rows], number[rows]), _centred(_table(within)[rows], number[rows])
        found |= _regressed(x, y, within)
    if between:
        everything = {**between, **within}  # people who smile more in their photos are no other people
        rows = np.isfinite(np.stack(list(everything.values()))).all(axis=0)
        means = {name: _means(y[rows][:, None], number[rows])[:, 0] for name, y in everything.items()}
        # with mirror images nobody turns more than anybody else: nothing to tell apart there
        kept = [name for name in everything if name in between or np.ptp(means[name]) > 1e-6]
        x = _means(flat[rows], number[rows])
        y = np.stack([means[name] for name in kept], axis=1)
        found = _regressed(x - x.mean(axis=0), y - y.mean(axis=0), {n: everything[n] for n in kept}) | found
    shape = codes.shape[1:]
    return [Direction(name, found[name].reshape(shape).astype(np.float32), encoder) for name in labels]


def _table(labels: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.stack(list(labels.values()), axis=1).astype(np.float64)


def _varies_within(values: np.ndarray, number: np.ndarray) -> bool:
    """Whether pictures of one person differ in a label by a tenth of what pictures differ in it at all."""
    known = np.isfinite(values)
    if not known.any():
        return False
    spread = _centred(values[known][:, None].astype(np.float64), number[known])
    return float(spread.std()) > 0.1 * float(values[known].std())


def _means(values: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The mean over each person's rows, (P, ...)."""
    _, place = np.unique(number, return_inverse=True)
    total = np.zeros((place.max() + 1, values.shape[1]))
    np.add.at(total, place, values)
    return total / np.bincount(place)[:, None]


def _centred(values: np.ndarray, number: np.ndarray) -> np.ndarray:
    _, place = np.unique(number, return_inverse=True)
    return values - _means(values, number)[place]


def _regressed(x: np.ndarray, y: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """B of ``x = y B + e`` by least squares, each row times the standard deviation of its label."""
    for name, column in zip(labels, y.T, strict=True):
        if (np.abs(column) > 1e-9).sum() < LEAST_PICTURES:
            raise MeasureError(
                f"the label {name} differs in {(np.abs(column) > 1e-9).sum()} pictures; a direction needs "
                f"{LEAST_PICTURES} at least"
            )
    moments = y.T @ y
    if np.linalg.cond(moments / np.sqrt(np.outer(np.diag(moments), np.diag(moments)))) > 1e6:
        raise MeasureError(f"two of the labels {', '.join(labels)} say the same; leave one out")
    slopes = np.linalg.solve(moments, y.T @ x)
    spread = {name: float(np.nanstd(values)) for name, values in labels.items()}
    return {name: slope * spread[name] for name, slope in zip(labels, slopes, strict=True)}
