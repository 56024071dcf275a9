"""The grammar of portraits: what it says, what it refuses, and that the embedded model knows its words."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import CLIPTokenizer

from idgen.errors import ConfigError
from idgen.mini import BASE
from idgen.synth.axes import Check
from idgen.synth.distribution import measure_distribution, read_distribution
from idgen.synth.grammar import PORTRAITS, grammar_from, read_grammar

SMALL: dict[str, Any] = {
    "format": 1,
    "person": {"who": {"man": "a man", "woman": "a woman"}, "hair": {"dark": "with dark hair", "any": ""}},
    "otherwise": {"who": "woman"},
    "picture": {
        "pose": {
            "ahead": {
                "words": ["ahead", "straight"],
                "weight": 2,
                "check": {"probe": "yaw", "min": -5, "max": 5},
            },
            "left": {"words": "left", "check": {"probe": "yaw", "min": 5}, "negative": "right"},
        },
        "light": {"plain": "", "dim": {"words": "in dim light", "finish": {"noise": 0.5}}},
    },
    "templates": [
        "a photo of {who} {hair}, {pose}, {light}",
        {"text": "{light}, {who} {hair}, {pose}", "weight": 3},
    ],
}


def changed(path: str, value: object) -> dict[str, Any]:
    """SMALL with one thing changed, or taken away."""
    data = copy.deepcopy(SMALL)
    *groups, last = path.split(".")
    node = data
    for group in groups:
        node = node[group]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return data


def test_the_axes_and_values_are_read() -> None:
    grammar = grammar_from(SMALL, "small")
    assert [axis.name for axis in grammar.personal] == ["who", "hair"]
    assert [axis.name for axis in grammar.pictorial] == ["pose", "light"]
    assert grammar.axes["pose"].weights == (2, 1)
    assert grammar.axes["who"].otherwise == "woman"
    assert grammar.axes["hair"].otherwise is None
    assert grammar.check_of("pose", "ahead") == Check(probe="yaw", min=-5, max=5)
    assert grammar.check_of("light", "dim") is None
    assert grammar.finish_of("light", "dim") == {"noise": 0.5}
    assert grammar.finish_of("pose", "left") == {}
    with pytest.raises(
        ConfigError, match=r"'lft' is no value of pose; did you mean 'left'\? \(known: ahead, left\)"
    ):
        grammar.check_of("pose", "lft")
    with pytest.raises(ConfigError, match=r"there is no axis 'poze'; did you mean 'pose'\?"):
        grammar.check_of("poze", "left")


def test_a_check_holds_between_its_bounds() -> None:
    assert [Check(probe="yaw", min=-5, max=5).holds(x) for x in (-5.1, -5, 0, 5, 5.1)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert Check(probe="yaw", min=5).holds(1e9)
    assert not Check(probe="yaw", max=5).holds(float("nan"))


def test_a_template_leaves_out_what_says_nothing() -> None:
    first, second = grammar_from(SMALL, "small").templates
    words = {"who": "a man", "hair": "", "pose": "left", "light": ""}
    assert first.say(words) == "a photo of a man, left"
    assert second.say(words) == "a man, left"
    assert second.say({**words, "light": "in dim light", "hair": "with dark hair"}) == (
        "in dim light, a man with dark hair, left"
    )


def test_it_comes_back_from_plain_data() -> None:
    for grammar in (grammar_from(SMALL, "small"), read_grammar()):
        again = grammar_from(yaml.safe_load(yaml.safe_dump(grammar.to_data(), sort_keys=False)), "again")
        assert again.to_data() == grammar.to_data()
        assert again.sha256 == grammar.sha256
        assert list(again.axes) == list(grammar.axes)


def test_its_hash_is_of_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "copy.yaml"
    path.write_text("# a comment\n\n" + PORTRAITS.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_grammar(path).sha256 == read_grammar().sha256
    path.write_text(PORTRAITS.read_text(encoding="utf-8").replace("weight: 3", "weight: 4"), encoding="utf-8")
    assert read_grammar(path).sha256 != read_grammar().sha256


WRONG = [
    ("format", 2, "a grammar of `format: 1` is needed, got 2"),
    ("template", [],
     "template is no part of a grammar; did you mean 'templates'? (known: format, person, "
     "otherwise, picture, templates, negative, forbidden)"),
    ("picture", None, "a grammar needs an axis of `picture` at least"),
    ("picture.pose", [], "picture.pose must be a group of settings, got []"),
    ("picture.pose", {}, "picture.pose needs 1 to 32767 values, got 0"),
    ("picture.Pose", {"a": "a"},
     "picture.Pose: the name of an axis is small letters, digits and _, got 'Pose'"),
    ("picture.seed", {"a": "a"},
     "picture.seed: seed is a column that every dataset has; the axis needs another name"),
    ("picture.who", {"a": "a"}, "who is an axis of person and of picture; it can be one of them"),
    ("otherwise.har", "dark", "otherwise.har is no axis of person; did you mean 'hair'?"),
    ("otherwise.hair", "drk",
     "person.hair: otherwise: 'drk' is no value of hair; did you mean 'dark'? (known: dark, "
     "any)"),
    ("picture.pose.left.weight", -1, "picture.pose.left.weight must be a number from 0 up, got -1.0"),
    ("picture.pose.left.weight", float("inf"),
     "picture.pose.left.weight must be a number from 0 up, got inf"),
    ("picture.pose.left.weight", True, "picture.pose.left.weight must be float, got True"),
    ("picture.light", {"a": {"words": "", "weight": 0}},
     "picture.light: all weights are 0, so that nothing can be drawn; one must be more"),
    ("picture.pose.left.wieght", 1,
     "picture.pose.left.wieght is not a setting; did you mean 'weight'? (known: words, "
     "weight, negative, check, finish)"),
    ("picture.pose.left.words", [], 'picture.pose.left.words needs one wording at least; "" says nothing'),
    ("picture.pose.left.words", "left {who}",
     "picture.pose.left.words[0]: axes are named in templates only, got 'left {who}'"),
    ("picture.pose.left.words", "left\nright",
     "picture.pose.left.words[0] must be text on one line, got 'left\\nright'"),
    ("picture.pose.left.check", {"probe": "yaw"},
     "picture.pose.left.check needs min or max, or both: without a bound everything passes"),
    ("picture.pose.left.check", {"probe": "yaw", "min": 2, "max": 1},
     "picture.pose.left.check needs finite bounds with min <= max, got min 2.0, max 1.0"),
    ("picture.pose.left.check", {"probe": " ", "min": 2},
     "picture.pose.left.check.probe must name a measurement, got ' '"),
    ("picture.pose.left.check", {"prob": "yaw"},
     "picture.pose.left.check.prob is not a setting; did you mean 'probe'?"),
    ("picture.light.dim.finish", {"blur": "much"},
     "picture.light.dim.finish.blur must be a number from 0 up, got 'much'"),
    ("picture.light.dim.finish", "blur", "picture.light.dim.finish must be `kind: strength`, got 'blur'"),
    ("picture.light.a,b", "x", "picture.light.a,b: the name of a value is 1 to 60 letters without"),
    ("templates", [], "templates must be a list of prompts, one at least, got []"),
    ("templates", ["{who} {hair} {pose} {lihgt}"],
     "templates[0] names an unknown axis 'lihgt'; did you mean 'light'? (known: who, hair, "
     "pose, light)"),
    ("templates", ["{who} {hair}, {pose}"],
     "templates[0] does not name {light}: it would be planned and never asked for; every "
     "template names every axis that has words, got '{who} {hair}, {pose}'"),
    ("templates", ["{who} {hair"],
     "templates[0]: '{who} {hair' has a brace too many or too few: expected '}' before end of "
     "string"),
    ("templates", ["{who!r} {hair} {pose} {light}"],
     "templates[0]: {who} takes nothing but the name of an axis, got"),
    ("templates", [{"text": "{who} {hair} {pose} {light}", "weight": 0}],
     "templates: all weights are 0, so that nothing can be drawn; one must be more"),
    ("forbidden", {"pose": "left"}, "forbidden must be a list of combinations, got {'pose': 'left'}"),
    ("forbidden", [{"pose": "left"}],
     "forbidden[0] must name two axes at least, got {'pose': 'left'}; a weight of 0 forbids "
     "one value"),
    ("forbidden", [{"pose": "left", "lite": "dim"}],
     "forbidden[0]: there is no axis 'lite'; did you mean 'light'? (known: who, hair, pose, "
     "light)"),
    ("forbidden", [{"pose": "left", "light": ["dim", "drim"]}],
     "forbidden[0].light: 'drim' is no value of light; did you mean 'dim'? (known: plain, dim)"),
    ("negative", 3, "negative must be text on one line, got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "line"), WRONG)
def test_what_cannot_be_is_refused(path: str, value: object, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        grammar_from(changed(path, value), "small")
    assert str(error.value).startswith(f"small: {line}")


def test_names_of_values_that_yaml_reads_as_something_else_are_refused() -> None:
    data = changed("picture.light", yaml.safe_load("{yes: a, dim: b}"))
    with pytest.raises(ConfigError, match="the name of a value must be text; put it in quotes, got True"):
        grammar_from(data, "small")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the grammar .*missing\.yaml: No such file .*; leave"):
        read_grammar(tmp_path / "missing.yaml")
    (tmp_path / "broken.yaml").write_text("picture: {pose: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not YAML"):
        read_grammar(tmp_path / "broken.yaml")


# ---- other weights


def test_a_distribution_replaces_weights() -> None:
    grammar = grammar_from(SMALL, "small").weighted({"pose": {"left": 5}, "hair": {"any": 1, "dark": 0.5}})
    assert grammar.axes["pose"].weights == (0, 5)
    assert grammar.axes["hair"].weights == (0.5, 1)
    assert grammar.axes["light"].weights == (1, 1)
    assert grammar.sha256 != grammar_from(SMALL, "small").sha256


@pytest.mark.parametrize(
    ("distribution", "line"),
    [
        ({"poze": {"left": 1}}, "distribution: there is no axis 'poze'; did you mean 'pose'?"),
        ({"pose": {"lef": 1}}, "distribution.pose: 'lef' is no value of pose; did you mean 'left'?"),
        ({"pose": {"left": -1}}, "distribution.pose.left must be a number from 0 up, got -1"),
        ({"pose": {"left": 0}}, "distribution.pose: all weights are 0"),
        ({"pose": {}}, "distribution.pose: all weights are 0"),
        ({"who": {"man": 1}}, "distribution.who: who comes from the source of the people and is never drawn"),
    ],
)
def test_a_distribution_that_cannot_be_is_refused(distribution: Any, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        grammar_from(SMALL, "small").weighted(distribution)
    assert str(error.value).startswith(line)


def test_a_distribution_is_read_and_measured(tmp_path: Path) -> None:
    grammar = grammar_from(SMALL, "small")
    yaw = np.array([0.0, 5.0, 6.0, 40.0, -4.0, -30.0, np.nan])
    table = {"yaw": yaw, "light": ["dim", "dim", "", None, "plain", "dim", "dim"], "size": [[1]] * 7}
    pq.write_table(pa.table(table), tmp_path / "manifest.parquet")
    path = tmp_path / "like_real.yaml"
    path.write_text(
        "pose: {table: manifest.parquet, column: yaw}\nhair: {dark: 2}\n"
        "light: {table: manifest.parquet, column: light}"
    )
    expected = {"pose": {"ahead": 3, "left": 2}, "hair": {"dark": 2}, "light": {"plain": 1, "dim": 4}}
    assert read_distribution(path, grammar) == expected

    def wrong(text: str) -> str:
        path.write_text(text)
        with pytest.raises(ConfigError) as error:
            read_distribution(path, grammar)
        return str(error.value).replace(str(tmp_path), "")

    assert wrong("poze: {left: 1}").startswith(
        "/like_real.yaml: there is no axis 'poze'; did you mean 'pose'?"
    )
    assert wrong("pose: {lft: 1}").startswith(
        "/like_real.yaml.pose: 'lft' is no value of pose; did you mean 'left'?"
    )
    assert wrong("pose: {table: x.parquet}").startswith(
        "/like_real.yaml: pose is measured by the text `table` and `column`"
    )
    assert wrong("pose: {table: x.parquet, column: yaw}").startswith("cannot read the table /x.parquet")
    assert wrong("pose: {table: manifest.parquet, column: jaw}") == (
        "/manifest.parquet has no column 'jaw'; did you mean 'yaw'? (known: yaw, light, size)"
    )
    assert wrong("light: {table: manifest.parquet, column: yaw}").startswith(
        "/manifest.parquet: column yaw holds numbers, and no value of light has a check"
    )
    assert wrong("pose: {table: manifest.parquet, column: light}").startswith(
        "/manifest.parquet: column light: 'dim' is no value of pose"
    )
    assert wrong("pose: {table: manifest.parquet, column: size}").endswith(
        "column size holds neither names nor numbers"
    )


def test_a_measurement_that_says_nothing_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"yaw": [-90.0, -80.0]}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="column yaw says nothing of pose: no row has one of ahead, left"):
        measure_distribution(tmp_path / "t.parquet", "yaw", grammar_from(SMALL, "small").axes["pose"])


# ---- the embedded grammar


def test_the_embedded_model_knows_every_word() -> None:
    """A byte-level tokenizer has no unknown token: a word that it was not trained on falls into pieces."""
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    grammar = read_grammar()
    texts = [
        words for axis in grammar.axes.values() for value in axis.values.values() for words in value.wordings
    ]
    texts += [re.sub(r"\{\w+\}", "", template.text) for template in grammar.templates]
    words = {word for text in texts for word in re.findall(r"[^\s,]+", text)}
    assert {"smiling", "photo", "background"} <= words
    assert {word: tokenizer.tokenize(word) for word in words} == {word: [f"{word}</w>"] for word in words}
    assert tokenizer.tokenize("glasses") != ["glasses</w>"]


def test_no_prompt_is_longer_than_the_embedded_model_reads() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    grammar = read_grammar()
    longest = {
        axis.name: max(
            (words for value in axis.values.values() for words in value.wordings),
            key=lambda words: len(tokenizer.tokenize(words)),
        )
        for axis in grammar.axes.values()
    }
    for template in grammar.templates:
        assert len(tokenizer(template.say(longest)).input_ids) <= tokenizer.model_max_length


def test_left_and_right_of_the_embedded_grammar_are_those_of_the_captions() -> None:
    """Captions say "left" of a positive yaw."""
    grammar = read_grammar()
    checks = {value: grammar.check_of("pose", value) for value in grammar.axes["pose"].values}
    held = {
        yaw: [value for value, check in checks.items() if check and check.holds(yaw)]
        for yaw in (-20.0, 0.0, 20.0)
    }
    assert held == {-20.0: ["right"], 0.0: ["ahead"], 20.0: ["left"]}


# ---- adults only


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("picture.pose.left.words", ["left", "like a Child"], "small: picture.pose.left.words[1]: 'child' "
         "means a minor, and idgen plans pictures of adults only: 'like a Child'"),
        ("picture.teen", {"a": ""}, "small: picture.teen: 'teen' means a minor"),
        ("person.who.girl", "a woman", "small: person.who.girl: 'girl' means a minor"),
        ("person.age", {"17": ""}, "small: person.age.17: 'age 17' means a minor"),
        ("templates", ["a boy {who} {hair} {pose} {light}"], "small: templates[0]: 'boy' means a minor"),
    ],
)  # fmt: skip
def test_a_grammar_that_means_minors_is_refused(path: str, value: object, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        grammar_from(changed(path, value), "small")
    assert str(error.value).startswith(line)


def test_a_negative_prompt_that_steers_away_from_adults_is_refused() -> None:
    left = {"words": "left", "negative": "mature"}
    changes = {"negative": "adult", "picture.pose.left": left}
    for path, at in {"negative": "negative", "picture.pose.left": "picture.pose.left.negative"}.items():
        with pytest.raises(ConfigError, match=rf"^small: {at}: '(adult|mature)' steers away from adults"):
            grammar_from(changed(path, changes[path]), "small")


def test_a_negative_prompt_may_say_what_must_not_be_seen() -> None:
    assert grammar_from(changed("negative", "child, teen"), "small").negative == "child, teen"
