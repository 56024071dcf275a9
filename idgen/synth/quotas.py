"""Quotas that add up exactly, and values dealt so that everybody gets a fair share of each.

Shapes: P people, N pictures, V values of an axis, W slots of a period.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Weights as the smallest whole numbers in the same proportion.

    A decimal means what is written: 0.1 is a tenth, not the binary number next to it.
    """
    exact = [Fraction(repr(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    return [weight // divisor for weight in whole]


def largest_remainder(weights: Sequence[int], total: int, order: Sequence[int] | None = None) -> list[int]:
    """Whole numbers in proportion to weights, which add up to a total exactly (Hamilton's method).

    ``floor(total w_v / sum w)``, and one more for the largest remainders until the total is reached (Balinski
    and Young, Fair Representation, 1982, chapter 3). No number is off by 1 or more.

    Args:
        weights: (V,) from 0 up, not all 0.
        total: from 0 up.
        order: (V,) numbers of the values: of equal remainders, the one that comes first here gets more.
    """
    whole = sum(weights)
    counts = [total * weight // whole for weight in weights]
    remainders = [total * weight % whole for weight in weights]
    order = range(len(weights)) if order is None else order
    ranked = sorted(order, key=lambda value: -remainders[value])  # stable
    for value in ranked[: total - sum(counts)]:
        counts[value] += 1
    return counts


def deal(weights: Sequence[float], sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal values to everybody's pictures: the quotas are those of `largest_remainder` over all pictures.

    Values come from a sequence of period W in which each is spread evenly and begins at a place of its own:
    slot j of value v lies at ``(j + u_v) / w_v``, u_v uniform in [0, 1) (systematic sampling: Madow 1949).
    Each person takes the next slots, so that their numbers are in proportion as far as whole numbers can be.
    Whenever a person begins where a period does, a new sequence is drawn: other people, other company.

    The last period is mostly not a whole one; which values it holds is what Hamilton's method says, and the
    sequence decides between equal remainders. With equal weights nothing that was dealt changes when
    there are more people; otherwise all but the last period stays, since that method takes back what it
    gave to a smaller total (the Alabama paradox: Balinski and Young 1982, chapter 5).

    Args:
        weights: (V,) from 0 up, not all 0.
        sizes: (P,) number of pictures of each person.
        rng: of the sequences.

    Returns:
        (N,) int16 numbers of values; the pictures of a person stand together.
    """
    whole = whole_weights(weights)
    values = np.flatnonzero(whole)
    slots = np.array([whole[value] for value in values], object)
    period, total = int(slots.sum()), int(sizes.sum())
    num_periods, rest = divmod(total, period)
    begins_anew = _starts(sizes) % period == 0 if num_periods else np.arange(len(sizes)) == 0
    sequence_of = np.cumsum(begins_anew) - 1
    places = rng.random((int(begins_anew.sum()), len(values)))
    dealt = np.empty(total, np.int16)
    if num_periods:
        slots = slots.astype(np.int64)
        value_of_slot = np.repeat(np.arange(len(values)), slots)
        j = np.arange(period) - np.repeat(_starts(slots), slots)
        order = np.argsort((j + places[:, value_of_slot]) / slots[value_of_slot], axis=1, kind="stable")
        sequences = values[value_of_slot[order]].astype(np.int16)
        step = np.arange(num_periods * period) % period
        dealt[: len(step)] = sequences[np.repeat(sequence_of, sizes)[: len(step)], step]
    if rest:
        dealt[total - rest :] = values[_last_period(slots.tolist(), rest, places[-1])]
    return dealt


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.cumsum(sizes) - sizes


def _last_period(slots: list[int], rest: int, places: np.ndarray) -> np.ndarray:
    """(rest,) numbers of values: the same sequence, with as many slots of each as the quotas leave."""
    first = np.array([place / num for place, num in zip(places.tolist(), slots, strict=True)])
    counts = np.array(largest_remainder(slots, rest, np.argsort(first, kind="stable").tolist()))
    value = np.repeat(np.arange(len(slots)), counts)
    j = np.arange(rest) - np.repeat(_starts(counts), counts)
    scale = np.array([1 / num for num in slots])
    return value[np.argsort((j + places[value]) * scale[value], kind="stable")]
