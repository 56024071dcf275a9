"""Edits of a person: a smile, a turn of the head, by codes of W+ beside the face vector.

Shapes: L layers of the generator, C width of a code.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from idgen import mini
from idgen.adapters.checkpoint import AdapterFile
from idgen.editing.directions import read_directions
from idgen.editing.editor import open_editor
from idgen.encoders.wplus import KIND, WPlusEncoder
from idgen.errors import ConfigError
from idgen.identity import Feature, Identity
from idgen.opening import Kit
from idgen.page.looking import Person, Sight
from idgen.report.portraits import describe_edits

MOST = 5.0  # of an amount; beyond it little of the person is left


@dataclass(frozen=True, kw_only=True, eq=False)
class EditedPerson:
    """Somebody as they are to be drawn.

    Attributes:
        identity: what conditions.
        edit: as `idgen generate` writes it, "smile=+2"; None where nothing is edited.
        adapter: reads the code; None likewise.
        effects: how alike the edited and the unedited person are, a line for each edit.
    """

    identity: Identity
    edit: str | None = None
    adapter: AdapterFile | None = None
    effects: tuple[str, ...] = ()


def edits_of(model: Path) -> tuple[str, ...]:
    """What can be edited of people that a model draws, by name; nothing where it brings no codes."""
    return tuple(read_directions(mini.DIRECTIONS)) if model == mini.BASE else ()


def edited(person: Person, amounts: Mapping[str, float], kit: Kit, model: Path) -> EditedPerson:
    """The person, moved as far as was asked; amounts of 0 are no edits.

    Args:
        person: as the photos show them.
        amounts: direction -> how far, in [-`MOST`, `MOST`].
        kit: what sees faces.
        model: folder of the model.

    Raises:
        ConfigError: if an amount is out of range, or there is no such direction.
        WeightsError: if a file is damaged.
    """
    for name, amount in amounts.items():
        if not isinstance(amount, int | float) or not -MOST <= amount <= MOST:
            raise ConfigError(f"{name} must be between {-MOST:g} and {MOST:g}, got {amount!r}")
    text = ",".join(f"{name}={amount:+g}" for name, amount in amounts.items() if amount)
    if not text:
        return EditedPerson(identity=person.identity)
    if not edits_of(model):
        raise ConfigError(f"people can be edited with mini alone, not with {model.name}; set the edits to 0")
    editor = open_editor(model, edit=text)
    code = _code_of(person.sights, editor.encoder)
    effects = [
        re.sub(r"@[0-9a-f]{12}", "", line)  # people read names
        for line in describe_edits([asdict(e) for e in editor.effects(code, kit.detector, kit.encoders)])
    ]
    features = (*person.identity.features, editor.edited(code))
    return EditedPerson(
        identity=replace(person.identity, features=features),
        edit=text,
        adapter=editor.adapter,
        effects=tuple(effects),
    )


def _code_of(sights: Sequence[Sight], encoder: WPlusEncoder) -> Feature:
    """The mean code (L, C) of the photos that count."""
    codes = [
        encoder.encode(encoder.cut(sight.image, sight.chosen.landmarks)[None])[0].numpy()
        for sight in sights
        if sight.kept and sight.image is not None and sight.chosen is not None
    ]
    return Feature(encoder.id, KIND, np.mean(codes, axis=0))
