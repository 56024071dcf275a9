"""Making a plan: quotas over all pictures, variety within each person, a prompt and a seed for every picture.

Shapes: A axes, P people, N pictures, V values of an axis.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from idgen.config import nearest
from idgen.errors import ConfigError
from idgen.synth.adults import refuse_minors_in
from idgen.synth.arrange import Rules, arrange, below, exchange_between, exchange_within, hashed, key_of
from idgen.synth.axes import Axis
from idgen.synth.grammar import Grammar
from idgen.synth.machine import machine_bytes
from idgen.synth.plan import Plan
from idgen.synth.plan_file import IDENTITY, NUMBERS
from idgen.synth.quotas import deal

if TYPE_CHECKING:
    import pyarrow

# A seed has 53 bits: what reads numbers as float64 (JSON in a browser, a column of labels) keeps it exactly.
PERSON_BITS, PICTURE_BITS = 31, 22
SEED_BITS = PERSON_BITS + PICTURE_BITS
# Bytes of memory that making a plan takes at least, measured: a picture of an axis, a person of any number.
PICTURE_BYTES, PERSON_BYTES = 25, 100
_MASK = np.uint64(2**SEED_BITS - 1)


def make_plan(
    grammar: Grammar,
    num_people: int,
    pictures_per_person: int | None,
    seed: int,
    *,
    pictures: Sequence[int] | np.ndarray | None = None,
    distribution: Mapping[str, Mapping[str, float]] | None = None,
    person_attributes: Mapping[str, Sequence[str | None]] | None = None,
    source: Mapping[str, Any] | None = None,
    name: str = "new",
    advance: Callable[[int], object] = lambda _: None,
) -> Plan:
    """Plan a data set.

    The same arguments give the same plan. What is random hangs on the seed, on the name of the axis, and on
    the number of the person. With more people, those who were there before keep their seeds; with equal
    weights, and as long as the grammar forbids nothing across people, their attributes too. (With other
    weights that cannot be for the last few: see `idgen.synth.quotas.deal`.)

    Args:
        grammar: from `read_grammar`.
        num_people: P; person i is row i of the file of identities.
        pictures_per_person: of everybody; None where ``pictures`` is given.
        seed: from 0 up.
        pictures: (P,) of each, such as `histogram_of` a real data set.
        distribution: axis -> value -> weight, instead of the grammar's weights.
        person_attributes: axis of people -> value of each person, as far as the source of the people knows;
            None or "" where it does not.
        source: where the identities come from: plain data that is kept in the plan.
        name: begins the names of all people.
        advance: told the number of pictures of each part that is arranged.

    Raises:
        ConfigError: if a number is out of range, an attribute is unknown, the forbidden combinations leave no
            room for the quotas, a prompt means a minor, or the plan does not fit into the memory.
    """
    _check_names(seed, name, source)
    grammar = grammar.weighted(distribution or {})
    _check_numbers(num_people, pictures_per_person, pictures)
    num_pictures = num_people * (pictures_per_person or 0) if pictures is None else int(np.sum(pictures))
    with _enough_memory(num_people, num_pictures, len(grammar.axes)):
        sizes = _sizes(num_people, pictures_per_person, pictures)
        rules = _Forbidden(grammar)
        people, given = _people(grammar, num_people, person_attributes or {}, seed, rules)
        axes, templates = list(grammar.axes.values()), [template.weight for template in grammar.templates]
        columns = np.empty((len(axes) + 1, int(sizes.sum())), np.int16)
        columns[: len(people)] = np.repeat(people, sizes, axis=1)
        for number, axis in enumerate(grammar.pictorial, start=len(people)):
            columns[number] = deal(axis.weights, sizes, np.random.default_rng([seed, key_of(0, axis.name)]))
        columns[-1] = deal(templates, sizes, np.random.default_rng([seed, key_of(0, "templates")]))
        _arrange(columns, sizes, grammar, rules, seed, advance)
        table = _table(grammar, columns, sizes, seed, name)
    return Plan(table=table, grammar=grammar, seed=seed, given=tuple(given), source=dict(source or {}))


def histogram_of(labels: Iterable[object]) -> np.ndarray:
    """(P,) how many pictures each person of a data set has, people in the order in which they come first.

    Args:
        labels: who is on each picture, such as a manifest's column ``identity``.
    """
    return np.array(list(Counter(labels).values()), np.int64)


def person_names(name: str, num: int) -> list[str]:
    """Names of as many people, such as ``new-000123``: six digits, or as many as the last one needs."""
    width = max(6, len(str(num - 1)))
    return [f"{name}-{number:0{width}d}" for number in range(num)]


def picture_seeds(seed: int, person: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """(N,) int64 seeds in 53 bits, no two of a plan alike.

    Person and picture, side by side in 53 bits, go through steps that can be undone (add a key, multiply by
    an odd number, xor with a shift), as in the mixers of Steele et al. 2014.

    Args:
        seed: of the plan.
        person: (N,) below 2^31.
        picture: (N,) below 2^22.
    """
    state = person.astype(np.uint64) << np.uint64(PICTURE_BITS) | picture.astype(np.uint64)
    for step, factor in enumerate((0x1E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)):
        state = (state + np.uint64(key_of(seed, "seeds", str(step)))) & _MASK
        state = (state * np.uint64(factor)) & _MASK
        state ^= state >> np.uint64(SEED_BITS // 2 + 1)
    return state.astype(np.int64)


@contextmanager
def _enough_memory(num_people: int, num_pictures: int, num_axes: int) -> Iterator[None]:
    """A block that makes a plan, which is not begun, or ends in an error, where the memory is too small."""
    wanted = num_people * PERSON_BYTES + num_pictures * num_axes * PICTURE_BYTES
    line = (
        f"a plan of {num_pictures:,} pictures of {num_people:,} people takes {wanted / 2**30:,.1f} GiB of "
        "memory at least"
    )
    way_out = "plan several datasets of fewer people, with a --name and a --seed each"
    has = machine_bytes()
    if has is not None and wanted > has:
        raise ConfigError(f"{line}, this machine has {has / 2**30:,.1f} GiB; {way_out}")
    try:
        yield
    except MemoryError:
        raise ConfigError(f"{line}, which is more than is free; {way_out}") from None


def _check_numbers(num_people: int, each: int | None, pictures: Sequence[int] | np.ndarray | None) -> None:
    if not 1 <= num_people < 2**PERSON_BITS:
        raise ConfigError(f"a plan has 1 to {2**PERSON_BITS - 1} people, got {num_people}")
    if (each is None) == (pictures is None):
        raise ConfigError(
            "a plan takes pictures_per_person for everybody, or pictures of each: one of the two"
        )
    sizes = np.array([each] if pictures is None else pictures)
    num_sizes = 1 if pictures is None else num_people
    if sizes.shape != (num_sizes,) or sizes.dtype.kind not in "iu":
        raise ConfigError(f"pictures must be {num_people} whole numbers, one a person, got {sizes.shape}")
    if not 1 <= sizes.min() <= sizes.max() < 2**PICTURE_BITS:
        wrong = sizes.min() if sizes.min() < 1 else sizes.max()
        raise ConfigError(f"a person has 1 to {2**PICTURE_BITS - 1} pictures, got {wrong}")


def _sizes(num_people: int, each: int | None, pictures: Sequence[int] | np.ndarray | None) -> np.ndarray:
    return np.full(num_people, each, np.int64) if pictures is None else np.asarray(pictures, np.int64)


def _check_names(seed: int, name: str, source: Mapping[str, Any] | None) -> None:
    if not 0 <= seed < 2**63:
        raise ConfigError(f"the seed of a plan must be from 0 to 2^63 - 1, got {seed}")
    if not IDENTITY.fullmatch(name) or len(name) > 60:
        raise ConfigError(f"names of people must begin with 1 to 60 letters, digits, _ or -, got {name!r}")
    try:
        json.dumps(dict(source or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the source of the people must be plain data: {error}") from None


# ---- people


def _people(
    grammar: Grammar,
    num: int,
    attributes: Mapping[str, Sequence[str | None]],
    seed: int,
    rules: "_Forbidden",
) -> tuple[np.ndarray, list[str]]:
    """(axes of people, P) numbers of values, and the names of the axes that are not drawn."""
    personal = grammar.personal
    known = [axis.name for axis in personal]
    for name in attributes:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"{name} is no axis of people{nearest(name, known)} (known: {listed})")
    people = np.empty((len(personal), num), np.int16)
    one_each = np.ones(num, np.int64)
    for number, axis in enumerate(personal):
        if axis.name in attributes or axis.otherwise is not None:
            people[number] = _given(axis, attributes.get(axis.name, [None] * num), num)
        else:
            rng = np.random.default_rng([seed, key_of(0, axis.name)])
            people[number] = deal(axis.weights, one_each, rng)
    given = [axis.name for axis in personal if axis.name in attributes or axis.otherwise is not None]
    drawn = [number for number, axis in enumerate(personal) if axis.name not in given]
    among = rules.among(range(len(personal)))
    rules.check_room(among, people)
    rng = np.random.default_rng([seed, key_of(0, "people")])
    if exchange_between(people, drawn, rules.rules(among), rng):
        raise rules.no_room(people, among)
    return people, given


def _given(axis: Axis, values: Sequence[str | None], num: int) -> np.ndarray:
    if len(values) != num:
        raise ConfigError(f"{axis.name} must be given for {num} people, got {len(values)}")
    place = {value: number for number, value in enumerate(axis.values)}
    codes = np.empty(num, np.int16)
    for person, value in enumerate(values):
        chosen = value or axis.otherwise
        if chosen is None:
            raise ConfigError(
                f"the source does not say {axis.name} of person {person}; for such people, add "
                f"`otherwise: {{{axis.name}: VALUE}}` to the grammar"
            )
        if chosen not in place:
            axis.index(chosen, f"person {person}")
        codes[person] = place[chosen]
    return codes


# ---- pictures


def _arrange(
    columns: np.ndarray,
    sizes: np.ndarray,
    grammar: Grammar,
    rules: "_Forbidden",
    seed: int,
    advance: Callable[[int], object],
) -> None:
    """Decide which values meet in a picture; the last column, of templates, goes along."""
    axes = list(grammar.axes.values())
    movable = [number for number, axis in enumerate(axes) if not axis.is_personal]
    movable.sort(key=lambda number: _evenness(axes[number].weights))  # the one with most room comes last
    every = range(len(grammar.forbidden))
    rules.check_room(every, columns)
    found = rules.rules(every)
    if not arrange(columns, sizes, movable, found, seed, also=[len(axes)], advance=advance):
        return
    rng = np.random.default_rng([seed, key_of(0, "pictures")])
    if exchange_between(columns, movable, found, rng):
        raise rules.no_room(columns, every)
    exchange_within(columns, sizes, movable, found, seed)


def _evenness(weights: Sequence[float]) -> float:
    """Number of equally frequent values that are as diverse: the inverse of Simpson's index (1949)."""
    return sum(weights) ** 2 / sum(weight**2 for weight in weights)


class _Forbidden:
    """The grammar's forbidden combinations, as masks and as words."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.axes = list(grammar.axes)
        self.masks = [
            tuple(
                (self.axes.index(name), np.isin(list(grammar.axes[name].values), values))
                for name, values in rule.items()
            )
            for rule in grammar.forbidden
        ]

    def among(self, axes: Iterable[int]) -> list[int]:
        """Numbers of the rules that name nothing but these axes."""
        return [number for number, rule in enumerate(self.masks) if {axis for axis, _ in rule} <= set(axes)]

    def rules(self, numbers: Iterable[int]) -> Rules:
        """These rules, as masks."""
        return Rules(tuple(self.masks[number] for number in numbers))

    def said(self, number: int) -> str:
        """A rule in words."""
        rule = self.grammar.forbidden[number]
        return " with ".join(f"{name}: {' or '.join(values)}" for name, values in rule.items())

    def check_room(self, numbers: Iterable[int], columns: np.ndarray) -> None:
        """Refuse a rule that no arrangement keeps, since each of its m parts has too large a quota.

        A row can have m - 1 of the parts at most: their quotas must not add up to more than (m - 1) N.
        """
        for number in numbers:
            rule = self.masks[number]
            quotas = [int(mask[columns[axis]].sum()) for axis, mask in rule]
            if sum(quotas) > (len(rule) - 1) * columns.shape[1]:
                listed = ", ".join(f"{self.axes[a]} {q}" for (a, _), q in zip(rule, quotas, strict=True))
                raise ConfigError(
                    f"the quotas leave no room for forbidden[{number}] ({self.said(number)}): of "
                    f"{columns.shape[1]} rows such values have {listed}; give them less weight"
                )

    def no_room(self, columns: np.ndarray, numbers: Iterable[int]) -> ConfigError:
        """The error for rules that were not kept after many exchanges."""
        broken = {number: int(self.rules([number]).broken(columns).sum()) for number in numbers}
        worst = max(broken, key=lambda number: broken[number])
        return ConfigError(
            f"no arrangement was found that keeps the quotas and forbidden[{worst}] ({self.said(worst)}): "
            f"{broken[worst]} of {columns.shape[1]} rows are left; give these values less weight"
        )


# ---- columns of the file


def _table(grammar: Grammar, columns: np.ndarray, sizes: np.ndarray, seed: int, name: str) -> "pyarrow.Table":
    import pyarrow  # heavy

    def words(codes: np.ndarray, texts: Sequence[str]) -> "pyarrow.DictionaryArray":
        different = pyarrow.array(texts, "string").dictionary_encode()  # wordings may come to the same text
        return pyarrow.DictionaryArray.from_arrays(different.indices.take(codes), different.dictionary)

    num_people = len(sizes)
    person = np.repeat(np.arange(num_people, dtype=np.int32), sizes)
    picture = np.arange(len(person)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    cells: dict[str, Any] = {
        "identity": words(person, person_names(name, num_people)),
        "person": pyarrow.array(person, NUMBERS["person"]),
        "picture": pyarrow.array(picture.astype(np.int32), NUMBERS["picture"]),
        "seed": pyarrow.array(picture_seeds(seed, person, picture), NUMBERS["seed"]),
        "prompt": words(*_prompts(grammar, columns, person, picture, seed)),
        "negative_prompt": words(*_negative_prompts(grammar, columns)),
    }
    for number, axis in enumerate(grammar.axes.values()):
        cells[axis.name] = words(columns[number], list(axis.values))
    return pyarrow.table(cells)


def _prompts(
    grammar: Grammar, columns: np.ndarray, person: np.ndarray, picture: np.ndarray, seed: int
) -> tuple[np.ndarray, list[str]]:
    """(N,) numbers of prompts, and the prompts; of several wordings each picture, or person, has one."""
    said = [columns[-1]]
    for number, axis in enumerate(grammar.axes.values()):
        num_wordings = np.array([len(value.wordings) for value in axis.values.values()])
        code = columns[number]
        whose = (person,) if axis.is_personal else (person, picture)
        wording = below(hashed(key_of(seed, "wording", axis.name), *whose), num_wordings[code])
        said.append((np.cumsum(num_wordings) - num_wordings)[code] + wording)
    codes, first = _different(said)
    wordings = [
        [words for value in axis.values.values() for words in value.wordings]
        for axis in grammar.axes.values()
    ]
    prompts: list[str] = []
    for template, *chosen in zip(*(column[first].tolist() for column in said), strict=True):
        words = {name: wordings[axis][chosen[axis]] for axis, name in enumerate(grammar.axes)}
        prompts.append(grammar.templates[template].say(words))
    refuse_minors_in(prompts, lambda number: f"templates[{columns[-1][first[number]]}] says")
    return codes, prompts


def _negative_prompts(grammar: Grammar, columns: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(N,) numbers of negative prompts, and these: what the grammar says, and what each value adds."""
    said = [
        (columns[number], [value.negative for value in axis.values.values()])
        for number, axis in enumerate(grammar.axes.values())
    ]
    said = [(column, texts) for column, texts in said if any(texts)]
    codes, first = _different([column for column, _ in said] or [np.zeros(columns.shape[1], np.int16)])
    negatives = [
        ", ".join(filter(None, [grammar.negative, *(texts[column[row]] for column, texts in said)]))
        for row in first.tolist()
    ]
    return codes, negatives


def _different(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) numbers of the different rows, and the first row of each."""
    codes = np.zeros(len(columns[0]), np.int64)
    first = np.zeros(1, np.int64)
    for column in columns:
        codes = codes * (int(column.max()) + 1) + column
        _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    return codes, first
