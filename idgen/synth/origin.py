"""What a dataset was made from: models, encoders, adapter, with hashes and licences, for dataset.json."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idgen import mini
from idgen.encoders.base import RESEARCH_ONLY
from idgen.opening import Kit
from idgen.runs import model_sha256

UNKNOWN = "unknown: ask whoever published this model"
_LICENCE = re.compile(r"^licen[sc]e:\s*(\S.*?)\s*$", re.MULTILINE)


def made_from(kit: Kit, folder: Path, name: str) -> dict[str, Any]:
    """Models and licences, under the names that the datasheet knows; no path.

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
        },
        {
            "name": kit.adapter.path.stem,
            "role": "adapter",
            "sha256": kit.adapter.sha256,
            "licence": card.licence,
        },
        {"name": kit.encoder.id, "role": "encoder that conditions", "licence": kit.encoder.licence},
        {"name": kit.detector.name, "role": "detector", "licence": kit.detector.licence},
    ]
    if kit.judge is not None:
        parts.append(
            {"name": kit.judge.id, "role": "encoder that only measures", "licence": kit.judge.licence}
        )
    return {
        "models": parts,
        "encoder_ids": [kit.encoder.id],
        "judge": kit.judge.id if kit.judge else None,
        "detector": kit.detector.name,
        "adapter": {"base_model": card.base_model, "training_run": card.training_run},
        "licences": {f"{part['name']} ({part['role']})": part["licence"] for part in parts},
    }


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
