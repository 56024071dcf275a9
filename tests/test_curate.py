"""Which pictures are kept: each reason by a real picture, each rule switched off, each wrong setting said."""

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from generating import astronaut
from PIL import Image, ImageFilter, ImageOps
from training_runs import nobodies

from idgen.blocklist import Blocklist
from idgen.encoders.arcface import judge_encoder, mini_encoder
from idgen.encoders.base import FaceEncoder
from idgen.encoders.thresholds import threshold_at
from idgen.errors import ConfigError, EncoderMismatchError, IdentityError
from idgen.faces.detect import load_detector
from idgen.identity import Identity
from idgen.synth.counts import REASONS
from idgen.synth.curate import COLUMNS, CurationRules, Curator, check_grammar
from idgen.synth.grammar import Grammar, grammar_from, read_grammar
from idgen.synth.looking import Seen
from idgen.synth.plan import PicturePlan
from idgen.synth.probes import PROBES
from idgen.synth.separation import RealPeople
from idgen.synth.sources import slerp

# Opened once, when they are asked for.
encoder, judging, detector = cache(mini_encoder), cache(judge_encoder), cache(lambda: load_detector("mini"))
Attributes = dict[str, str]


def face(left: int = 130) -> Image.Image:
    return astronaut().crop((left, 20, left + 190, 210)).resize((96, 96), Image.Resampling.BOX)


@cache
def other_photo() -> Image.Image:
    """Somebody who does not exist: no copy of the face."""
    return nobodies((5,), 1)[0][0]


def blurred(radius: float) -> Image.Image:
    return face().filter(ImageFilter.GaussianBlur(radius))


def compressed() -> Image.Image:
    stream = io.BytesIO()
    face().save(stream, "JPEG", quality=40)
    return Image.open(stream).convert("RGB")


def two_faces() -> Image.Image:
    both = Image.new("RGB", (192, 96))
    both.paste(face(), (0, 0))
    both.paste(face(140), (96, 0))
    return both


def strangers(num: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((num, 128))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


GRAMMAR = grammar_from(
    {
        "format": 1,
        "picture": {
            "pose": {
                "ahead": {"words": "ahead", "check": {"probe": "yaw", "min": -40, "max": 40}},
                "left": {"words": "left", "check": {"probe": "yaw", "min": 60}},
            },
            "mood": {"glad": {"words": "glad", "check": {"probe": "smile", "min": 0.5}}, "any": ""},
            "look": {"plain": "", "soft": {"words": "", "finish": {"blur": 1}}},
        },
        "templates": ["a person {pose}, {mood}"],
    },
    "test",
)  # fmt: skip


def plan(**attributes: str) -> PicturePlan:
    shown: Attributes = {"pose": "ahead", "mood": "glad", "look": "plain", **attributes}
    return PicturePlan(
        identity="new_0", person=0, picture=0, seed=0, prompt="a person", negative_prompt="", attributes=shown
    )


def curator(people: np.ndarray | None = None, rules: CurationRules | None = None, **settings: Any) -> Curator:
    people = np.concatenate([own(encoder())[None], strangers(20)]) if people is None else people
    given = {"detector": detector(), "encoder": encoder(), "judge": judging(), "grammar": GRAMMAR}
    return Curator(rules or CurationRules(), people=people, **{**given, **settings})


@cache
def plain() -> Seen:
    """The astronaut as planned."""
    return curator(strangers(1)).look(face())


def own(eye: FaceEncoder) -> np.ndarray:
    """Her face vector."""
    return plain().vectors[eye.id]


def listed(eye: FaceEncoder) -> Blocklist:
    refused = Blocklist()
    refused.add(Identity.from_vector(own(eye), eye.id))
    return refused


def gallery_by(eye: FaceEncoder, rules: CurationRules | None = None) -> dict[str, Any]:
    photos = np.concatenate([strangers(3, 9), own(eye)[None]])
    found = (rules or CurationRules()).real_people(f"a gallery by {eye.id}", photos, eye)
    return {} if found is None else {eye.id: [found]}


def beside_another() -> np.ndarray:
    """The intended identity is like the astronaut; another one is more so."""
    away = strangers(1, 5)
    near, nearer = (slerp(own(encoder())[None], away, np.array([way])) for way in (0.4, 0.2))
    return np.concatenate([near, nearer])


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "no_face": lambda: {"picture": Image.new("RGB", (96, 96), "grey")},
    "several_faces": lambda: {"picture": two_faces()},
    "refused": lambda: {"blocklist": listed(encoder())},
    "leakage": lambda: {"real": gallery_by(encoder())},
    "unlike": lambda: {"people": strangers(20)},
    "other_identity": lambda: {"people": beside_another()},
    "quality": lambda: {"picture": blurred(2.5)},
    "attribute": lambda: {"plan": plan(pose="left")},
    "near_duplicate": lambda: {"kept": [compressed()]},
}
OFF: dict[str, Any] = {
    "several_faces": {"max_faces": None},
    "leakage": {"leak_similarity": None},
    "unlike": {"min_similarity": None, "other_margin": None},
    "other_identity": {"other_margin": None},
    "quality": {"min_sharpness": None, "min_similarity": None},
    "attribute": {"check_attributes": False},
    "near_duplicate": {"near_duplicate": None},
}


def verdict_of(case: dict[str, Any], rules: CurationRules | None = None) -> Any:
    rest = {name: value for name, value in case.items() if name not in ("picture", "plan", "kept")}
    judge = curator(rules=rules, **rest)
    kept = judge.look_at(case.get("kept", []))
    return judge.judge(case.get("plan", plan()), 0, judge.look(case.get("picture", face())), kept)


def test_what_keeps_every_rule_is_kept() -> None:
    verdict = verdict_of({"kept": [other_photo()], "real": {encoder().id: []}})
    assert (verdict.decision, verdict.reasons, verdict.is_kept) == ("kept", (), True)
    assert set(verdict.measures) == {*COLUMNS, *PROBES}
    assert verdict.measures["similarity"] == pytest.approx(1, abs=1e-6)
    assert verdict.measures["other_person"] in range(1, 21)
    assert verdict.measures["num_faces"] == 1
    assert verdict.measures["real_similarity"] is None


@pytest.mark.parametrize("reason", [reason for reason in REASONS if reason != "blocked"])
def test_each_reason_has_a_picture(reason: str) -> None:
    verdict = verdict_of(CASES[reason]())
    assert verdict.decision == reason
    assert not verdict.is_kept


@pytest.mark.parametrize("reason", sorted(OFF))
def test_a_rule_that_is_off_rejects_nothing(reason: str) -> None:
    case, rules = CASES[reason](), CurationRules(**OFF[reason])
    if reason == "leakage":  # the limit travels with the gallery
        case = {"real": gallery_by(encoder(), rules)}
    verdict = verdict_of(case, rules)
    assert reason not in verdict.reasons


def test_every_reason_that_holds_is_told_and_the_first_decides() -> None:
    case = {"plan": plan(pose="left"), "kept": [face()], "real": gallery_by(encoder())}
    verdict = verdict_of(case)
    assert verdict.reasons == ("leakage", "attribute", "near_duplicate")
    assert verdict.decision == "leakage"


def test_the_judge_finds_real_people_too() -> None:
    verdict = verdict_of({"real": gallery_by(judging())})
    assert verdict.decision == "leakage"
    assert verdict.measures["real_similarity"] == pytest.approx(1, abs=1e-6)


def test_pictures_by_mini_show_whom_they_were_made_of() -> None:
    numbers = (5, 8)
    people = np.concatenate([np.random.default_rng(n).standard_normal((1, 128)) for n in numbers])
    people = (people / np.linalg.norm(people, axis=1, keepdims=True)).astype(np.float32)
    judge = curator(people, CurationRules(min_similarity=0.1, min_sharpness=None))
    for person, (picture,) in enumerate(nobodies(numbers, 1)):
        seen = judge.look(picture)
        anybody = plan(pose="", mood="")
        verdict = judge.judge(anybody, person, seen, [])
        assert verdict.is_kept
        assert verdict.measures["other_person"] == 1 - person
        assert "other_identity" in judge.judge(anybody, 1 - person, seen, []).reasons
        assert judge.judge(anybody, person, judge.look(picture), [seen]).decision == "near_duplicate"


def test_without_a_face_there_is_nothing_but_its_number() -> None:
    verdict = verdict_of(CASES["no_face"]())
    assert verdict.reasons == ("no_face",)
    assert {name: value for name, value in verdict.measures.items() if value is not None} == {"num_faces": 0}
    assert set(verdict.measures) == {*COLUMNS, *PROBES}


def test_a_picture_that_is_planned_soft_may_be_soft() -> None:
    rules = CurationRules(min_similarity=None, other_margin=None)
    for look, reasons in (("plain", ("quality",)), ("", ("quality",)), ("soft", ())):
        verdict = verdict_of({"picture": blurred(2.5), "plan": plan(look=look, mood="any")}, rules)
        assert verdict.reasons == reasons


def test_small_faces_and_low_scores_are_poor() -> None:
    measured = plain().measured
    px, score = measured["face_px"], measured["face_score"]
    for rules in (CurationRules(min_face_px=px + 1), CurationRules(min_face_score=score + 0.001)):
        assert verdict_of({}, rules).reasons == ("quality",)
    both = CurationRules(min_face_px=px, min_face_score=score)
    assert verdict_of({}, both).is_kept


def test_attributes_are_checked_by_the_bounds_of_the_grammar() -> None:
    judge = curator()
    grey = judge.look(Image.new("RGB", (96, 96), "grey"))
    assert judge.unmet(plan(pose="left"), plain()) == ["pose"]
    assert judge.unmet(plan(pose=""), plain()) == []
    assert judge.unmet(plan(), grey) == ["pose", "mood"]  # what was not measured does not hold


def test_the_default_grammar_can_be_measured() -> None:
    check_grammar(read_grammar())


def test_copies_of_a_picture_are_near_duplicates_and_other_pictures_are_not() -> None:
    brighter = face().point([min(255, round(value * 1.1)) for value in range(256)] * 3)
    for kept in (compressed(), brighter, blurred(0.7), ImageOps.mirror(face()), face(133)):
        assert verdict_of({"kept": [kept]}).decision == "near_duplicate"
    assert verdict_of({"kept": [other_photo(), other_photo()]}).is_kept


def test_auto_is_what_the_card_of_the_encoder_says() -> None:
    rules = CurationRules()
    assert rules.resolved(encoder()).min_similarity == threshold_at(encoder(), "1e-2")
    assert CurationRules(min_similarity=0.3).resolved(encoder()).min_similarity == 0.3
    for eye in (encoder(), judging()):
        real = rules.real_people("gallery", np.concatenate([strangers(2), np.zeros((1, 128))]), eye)
        assert real is not None
        assert (real.max_cosine, real.vectors.shape) == (threshold_at(eye, "1e-4"), (2, 128))
    assert CurationRules(leak_similarity=None).real_people("gallery", strangers(2), encoder()) is None


def test_people_who_refused_and_cannot_be_compared_stop_everything() -> None:
    with pytest.raises(EncoderMismatchError, match="not checked against people who refused: 'person-1'"):
        curator(blocklist=listed(judging()))
    assert verdict_of({"blocklist": listed(judging()), "allow_unchecked": True}).is_kept


def named(axis: str) -> Grammar:
    picture = {axis: {"a": "a", "b": "b"}}
    return grammar_from({"format": 1, "picture": picture, "templates": [f"a person {{{axis}}}"]}, "test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_similarity": 1.5}, "min_similarity must be between -1 and 1, got 1.5"),
        ({"min_similarity": "automatic"}, "min_similarity must be between -1 and 1, got 'automatic'"),
        ({"other_margin": "auto"}, "other_margin must be between -2 and 2, got 'auto'"),
        ({"max_faces": 0}, "max_faces must be between 1 and inf, got 0"),
        ({"min_face_score": 2}, "min_face_score must be between 0 and 1, got 2"),
        ({"min_sharpness": float("nan")}, "min_sharpness must be between 0 and inf, got nan"),
    ],
)
def test_rules_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CurationRules(**settings)
    assert str(caught.value) == message


def test_what_cannot_be_judged_is_refused_before_the_first_picture() -> None:
    real = CurationRules().real_people("photos", strangers(2), encoder())
    assert real is not None
    with pytest.raises(ConfigError, match="the axis 'yaw' has the name of a column of measured numbers"):
        curator(grammar=named("yaw"))
    with pytest.raises(
        ConfigError, match="a gallery is of other@0123456789ab; pictures are looked at by mini@"
    ):
        curator(real={"other@0123456789ab": [real]})
    with pytest.raises(ConfigError, match="two galleries are called 'photos'"):
        curator(real={encoder().id: [real, real]})
    narrow = RealPeople(name="photos", vectors=np.eye(2, 64, dtype=np.float32), max_cosine=0.5)
    with pytest.raises(ConfigError, match=r"photos is 64-d, mini@.* gives 128-d"):
        curator(real={encoder().id: [narrow]})
    with pytest.raises(ConfigError, match=r"planned people are 64-d, mini@.* gives 128-d"):
        curator(narrow.vectors)
    with pytest.raises(IdentityError, match="planned people: row 1 has length 2"):
        curator(np.stack([strangers(1)[0], strangers(1)[0] * 2]))
