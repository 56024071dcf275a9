"""The card of an adapter file: a JSON beside the weights, and a copy of it in their metadata."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from idgen.adapters.install import IDAdapter
from idgen.config import from_mapping
from idgen.errors import ConfigError, EncoderMismatchError, WeightsError

FORMAT = "1"  # of card and metadata


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """What a file of weights cannot say of itself.

    Attributes:
        base_model: the model it was trained on, by name.
        encoder: whose face vectors it reads, as ``name@sha256[:12]``; a bare name fits any file of that name.
        num_tokens: tokens a reference.
        licence: of the weights.
        training_run: what made it: configuration and data, in words or as a hash.
        feature: "face_vector" for vectors of unit length, "raw_face_vector" for those of their own length, as
            the published FaceID files with "unnorm" in their names read them.
    """

    base_model: str
    encoder: str
    num_tokens: int
    licence: str
    training_run: str = ""
    feature: Literal["face_vector", "raw_face_vector"] = "face_vector"

    def reads(self, encoder: str) -> bool:
        """Whether it is for face vectors of ``encoder``; where one of them has no hash, the names decide."""
        name, _, digest = encoder.partition("@")
        own_name, _, own_digest = self.encoder.partition("@")
        return name == own_name and (digest == own_digest or not digest or not own_digest)


def read_card(
    path: Path, metadata: Mapping[str, str], adapter: IDAdapter, sha256: str, encoder: str | None
) -> AdapterCard:
    """The card of the weights: from the JSON beside them, else their metadata, else what the user says.

    Args:
        path: the file of weights.
        metadata: of the safetensors file; empty for a pickle.
        adapter: what was read from the file.
        sha256: of the file.
        encoder: whose face vectors it reads, if the user says so.

    Raises:
        WeightsError: if nobody says which encoder it reads, or the card belongs to other weights.
        EncoderMismatchError: if ``encoder`` contradicts the card.
        ConfigError: if the JSON cannot be used.
    """
    values: dict[str, Any]
    beside = path.with_suffix(".json")
    if beside.exists():
        values = _read_json(beside, sha256)
    elif "encoder" in metadata:
        names = ("idgen_adapter", "base_model", "encoder", "licence", "training_run", "feature")
        values = {name: metadata[name] for name in names if name in metadata}
        values["num_tokens"] = adapter.num_tokens
    elif encoder is not None:
        values = {
            "base_model": "",
            "encoder": encoder,
            "num_tokens": adapter.num_tokens,
            "licence": "unknown",
            "feature": "raw_face_vector" if "unnorm" in path.stem else "face_vector",
        }
    else:
        raise WeightsError(_which_encoder(path, adapter))
    if (version := values.pop("idgen_adapter", FORMAT)) != FORMAT:
        raise WeightsError(f"{path} is of format {version!r}, this idgen reads {FORMAT!r}; update idgen")
    card = from_mapping(AdapterCard, values, at=str(beside))
    if encoder is not None and not card.reads(encoder):
        raise EncoderMismatchError(f"{path.name} reads face vectors of {card.encoder}, not of {encoder}")
    if card.num_tokens != adapter.num_tokens:
        raise WeightsError(
            f"{beside.name} says {card.num_tokens} tokens, the weights make {adapter.num_tokens}"
        )
    return card


def _read_json(beside: Path, sha256: str) -> dict[str, Any]:
    try:
        values = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{beside} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{beside} must hold settings by name, got {type(values).__name__}")
    if values.pop("sha256", sha256) != sha256:
        raise WeightsError(
            f"{beside.name} describes another file of weights (its sha256 differs); restore the pair"
        )
    return values


def _which_encoder(path: Path, adapter: IDAdapter) -> str:
    asked = (
        f"{path.name} does not say whose face vectors it reads, and there is no {path.stem}.json beside it"
    )
    if adapter.id_dim == 512:
        usual = "FaceID files usually read the normed embedding of insightface's buffalo_l"
        return f"{asked}. Say encoder=...; {usual}: encoder='buffalo_l'"
    return f"{asked}. Say encoder=...; it must be one with face vectors of width {adapter.id_dim}"
