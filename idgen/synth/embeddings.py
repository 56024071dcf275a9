"""Face vectors of the kept pictures of each shard, beside it: what the findings are computed from.

``shards/00000.safetensors`` has a tensor (N, D) float16 for each encoder, named by its id, in the order of
the kept rows. Its checksum stands among the facts of the shard: it is as whole as the shard itself.

Shapes: N kept pictures, D width of a face vector.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from idgen.errors import ConfigError, StorageError
from idgen.storage import sorted_header, write_bytes
from idgen.synth.shards import FOLDER, VECTORS_FACT, VECTORS_SUFFIX, Shard, shard_file


def write_embeddings(
    dataset: Path, number: int, vectors: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Write the face vectors of a shard, whole or not at all; do it before `write_shard`.

    A vector of D numbers rounded to float16 has a cosine to another one that is off by 3e-4 at most.

    Args:
        dataset: its folder; ``shards/`` is made.
        number: of the shard.
        vectors: key of each kept picture, in the order of the rows -> encoder id -> (D,) of unit length.

    Returns:
        What `write_shard` must get among its facts, under `VECTORS_FACT`.

    Raises:
        ConfigError: if pictures were not all seen by the same encoders.
        StorageError: if it cannot be written.
    """
    seen_by = {tuple(sorted(own)) for own in vectors.values()}
    if len(seen_by) > 1:
        raise ConfigError(f"the pictures of shard {number:05d} were seen by different encoders: {seen_by}")
    tensors = {
        name: np.stack([own[name] for own in vectors.values()]).astype(np.float16)
        for name in next(iter(seen_by), ())
    }
    data = sorted_header(save(tensors, {"keys": json.dumps(list(vectors))}))
    try:
        (dataset / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write into {dataset / FOLDER}: {error.strerror or error}") from None
    write_bytes(shard_file(dataset / FOLDER, number, VECTORS_SUFFIX), data)
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def read_embeddings(shard: Shard) -> dict[str, np.ndarray]:
    """The face vectors of the kept pictures of a shard, in the order of its rows.

    Returns:
        Encoder id -> (N, D) float32 of unit length; nothing for a shard that was written without.

    Raises:
        StorageError: if the file is missing, or is not what was written.
    """
    said = shard.facts.get(VECTORS_FACT)
    if said is None:
        return {}
    path = shard.file(VECTORS_SUFFIX)
    try:
        data = path.read_bytes()
        whole = hashlib.sha256(data).hexdigest() == said["sha256"]
        tensors = load(data) if whole else {}
    except (OSError, SafetensorError, KeyError, TypeError):
        raise shard.damaged(f"{path.name} cannot be read") from None
    if not whole:
        raise shard.damaged(f"{path.name} is not what was written: its sha256 differs")
    found = {name: _unit(halves) for name, halves in tensors.items()}
    if any(len(vectors) != shard.num_kept for vectors in found.values()):
        raise shard.damaged(f"{path.name} has not one vector for each of {shard.num_kept} kept pictures")
    return found


def _unit(halves: np.ndarray) -> np.ndarray:
    vectors = halves.astype(np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
