"""The tab Blend without its layout: on the way from one person to another, real ones or new ones.

Shapes: M photos to keep away from, D width of a face vector.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from idgen.encoders.base import FaceEncoder
from idgen.errors import EncoderMismatchError, RefusedPersonError
from idgen.identity import Identity
from idgen.metrics.consistency import Eye
from idgen.page.looking import Person, check_refusals, eyes_for
from idgen.page.making import MAX_PICTURES, SEED_BOUND, Order, Row, Workshop, check
from idgen.page.markup import sentence
from idgen.page.portrait import read_person
from idgen.synth.identities import separated_people
from idgen.synth.sources import Source, load_source, slerp

SOURCE = "pca"  # mini's distribution of people; it holds no vector of anybody


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two: photos, or without any a new person, drawn by a number (below 0: any)."""

    photos: tuple[str, ...] = ()
    number: int = -1


@dataclass(frozen=True, kw_only=True)
class End:
    """One of the two, found or drawn.

    Attributes:
        identity: by the encoder that conditions.
        person: as the photos show them; None for a new person.
        number: that a new person was drawn by; None for photos.
    """

    identity: Identity
    person: Person | None = None
    number: int | None = None


def new_people(encoder: FaceEncoder) -> Source:
    """Where people who do not exist are drawn from.

    Raises:
        EncoderMismatchError: if there is no distribution of people for this encoder.
    """
    try:
        return load_source(SOURCE, encoder=encoder.id, dim=encoder.dim)
    except EncoderMismatchError:
        raise EncoderMismatchError(
            f"new people are drawn for mini's encoder alone, and {encoder.id} conditions here; add photos"
        ) from None


def new_person(number: int, encoder: FaceEncoder, galleries: Sequence[np.ndarray]) -> Identity:
    """Somebody who does not exist: the same for the same number, and near nobody in the galleries.

    Raises:
        EncoderMismatchError: if there is no distribution of people for this encoder.
        IdgenError: as `separated_people`.
    """
    (vector,) = separated_people(
        new_people(encoder),
        1,
        max_cosine=1.0,
        seed=number,
        gallery=list(galleries),
        encoder=encoder,
    )
    return Identity.from_vector(vector, encoder.id)


def find_end(side: Side, who: str, shop: Workshop, galleries: Sequence[np.ndarray], *, consent: bool) -> End:
    """The person of the photos, or a new one.

    Raises:
        IdgenError: as `read_person` and `new_person`.
    """
    if side.photos:
        person = read_person(side.photos, who, shop, consent=consent)
        return End(identity=person.identity, person=person)
    check("the number of a new person", side.number, -1, SEED_BOUND)
    number = secrets.randbelow(2**31) if side.number < 0 else int(side.number)
    return End(identity=new_person(number, shop.kit.encoder, galleries), number=number)


def blended(first: Identity, second: Identity, way: float, encoder: FaceEncoder) -> Identity:
    """Between two people, ``way`` of it from the first to the second, along the shorter great circle.

    Raises:
        ConfigError: if the way is not between 0 and 1.
        IdentityError: if they are opposite.
    """
    check("the way", way, 0, 1)
    a, b = (person.feature("face_vector", encoder.id).value for person in (first, second))
    return Identity.from_vector(slerp(a[None], b[None], np.array([way]))[0], encoder.id)


def order_between(
    ends: tuple[End, End],
    shop: Workshop,
    *,
    way: float,
    prompt: str,
    seed: int,
    count: int,
    steps: int,
    guidance: float,
) -> Order:
    """Pictures of somebody between the two; likeness is measured to whom conditions, and to both ends.

    Raises:
        RefusedPersonError: if who lies between is somebody who refused.
        ConfigError: if a value is out of range.
    """
    encoder = shop.kit.encoder
    between = blended(ends[0].identity, ends[1].identity, way, encoder)
    try:
        check_refusals({encoder.id: between}, shop.kit)
    except RefusedPersonError:
        raise RefusedPersonError("who lies there resembles somebody who refused; move the slider") from None
    check("the number of pictures", count, 1, MAX_PICTURES)
    check("the seed", seed, 0, SEED_BOUND - MAX_PICTURES)
    eyes = eyes_for({encoder.id: between}, [encoder])
    for end, name in zip(ends, ("the first", "the second"), strict=True):
        eyes[name] = _eye_on(end, shop)
    return Order(
        rows=tuple(
            Row(prompt=prompt, identity=between, eyes=eyes, seed=int(seed) + i) for i in range(int(count))
        ),
        steps=int(steps),
        guidance=guidance,
    )


def _eye_on(end: End, shop: Workshop) -> Eye:
    """The second eye where the person has photos, else the one that conditions: it alone knows new people."""
    judge, encoder = shop.kit.judge, shop.kit.encoder
    if end.person is not None and judge is not None:
        return eyes_for(end.person.identities, [judge])[judge.id]
    return eyes_for({encoder.id: end.identity}, [encoder])[encoder.id]


def who_they_are(first: End, second: End) -> str:
    """By which numbers new people were drawn, so that they can be met again."""
    drawn = [f"the {name} is new person number {end.number}" for name, end in
             (("first", first), ("second", second)) if end.number is not None]  # fmt: skip
    return sentence(" and ".join(drawn)) if drawn else ""
