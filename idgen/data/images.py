"""Labelled face pictures from a Parquet file (what Hugging Face ``datasets`` calls an Image feature)."""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from idgen.errors import ConfigError, ImageError

LABELS = ("p_female", "p_happy", "yaw", "pitch", "roll")
TURNS = ("yaw", "roll")  # those that change their sign in a mirror
ARCFACE_MARGIN = 8  # px of context around the 112 x 112 ArcFace crop in a picture of 128


@dataclass(frozen=True, kw_only=True)
class FaceTable:
    """Aligned portraits with their people and weak labels, all in memory (49 kB a picture)."""

    images: np.ndarray  # (N, 128, 128, 3) uint8 RGB
    files: tuple[str, ...]
    identities: tuple[str, ...]
    labels: dict[str, np.ndarray]  # name -> (N,) float32, NaN where unknown

    def __len__(self) -> int:
        return len(self.files)

    def people(self) -> dict[str, list[int]]:
        """Identity -> its rows, in the order of the table."""
        rows: dict[str, list[int]] = {}
        for row, person in enumerate(self.identities):
            rows.setdefault(person, []).append(row)
        return rows

    def subset(self, rows: list[int]) -> "FaceTable":
        """The table of these rows, in this order."""
        return FaceTable(
            images=self.images[rows],
            files=tuple(self.files[r] for r in rows),
            identities=tuple(self.identities[r] for r in rows),
            labels={name: values[rows] for name, values in self.labels.items()},
        )

    def crops(self, rows: list[int] | np.ndarray) -> Tensor:
        """ArcFace crops of these rows: (B, 3, 112, 112) in [0, 1]."""
        inner = slice(ARCFACE_MARGIN, self.images.shape[1] - ARCFACE_MARGIN)
        return torch.from_numpy(self.images[rows][:, inner, inner].copy()).permute(0, 3, 1, 2).float() / 255

    def pictures(self, size_px: int) -> Tensor:
        """All pictures whole, area-averaged to a model's size: (N, 3, S, S) uint8."""
        chunks = torch.from_numpy(self.images).permute(0, 3, 1, 2).split(256)
        shrunk = [interpolate(chunk.float(), size=(size_px, size_px), mode="area") for chunk in chunks]
        return torch.cat([chunk.round().to(torch.uint8) for chunk in shrunk])


def load_faces(path: Path) -> FaceTable:
    """Read and decode a whole Parquet file of portraits.

    Raises:
        ImageError: if the file is missing.
    """
    import pyarrow.parquet  # heavy, and only training and evaluation read tables

    if not path.exists():
        raise ImageError(f"no such file: {path}. Set IDGEN_FACES to the folder that holds it")
    table = pyarrow.parquet.read_table(path).to_pydict()
    images = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in table["image"]]
    return FaceTable(
        images=np.stack(images),
        files=tuple(table["file"]),
        identities=tuple(table["identity"]),
        labels={name: np.asarray(table[name], dtype=np.float32) for name in LABELS},
    )


def split_people(table: FaceTable, *, held_out: float = 0.1, seed: int = 0) -> tuple[FaceTable, FaceTable]:
    """Split by people, never by pictures: (training part, part to choose settings on).

    Args:
        table: all training pictures.
        held_out: share of the people that settings are chosen on, in (0, 1).
        seed: of the shuffle; every program uses 0, so that nothing is chosen on people that another part saw.
    """
    people = table.people()
    held_out_names, rest_names = split_names(list(people), held_out=held_out, seed=seed)
    held = [row for name in held_out_names for row in people[name]]
    rest = [row for name in rest_names for row in people[name]]
    return table.subset(rest), table.subset(held)


def split_names(names: list[str], *, held_out: float = 0.1, seed: int = 0) -> tuple[list[str], list[str]]:
    """The same split of names alone: (held out, training)."""
    shuffled = sorted(names)
    np.random.default_rng(seed).shuffle(shuffled)
    num_held_out = round(len(shuffled) * held_out)
    return shuffled[:num_held_out], shuffled[num_held_out:]


def table_of_faces(path: Path | None) -> FaceTable:
    """The table at ``path``, or faces_train.parquet of the folder IDGEN_FACES.

    Raises:
        ConfigError: if there is neither a path nor the variable IDGEN_FACES.
    """
    if path is None and "IDGEN_FACES" not in os.environ:
        raise ConfigError(
            "set IDGEN_FACES to the folder of faces_train.parquet, or `faces` to a Parquet file"
        )
    return load_faces(path or Path(os.environ["IDGEN_FACES"]) / "faces_train.parquet")


def training_faces(path: Path | None) -> FaceTable:
    """The people to train on: those of `table_of_faces`, less the tenth that is set aside.

    Raises:
        ConfigError: if there is neither a path nor the variable IDGEN_FACES.
    """
    return split_people(table_of_faces(path))[0]


def arcface_crops(portraits: Tensor, size_px: int) -> Tensor:
    """The ArcFace crop of aligned portraits, with gradients.

    Args:
        portraits: (B, 3, S, S) of any size, with the context of those of 128 pixels.
        size_px: side of the crop.

    Returns:
        (B, 3, size_px, size_px).
    """
    inner = round(portraits.shape[-1] * ARCFACE_MARGIN / 128)
    cut = portraits[..., inner:-inner, inner:-inner]
    return interpolate(cut, size=(size_px, size_px), mode="bilinear", align_corners=False)
