"""Parquet tables of portraits, as training and evaluation read them, of one photograph that is free."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import skimage.data
from PIL import Image


def portrait() -> np.ndarray:
    """(128, 128, 3) of Eileen Collins (NASA)."""
    face = Image.fromarray(skimage.data.astronaut()).crop((150, 30, 300, 180))
    return np.asarray(face.resize((128, 128)))


def write_table(
    path: Path,
    images: Sequence[np.ndarray],
    people: Sequence[str],
    known: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """A table of these portraits, numbered; labels that say nothing, but those that are known."""
    rows: list[dict[str, Any]] = []
    for number, (pixels, who) in enumerate(zip(images, people, strict=True)):
        file = path.with_name(f"{number}.png")
        Image.fromarray(pixels).save(file)
        labels = dict.fromkeys(("p_female", "p_happy", "yaw", "pitch", "roll"), 0.5)
        labels |= {name: values[number] for name, values in (known or {}).items()}
        image = {"bytes": file.read_bytes(), "path": file.name}
        rows.append({"image": image, "file": file.name, "identity": who, **labels})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path
