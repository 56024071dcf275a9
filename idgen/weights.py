"""Files of weights, read safely: safetensors, or a pickle through a reader that runs nothing.

A tensor's key is flat, as in a safetensors file: ``{"image_proj": {"norm.weight": x}}`` is read as
``image_proj.norm.weight``.
"""

import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from idgen.errors import WeightsError

PICKLES = {".bin", ".pt", ".pth", ".ckpt"}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file by flat key, on the CPU, and the metadata of a safetensors file.

    Raises:
        WeightsError: if it is damaged, holds code, or holds anything but tensors.
    """
    if path.suffix not in PICKLES:
        return _read_safetensors(path)
    state: dict[str, Tensor] = {}
    flatten_tensors(read_pickle(path), "", state, path.name)
    return state, {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or is not a safetensors file: {error}") from None


def read_pickle(path: Path) -> Any:  # noqa: ANN401 - plain data
    """Tensors and plain data of a pickle, by the restricted unpickler of torch, which runs nothing of a file.

    Raises:
        WeightsError: if it is damaged, or holds code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error) and not _calls_something(path.read_bytes()):
            raise WeightsError(f"{path} is damaged or is not a file of weights") from None
        raise WeightsError(
            f"{path} is a pickle with code in it, and reading it would run that code; ask for the weights as "
            ".safetensors, or convert them where you trust the file"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} is damaged or is not a file of weights: {error}") from None


def _calls_something(data: bytes) -> bool:
    """Whether a pickle, never run here, names a function or class; torch words this in many ways."""
    try:
        return any("GLOBAL" in opcode.name for opcode, _, _ in pickletools.genops(data))
    except (ValueError, UnicodeDecodeError):  # no pickle at all
        return False


def flatten_tensors(node: Any, at: str, state: dict[str, Tensor], source: str) -> None:  # noqa: ANN401 - plain data
    """Put the tensors of nested mappings into ``state`` under flat keys that begin with ``at``.

    Raises:
        WeightsError: if there is anything but tensors and mappings.
    """
    if isinstance(node, Tensor):
        state[at] = node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            flatten_tensors(value, f"{at}.{key}" if at else str(key), state, source)
    else:
        raise WeightsError(
            f"{source} holds a {type(node).__name__} at {at or 'its top'}, where tensors should be"
        )
