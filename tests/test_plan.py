"""Plans: exact quotas, variety, seeds of their own, and what cannot be planned."""

from typing import Any

import numpy as np
import pytest
from small_plans import DATA, column, counted, grammar
from transformers import CLIPTokenizer

from idgen.errors import ConfigError
from idgen.mini import BASE
from idgen.synth.grammar import read_grammar
from idgen.synth.planning import histogram_of, make_plan, person_names, picture_seeds

COLUMNS = ["identity", "person", "picture", "seed", "prompt", "negative_prompt"]

# ---- quotas


def test_quotas_add_up_for_any_numbers() -> None:
    rng = np.random.default_rng(0)
    for trial in range(24):
        num, each = int(rng.integers(1, 40)), int(rng.integers(1, 14))
        pictures = rng.integers(1, 14, num) if trial % 2 else None
        plan = make_plan(grammar(), num, None if trial % 2 else each, trial, pictures=pictures)
        total = num * each if pictures is None else int(pictures.sum())
        assert len(plan) == total
        for axis in ("pose", "expression", "light"):
            assert sum(counted(plan, axis).values()) == total
        for row in plan.summary():
            if row["wanted"] is not None:
                assert abs(row["planned"] - row["wanted"]) < 1
        units = {row["axis"]: row["unit"] for row in plan.summary()}
        assert units == dict.fromkeys(("who", "hair", "glasses"), "people") | dict.fromkeys(
            ("pose", "expression", "light"), "pictures"
        )
        for axis, number in (("hair", num), ("pose", total)):
            assert sum(row["planned"] for row in plan.summary() if row["axis"] == axis) == number


def test_the_summary_says_what_was_wanted_and_what_is_planned() -> None:
    plan = make_plan(grammar(), 4, 3, 0, person_attributes={"who": ["man", None, "woman", "man"]})
    rows = {(row["axis"], row["value"]): row for row in plan.summary()}
    assert rows["who", "man"] == {
        "axis": "who",
        "value": "man",
        "unit": "people",
        "wanted": None,
        "planned": 2,
    }
    assert rows["who", "person"]["planned"] == 1
    assert rows["glasses", "none"] == {
        "axis": "glasses", "value": "none", "unit": "people", "wanted": 3.0, "planned": 3
    }  # fmt: skip
    assert rows["light", "dim"] == {
        "axis": "light",
        "value": "dim",
        "unit": "pictures",
        "wanted": 4.0,
        "planned": 4,
    }


def test_a_distribution_decides_the_quotas() -> None:
    plan = make_plan(
        grammar(), 10, 10, 0, distribution={"pose": {"left": 0.07, "right": 0.93}, "hair": {"grey": 1}}
    )
    assert counted(plan, "pose") == {"left": 7, "right": 93}
    assert counted(plan, "hair") == {"grey": 100}
    assert plan.grammar.axes["pose"].weights == (0, 0.07, 0.93)


def test_a_real_sets_numbers_of_pictures_are_copied() -> None:
    labels = ["b", "a", "b", "c", "b", "a"]
    assert histogram_of(labels).tolist() == [3, 2, 1]
    assert histogram_of(np.array([7, 7, 1])).tolist() == [2, 1]
    plan = make_plan(grammar(), 3, None, 0, pictures=histogram_of(labels))
    assert [len(person.pictures) for person in plan.people()] == [3, 2, 1]


# ---- people and pictures


def test_what_stays_with_a_person_stays() -> None:
    plan = make_plan(grammar(), 30, 8, 1, person_attributes={"who": ["woman"] * 30})
    for person in plan.people():
        assert (
            len(
                {
                    (p.attributes["who"], p.attributes["hair"], p.attributes["glasses"])
                    for p in person.pictures
                }
            )
            == 1
        )
        said = {next(w for w in ("a woman", "a lady") if w in p.prompt) for p in person.pictures}
        assert len(said) == 1  # the wording too
    assert len({p.pictures[0].prompt[:7] for p in plan.people()}) > 1


def test_nobodys_pictures_are_alike_as_long_as_the_quotas_allow() -> None:
    """Two thirds of nine are plain, with each of the six poses and expressions."""
    plan = make_plan(grammar(), 50, 9, 2)
    for person in plan.people():
        assert (
            len(
                {
                    (p.attributes["pose"], p.attributes["expression"], p.attributes["light"])
                    for p in person.pictures
                }
            )
            == 9
        )


def test_a_prompt_says_its_attributes() -> None:
    words = {
        name: {value: found.wordings for value, found in axis.values.items()}
        for name, axis in grammar().axes.items()
    }
    for person in make_plan(grammar(), 20, 6, 3).people():
        for picture in person.pictures:
            assert list(picture.attributes) == ["who", "hair", "glasses", "pose", "expression", "light"]
            for axis, value in picture.attributes.items():
                assert any(wording in picture.prompt for wording in words[axis][value])
            assert ", ," not in picture.prompt
            assert picture.prompt == picture.prompt.strip(" ,")
            wanted = "serious" if picture.attributes["expression"] == "smiling" else ""
            assert picture.negative_prompt == wanted


def test_names_and_numbers() -> None:
    plan = make_plan(grammar(), 3, 2, 0)
    assert column(plan, "identity") == [f"new-00000{i}" for i in (0, 0, 1, 1, 2, 2)]
    assert column(plan, "person") == [0, 0, 1, 1, 2, 2]
    assert column(plan, "picture") == [0, 1, 0, 1, 0, 1]
    assert plan.table.column_names == [*COLUMNS, "who", "hair", "glasses", "pose", "expression", "light"]
    assert person_names("n", 1_000_001)[:: 10**6] == ["n-0000000", "n-1000000"]


def test_seeds_are_different_and_hang_on_plan_person_and_picture() -> None:
    plan = make_plan(grammar(), 40, None, 5, pictures=np.arange(1, 41))
    seeds = np.array(column(plan, "seed"))
    assert len(np.unique(seeds)) == len(seeds)
    assert 0 <= seeds.min() <= seeds.max() < 2**53
    assert float(seeds.max()) == seeds.max()
    person, picture = np.array(column(plan, "person")), np.array(column(plan, "picture"))
    for row in (0, 17, 400):
        assert picture_seeds(5, person[[row]], picture[[row]]).tolist() == [seeds[row]]
    assert not np.isin(picture_seeds(6, person, picture), seeds).any()
    grid = np.meshgrid(np.arange(2000), np.arange(200))
    found = picture_seeds(0, grid[0].ravel(), grid[1].ravel())
    assert len(np.unique(found)) == found.size
    assert abs(np.mean(found / 2**53) - 0.5) < 0.005
    edges = picture_seeds(0, np.array([2**31 - 1, 0, 2**31 - 1]), np.array([2**22 - 1, 2**22 - 1, 0]))
    assert len(set(edges.tolist())) == 3


def test_the_same_seed_gives_the_same_plan_and_another_one_another() -> None:
    plans = [make_plan(grammar(), 20, 7, seed) for seed in (0, 0, 1)]
    assert plans[0].plan_sha256 == plans[1].plan_sha256 != plans[2].plan_sha256
    assert plans[0].table.equals(plans[1].table)
    assert column(plans[0], "pose") != column(plans[2], "pose")


def test_more_people_leave_the_first_as_they_were() -> None:
    """With equal weights everything stays; with others (glasses, light) what lies in whole periods does."""
    few, many = make_plan(grammar(), 8, 6, 0), make_plan(grammar(), 25, 6, 0)
    first = many.table.slice(0, len(few))
    assert few.table.drop_columns(["prompt"]).to_pylist() == first.drop_columns(["prompt"]).to_pylist()
    assert few.table["prompt"].to_pylist() == first["prompt"].to_pylist()
    # three to one, so that people come in periods of four: of seven, four are certain to keep theirs
    few, many = make_plan(grammar(), 7, 6, 0), make_plan(grammar(), 25, 6, 0)
    kept = [row["glasses"] for row in many.table.slice(0, 24).to_pylist()]
    assert [row["glasses"] for row in few.table.slice(0, 24).to_pylist()] == kept
    assert few.table["hair"].to_pylist() == many.table.slice(0, 42)["hair"].to_pylist()
    assert few.table["seed"].to_pylist() == many.table.slice(0, 42)["seed"].to_pylist()


def test_another_axis_leaves_what_is_dealt_of_the_others() -> None:
    more = {**DATA["picture"], "frame": {"near": "near", "far": "far"}}
    texts = [text + ", {frame}" for text in DATA["templates"]]
    plans = make_plan(grammar(), 12, 5, 0), make_plan(grammar(picture=more, templates=texts), 12, 5, 0)
    for axis in ("hair", "glasses"):
        assert column(plans[0], axis) == column(plans[1], axis)
    for axis in ("pose", "expression", "light"):
        assert [sorted(p.attributes[axis] for p in person.pictures) for person in plans[0].people()] == [
            sorted(p.attributes[axis] for p in person.pictures) for person in plans[1].people()
        ]


def test_people_come_in_any_part(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(grammar(), 11, None, 0, pictures=[1, 9, 2, 2, 30, 1, 1, 4, 4, 4, 7])
    everybody = list(plan.people())
    assert [person.person for person in everybody] == list(range(11))
    monkeypatch.setattr("idgen.synth.plan.BLOCK", 5)
    assert list(plan.people()) == everybody
    assert list(plan.people(3, 7)) == everybody[3:7]
    assert list(plan.people(9)) == everybody[9:]
    assert list(plan.people(4, 4)) == []
    assert [p for person in everybody for p in person.pictures][12].seed == column(plan, "seed")[12]


# ---- forbidden combinations


def test_what_is_forbidden_never_comes() -> None:
    rules = [
        {"light": "dim", "expression": "smiling"},
        {"hair": "grey", "glasses": "none"},
        {"hair": ["fair"], "pose": ["left", "right"], "expression": "serious"},
    ]
    glasses = {"none": "", "glasses": "wearing glasses"}
    person = {**DATA["person"], "glasses": glasses}
    plan = make_plan(grammar(forbidden=rules, person=person), 30, 10, 0)
    for row in plan.table.to_pylist():
        assert not (row["light"] == "dim" and row["expression"] == "smiling")
        assert not (row["hair"] == "grey" and row["glasses"] == "none")
        assert not (row["hair"] == "fair" and row["pose"] != "ahead" and row["expression"] == "serious")
    for row in plan.summary():
        assert row["wanted"] is None or abs(row["planned"] - row["wanted"]) < 1
    assert counted(make_plan(grammar(person=person), 30, 10, 0), "light") == counted(plan, "light")


def test_rules_without_room_are_refused() -> None:
    rules = [{"pose": ["left", "right"], "expression": "smiling"}]
    with pytest.raises(ConfigError) as error:
        make_plan(grammar(forbidden=rules), 3, 4, 0)
    assert str(error.value) == (
        "the quotas leave no room for forbidden[0] (pose: left or right with expression: smiling): of 12 "
        "rows such values have pose 8, expression 6; give them less weight"
    )
    both = [
        {"pose": "left", "expression": "smiling"},
        {"pose": "right", "expression": ["smiling"]},
    ]
    with pytest.raises(
        ConfigError, match=r"no arrangement was found .* forbidden\[[01]\] .*: [12] of 12 rows are left"
    ):
        make_plan(grammar(forbidden=both), 3, 4, 0)
    given = {"who": ["man"] * 3, "hair": ["dark", "grey", "dark"]}
    with pytest.raises(
        ConfigError, match=r"no room for forbidden\[0\] \(who: man with hair: grey\): of 3 rows"
    ):
        make_plan(grammar(forbidden=[{"who": "man", "hair": "grey"}]), 3, 4, 0, person_attributes=given)


# ---- wrong settings


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"num_people": 0}, "a plan has 1 to 2147483647 people, got 0"),
        ({"pictures_per_person": 0}, "a person has 1 to 4194303 pictures, got 0"),
        ({"pictures_per_person": None}, "a plan takes pictures_per_person for everybody, or pictures"),
        ({"pictures": [1, 2, 3]}, "a plan takes pictures_per_person for everybody, or pictures"),
        ({"pictures_per_person": None, "pictures": [1, 2]}, "pictures must be 3 whole numbers, one a"),
        ({"pictures_per_person": None, "pictures": [1, 2, 0.5]}, "pictures must be 3 whole numbers, one a"),
        ({"pictures_per_person": None, "pictures": [1, 2, 0]}, "a person has 1 to 4194303 pictures, got 0"),
        ({"seed": -1}, "the seed of a plan must be from 0 to 2^63 - 1, got -1"),
        ({"name": "a/b"}, "names of people must begin with 1 to 60 letters, digits, _ or -, got 'a/b'"),
        ({"source": {"x": float("nan")}}, "the source of the people must be plain data"),
        ({"distribution": {"poze": {"left": 1}}}, "distribution: there is no axis 'poze'; did you mean"),
        ({"person_attributes": {"hare": ["dark"] * 3}}, "hare is no axis of people; did you mean 'hair'?"),
        ({"person_attributes": {"pose": ["left"] * 3}}, "pose is no axis of people"),
        ({"person_attributes": {"hair": ["dark"]}}, "hair must be given for 3 people, got 1"),
        ({"person_attributes": {"hair": ["dark", "drk", "dark"]}}, "person 1: 'drk' is no value of hair;"),
        ({"person_attributes": {"hair": ["dark", "dark", None]}}, "the source does not say hair of person 2; "
         "for such people, add `otherwise: {hair: VALUE}` to the grammar"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused(arguments: dict[str, Any], line: str) -> None:
    settings = {"num_people": 3, "pictures_per_person": 4, "seed": 0, **arguments}
    with pytest.raises(ConfigError) as error:
        make_plan(grammar(), **settings)
    assert str(error.value).startswith(line)


def test_words_that_mean_a_minor_only_together_are_refused() -> None:
    age = {"some": {"words": "17"}, "more": {"words": "30"}}
    found = grammar(
        person={"age": age}, otherwise={}, templates=["{age} year old, {pose}, {expression}, {light}"]
    )
    with pytest.raises(ConfigError, match=r"^templates\[0\] says: '17 year old' means a minor"):
        make_plan(found, 4, 4, 0)
    assert len(make_plan(found, 4, 4, 0, distribution={"age": {"more": 1}})) == 16


# ---- the embedded grammar


def test_the_embedded_model_reads_every_prompt_of_the_embedded_grammar() -> None:
    who = ["man", "woman", ""] * 20
    plan = make_plan(read_grammar(), 60, 50, 0, person_attributes={"presentation": who})
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    prompts = plan.texts("prompt")[1]
    assert len(prompts) > 2000
    vocabulary = set(tokenizer.get_vocab())
    words = {word for prompt in prompts for word in prompt.replace(",", " ").split()}
    assert {f"{word}</w>" for word in words} <= vocabulary
    lengths = [len(ids) for ids in tokenizer(prompts).input_ids]
    assert max(lengths) <= tokenizer.model_max_length
    assert {"a person", "a man", "a woman"} == {
        said for said in ("a person", "a man", "a woman", "a {") if any(said in prompt for prompt in prompts)
    }
    per_person = [[tuple(p.attributes.values()) for p in person.pictures] for person in plan.people()]
    assert all(len(set(pictures)) == 50 for pictures in per_person)
