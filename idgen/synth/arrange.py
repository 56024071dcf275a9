"""Which values meet in a picture: nothing forbidden, and nobody's pictures alike as long as that is possible.

Values are only exchanged between pictures, so that quotas stay what they are. Randomness that concerns one
person comes from hashes of the person's number: it is the same however many others there are.

Shapes: A axes, P people, N pictures, V values of an axis.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 2**18  # pictures that are arranged at once: their sorting stays in the processor's cache
TRIES = 16  # exchanges of which the best is done
PATIENCE = 50  # such rounds without success after which a person's pictures are left as they are
FORBIDDEN = 8  # times worse than alike: more than the four combinations of an exchange can make good
ROUNDS = (
    200  # of exchanges between people without success, after which there seems to be no room for the rules
)
PROPOSALS = 4096  # of such exchanges in a round, at least


@dataclass(frozen=True)
class Rules:
    """Forbidden combinations.

    Attributes:
        masks: for each rule and each axis that it names: the number of the axis, and (V,) whether a value is
            meant.
    """

    masks: tuple[tuple[tuple[int, np.ndarray], ...], ...]

    def broken(self, columns: np.ndarray) -> np.ndarray:
        """(A, M) numbers of values -> (M,) whether a combination is forbidden."""
        found = np.zeros(columns.shape[1], bool)
        for rule in self.masks:
            meets = np.ones(columns.shape[1], bool)
            for axis, mask in rule:
                meets &= mask[columns[axis]]
            found |= meets
        return found

    def axes(self) -> set[int]:
        """Numbers of the axes that are named."""
        return {axis for rule in self.masks for axis, _ in rule}


def key_of(seed: int, *names: str) -> int:
    """A number of 64 bits for something random that has a name."""
    return int.from_bytes(hashlib.sha256("/".join((str(seed), *names)).encode()).digest()[:8], "little")


def hashed(key: int, *numbers: np.ndarray) -> np.ndarray:
    """(M,) uint64 hashes of rows of whole numbers: the mixer of SplitMix64 (Steele et al. 2014), chained."""
    state = np.full(len(numbers[0]), key, np.uint64)
    for number in numbers:
        state = state + np.uint64(0x9E3779B97F4A7C15) + number.astype(np.uint64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def below(hashes: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Hashes -> whole numbers from 0 to below a bound."""
    return (hashes % np.asarray(bound, np.uint64)).astype(np.int64)


def arrange(
    columns: np.ndarray,
    sizes: np.ndarray,
    movable: Sequence[int],
    rules: Rules,
    seed: int,
    *,
    also: Sequence[int] = (),
    advance: Callable[[int], object] = lambda _: None,
) -> bool:
    """Decide which values meet, in place.

    First each axis is laid across those before it: the pictures that have the same values so far, a group,
    take consecutive values of the person's share of the next axis. Where an axis has k equal weights, a group
    of g pictures is so split into groups of at most ``ceil(g / k)``; over all axes nobody with n pictures has
    a combination more often than ``ceil(n / number of combinations)``. Unequal weights and rules ask for
    more: values are then exchanged between pictures of a person until nothing is forbidden and no two are
    alike, or until that does not get better.

    Args:
        columns: (A, N) int16, as `deal` gave them; changed.
        sizes: (P,) number of pictures of each person, whose pictures stand together.
        movable: numbers of the axes whose values may be exchanged between pictures; the others are facts
            about a person.
        rules: what is forbidden.
        seed: of the plan.
        also: numbers of axes that are laid across the others too, and do not make pictures different.
        advance: told the number of pictures of each chunk that is done.

    Returns:
        Whether something that is forbidden is left.
    """
    is_left = False
    for first, last, start, stop in _chunks(sizes):
        part = columns[:, start:stop]  # a view
        person = np.repeat(np.arange(last - first), sizes[first:last])
        _lay_across(part, person, person + first, [*movable, *also], seed)
        _exchange_within(part, person, person + first, movable, rules, key_of(seed, "exchange"))
        is_left |= bool(rules.broken(part).any())
        advance(stop - start)
    return is_left


def exchange_within(
    columns: np.ndarray, sizes: np.ndarray, movable: Sequence[int], rules: Rules, seed: int
) -> None:
    """The second step of `arrange` alone, in place."""
    for first, last, start, stop in _chunks(sizes):
        person = np.repeat(np.arange(last - first), sizes[first:last])
        part = columns[:, start:stop]
        _exchange_within(part, person, person + first, movable, rules, key_of(seed, "exchange again"))


def exchange_between(
    columns: np.ndarray, movable: Sequence[int], rules: Rules, rng: np.random.Generator
) -> int:
    """Exchange values between any two pictures until nothing is forbidden, in place.

    An exchange is kept where not more is forbidden than before, so that what is stuck wanders.

    Args:
        columns: (A, N), changed.
        movable: numbers of the axes whose values may be exchanged.
        rules: what is forbidden.
        rng: of the exchanges.

    Returns:
        How many pictures are left that are forbidden: 0, unless ROUNDS rounds brought nothing.
    """
    axes = np.array(sorted(set(movable) & rules.axes()), np.int64)
    bad = np.flatnonzero(rules.broken(columns))
    waited = 0
    while len(bad) and len(axes) and waited < ROUNDS:
        rows = bad[rng.random(len(bad)) < 0.5]  # the others may be partners
        partner, axis, better = _best_partner(columns, rows, axes, rules, rng)
        kept = (better >= 0) & _meet_once(rows, partner)
        _swap(columns, axis[kept], rows[kept], partner[kept])
        touched = np.union1d(bad, partner[kept])
        still = touched[rules.broken(columns[:, touched])]
        waited = 0 if len(still) < len(bad) else waited + 1
        bad = still
    return len(bad)


def _best_partner(
    columns: np.ndarray, rows: np.ndarray, axes: np.ndarray, rules: Rules, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best of several random exchanges for each row: with whom, of which axis, how many are mended."""
    tries = 1 + PROPOSALS // (len(rows) + 1)
    mine = np.repeat(rows, tries)
    partner = rng.integers(columns.shape[1], size=len(mine))
    axis = rng.choice(axes, len(mine))
    better = _mended(columns, mine, partner, axis, rules)
    best = np.arange(len(rows)) * tries + better.reshape(len(rows), tries).argmax(axis=1)
    return partner[best], axis[best], better[best]


def _mended(
    columns: np.ndarray, rows: np.ndarray, partner: np.ndarray, axis: np.ndarray, rules: Rules
) -> np.ndarray:
    """How many of two pictures would no longer be forbidden if they exchanged a value."""
    pair = [columns[:, rows], columns[:, partner]]
    before = [rules.broken(side).astype(np.int64) for side in pair]
    _swap_columns(pair, axis)
    after = [rules.broken(side).astype(np.int64) for side in pair]
    return before[0] + before[1] - after[0] - after[1]


def _chunks(sizes: np.ndarray) -> list[tuple[int, int, int, int]]:
    """First and last person, first and last picture of each chunk; the last ones do not belong to it."""
    ends = np.cumsum(sizes)
    chunks: list[tuple[int, int, int, int]] = []
    first = start = 0
    while first < len(sizes):
        last = max(first + 1, int(np.searchsorted(ends, start + CHUNK, side="right")))
        chunks.append((first, last, start, int(ends[last - 1])))
        first, start = last, int(ends[last - 1])
    return chunks


def _lay_across(
    columns: np.ndarray, person: np.ndarray, number: np.ndarray, axes: Sequence[int], seed: int
) -> None:
    """Each group of pictures that are alike so far takes consecutive values of the next axis."""
    picture = np.arange(len(person)) - np.searchsorted(person, person)
    groups = np.zeros(len(person), np.uint64)
    for place, axis in enumerate(axes):
        if place:
            within = hashed(key_of(seed, "order", str(place)), number, picture)
            columns[axis, np.lexsort((within, groups, person))] = columns[axis].copy()
        groups = hashed(key_of(seed, "group", str(place)), number, groups, columns[axis])


def _exchange_within(
    columns: np.ndarray,
    person: np.ndarray,
    number: np.ndarray,
    movable: Sequence[int],
    rules: Rules,
    key: int,
) -> None:
    """Each round, everybody who has a bad picture exchanges one value of it with another of theirs."""
    num_people = int(person[-1]) + 1
    sizes = np.bincount(person, minlength=num_people)
    starts = np.cumsum(sizes) - sizes
    most = _most_different(columns, person, movable, sizes)
    waited = np.zeros(num_people, np.int64)
    axes = np.array(movable, np.int64)
    live = np.flatnonzero(sizes > 1)
    for round_number in itertools.count():
        is_live = np.zeros(num_people, bool)
        is_live[live] = True
        rows = np.flatnonzero(is_live[person])
        forbidden, repeats, ordered = _faults(columns[:, rows], movable, person[rows], rules)
        num_repeats, num_forbidden = (
            np.bincount(person[rows[which]], minlength=num_people) for which in (repeats, forbidden)
        )
        is_done = (sizes - num_repeats >= most) & (num_forbidden == 0) | (waited > PATIENCE)
        bad = (forbidden | repeats) & ~is_done[person[rows]]
        chosen, dice = _one_each(rows[bad], person, number, key, round_number)
        if not len(chosen):
            return
        live = person[chosen]
        partner, axis, better = _best_exchange(
            columns, chosen, dice, starts, sizes, person, axes, rules, ordered
        )
        kept = better >= 0
        _swap(columns, axis[kept], chosen[kept], partner[kept])
        waited[live] += 1
        waited[live[better > 0]] = 0


def _faults(
    columns: np.ndarray, movable: Sequence[int], person: np.ndarray, rules: Rules
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which pictures are forbidden, which are like another one of the person, and all codes in order."""
    codes = _codes(columns, movable, person)
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    repeats = np.zeros(len(codes), bool)
    repeats[order[1:]] = ordered[1:] == ordered[:-1]
    return rules.broken(columns), repeats, ordered


def _best_exchange(
    columns: np.ndarray,
    chosen: np.ndarray,
    dice: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    person: np.ndarray,
    axes: np.ndarray,
    rules: Rules,
    ordered: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best of TRIES exchanges for each chosen picture: with whom, of which axis, and what it brings."""
    num, live = len(chosen), np.repeat(person[chosen], TRIES)
    tries = hashed(1, np.repeat(dice.view(np.int64), TRIES), np.tile(np.arange(TRIES), num))
    mine = np.repeat(chosen, TRIES)
    away = 1 + below(tries, sizes[live] - 1)
    partner = starts[live] + (mine - starts[live] + away) % sizes[live]
    axis = axes[below(hashed(2, tries), len(axes))]
    pair = [columns[:, mine], columns[:, partner]]
    old = [_codes(side, axes, live) for side in pair]
    better = FORBIDDEN * sum(rules.broken(side).astype(np.int64) for side in pair)
    _swap_columns(pair, axis)
    new = [_codes(side, axes, live) for side in pair]
    better -= FORBIDDEN * sum(rules.broken(side).astype(np.int64) for side in pair)
    better += _gain(ordered, old, new)
    best = np.arange(num) * TRIES + better.reshape(num, TRIES).argmax(axis=1)
    return partner[best], axis[best], better[best]


def _codes(columns: np.ndarray, movable: Sequence[int] | np.ndarray, person: np.ndarray) -> np.ndarray:
    """A number for each person's combination; equal ones have equal numbers, others practically never."""
    return hashed(0, person, *(columns[axis] for axis in movable))


def _most_different(
    columns: np.ndarray, person: np.ndarray, movable: Sequence[int], sizes: np.ndarray
) -> np.ndarray:
    """(P,) how many different pictures a person can have at most.

    Of the c_v pictures with value v of an axis, no more can differ than the other axes have combinations.
    """
    counted = [
        np.unique(person.astype(np.int64) << 16 | columns[axis].astype(np.int64), return_counts=True)
        for axis in movable
    ]
    num_values = np.array([np.bincount(pairs >> 16, minlength=len(sizes)) for pairs, _ in counted], float)
    bound = sizes.astype(float)
    for (pairs, counts), own in zip(counted, num_values, strict=True):
        owner = pairs >> 16
        others = (num_values.prod(axis=0) / own)[owner]
        bound = np.minimum(bound, np.bincount(owner, np.minimum(counts, others), len(sizes)))
    return bound.round().astype(np.int64)


def _one_each(
    rows: np.ndarray, person: np.ndarray, number: np.ndarray, key: int, round_number: int
) -> tuple[np.ndarray, np.ndarray]:
    """One of the rows of each person, and a hash for it."""
    dice = hashed(
        key, number[rows], rows - np.searchsorted(person, person[rows]), np.full(len(rows), round_number)
    )
    order = np.lexsort((dice, person[rows]))
    first = np.ones(len(rows), bool)
    first[1:] = person[rows[order[1:]]] != person[rows[order[:-1]]]
    return rows[order[first]], dice[order[first]]


def _gain(ordered: np.ndarray, old: list[np.ndarray], new: list[np.ndarray]) -> np.ndarray:
    """(M,) how many more different combinations there are when two old ones became two new ones."""
    codes, signs = [*old, *new], (-1, -1, 1, 1)
    gain = np.zeros(len(codes[0]), np.int64)
    for place, code in enumerate(codes):
        before = np.searchsorted(ordered, code, "right") - np.searchsorted(ordered, code, "left")
        change = sum(sign * (other == code) for sign, other in zip(signs, codes, strict=True))
        counted = np.zeros(len(code), bool)
        for earlier in codes[:place]:
            counted |= earlier == code
        gain += np.where(counted, 0, (before + change > 0).astype(np.int64) - (before > 0))
    return gain


def _meet_once(rows: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """(M,) which of the pairs can be exchanged at the same time: no picture is in two of them."""
    both = np.concatenate([rows, partner])
    _, first, inverse = np.unique(both, return_index=True, return_inverse=True)
    is_first = first[inverse] == np.arange(len(both))
    return is_first[: len(rows)] & is_first[len(rows) :]


def _swap_columns(pair: list[np.ndarray], axis: np.ndarray) -> None:
    """Exchange one value of each column of two (A, M), in place."""
    column = np.arange(len(axis))
    pair[0][axis, column], pair[1][axis, column] = pair[1][axis, column], pair[0][axis, column]


def _swap(columns: np.ndarray, axis: np.ndarray, rows: np.ndarray, partner: np.ndarray) -> None:
    """Exchange one value of each pair, in place."""
    columns[axis, rows], columns[axis, partner] = columns[axis, partner], columns[axis, rows]
