"""The tab Several people without its layout: two or three at once, each with photos and a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from idgen.errors import ConfigError, IdgenError
from idgen.page.looking import eyes_for
from idgen.page.making import MAX_PICTURES, SEED_BOUND, Order, Row, Workshop, check
from idgen.page.markup import sentence
from idgen.page.portrait import read_person

MOST_PEOPLE = 3


@dataclass(frozen=True, kw_only=True)
class Guest:
    """One of the people: photos, and what their pictures show."""

    photos: tuple[str, ...]
    prompt: str


def order_for(
    guests: Sequence[Guest],
    shop: Workshop,
    *,
    who: str,
    strength: float,
    seed: int,
    count: int,
    steps: int,
    guidance: float,
    consent: bool,
) -> Order:
    """The pictures of everybody who is there, each conditioned on their own person alone.

    Args:
        guests: those without photos are left out.
        shop: who makes them.
        who: of several faces in a photo, as for `read_person`.
        strength: of the identity.
        seed: of each person's first picture, so that people can be compared.
        count: pictures of each.
        steps: of the denoising.
        guidance: by the prompt.
        consent: to the use of all photos.

    Raises:
        ConfigError: without two people, or with a value out of range.
        IdgenError: what is wrong with somebody's photos; the person's number is said.
    """
    present = [(number, guest) for number, guest in enumerate(guests, 1) if guest.photos]
    if len(present) < 2:
        raise ConfigError("add photos of two people at least; one alone has a tab of their own")
    check("the number of pictures of each", count, 1, MAX_PICTURES // len(present))
    check("the seed", seed, 0, SEED_BOUND - MAX_PICTURES)
    rows: list[Row] = []
    for number, guest in present:
        person = _named(number, guest, shop, who, consent=consent)
        rows += [replace(person, seed=int(seed) + i, id_scale=strength) for i in range(int(count))]
    return Order(rows=tuple(rows), steps=int(steps), guidance=guidance)


def _named(number: int, guest: Guest, shop: Workshop, who: str, *, consent: bool) -> Row:
    try:
        person = read_person(guest.photos, who, shop, consent=consent)
    except IdgenError as error:
        if consent is not True:
            raise
        raise type(error)(f"person {number}: {sentence(str(error))}") from None
    eyes = eyes_for(person.identities, shop.kit.encoders)
    return Row(prompt=guest.prompt, identity=person.identity, eyes=eyes, seed=0, who=f"person {number}")
