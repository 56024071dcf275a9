"""Adults only: what means a minor is refused in every spelling, what means an adult passes."""

import pytest

from idgen.errors import ConfigError
from idgen.synth.adults import WORDS, adult_in, minor_in, refuse_minors, refuse_minors_in, refuse_no_adults

MINORS = """
    a child|Baby|TEEN|two teens|a Boy|girls|1girl|kid|toddler|schoolgirl|school-girl|a young boy's face
    children's|pre-teen|teenage|adolescent|a minor|high school student|8th grader|sweet sixteen|youngster
    17 year old|17-year-old woman|a 17yo|17 y/o|17 y.o.|5 yr old|12yearold|a 12 yr. old|17.5 years old
    seventeen year old|Seventeen-Year-Old|nine-year-old|four years old|10 months old|a woman of 12 years
    aged 12|age: 9|age=7|age of 15|aged twelve|ages 5 to 19|aged 9-12|aged 30 to 12|Age 17|17 years young
    16-18 year old woman|16 to 18 years old|15 years of age|under 18|under the age of 18|<18|u18|under-age
    ch1ld|g1rl|t33n|b@by|k.i.d|t e e n|g-i-r-l|girrrl|teeeen|young_girl|\uff43\uff48\uff49\uff4c\uff44
    a t e e n|a t-e-e-n|a k i d|a k.i.d|a y o u n g g i r l|a k/i/d|girlie|childish|boyish|girlish|babyface
    a woman, 17|a student, 16|sixteen, smiling|a woman of seventeen|a man, nine, in a park|a woman (15)
    a woman of 17 in a garden|she is 16|Eva, 16, smiling|a woman,17
    g\u0456rl|b\u00e9b\u00e9 baby|chi\u200bld|te\u00aden
"""
ADULTS = """
    boyfriend|girlfriend|young woman|a young man|cowboy|kidney|babysitter|youthful|nineteen|ladder
    18 year old|an eighteen-year-old|twenty-one year old|forty five years old|25-30 year old woman|aged 40
    aged 21-29|thirty to forty years old|middle-aged man|a hundred and five years old|117 years old|age 18
    a man, 35 years old|a woman of 42 years|photo taken 5 years ago|head turned 15 degrees|1 woman, 2 lamps
    under 3 lights|page 12|image 3|stage 5|4k photo, 8k|50 mm, f 1.8|package of 5|a b c|a person, 15 cm
    looking 10 years older|minority|a woman, 35|a man, 18|a woman of eighteen|16 mm film|a man, 16 mm film
    f/1.4|a man, f/1.4|a woman, 16:9|a person, 3/4 view|18 years|a woman, one eye closed|a man, 1.4
    a portrait of five smiling women|photo 12|a man of 17 stone|s m i l e|a. b. smith|a woman, 85 mm, 2.8
"""
SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen""".split()  # noqa: SIM905 - shorter than twenty strings
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def cases(text: str) -> list[str]:
    return [case for line in text.strip().splitlines() for case in line.strip().split("|")]


@pytest.mark.parametrize("text", cases(MINORS))
def test_what_means_a_minor_is_refused(text: str) -> None:
    for said in (text, text.upper(), f"a photo of {text}, smiling"):
        assert minor_in(said)
        with pytest.raises(ConfigError, match=r"^prompt 1: '.*' means a minor, and idgen plans"):
            refuse_minors_in(["a woman", said], lambda number: f"prompt {number}")


def test_every_word_of_the_list_is_refused_and_only_as_a_whole() -> None:
    for word in WORDS.split():
        assert minor_in(f"a {word.title()}.") == word
        assert minor_in(f"a x{word}, a {word}x") is None


def test_the_line_says_what_and_where() -> None:
    line = "row 7: 'child' means a minor, and idgen plans pictures of adults only: 'A Child, smiling'"
    with pytest.raises(ConfigError) as error:
        refuse_minors("A Child, smiling", "row 7")
    assert str(error.value) == line


@pytest.mark.parametrize("text", cases(ADULTS))
def test_what_means_an_adult_passes(text: str) -> None:
    assert minor_in(text) is None
    assert minor_in(f"a photo of a person, {text}, smiling") is None
    refuse_minors_in([text, f"a portrait, {text}"], str)


def test_ages_are_read_in_digits_and_words() -> None:
    for age in range(1, 100):
        word = SMALL[age] if age < 20 else TENS[age // 10 - 2] + (f"-{SMALL[age % 10]}" if age % 10 else "")
        said = ("{} year old", "a {}-year-old woman", "{} years of age", "aged {}", "age {}", "{} y.o.")
        for text in (form.format(number) for form in said for number in (age, word)):
            assert bool(minor_in(text)) == (age < 18), text


@pytest.mark.parametrize(
    "text",
    ["adult", "blurry, Adults", "mature", "grown-up", "a grown woman", "a d u l t", "over 18", "4dult"],
)
def test_a_negative_prompt_does_not_steer_away_from_adults(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^row 7: '.*' steers away from adults, .*; leave it out of the"):
        refuse_no_adults(f"blurry, {text}", "row 7")


@pytest.mark.parametrize(
    "text", ["", "child, teen", "blurry, premature, immature", "wrinkles", "grown grass"]
)
def test_other_negative_prompts_pass(text: str) -> None:
    assert adult_in(text) is None
    refuse_no_adults(text, "row 7")
