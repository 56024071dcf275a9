"""Directions in W+: what moves the code of a face towards a smile, a turn of the head, an age.

``w' = w + sum_k a_k d_k`` with amounts a_k and directions d_k, one for each layer or one for all (Shen et al.
2020, https://arxiv.org/abs/1907.10786, sec. 2.4).

Shapes: L layers of the generator, C width of a code, K directions.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from idgen.config import nearest
from idgen.errors import ConfigError, EncoderMismatchError, ModelNotFoundError, WeightsError
from idgen.identity import Feature
from idgen.storage import sorted_header, write_bytes
from idgen.weights import PICKLES, read_pickle, read_tensors

FORMAT = "1"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_EDIT = re.compile(rf"\s*([A-Za-z][\w.-]*?)(?:@(\d+)-(\d+))?\s*=\s*({_NUMBER})\s*")


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction.

    Attributes:
        name: what it changes, "smile".
        value: (L, C), or (1, C) for all layers alike; float32.
        encoder: in whose codes, as ``name@sha256[:12]``; None where the file does not say.
    """

    name: str
    value: np.ndarray
    encoder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Edit:
    """How far along which direction.

    Attributes:
        name: of the direction.
        amount: in the direction's own length; of those that idgen learned, standard deviations of the label.
        layers: first and last layer that move, counted from 0; all where None.
    """

    name: str
    amount: float
    layers: tuple[int, int] | None = None

    def __str__(self) -> str:
        """As it is written on the command line."""
        where = "" if self.layers is None else f"@{self.layers[0]}-{self.layers[1]}"
        return f"{self.name}{where}={self.amount:+g}"


def parse_edits(text: str) -> tuple[Edit, ...]:
    """``smile=+2,turn=-1`` or, for some layers only, ``pc10@7-8=3``.

    Raises:
        ConfigError: if it is written in another way, or names a direction twice.
    """
    edits = []
    for part in text.split(","):
        match = _EDIT.fullmatch(part)
        if match is None:
            raise ConfigError(
                f"an edit is written NAME=AMOUNT, as in smile=+2,turn=-1 (or NAME@7-8=AMOUNT for layers 7 "
                f"to 8), got {part.strip()!r}"
            )
        name, first, last, amount = match.groups()
        layers = None if first is None else (int(first), int(last))
        edits.append(Edit(name=name, amount=float(amount), layers=layers))
    names = [edit.name for edit in edits]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"the edit {twice} is given twice")
    return tuple(edits)


class Directions(Mapping[str, Direction]):
    """Directions by name."""

    def __init__(self, directions: Sequence[Direction]) -> None:
        self._by_name = {direction.name: direction for direction in directions}

    def __getitem__(self, name: str) -> Direction:
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(self._by_name) or "none"
            raise ConfigError(
                f"there is no direction {name!r}{nearest(name, list(self._by_name))} (there is: {known})"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Any:  # noqa: ANN401 - an iterator of names
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def shift(self, edits: Sequence[Edit], *, num_layers: int, style_dim: int, encoder: str) -> np.ndarray:
        """What is added to a code: ``sum_k a_k d_k`` (L, C).

        Args:
            edits: how far along which.
            num_layers: L of the code.
            style_dim: C of the code.
            encoder: who made the code, ``name@sha256[:12]``.

        Raises:
            ConfigError: if there is no such direction, or no such layer; the nearest name is shown.
            EncoderMismatchError: if a direction is of another encoder, or of another shape.
        """
        total = np.zeros((num_layers, style_dim), dtype=np.float32)
        for edit in edits:
            direction = self[edit.name]
            value = direction.value
            if direction.encoder not in (None, encoder):
                raise EncoderMismatchError(
                    f"the direction {edit.name} is of codes of {direction.encoder}, these are of {encoder}"
                )
            if value.shape[1] != style_dim or value.shape[0] not in (1, num_layers):
                raise EncoderMismatchError(
                    f"the direction {edit.name} is {value.shape}, and codes of {encoder} are "
                    f"{(num_layers, style_dim)}: it is of another generator"
                )
            first, last = edit.layers or (0, num_layers - 1)
            if not 0 <= first <= last < num_layers:
                raise ConfigError(
                    f"{edit.name}@{first}-{last}: layers go from 0 to {num_layers - 1}, the first one first"
                )
            total[first : last + 1] += edit.amount * np.broadcast_to(value, total.shape)[first : last + 1]
        return total

    def moved(self, code: Feature, edits: Sequence[Edit]) -> Feature:
        """The code of the same person, edited.

        Raises:
            ConfigError: if there is no such direction.
            EncoderMismatchError: if a direction is of another encoder.
        """
        num_layers, style_dim = code.value.shape
        shift = self.shift(edits, num_layers=num_layers, style_dim=style_dim, encoder=code.encoder)
        return Feature(code.encoder, code.kind, code.value + shift)

    def save(self, path: str | Path) -> None:
        """Write one safetensors with all of them, whole or not at all.

        Raises:
            StorageError: if it cannot be written.
        """
        state = {name: torch.from_numpy(np.ascontiguousarray(d.value)) for name, d in self.items()}
        encoders = {name: d.encoder for name, d in self.items()}
        said = {"format": "pt", "idgen_directions": FORMAT, "encoders": json.dumps(encoders, sort_keys=True)}
        write_bytes(path, sorted_header(save(state, said)))


def read_directions(path: str | Path) -> Directions:
    """Read directions of any of the usual files.

    ``.safetensors`` as `Directions.save` writes it, or any other with one tensor a direction. ``.npy`` with
    one direction, as InterFaceGAN's boundaries are kept: it is named as the file. ``.pt`` and ``.pth`` with
    one tensor, with a tensor for each name, or with the components of GANSpace (Harkonen et al. 2020,
    https://arxiv.org/abs/2004.02546): ``{"comp": (K, C), "std": (K,)}``, which become ``pc0``, ``pc1``, ...
    in standard deviations.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it is damaged, holds code, or something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelNotFoundError(f"no such file of directions: {path}")
    if path.suffix == ".npy":
        return Directions([_direction(path.stem, _read_npy(path), path)])
    if path.suffix in PICKLES:
        return Directions(_of_pickle(read_pickle(path), path))
    state, metadata = read_tensors(path)
    if (version := metadata.get("idgen_directions", FORMAT)) != FORMAT:
        raise WeightsError(f"{path} is of format {version!r}, this idgen reads {FORMAT!r}; update idgen")
    try:
        encoders = dict(json.loads(metadata.get("encoders", "{}")))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} has damaged metadata: {error}") from None
    return Directions([_direction(name, value, path, encoders.get(name)) for name, value in state.items()])


def _read_npy(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise WeightsError(f"{path} is damaged, or is no array of numbers: {error}") from None


def _of_pickle(content: Any, path: Path) -> list[Direction]:  # noqa: ANN401 - plain data
    if isinstance(content, Tensor):
        return [_direction(path.stem, content, path)]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds no directions but a {type(content).__name__}")
    if "comp" in content:
        components = torch.as_tensor(content["comp"]).float()
        components = components.reshape(-1, components.shape[-1])
        std = (
            torch.as_tensor(content["std"]).float().flatten()
            if "std" in content
            else torch.ones(len(components))
        )
        if len(std) != len(components):
            raise WeightsError(f"{path} holds {len(components)} components and {len(std)} deviations")
        return [_direction(f"pc{i}", row * scale, path)
                for i, (row, scale) in enumerate(zip(components, std, strict=True))]  # fmt: skip
    return [_direction(str(name), value, path) for name, value in content.items()]


def _direction(name: str, value: Any, path: Path, encoder: str | None = None) -> Direction:  # noqa: ANN401
    """One direction of a file; a batch of one is taken out of its batch."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise WeightsError(f"{path}: {name} is no direction but a {type(value).__name__}")
    flat = value.float().squeeze(0) if value.ndim == 3 else value.float()
    flat = flat[None] if flat.ndim == 1 else flat
    if flat.ndim != 2 or not flat.numel() or not bool(flat.isfinite().all()):
        raise WeightsError(
            f"{path}: {name} is {tuple(value.shape)}; a direction is (C,), (L, C) or (1, L, C)"
        )
    return Direction(name, flat.numpy(), encoder)
