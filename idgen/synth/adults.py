"""Adults only: words that mean a minor are refused wherever pictures are asked for."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import product

from idgen.errors import ConfigError

ADULT_YEARS = 18

WORDS = """
    adolescence adolescent adolescents babies baby babyface babyfaced babyhood babyish bairn bairns boy
    boyhood boyish boys child childhood childish childlike children girl girlhood girlie girlies girlish
    girls girly godchild godchildren grandchild grandchildren infancy infant infants jailbait juvenile
    juveniles kid kiddie kiddies kiddo kiddos kiddy kids kindergarten kindergartener kindergarteners
    kindergartner kindergartners lad laddie laddies lads lass lasses lassie lassies loli lolicon lolis lolita
    lolitas minor minors newborn newborns nymphet nymphets preadolescent preadolescents prepubertal
    prepubescent preschool preschooler preschoolers preteen preteens pubertal puberty pubescent schoolboy
    schoolboys schoolchild schoolchildren schooler schoolers schoolgirl schoolgirls schoolkid schoolkids
    shota shotacon shotas stepchild stepchildren teen teenage teenaged teenager teenagers teens teenybopper
    toddler toddlers tot tots tween tweenager tweens underage underaged youngling younglings youngster
    youngsters youth youths
"""
PHRASES = (
    r"under aged?",
    r"barely legal",
    r"school aged?",
    r"(?:elementary|primary|grade|middle|high|secondary) school",
    r"junior high",
    r"sweet (?:16|sixteen)",
    r"(?:\d{1,2}(?:st|nd|rd|th)|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh"
    r"|twelfth) grade(?:rs?)?",
    r"(?:under|below|sub|u|<) ?(?:the age of )?(?:18|eighteen)s?",
)
NUMBERS = """
    one two three four five six seven eight nine
    ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
    twenty thirty forty fourty fifty sixty seventy eighty ninety
"""
_UNITS, _TEENS, _TENS = (line.split() for line in NUMBERS.strip().splitlines())
_YEARS = {"zero": 0} | {word: years for years, word in enumerate([*_UNITS, *_TEENS], start=1)}

# A number, longest first: "forty one years old" must not be read as "one year old".
_NUMBER = (
    rf"(?:\d+(?:[.,]\d+)?|(?:(?:a|{'|'.join(_UNITS)}) hundred(?: and)?(?: |$))?"
    rf"(?:(?:{'|'.join(_TENS)})(?: (?:{'|'.join(_UNITS)}))?|{'|'.join(_TEENS)}|{'|'.join(_UNITS)}|zero))"
)
_OLD = r"(?:(?:years?|yrs?|y)[ .]*(?:/ ?)?(?:olds?|o|of age|young)|yo|years)(?![a-z])"
_TO = r" ?(?:to|or|and|/) ?"
_AGES = (
    re.compile(rf"(?<![a-z\d.,])(?:({_NUMBER}){_TO}|(\d+) (?=\d))?({_NUMBER}) ?{_OLD}"),
    re.compile(
        r"(?<![a-z])age[sd]?(?: (?:of|is|about|around|only|just|under|below))* ?[:=~]? ?"
        rf"({_NUMBER})(?![a-z\d])"
        rf"(?:(?:{_TO}| )({_NUMBER})(?![a-z\d]))?"
    ),
)
# A number alone after a person ("a woman, 17", "a woman of seventeen") or between commas ("Eva, 16, smiling")
# is an age too, if nothing follows that makes it a length, a count or a part: not "a man, 16 mm film".
_TEEN = rf"(?:1[0-7]|{'|'.join(_TEENS[:-2])})"
_MINOR_YEARS = rf"(?:{_TEEN}|[3-9]|{'|'.join(_UNITS[2:])})"
_PERSON = (
    r"(?<![a-z])(?:(?:wo)?man|lady|gentleman|person|somebody|someone|female|male|student|pupil|model|beauty|guy"
    r"|daughter|son|sister|brother|she|he)"
)
_STOP = r"(?= ?(?:$|[,.;!?)\]](?!\d)))"
_ON = r"(?= (?:at|in|on|smiling|standing|sitting|wearing|who|with)(?![a-z]))"
_BARE_AGES = (
    re.compile(
        rf"{_PERSON}(?: ?[,;(\[] ?| (?:who )?is (?:just |only )?| of )({_MINOR_YEARS})(?![a-z\d]){_STOP}"
    ),
    re.compile(rf"{_PERSON}(?: (?:who )?is (?:just |only )?| of )({_MINOR_YEARS}){_ON}"),
    re.compile(rf"[,;] ?({_TEEN})(?![a-z\d]){_STOP}"),
    re.compile(rf"(?:^|(?:image|photo|picture|portrait) of )({_TEEN}) ?[,;](?!\d)"),
)
_YOUNGER_THAN_YEARS = re.compile(
    rf"(?<![a-z\d.,]){_NUMBER} ?(?:months?|mos?|weeks?|wks?|days?) ?(?:olds?|of age)(?![a-z])"
)
_AGO = re.compile(r" (?:ago|later|before|after|apart)(?![a-z])")

# Digits are no part of a word: "1girl" is a tag that image models know.
_LETTERS = re.compile(r"[a-z]+")
_WORDS = frozenset(WORDS.split())
_LONGEST = max(map(len, _WORDS))
_PHRASES = re.compile(rf"(?<![a-z])(?:{'|'.join(PHRASES)})(?![a-z])")
# Without one of these there is neither a phrase nor an age in a text: most prompts are done with one look.
HINTS = """
    age aged ages below grade grader graders high legal monthold monthsold o old olds school sub sweet u under
    y year yearold years yearsold yo yold young yr yrold yrs yrsold
"""
_HINTS = frozenset(HINTS.split())
_BARE = frozenset([*_UNITS[2:], *_TEENS[:-2]])
_OF_ADULTS = re.compile(
    r"(?<![a-z])(?:adults?|adulthood|mature|grown ?ups?|(?:full )?grown (?:wo)?m[ae]n|of (?:legal )?age"
    r"|legal age)(?![a-z])|(?:over|above) (?:18|eighteen)(?!\d)|18 ?\+"
)

# Letters of other alphabets that look like ours, and digits and signs that stand for letters.
_ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u0501\u04cf\u0261\u03b1\u03bf\u03b9\u03bd",
    "aeopcyxisjdlgaoiv",
)
_LEET = {one: str.maketrans("0134578@$!", f"o{one}eastbasi") for one in "il"}
_MIXED = re.compile(r"(?=[a-z\d@$!]*[a-z])(?=[a-z\d@$!]*[\d@$!])[a-z\d@$!]{3,}")
_ODD = re.compile(r"[\d@$!]")
_APART = r"[ .*/|,]{1,2}"
_SPACED = re.compile(rf"(?<![a-z])(?:[a-z]{_APART}){{2,}}[a-z](?![a-z])")
_NO_LETTER = re.compile(r"[^a-z]")
_STRETCHED = re.compile(r"([a-z])\1{2,}")


def minor_in(text: str) -> str | None:
    """The words of a text that mean somebody younger than 18 years; None where there are none.

    Read are English words and ages in digits and words, whole words only ("boyfriend" and "young woman" say
    nothing), whatever the case, accents, hyphens, letters that look alike, digits for letters, s p a c e s.
    """
    plain = _plain(text)
    if found := _word_in(plain) or _age_in(plain) or _bare_age_in(plain) or _spelled_in(plain):
        return found
    return next((found for other in _disguised(plain) if (found := _word_in(other))), None)


def adult_in(negative: str) -> str | None:
    """The words of a negative prompt that steer a picture away from adults; None where there are none."""
    plain = _plain(negative)
    spelled = _SPACED.sub(lambda found: _NO_LETTER.sub("", found[0]), plain)
    found = next(
        (found for text in (plain, spelled, *_disguised(plain)) if (found := _OF_ADULTS.search(text))), None
    )
    return found and found[0]


def refuse_no_adults(negative: str, at: str) -> None:
    """Let a negative prompt pass that does not steer away from adults; it may name minors.

    Args:
        negative: what is not wanted.
        at: where it stands, for the message.

    Raises:
        ConfigError: if words of it mean adults.
    """
    if found := adult_in(negative):
        raise ConfigError(
            f"{at}: {found!r} steers away from adults, and idgen plans pictures of adults only; "
            f"leave it out of the negative prompt: {negative!r}"
        )


def refuse_minors(text: str, at: str) -> None:
    """Let a text pass that asks for adults.

    Args:
        text: such as a prompt.
        at: where it stands, for the message.

    Raises:
        ConfigError: if words of it mean a minor.
    """
    if found := minor_in(text):
        raise ConfigError(f"{at}: {found!r} means a minor, and idgen plans pictures of adults only: {text!r}")


def refuse_minors_in(texts: Sequence[str], at: Callable[[int], str]) -> None:
    """`refuse_minors` for many texts made of few words, at a fraction of the time.

    Args:
        texts: such as the prompts of a plan.
        at: number of a text -> where it stands.

    Raises:
        ConfigError: for the first text whose words mean a minor.
    """
    tokens: set[str] = set()
    for text in texts:
        tokens.update(text.split())
    doubtful = {token for token in tokens if _is_doubtful(token)}
    if not doubtful:
        return
    for number, text in enumerate(texts):
        if not doubtful.isdisjoint(text.split()):
            refuse_minors(text, at(number))


def _is_doubtful(token: str) -> bool:
    """Whether a text with this token needs a closer look; one without such tokens means no minor."""
    plain = _plain(token)
    words = _LETTERS.findall(plain)
    is_spelled = any(len(word) == 1 and word not in "ai" for word in words)
    is_written_oddly = bool(_ODD.search(plain) or _STRETCHED.search(plain)) or "<" in plain
    return is_spelled or is_written_oddly or not (_WORDS | _HINTS | _BARE).isdisjoint(words)


def _plain(text: str) -> str:
    """Lower case, without accents and invisible characters; underscores and hyphens are spaces."""
    if not text.isascii():
        letters = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in letters if unicodedata.category(c) not in ("Mn", "Cf"))
    plain = text.casefold().translate(_ALIKE)
    return " ".join(re.sub(r"[-_\u2010-\u2015\u2212]", " ", plain).split())


def _word_in(plain: str) -> str | None:
    words = _LETTERS.findall(plain)
    if not _WORDS.isdisjoint(words):
        return next(word for word in words if word in _WORDS)
    if "<" not in plain and _HINTS.isdisjoint(words):
        return None
    found = _PHRASES.search(plain)
    return found and found[0]


def _age_in(plain: str) -> str | None:
    if _HINTS.isdisjoint(_LETTERS.findall(plain)):
        return None
    if found := _YOUNGER_THAN_YEARS.search(plain):
        return found[0]
    for pattern in _AGES:
        for found in pattern.finditer(plain):
            is_minor = any(_years(number) < ADULT_YEARS for number in found.groups() if number)
            if is_minor and (not found[0].endswith("years") or _says_age_of_somebody(plain, found)):
                return found[0]
    return None


def _bare_age_in(plain: str) -> str | None:
    if not _ODD.search(plain) and _BARE.isdisjoint(_LETTERS.findall(plain)):
        return None
    return next((found[1] for pattern in _BARE_AGES if (found := pattern.search(plain))), None)


def _spelled_in(plain: str) -> str | None:
    """A word in s p a c e s, also after an article: "a t e e n"."""
    for run in _SPACED.finditer(plain):
        letters = _NO_LETTER.sub("", run[0])
        for start, length in product(range(len(letters)), range(3, _LONGEST + 1)):
            if letters[start : start + length] in _WORDS:
                return letters[start : start + length]
    return None


def _years(number: str) -> float:
    if number[0].isdigit():
        return float(number.replace(",", "."))
    return _YEARS.get(number, ADULT_YEARS)  # twenty and more, hundreds


def _says_age_of_somebody(plain: str, found: re.Match[str]) -> bool:
    """Whether bare years ("of 12 years") are an age: not "taken 12 years ago"."""
    return plain[: found.start()].rstrip().endswith(" of") and not _AGO.match(plain, found.end())


def _disguised(plain: str) -> Iterator[str]:
    """Other readings of a text: "k1d" as "kid", "giiirl" as "girl"."""
    if _ODD.search(plain) and _MIXED.search(plain):
        yield from (
            _MIXED.sub(lambda found, table=table: found[0].translate(table), plain)
            for table in _LEET.values()
        )
    if _STRETCHED.search(plain):
        yield from (_STRETCHED.sub(letters, plain) for letters in (r"\1", r"\1\1"))
