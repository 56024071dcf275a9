"""Adapter files: the weights in one safetensors, and a JSON beside it that says what they are.

The weights are those of an IP-Adapter FaceID, which reads face vectors, or of a W+ adapter, which reads W+
codes; the keys tell which.

Plain diffusers loads a FaceID file that is written here::

    pipe.load_ip_adapter(folder, subfolder="", weight_name="who.safetensors", image_encoder_folder=None)

Files of others are read as well (safetensors, or a pickle without code in it): SD 1.x, 2.x and SDXL widths,
any number of tokens, with or without the LoRA part; W+ codes of any number of layers. Nothing in a file is
ever ignored.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors.torch import save

from idgen.adapters.build import build_adapter
from idgen.adapters.card import FORMAT, AdapterCard, read_card, read_style_dim
from idgen.adapters.families import check_family
from idgen.adapters.install import IDAdapter
from idgen.adapters.wplus import STYLE_DIM, WPlusAdapter
from idgen.errors import ModelNotFoundError, WeightsError
from idgen.storage import sorted_header, write_bytes, write_json
from idgen.weights import PICKLES, read_tensors

A = TypeVar("A", bound=IDAdapter | WPlusAdapter, covariant=True)


@dataclass(frozen=True)
class AdapterFile(Generic[A]):
    """An adapter as it was read: weights, card, and the sha256 of the file."""

    path: Path
    adapter: A
    card: AdapterCard
    sha256: str
    dtype: torch.dtype  # of the tensors in the file

    @property
    def id(self) -> str:
        """``name@sha256[:12]``, as encoders are named."""
        return f"{self.path.stem}@{self.sha256[:12]}"

    def reads(self, encoder: str) -> bool:
        """Whether it was trained on features of ``encoder`` (``name@sha256[:12]``)."""
        return self.card.reads(encoder)


def write_adapter(
    path: str | Path,
    adapter: IDAdapter | WPlusAdapter,
    card: AdapterCard,
    *,
    dtype: torch.dtype | None = None,
) -> str:
    """Write the weights to ``path`` (a ``.safetensors``) and the card to the ``.json`` beside it.

    Args:
        path: where to; both files are whole or not there.
        adapter: on a UNet or not.
        card: its ``num_tokens``, ``feature`` and ``style_dim`` must be the adapter's.
        dtype: of the written tensors; as they are where None. float16 halves the file.

    Returns:
        The sha256 of the written file.

    Raises:
        WeightsError: if the suffix is another, or the card contradicts the weights.
        StorageError: if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"adapters are written as .safetensors, got {path.name}")
    if card.num_tokens != adapter.num_tokens:
        raise WeightsError(f"the card says {card.num_tokens} tokens, the adapter makes {adapter.num_tokens}")
    card.check_kind(adapter, path.name)
    state = {k: v.detach().to("cpu", dtype, copy=True).contiguous() for k, v in adapter.state_dict().items()}
    said = {key: str(value) for key, value in card.as_dict().items()}
    data = sorted_header(save(state, {"format": "pt", "idgen_adapter": FORMAT, **said}))
    sha256 = hashlib.sha256(data).hexdigest()
    write_bytes(path, data)
    write_json(path.with_suffix(".json"), {"idgen_adapter": FORMAT, **card.as_dict(), "sha256": sha256})
    return sha256


def read_adapter(path: str | Path, *, encoder: str | None = None) -> AdapterFile[IDAdapter | WPlusAdapter]:
    """Read an IP-Adapter FaceID file or a W+ adapter, on the CPU and in float32.

    Args:
        path: a ``.safetensors`` file, a pickle without code in it, or a folder with one ``.safetensors``.
        encoder: whose face vectors or W+ codes it reads; needed if neither the JSON beside the file nor its
            metadata says so.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it is damaged, holds code, is of another family, lacks a tensor or has one too many,
            or if nobody says which encoder it reads.
        EncoderMismatchError: if ``encoder`` contradicts the card.
        ConfigError: if the JSON beside it cannot be used.
    """
    path = _find(Path(path))
    state, metadata = read_tensors(path)
    family = check_family(state, path.name)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    style_dim = read_style_dim(path, metadata, sha256) if family == "wplus" else STYLE_DIM
    adapter = build_adapter(state, path.name, family, style_dim=style_dim)
    card = read_card(path, metadata, adapter, sha256, encoder)
    dtype = next(tensor.dtype for key, tensor in state.items() if key.endswith("_proj.norm.weight"))
    return AdapterFile(path, adapter, card, sha256, dtype)


def read_face_adapter(path: str | Path, *, encoder: str | None = None) -> AdapterFile[IDAdapter]:
    """`read_adapter`, where only an adapter of face vectors is of use.

    Raises:
        WeightsError: if it is a W+ adapter; and as `read_adapter` does.
    """
    path = _find(Path(path))
    if check_family(read_tensors(path)[0], path.name) == "wplus":
        raise WeightsError(
            f"{path.name} is a W+ adapter, which reads codes of a StyleGAN; an IP-Adapter FaceID file is "
            "wanted here. From Python pipe.load_adapter takes both (docs/wplus.md)"
        )
    return read_adapter(path, encoder=encoder)  # pyright: ignore[reportReturnType]


def _find(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            names = ", ".join(f.name for f in found) or "none"
            raise ModelNotFoundError(
                f"{path} must hold exactly one .safetensors, it holds {names}; name the file"
            )
        return found[0]
    if not path.exists():
        raise ModelNotFoundError(f"no such adapter file: {path}")
    if path.suffix not in {".safetensors", *PICKLES}:
        raise WeightsError(f"{path.name} is no adapter file: it should end in .safetensors (or .bin)")
    return path
