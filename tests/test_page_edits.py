"""Edits of people on the page: the code that the command reads, and no trace of it afterwards."""

from pathlib import Path

import numpy as np
import pytest
from paging import Photos, made_of, made_portraits, wish
from PIL import Image

from idgen import mini
from idgen.editing.directions import read_directions
from idgen.editing.editor import open_editor
from idgen.encoders.wplus import KIND
from idgen.errors import ConfigError
from idgen.page.edits import edited, edits_of
from idgen.page.keeping import Keeping
from idgen.page.making import Made, Workshop
from idgen.page.portrait import read_person
from idgen.provenance import read_provenance

# --- edits ------------------------------------------------------------------------------------------------


def test_an_edit_moves_the_code_that_the_command_reads(photos: Photos, shop: Workshop) -> None:
    person = read_person([str(photos.person)], "the only one", shop, consent=True)
    names = edits_of(shop.folder)
    assert names == tuple(read_directions(mini.DIRECTIONS))
    assert edits_of(Path("/somewhere/else")) == ()
    plain = edited(person, dict.fromkeys(names, 0), shop.kit, shop.folder)
    assert plain.identity is person.identity
    assert (plain.edit, plain.adapter, plain.effects) == (None, None, ())
    moved = edited(person, {names[0]: 2.0, names[1]: -1.5}, shop.kit, shop.folder)
    assert moved.edit == f"{names[0]}=+2,{names[1]}=-1.5"
    editor = open_editor(mini.BASE, edit=moved.edit)
    wanted = editor.edited(editor.read([photos.person], shop.kit.detector))
    np.testing.assert_allclose(moved.identity.feature(KIND).value, wanted.value, atol=1e-4)
    assert len(moved.effects) == 3  # each alone, then both
    assert "by mini, " in moved.effects[0]
    for amount in (5.5, float("nan"), "2", None):
        with pytest.raises(ConfigError, match=f"{names[0]} must be between -5 and 5"):
            edited(person, {names[0]: amount}, shop.kit, shop.folder)  # pyright: ignore[reportArgumentType]


def test_an_edit_is_in_the_picture_and_leaves_no_trace(
    photos: Photos, shop: Workshop, keeping: Keeping
) -> None:
    def made(edits: dict[str, float]) -> Made:
        asked = wish(edits=edits, steps=4)
        return made_of(
            made_portraits(asked, [str(photos.person)], "the only one", shop, keeping, consent=True)
        )[0]

    before, smiling, after = made({}), made({"smile": 4.0}), made({})
    shown = [np.asarray(Image.open(one.path)).astype(int) for one in (before, smiling, after)]
    np.testing.assert_array_equal(shown[0], shown[2])
    assert np.abs(shown[1] - shown[0]).mean() > 1
    assert [read_provenance(one.path).edit for one in (before, smiling, after)] == [None, "smile=+4", None]
    assert shop.pipe.wplus_adapter is None
