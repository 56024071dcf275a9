"""What a dataset was made from: models with hashes, licences and training data, for dataset.json."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idgen import mini
from idgen.encoders.base import RESEARCH_ONLY, FaceEncoder
from idgen.faces.detect import Detector
from idgen.opening import Kit
from idgen.runs import model_sha256
from idgen.synth import training_data

UNKNOWN = "unknown: ask whoever published this model"
_LICENCE = re.compile(r"^licen[sc]e:\s*(\S.*?)\s*$", re.MULTILINE)


def made_from(kit: Kit, folder: Path, name: str) -> dict[str, Any]:
    """Models, licences and training data, under the names that the datasheet knows; no path.

    Args:
        kit: what saw faces, and the adapter.
        folder: of the base model.
        name: of the base model.
    """
    card = kit.adapter.card
    parts: list[Mapping[str, Any]] = [
        {
            "name": name,
            "role": "base model",
            "sha256": model_sha256(folder),
            "licence": model_licence(folder),
            "data": training_data.BASE if folder == mini.BASE else training_data.UNKNOWN,
        },
        {
            "name": kit.adapter.path.stem,
            "role": "adapter",
            "sha256": kit.adapter.sha256,
            "licence": card.licence,
            "data": training_data.data_of_adapter(kit.adapter.sha256),
        },
        _encoder(kit.encoder, "encoder that conditions"),
        {
            "name": kit.detector.name,
            "role": "detector",
            "licence": kit.detector.licence,
            "data": training_data.DETECTOR if _is_mini(kit.detector) else training_data.UNKNOWN,
        },
    ]
    if kit.judge is not None:
        parts.append(_encoder(kit.judge, "encoder that only measures"))
    return {
        "models": [{key: value for key, value in part.items() if key != "data"} for part in parts],
        "encoder_ids": [kit.encoder.id],
        "judge": kit.judge.id if kit.judge else None,
        "detector": kit.detector.name,
        "adapter": {"base_model": card.base_model, "training_run": card.training_run},
        "data": {f"{part['name']} ({part['role']})": part["data"] for part in parts},
        "licences": {f"{part['name']} ({part['role']})": part["licence"] for part in parts},
    }


def _encoder(encoder: FaceEncoder, role: str) -> Mapping[str, Any]:
    return {
        "name": encoder.id,
        "role": role,
        "licence": encoder.licence,
        "data": training_data.data_of_encoder(encoder.id),
    }


def _is_mini(detector: Detector) -> bool:
    """Whether it is the embedded one: a file of that name has another licence."""
    return detector.name == "mini" and detector.licence.startswith("idgen mini:")


def model_licence(folder: Path) -> str:
    """What the model's card says of its licence."""
    if folder == mini.BASE:
        return RESEARCH_ONLY
    readme = folder / "README.md"
    found = (
        _LICENCE.search(readme.read_text(encoding="utf-8", errors="replace")) if readme.is_file() else None
    )
    return found[1] if found else UNKNOWN


def model_name(model: str, folder: Path) -> str:
    """What pictures call their model: no folder of this machine."""
    return "mini" if folder == mini.BASE else model if not Path(model).is_dir() else folder.name


def without_folders(spec: str) -> str:
    """A source of people as a record may show it: files without their folders, which may name somebody."""
    return re.sub(r"[^:,*]*/([^/:,*]+)", r"\1", spec)
