"""The tabs for several people and for people in between, without a server."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paging import STEPS, Photos, made_of, made_portraits
from PIL import Image

from idgen import mini
from idgen.blocklist import Blocklist
from idgen.encoders.thresholds import threshold_at
from idgen.errors import ConfigError, EncoderMismatchError, FaceNotFoundError, RefusedPersonError
from idgen.page.blend import (
    Side,
    blended,
    find_end,
    new_person,
    order_between,
    who_they_are,
)
from idgen.page.callbacks import Callbacks
from idgen.page.galleries import real_people
from idgen.page.keeping import Keeping
from idgen.page.looking import eyes_for
from idgen.page.making import Order, Row, Workshop
from idgen.page.markup import caption, verdict_html
from idgen.page.people import Guest, order_for
from idgen.page.portrait import Wish, read_person
from idgen.provenance import read_provenance


def guests(photos: Photos, *prompts: str) -> list[Guest]:
    return [
        Guest(photos=(str(photo),), prompt=prompt)
        for photo, prompt in zip((photos.person, photos.two_people), prompts, strict=True)
    ]


def order_of(shop: Workshop, given: Sequence[Guest], **changes: Any) -> Order:
    settings = {"who": "the right one", "strength": 1.0, "seed": 3, "count": 1, "steps": STEPS,
                "guidance": 3.5, "consent": True}  # fmt: skip
    return order_for(given, shop, **{**settings, **changes})


# --- several people ---------------------------------------------------------------------------------------


def test_each_of_several_people_is_the_same_as_alone(
    photos: Photos, shop: Workshop, keeping: Keeping
) -> None:
    order = order_of(shop, guests(photos, "a photo of a man", "a photo of a woman"))
    made = made_of(shop.make(order, keeping.new_folder()))
    assert [read_provenance(m.path).prompt for m in made] == ["a photo of a man", "a photo of a woman"]
    assert [m.row.who for m in made] == ["person 1", "person 2"]
    assert caption(made[1], shop.kit.encoders).startswith("person 2 · ")
    alone = made_of(
        made_portraits(
            Wish(prompt="a photo of a woman", seed=3, count=1, steps=STEPS, guidance=3.5),
            [str(photos.two_people)], "the right one", shop, keeping, consent=True,
        )
    )  # fmt: skip
    together, single, other = (
        np.asarray(Image.open(m.path)).astype(int) for m in (made[1], alone[0], made[0])
    )
    assert np.abs(together - single).max() <= 1
    assert np.abs(together - other).max() > 20


def test_everybody_has_the_same_number_of_pictures(photos: Photos, shop: Workshop) -> None:
    rows = order_of(shop, guests(photos, "a man", "a woman"), count=3, strength=0.7).rows
    assert [(r.who, r.prompt, r.seed, r.id_scale) for r in rows] == [
        (f"person {person}", words, seed, 0.7)
        for person, words in ((1, "a man"), (2, "a woman"))
        for seed in (3, 4, 5)
    ]
    assert rows[0].identity is rows[2].identity


def test_mistakes_with_several_people_say_whose_they_are(photos: Photos, shop: Workshop) -> None:
    both = guests(photos, "a man", "a woman")
    with pytest.raises(ConfigError, match="add photos of two people at least"):
        order_of(shop, [both[0], Guest(photos=(), prompt="x")])
    with pytest.raises(ConfigError, match=r"number of pictures of each must be between 1 and 4, got 5"):
        order_of(shop, both, count=5)
    with pytest.raises(FaceNotFoundError, match=r"person 2: No face was found in the photo \(nobody.png\)"):
        order_of(shop, [both[0], Guest(photos=(str(photos.nobody),), prompt="x")])
    with pytest.raises(ConfigError, match="please confirm first"):
        order_of(shop, both, consent=False)


def test_rows_of_several_people_have_their_own_prompt(photos: Photos, shop: Workshop, tmp_path: Path) -> None:
    person = read_person([str(photos.person)], "the only one", shop, consent=True)
    eyes = eyes_for(person.identities, shop.kit.encoders)
    rows = tuple(
        Row(prompt=words, identity=person.identity, eyes=eyes, seed=seed, id_scale=scale)
        for words, seed, scale in (("a man", 1, 1.0), ("a woman", 2, 0.0))
    )
    made = made_of(shop.make(Order(rows=rows, steps=1, guidance=2.0), tmp_path))
    assert [read_provenance(m.path).prompt for m in made] == ["a man", "a woman"]
    assert [read_provenance(m.path).id_scale for m in made] == [1.0, 0.0]


# --- in between -------------------------------------------------------------------------------------------


def test_the_way_from_one_to_another_is_even(photos: Photos, shop: Workshop) -> None:
    encoder = shop.kit.encoder
    first, second = (new_person(number, encoder, ()) for number in (1, 2))
    vectors = [blended(first, second, way, encoder).face_vector.value for way in np.linspace(0, 1, 5)]
    np.testing.assert_allclose(vectors[0], first.face_vector.value, atol=1e-6)
    np.testing.assert_allclose(vectors[-1], second.face_vector.value, atol=1e-6)
    angles = [np.arccos(np.clip(a @ b, -1, 1)) for a, b in pairwise(vectors)]
    np.testing.assert_allclose(angles, angles[0], rtol=1e-3)
    for way in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="the way must be between 0 and 1"):
            blended(first, second, way, encoder)


def test_a_new_person_is_the_same_for_the_same_number_and_near_nobody(
    photos: Photos, shop: Workshop, tmp_path: Path
) -> None:
    encoder = shop.kit.encoder
    drawn = new_person(7, encoder, ()).face_vector
    np.testing.assert_array_equal(new_person(7, encoder, ()).face_vector.value, drawn.value)
    assert abs(float(new_person(8, encoder, ()).face_vector.value @ drawn.value)) < 0.99
    limit = threshold_at(encoder, "1e-4")
    away = new_person(7, encoder, [drawn.value[None]]).face_vector.value  # the gallery holds that very face
    assert float(away @ drawn.value) < limit
    assert drawn.encoder == encoder.id
    assert mini.PEOPLE.is_file()


def test_galleries_are_read_from_the_disk(photos: Photos, shop: Workshop, tmp_path: Path) -> None:
    for person in ("ann", "bob"):
        (tmp_path / person).mkdir()
        Image.open(photos.person).save(tmp_path / person / "0.png")
    kit = shop.kit
    (gallery,) = real_people([tmp_path], kit.detector, kit.encoders)
    person = read_person([str(photos.person)], "the only one", shop, consent=True)
    assert list(gallery) == [encoder.id for encoder in kit.encoders]
    for name, vectors in gallery.items():
        seen = person.identities[name].face_vector.value
        np.testing.assert_allclose(vectors, np.stack([seen, seen]), atol=1e-5)
    empty = tmp_path / "empty" / "ann"
    empty.mkdir(parents=True)
    Image.open(photos.nobody).save(empty / "0.png")
    with pytest.raises(FaceNotFoundError, match="no face found in the 1 pictures of the gallery"):
        real_people([tmp_path / "empty"], kit.detector, kit.encoders)


def test_who_lies_between_is_drawn_and_measured_to_both(
    photos: Photos, shop: Workshop, keeping: Keeping
) -> None:
    real = find_end(Side(photos=(str(photos.person),)), "the only one", shop, (), consent=True)
    new = find_end(Side(number=4), "the only one", shop, (), consent=False)
    assert who_they_are(real, new) == "The second is new person number 4."
    assert who_they_are(real, real) == ""
    order = order_between((real, new), shop, way=0.3, prompt="a photo", seed=0, count=2, steps=STEPS,
                          guidance=3.5)  # fmt: skip
    made = made_of(shop.make(order, keeping.new_folder()))
    for one in made:
        assert list(one.likeness.similarity) == [shop.kit.encoder.id, "the first", "the second"]
        assert list(read_provenance(one.path).similarity) == [shop.kit.encoder.id]
        shown = caption(one, shop.kit.encoders)
        assert "to the first" in shown or shown == "no face found"
    html = verdict_html(made, shop.kit.encoders, whom="who lies between")
    assert "of 2 for who lies between" in html
    assert "judge" not in html  # it has seen nobody who lies between


def test_somebody_who_refused_is_no_end_and_lies_nowhere_between(
    photos: Photos, shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDGEN_BLOCKLIST", str(tmp_path / "list.safetensors"))
    listed = Blocklist.load(may_be_missing=True)
    listed.save()
    ends = [find_end(Side(number=number), "the only one", shop, (), consent=False) for number in (1, 2)]
    listed.add(ends[0].identity, "Ann Example")
    listed.save()
    settings = {"prompt": "a photo", "seed": 0, "count": 1, "steps": 1, "guidance": 2.0}
    with pytest.raises(RefusedPersonError, match="resembles somebody who refused; move the slider"):
        order_between((ends[0], ends[1]), shop, way=0.1, **settings)
    assert order_between((ends[0], ends[1]), shop, way=0.95, **settings).rows
    again = find_end(Side(number=1), "the only one", shop, (), consent=False)
    limit = threshold_at(shop.kit.encoder, "1e-3")
    assert float(again.identity.face_vector.value @ ends[0].identity.face_vector.value) < limit


def test_new_people_are_of_minis_encoder_alone(shop: Workshop) -> None:
    assert shop.kit.judge is not None
    with pytest.raises(EncoderMismatchError, match="new people are drawn for mini's encoder alone"):
        new_person(0, shop.kit.judge, ())


def test_the_callbacks_of_both_tabs_show_what_was_made(
    photos: Photos, shop: Workshop, keeping: Keeping
) -> None:
    callbacks, person = Callbacks(shop, keeping), [str(photos.person)]
    *_, last = callbacks.people(person, "a man", person, "a woman", None, "", 1.0, 0, 1, True, STEPS, 3.5)
    assert "for their person" in last[0]
    assert len(last[1]) == 2
    *_, last = callbacks.blend(None, 5, None, 6, 0.5, "a photo", 0, 1, False, STEPS, 3.5)
    assert "The first is new person number 5 and the second is new person number 6." in last[0]
    assert last[3][0]["similarity"].keys() == {shop.kit.encoder.id, "the first", "the second"}
