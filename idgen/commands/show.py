"""``idgen inspect``: what a picture, an identity or an adapter says of itself."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from idgen.config import Parser
from idgen.errors import ConfigError, WeightsError
from idgen.identity import Identity
from idgen.provenance import read_provenance

SAFETENSORS_HEADER = 8  # bytes that hold the length of the JSON which follows


def main(argv: Sequence[str]) -> int:
    """Print the facts of each file named in ``argv``."""
    parser = Parser(prog="idgen inspect", description="Show what files that idgen made say of themselves.")
    parser.add_argument("file", nargs="+", type=Path, help="a picture, an identity or an adapter")
    parser.add_argument("--json", action="store_true", help="print JSON: one object a file")
    options = parser.parse_args(argv)
    for path in options.file:
        facts = describe(path)
        print(json.dumps(facts, ensure_ascii=False) if options.json else _as_text(facts))
    return 0


def describe(path: Path) -> dict[str, Any]:
    """What a file says of itself, as plain data.

    Raises:
        IdgenError: if the file is missing, damaged, or says nothing.
    """
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    if not _is_safetensors(path):
        return {
            "file": str(path),
            "what": "a picture made by a trained model",
            **asdict(read_provenance(path)),
        }
    try:
        with safe_open(path, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged or not a safetensors file: {error}") from None
    if "idgen_identity" in metadata:
        return _describe_identity(path)
    if any(key.startswith("ip_adapter.") for key in shapes):
        return _describe_adapter(path, shapes, metadata)
    if any(key.startswith("wplus_adapter.") for key in shapes):
        return _describe_wplus(path, shapes, metadata)
    raise WeightsError(
        f"{path} is neither an identity nor an IP-Adapter file, nor a W+ adapter; it holds {len(shapes)} "
        "tensors"
    )


def _is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(SAFETENSORS_HEADER + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return path.suffix == ".safetensors" or head[SAFETENSORS_HEADER:] == b"{"


def _describe_identity(path: Path) -> dict[str, Any]:
    features = [
        {"kind": f.kind, "encoder": f.encoder, "shape": list(f.value.shape), "norm": f.norm}
        for f in Identity.load(path).features
    ]
    return {"file": str(path), "what": "an identity", "features": features}


def _describe_adapter(
    path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]
) -> dict[str, Any]:
    facts: dict[str, Any] = {"file": str(path), "what": "an IP-Adapter file", "sha256": _sha256(path)}
    facts["cross_attention_layers"] = sum(key.endswith(".to_k_ip.weight") for key in shapes)
    facts["has_lora"] = any("_lora." in key for key in shapes)
    width, rows = shapes.get("image_proj.norm.weight"), shapes.get("image_proj.proj.2.weight")
    first = shapes.get("image_proj.proj.0.weight")
    if width and rows and first:
        facts |= {"face_vector": first[1], "text_width": width[0], "num_tokens": rows[0] // width[0]}
    return facts | _card(path, metadata, facts["sha256"])


def _describe_wplus(
    path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]
) -> dict[str, Any]:
    facts: dict[str, Any] = {"file": str(path), "what": "a W+ adapter", "sha256": _sha256(path)}
    facts["cross_attention_layers"] = sum(key.endswith(".to_k_wplus.weight") for key in shapes)
    groups = [shape for key, shape in sorted(shapes.items()) if key.startswith("w_proj.proj_")]
    if groups:
        facts |= {"code_size": sum(shape[-1] for shape in groups), "text_width": groups[0][0]}
        facts["num_tokens"] = len(groups)
    return facts | _card(path, metadata, facts["sha256"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(path: Path, metadata: dict[str, str], sha256: str) -> dict[str, Any]:
    """The JSON beside the file, or else its metadata; neither is needed to load the weights in diffusers."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        said = {key: value for key, value in metadata.items() if key != "format"}
        return said or {"card": f"none: no {beside.name} beside it, and nothing in its metadata"}
    try:
        card = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{beside} cannot be read as JSON: {error}") from None
    if not isinstance(card, dict):
        raise ConfigError(f"{beside} must hold settings by name, got {type(card).__name__}")
    if card.get("sha256", sha256) != sha256:
        raise WeightsError(f"{beside.name} describes another file (its sha256 differs); restore the pair")
    return card


def _as_text(facts: dict[str, Any]) -> str:
    head = f"{facts['file']}: {facts['what']}"
    return "\n".join([head, *_lines({k: v for k, v in facts.items() if k not in ("file", "what")})])


def _lines(facts: dict[str, Any], indent: str = "  ") -> list[str]:
    lines = []
    for name, value in facts.items():
        label = f"{indent}{name.replace('_', ' ')}:"
        if isinstance(value, dict):
            lines += [label, *(f"{indent}  {key}: {_shown(item)}" for key, item in value.items())]
        elif isinstance(value, list):
            lines += [label, *(f"{indent}  {_row(item)}" for item in value)]
        else:
            lines.append(f"{label} {_shown(value)}")
    return lines


def _row(item: Any) -> str:  # noqa: ANN401 - plain data
    if isinstance(item, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in item.items() if v is not None)
    return _shown(item)


def _shown(value: Any) -> str:  # noqa: ANN401 - plain data
    """A value on one line: what is in a file must not be able to move the cursor or colour the terminal."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
