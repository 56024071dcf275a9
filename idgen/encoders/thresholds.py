"""From which cosine on an encoder takes two faces for one, found by the encoder's id alone."""

from typing import TYPE_CHECKING

from idgen.config import nearest
from idgen.errors import ConfigError, ModelNotFoundError

if TYPE_CHECKING:
    from idgen.encoders.base import FaceEncoder


def threshold_at(encoder: "FaceEncoder | str", fmr: str) -> float:
    """The cosine at which a share of the pairs of two people pass for one, from the encoder's card.

    Args:
        encoder: the encoder, or its id: ``mini``, ``judge`` and packs of insightface are found by their name.
        fmr: false match rate as it stands in cards, such as "1e-4".

    Raises:
        ConfigError: if there is no such encoder on this disk, or its card says nothing of that rate.
    """
    from idgen.encoders.card import read_encoder_card  # imports torch

    known = _by_id(encoder) if isinstance(encoder, str) else encoder
    card = read_encoder_card(known)
    if card is None or fmr not in card.thresholds:
        near = nearest(fmr, list(card.thresholds)) if card else ""
        raise ConfigError(
            f"{known.id} has no threshold at FMR {fmr} in its card{near}. `idgen evaluate thresholds PHOTOS "
            "--encoder SPEC --write-card` measures one, or give the cosine"
        )
    return card.thresholds[fmr]


def _by_id(encoder_id: str) -> "FaceEncoder":
    from idgen.encoders.arcface import load_encoder  # imports torch and onnx

    try:
        found = load_encoder(encoder_id.partition("@")[0])
    except ModelNotFoundError:
        found = None
    if found is None or found.id != encoder_id:
        there = f"under that name lies {found.id}" if found else "there is nothing of that name"
        raise ConfigError(
            f"the threshold of {encoder_id} is not known, for it is not on this disk ({there}); "
            "give the cosine, or the encoder itself"
        )
    return found
