"""What `idgen train recognizer` is tested with: people who are colours, tiny settings, logs."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "train" / "recognizer.py"
CONFIGS = ROOT / "train" / "configs"
TINY = {
    "batch_size": "8", "dim": "8", "widths": "[32,64]", "blocks": "[1,1]", "warmup_steps": "2",
    "log_every": "1", "evaluate_every": "100", "steps": "2",
}  # fmt: skip


def people(count: int, each: int, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Each "person" is a colour of its own under coarse noise, 112 pixels square."""
    rng = np.random.default_rng(seed)
    images, names = [], []
    for person in range(count):
        colour = rng.integers(40, 216, 3)
        for _ in range(each):
            coarse = np.clip(colour + rng.normal(0, 12, (14, 14, 3)), 0, 255).astype(np.uint8)
            images.append(coarse.repeat(8, axis=0).repeat(8, axis=1))
            names.append(f"p{person:03d}")
    return images, names


def arguments(data: Path, out: Path, *settings: str) -> list[str]:
    """The words of a run: tiny, unless ``settings`` say otherwise."""
    given = {**TINY, **dict(setting.split("=", 1) for setting in settings)}
    words = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    return ["--data", str(data), *words, "--out", str(out)]


def load_program() -> SimpleNamespace:
    """The program's names."""
    return SimpleNamespace(**runpy.run_path(str(PROGRAM)))


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def record(folder: Path, name: str) -> dict[str, Any]:
    """What a run wrote in ``<name>.json``."""
    return json.loads((folder / f"{name}.json").read_text())
