"""What stands beside an encoder's file: who taught it, and from where on two faces are one person."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from idgen.config import from_mapping
from idgen.encoders.base import FaceEncoder
from idgen.errors import ConfigError
from idgen.storage import write_json

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class EncoderCard:
    """A JSON file ``<name>.json`` beside ``<name>.onnx``.

    Attributes:
        encoder: ``name@sha256[:12]`` of the file it belongs to.
        taught_by: ids of the encoders it was distilled from: with these it shares its faults.
        thresholds: false match rate, as "1e-3" -> cosine at which all impostor pairs of people who were set
            aside for it pass at that rate.
        thresholds_from: those people and pairs, in words.
    """

    encoder: str
    taught_by: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    thresholds_from: str = ""


def card_path(onnx: Path) -> Path:
    """Where the card of an ONNX file lies."""
    return onnx.with_suffix(".json")


def read_encoder_card(encoder: FaceEncoder) -> EncoderCard | None:
    """The card beside an encoder's file; None where there is none.

    Raises:
        ConfigError: if it cannot be read, or belongs to other weights.
    """
    onnx = getattr(encoder, "path", None)
    if onnx is None or not card_path(onnx).exists():
        return None
    path = card_path(onnx)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("idgen_encoder")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None  # some other JSON: other tools leave such files beside their weights too
    if version != FORMAT:
        raise ConfigError(f"{path} is of format {version}, this idgen reads {FORMAT}; update idgen")
    card = from_mapping(EncoderCard, values, at=str(path))
    if digest(card.encoder) != encoder.sha256[:12]:
        raise ConfigError(f"{path} belongs to {card.encoder}, beside it lies {encoder.id}; remove one")
    return card


def write_encoder_card(onnx: Path, card: EncoderCard) -> Path:
    """Put the card beside its ONNX file, whole or not at all; returns its path.

    Raises:
        StorageError: if it cannot be written.
    """
    write_json(card_path(onnx), {"idgen_encoder": FORMAT, **asdict(card)})
    return card_path(onnx)


def digest(encoder_id: str) -> str:
    """The twelve digits of an id; the id itself where it has none."""
    return encoder_id.rpartition("@")[2][:12]


def related(judge: FaceEncoder, made_by: Iterable[str], known: Iterable[FaceEncoder]) -> bool:
    """Whether an encoder must not judge alone: it made the pictures, or shares a teacher with what did.

    Args:
        judge: who is to judge.
        made_by: ids of the encoders that conditioned or trained the pictures.
        known: encoders on this disk, whose cards tell who taught those of ``made_by``.
    """
    cards = {encoder.sha256[:12]: read_encoder_card(encoder) for encoder in (judge, *known)}

    def lineage(encoder_id: str) -> set[str]:
        card = cards.get(digest(encoder_id))
        return {digest(encoder_id), *(digest(teacher) for teacher in (card.taught_by if card else ()))}

    makers = set().union(*(lineage(maker) for maker in made_by))
    return bool(makers & lineage(judge.id))
