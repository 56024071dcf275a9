"""The tab Portrait without its layout: from what somebody filled in to pictures of the person."""

import secrets
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from idgen.errors import ConfigError
from idgen.page.edits import edited
from idgen.page.looking import Person, check_refusals, eyes_for, look_at_photos, person_in
from idgen.page.making import MAX_PICTURES, SEED_BOUND, Made, Order, Row, Workshop, check

NO_CONSENT = "please confirm first that you have the right to use these photos (the line above the button)"
EXAMPLES = {
    "smiling": "a photo of a smiling person",
    "serious": "a photo of a serious person, dark background",
    "glasses": "a photo of a person wearing glasses",
    "aside": "a photo of a person looking to the side",
}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is filled in besides the photos.

    Attributes:
        prompt: what the pictures show.
        negative: what they should not show.
        strength: of the identity.
        start: part of the denoising from which on it has a say.
        seed: of the first picture; below 0 any.
        count: of the pictures.
        steps: of the denoising.
        guidance: by the prompt.
        edits: direction -> how far.
    """

    prompt: str
    negative: str = ""
    strength: float = 1.0
    start: float = 0.0
    seed: int = 0
    count: int = 4
    steps: int
    guidance: float
    edits: Mapping[str, float] = field(default_factory=dict)


def read_person(photos: Sequence[str], who: str, shop: Workshop, *, consent: bool) -> Person:
    """Whom the photos show, if they may be used.

    Raises:
        ConfigError: without consent.
        RefusedPersonError: if it is somebody who refused.
        IdgenError: if a photo cannot be used.
    """
    if consent is not True:
        raise ConfigError(NO_CONSENT)
    sights = look_at_photos([Path(photo) for photo in photos or ()], shop.kit.detector, who=who)
    person = person_in(sights, shop.kit.encoders)
    check_refusals(person.identities, shop.kit)
    return person


def order_of(wish: Wish, person: Person, shop: Workshop) -> tuple[Order, tuple[str, ...]]:
    """The pictures that are asked for, of one person, from seeds that count on; and what edits leave of them.

    Raises:
        ConfigError: if something is out of range.
    """
    check("the number of pictures", wish.count, 1, MAX_PICTURES)
    check("the seed", wish.seed, -1, SEED_BOUND - MAX_PICTURES)
    first = secrets.randbelow(2**31) if wish.seed < 0 else int(wish.seed)
    drawn = edited(person, wish.edits, shop.kit, shop.folder)
    eyes = eyes_for(person.identities, shop.kit.encoders)
    rows = tuple(
        Row(prompt=wish.prompt, identity=drawn.identity, eyes=eyes, seed=first + i, id_scale=wish.strength)
        for i in range(int(wish.count))
    )
    order = Order(
        rows=rows, negative=wish.negative, id_start=wish.start, steps=int(wish.steps), guidance=wish.guidance,
        edit=drawn.edit, edit_adapter=drawn.adapter,
    )  # fmt: skip
    return order, drawn.effects


def packed(made: Sequence[Made]) -> Path:
    """The pictures in a zip beside them, byte for byte."""
    path = made[0].path.parent / "idgen-pictures.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for picture in made:
            archive.write(picture.path, picture.path.name)
    return path
