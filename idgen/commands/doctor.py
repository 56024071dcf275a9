"""``idgen doctor``: what this machine can run, and what is missing. It reads, and fetches nothing."""

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from idgen import __version__, mini
from idgen.config import Parser

NEEDED = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "onnx", "onnxruntime")
OPTIONAL = {  # package -> what it is for and the extra that brings it
    "insightface": ("insightface's packs", "insightface"),
    "pillow-heif": ("HEIC photos", "heic"),
    "pyarrow": ("training", "train"),
}
MINI_LICENCE = "research only (its own licence, apart from the code's)"
PACK_LICENCE = "insightface: non-commercial research only"
UNKNOWN_LICENCE = "not stated: ask where the file came from"
CROP_PX = 112  # what ArcFace-like recognisers read
SCRFD_OUTPUTS = (6, 9, 10, 15)  # 3 or 5 strides, with and without landmarks


@dataclass
class Report:
    """Plain data, printed as text or JSON."""

    idgen: str = __version__
    python: str = platform.python_version()
    device: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str | None] = field(default_factory=dict)
    detectors: list[dict[str, str]] = field(default_factory=list)
    encoders: list[dict[str, str]] = field(default_factory=list)
    models: list[dict[str, str]] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)


def main(argv: Sequence[str]) -> int:
    """Print the report."""
    parser = Parser(prog="idgen doctor", description="Say what this machine can run, and what is missing.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    report = examine()
    print(json.dumps(asdict(report), indent=2, ensure_ascii=False) if options.json else as_text(report))
    return 0


def examine() -> Report:
    """Look at packages, device, weights and the model cache; a part that fails is reported, never raised."""
    report = Report()
    probes: dict[str, Callable[[Report], None]] = {
        "packages": _packages,
        "device": _device,
        "mini": _mini,
        "ONNX files": _onnx_files,
        "model cache": _model_cache,
    }
    for name, probe in probes.items():
        try:
            probe(report)
        except Exception as error:  # a broken installation is what this command is for
            report.unreadable.append({"what": name, "why": f"{type(error).__name__}: {error}"})
    return report


def _packages(report: Report) -> None:
    for name in (*NEEDED, *OPTIONAL):
        try:
            report.packages[name] = version(name)
        except PackageNotFoundError:
            report.packages[name] = None
            what, extra = OPTIONAL.get(name, ("everything", ""))
            how = f"pip install 'idgen[{extra}]'" if extra else f"pip install {name}"
            report.missing.append({"what": f"{name} (for {what})", "how": how})


def _device(report: Report) -> None:
    report.device = {"cpu_cores": _usable_cores()}
    import torch

    report.device |= {"name": "cpu", "torch": torch.__version__}
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        report.device |= {
            "name": "cuda",
            "gpu": found.name,
            "memory_gib": round(found.total_memory / 2**30, 1),
        }
    elif torch.backends.mps.is_available():
        report.device["name"] = "mps"
    elif Path("/proc/driver/nvidia/version").exists():
        how = "reinstall torch for your driver: https://pytorch.org/get-started/locally"
        report.missing.append({"what": "CUDA in torch (there is an NVIDIA driver)", "how": how})


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _mini(report: Report) -> None:
    parts = (
        ("detectors", "mini", mini.FACES / "det_mini.onnx"),
        ("encoders", "mini", mini.FACES / "rec_mini.onnx"),
        ("encoders", "judge", mini.JUDGE),
        ("models", "mini", mini.BASE / "model_index.json"),
        ("adapter", "mini", mini.ADAPTER),
    )
    for kind, name, path in parts:
        if path.is_file():
            row = {"name": name, "path": str(path), "licence": MINI_LICENCE}
            if kind != "adapter":
                getattr(report, kind).append(row)
        else:
            how = "install idgen again: its wheel carries mini"
            report.missing.append({"what": f"mini's {path.name}", "how": how})


def _onnx_files(report: Report) -> None:
    packs = Path("~/.insightface/models").expanduser()
    in_packs = sorted([*packs.glob("*/*.onnx"), *packs.glob("*/*/*.onnx")])  # antelopev2 holds a folder
    folder = os.environ.get("IDGEN_WEIGHTS")
    for path in in_packs:
        _sort_in(report, path, PACK_LICENCE, pack=path.relative_to(packs).parts[0])
    for path in sorted(Path(folder).glob("*.onnx")) if folder else ():
        _sort_in(report, path, UNKNOWN_LICENCE)
    if not in_packs:
        how = "`idgen embed PHOTO --out FILE --encoder buffalo_l --detector buffalo_l --download` fetches one"
        report.missing.append({"what": f"insightface packs such as buffalo_l ({PACK_LICENCE})", "how": how})


def _sort_in(report: Report, path: Path, licence: str, pack: str | None = None) -> None:
    """Add a file to detectors or encoders, under the name that `--detector` or `--encoder` takes."""
    try:
        kind = onnx_kind(path)
    except Exception as error:  # protobuf's own exceptions, cut files, no permission
        report.unreadable.append({"what": str(path), "why": f"{type(error).__name__}: {error}"})
        return
    if kind in ("yunet", "scrfd"):
        report.detectors.append({"name": pack or f"{kind}:{path}", "path": str(path), "licence": licence})
    elif kind == "encoder":
        report.encoders.append({"name": pack or str(path), "path": str(path), "licence": licence})


def onnx_kind(path: Path) -> str:
    """``yunet``, ``scrfd`` (detectors), ``encoder`` or ``other``, by the inputs and outputs of a file."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [_dims(value) for value in graph.input if value.name not in weights]
    outputs = [_dims(value) for value in graph.output]
    if {"cls_8", "obj_8", "bbox_8", "kps_8"} <= {value.name for value in graph.output}:
        return "yunet"
    if len(outputs) in SCRFD_OUTPUTS:
        return "scrfd"
    reads_crop = len(inputs) == 1 and inputs[0][-2:] == [CROP_PX, CROP_PX]
    return "encoder" if reads_crop and len(outputs) == 1 and len(outputs[0]) == 2 else "other"


def _dims(value: Any) -> list[int]:  # noqa: ANN401 - a protobuf message
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def _model_cache(report: Report) -> None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = sorted(scan_cache_dir().repos, key=lambda r: r.repo_id)
    except CacheNotFound:
        repositories = []
    for repository in repositories:
        for revision in repository.revisions:
            index = revision.snapshot_path / "model_index.json"
            if index.is_file():
                kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name", "unknown")
                path = f"{revision.snapshot_path} ({kind}, {repository.size_on_disk / 2**30:.1f} GiB)"
                licence = _card_licence(revision.snapshot_path / "README.md")
                report.models.append({"name": repository.repo_id, "path": path, "licence": licence})
    if not any("StableDiffusion" in row["path"] for row in report.models):
        how = "`hf download stable-diffusion-v1-5/stable-diffusion-v1-5` (licence: CreativeML Open RAIL-M)"
        report.missing.append(
            {"what": "a Stable Diffusion model in the local cache (mini needs none)", "how": how}
        )


def _card_licence(readme: Path) -> str:
    """The ``license:`` of a model card's head; the Hub's own spelling."""
    if readme.is_file():
        for line in readme.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            if line.startswith("license:"):
                return line.partition(":")[2].strip() or UNKNOWN_LICENCE
    return UNKNOWN_LICENCE


def _row(option: str, row: dict[str, str]) -> list[str]:
    where = [] if row["path"] in row["name"] else [f"      {row['path']}"]
    return [f"  {option} {row['name']}", *where, f"      licence: {row['licence']}"]


def as_text(report: Report) -> str:
    """The report for people."""
    device = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in report.device.items())
    packages = ", ".join(f"{name} {found}" for name, found in report.packages.items() if found)
    lines = [f"idgen {report.idgen}, Python {report.python}", f"device: {device}", f"packages: {packages}"]
    for title, option in (("detectors", "--detector"), ("encoders", "--encoder"), ("models", "--model")):
        rows = getattr(report, title)
        lines += (
            [f"{title}:", *(line for row in rows for line in _row(option, row))]
            if rows
            else [f"{title}: none"]
        )
    if report.unreadable:
        lines += ["cannot be read:", *(f"  {row['what']}: {row['why']}" for row in report.unreadable)]
    if report.missing:
        lines += ["missing:", *(f"  {row['what']}\n      {row['how']}" for row in report.missing)]
    return "\n".join(lines)
