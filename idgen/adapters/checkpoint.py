"""Adapter files: IP-Adapter FaceID weights in one safetensors, and a JSON beside it that says what they are.

Plain diffusers loads what is written here::

    pipe.load_ip_adapter(folder, subfolder="", weight_name="who.safetensors", image_encoder_folder=None)

Files of others are read as well (safetensors, or a pickle without code in it): SD 1.x, 2.x and SDXL widths,
any number of tokens, with or without the LoRA part. Nothing in a file is ever ignored.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from idgen.adapters.attention import LayerWeights
from idgen.adapters.card import FORMAT, AdapterCard, read_card
from idgen.adapters.families import check_family
from idgen.adapters.install import IDAdapter
from idgen.adapters.projection import FaceIDProjection
from idgen.errors import ModelNotFoundError, WeightsError
from idgen.storage import sorted_header, write_bytes, write_json
from idgen.weights import PICKLES, read_tensors

_LAYER_KEY = re.compile(r"ip_adapter\.(\d+)\.to_(?:[kv]_ip|(?:q|k|v|out)_lora\.(?:down|up))\.weight")


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as it was read: weights, card, and the sha256 of the file."""

    path: Path
    adapter: IDAdapter
    card: AdapterCard
    sha256: str
    dtype: torch.dtype  # of the tensors in the file

    @property
    def id(self) -> str:
        """``name@sha256[:12]``, as encoders are named."""
        return f"{self.path.stem}@{self.sha256[:12]}"

    def reads(self, encoder: str) -> bool:
        """Whether it was trained on face vectors of ``encoder`` (``name@sha256[:12]``)."""
        return self.card.reads(encoder)


def write_adapter(
    path: str | Path, adapter: IDAdapter, card: AdapterCard, *, dtype: torch.dtype | None = None
) -> str:
    """Write the weights to ``path`` (a ``.safetensors``) and the card to the ``.json`` beside it.

    Args:
        path: where to; both files are whole or not there.
        adapter: on a UNet or not.
        card: its ``num_tokens`` must be the adapter's.
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
    state = {k: v.detach().to("cpu", dtype, copy=True).contiguous() for k, v in adapter.state_dict().items()}
    said = {key: str(value) for key, value in asdict(card).items()}
    data = sorted_header(save(state, {"format": "pt", "idgen_adapter": FORMAT, **said}))
    sha256 = hashlib.sha256(data).hexdigest()
    write_bytes(path, data)
    write_json(path.with_suffix(".json"), {"idgen_adapter": FORMAT, **asdict(card), "sha256": sha256})
    return sha256


def read_adapter(path: str | Path, *, encoder: str | None = None) -> AdapterFile:
    """Read an IP-Adapter FaceID file, on the CPU and in float32.

    Args:
        path: a ``.safetensors`` file, a pickle without code in it, or a folder with one ``.safetensors``.
        encoder: whose face vectors it reads; needed if neither the JSON beside the file nor its metadata
            says so.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it is damaged, holds code, is of another family, lacks a tensor or has one too many,
            or if nobody says which encoder it reads.
        EncoderMismatchError: if ``encoder`` contradicts the card.
        ConfigError: if the JSON beside it cannot be used.
    """
    path = _find(Path(path))
    state, metadata = read_tensors(path)
    check_family(state, path.name)
    adapter = _build(state, path.name)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    card = read_card(path, metadata, adapter, sha256, encoder)
    return AdapterFile(path, adapter, card, sha256, state["image_proj.norm.weight"].dtype)


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


def _build(state: dict[str, Tensor], source: str) -> IDAdapter:
    """The adapter whose tensors these are, all of them and no others."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if match := _LAYER_KEY.fullmatch(key):
            layers.setdefault(int(match[1]), {})[key.split(".", 2)[2]] = tensor
        if tensor.ndim == 0 or not tensor.is_floating_point():
            raise WeightsError(
                f"{source}: {key} is {tuple(tensor.shape)} of {tensor.dtype}, expected float weights"
            )
    has_lora = any("_lora." in key for key in state)
    adapter = IDAdapter(
        _empty_projection(state, source),
        {k: _empty_layer(tensors, source, k, has_lora=has_lora) for k, tensors in layers.items()},
    )
    _check_keys(adapter.state_dict(), state, source)
    adapter.load_state_dict(state)
    return adapter.eval().requires_grad_(False)


def _empty_projection(state: dict[str, Tensor], source: str) -> FaceIDProjection:
    hidden_dim, id_dim = _matrix(state, "image_proj.proj.0.weight", source)
    rows, _ = _matrix(state, "image_proj.proj.2.weight", source)
    cross_dim = state["image_proj.norm.weight"].shape[0]
    if rows % cross_dim:
        raise WeightsError(
            f"{source}: image_proj.proj.2.weight has {rows} rows, no multiple of the width {cross_dim}"
        )
    return FaceIDProjection(id_dim, cross_dim, rows // cross_dim, hidden_dim)


def _empty_layer(tensors: dict[str, Tensor], source: str, k: int, *, has_lora: bool) -> LayerWeights:
    at = f"{source}, layer {k}"
    cross = k % 2 == 1  # published files count self-attention layers even, cross-attention layers odd
    if not has_lora:
        inner, kv = _matrix(tensors, "to_k_ip.weight", at)
        return LayerWeights(inner, kv, inner, cross=cross)
    inner, rank = _matrix(tensors, "to_q_lora.up.weight", at)
    _, own = _matrix(tensors, "to_q_lora.down.weight", at)
    _, kv = _matrix(tensors, "to_k_lora.down.weight", at)
    return LayerWeights(own, kv, inner, cross=cross, lora_rank=rank)


def _matrix(tensors: dict[str, Tensor], key: str, at: str) -> tuple[int, int]:
    if key not in tensors:
        raise WeightsError(f"{at}: {key} is missing")
    if tensors[key].ndim != 2:
        raise WeightsError(f"{at}: {key} must be a matrix, got {tuple(tensors[key].shape)}")
    return tensors[key].shape[0], tensors[key].shape[1]


def _check_keys(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or surplus:
        lists = [
            f"{what} {', '.join(keys)}"
            for what, keys in (("lacks", missing), ("has no use for", surplus))
            if keys
        ]
        raise WeightsError(f"{source} is no whole IP-Adapter FaceID file: it {' and '.join(lists)}")
    for key, tensor in wanted.items():
        if tensor.shape != found[key].shape:
            raise WeightsError(
                f"{source}: {key} is {tuple(found[key].shape)}, its neighbours need {tuple(tensor.shape)}"
            )
