"""The card of an adapter file: a JSON beside the weights, and a copy of it in their metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from idgen.adapters.install import IDAdapter
from idgen.adapters.wplus import STYLE_DIM, WPlusAdapter
from idgen.config import from_mapping
from idgen.errors import ConfigError, EncoderMismatchError, WeightsError

FORMAT = "1"  # of card and metadata

_NAMES = {"face_vector": "face vectors", "raw_face_vector": "face vectors", "wplus": "W+ codes"}


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """What a file of weights cannot say of itself.

    Attributes:
        base_model: the model it was trained on, by name.
        encoder: whose features it reads, as ``name@sha256[:12]``; a bare name fits any file of that name.
        num_tokens: tokens a reference.
        licence: of the weights.
        training_run: what made it: configuration and data, in words or as a hash.
        feature: "face_vector" for vectors of unit length, "raw_face_vector" for those of their own length, as
            the published FaceID files with "unnorm" in their names read them; "wplus" for W+ codes.
        style_dim: width of a style vector of such codes, which the weights do not tell; 512 where None.
    """

    base_model: str
    encoder: str
    num_tokens: int
    licence: str
    training_run: str = ""
    feature: Literal["face_vector", "raw_face_vector", "wplus"] = "face_vector"
    style_dim: int | None = None

    def reads(self, encoder: str) -> bool:
        """Whether it is for features of ``encoder``; where one of them has no hash, the names decide."""
        name, _, digest = encoder.partition("@")
        own_name, _, own_digest = self.encoder.partition("@")
        return name == own_name and (digest == own_digest or not digest or not own_digest)

    def as_dict(self) -> dict[str, str | int]:
        """What it says, by name, without what it leaves open."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def check_kind(self, adapter: IDAdapter | WPlusAdapter, source: str) -> None:
        """Compare what it says of the features with the weights that read them.

        Args:
            adapter: the weights.
            source: whose weights, for the message.

        Raises:
            WeightsError: if they read features of another kind or width.
        """
        is_wplus = isinstance(adapter, WPlusAdapter)
        if is_wplus != (self.feature == "wplus"):
            raise WeightsError(
                f"the card of {source} says that it reads {_NAMES[self.feature]}, its weights read "
                f"{_NAMES[adapter.feature_kind]}"
            )
        if is_wplus and adapter.style_dim != (self.style_dim or STYLE_DIM):
            raise WeightsError(
                f"the card of {source} says style_dim {self.style_dim or STYLE_DIM}, its weights read "
                f"{adapter.style_dim}"
            )


def read_style_dim(path: Path, metadata: Mapping[str, str], sha256: str) -> int:
    """How wide the style vectors are that a W+ adapter reads, as its card says; 512 where nobody does.

    Args:
        path: the file of weights.
        metadata: of the safetensors file; empty for a pickle.
        sha256: of the file.

    Raises:
        ConfigError: if it is no number, or the JSON cannot be used.
        WeightsError: if the JSON belongs to other weights.
    """
    beside = path.with_suffix(".json")
    said = (_read_json(beside, sha256) if beside.exists() else metadata).get("style_dim", STYLE_DIM)
    if not str(said).isdecimal() or int(said) < 1:
        raise ConfigError(f"style_dim of {path.name} must be a whole number >= 1, got {said!r}")
    return int(said)


def read_card(
    path: Path,
    metadata: Mapping[str, str],
    adapter: IDAdapter | WPlusAdapter,
    sha256: str,
    encoder: str | None,
) -> AdapterCard:
    """The card of the weights: from the JSON beside them, else their metadata, else what the user says.

    Args:
        path: the file of weights.
        metadata: of the safetensors file; empty for a pickle.
        adapter: what was read from the file.
        sha256: of the file.
        encoder: whose features it reads, if the user says so.

    Raises:
        WeightsError: if nobody says which encoder it reads, or the card belongs to other weights.
        EncoderMismatchError: if ``encoder`` contradicts the card.
        ConfigError: if the JSON cannot be used.
    """
    values: dict[str, Any]
    kind = adapter.feature_kind
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
            "feature": "raw_face_vector" if kind == "face_vector" and "unnorm" in path.stem else kind,
        }
    else:
        raise WeightsError(_which_encoder(path, adapter))
    values.setdefault("feature", kind)
    if isinstance(adapter, WPlusAdapter) and adapter.style_dim != STYLE_DIM:
        values["style_dim"] = adapter.style_dim  # as a number: `read_style_dim` found it here
    if (version := values.pop("idgen_adapter", FORMAT)) != FORMAT:
        raise WeightsError(f"{path} is of format {version!r}, this idgen reads {FORMAT!r}; update idgen")
    card = from_mapping(AdapterCard, values, at=str(beside))
    if encoder is not None and not card.reads(encoder):
        raise EncoderMismatchError(f"{path.name} reads {_NAMES[kind]} of {card.encoder}, not of {encoder}")
    if card.num_tokens != adapter.num_tokens:
        raise WeightsError(
            f"{beside.name} says {card.num_tokens} tokens, the weights make {adapter.num_tokens}"
        )
    card.check_kind(adapter, path.name)
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


def _which_encoder(path: Path, adapter: IDAdapter | WPlusAdapter) -> str:
    asked = (
        f"{path.name} does not say whose {_NAMES[adapter.feature_kind]} it reads, and there is no "
        f"{path.stem}.json beside it. Say encoder=...; "
    )
    if isinstance(adapter, WPlusAdapter):
        if (adapter.num_layers, adapter.style_dim) == (18, STYLE_DIM):
            said = "encoder=load_wplus('e4e_ffhq_encode.pt').id"
            return f"{asked}the published W+ adapters read the codes of e4e: {said}"
        return f"{asked}it must be one with W+ codes of {adapter.num_layers} x {adapter.style_dim}"
    if adapter.id_dim == 512:
        usual = "FaceID files usually read the normed embedding of insightface's buffalo_l"
        return f"{asked}{usual}: encoder='buffalo_l'"
    return f"{asked}it must be one with face vectors of width {adapter.id_dim}"
