"""Face vectors of many people in one file, whoever wrote it: read, checked, brought to unit length.

Shapes: N people, D width of a face vector.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from idgen.errors import EncoderMismatchError, IdentityError
from idgen.identity import UNIT_TOLERANCE, Identity

ROUNDING = 1e-6  # a float32 vector of up to 4096 numbers that was brought to unit length is nearer than this
PIECE = 4096  # rows that are rounded at once
COLUMN = "face_vector"  # of a Parquet table
TENSOR = "vectors"  # of a safetensors file with several tensors
SETTINGS, VECTORS = "people.json", "vectors.npy"  # of a folder that `separated_people` filled


def unit_rows(vectors: np.ndarray, what: str, *, drop_zeros: bool = False) -> np.ndarray:
    """Vectors as float32 of unit length; the same array where they are that already.

    Args:
        vectors: (N, D) of unit length within a thousandth, which float16 keeps.
        what: they are, for the message.
        drop_zeros: leave out zero rows: photos without a face.

    Raises:
        IdentityError: if a row is not finite or of another length; the first one is named.
    """
    if vectors.ndim != 2 or not vectors.shape[1] or not np.issubdtype(vectors.dtype, np.floating):
        raise IdentityError(
            f"{what} must be vectors (N, D) of floating point, got {vectors.shape} of {vectors.dtype}"
        )
    length = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    good = np.abs(length - 1) <= UNIT_TOLERANCE  # false for NaN
    wrong = np.flatnonzero(~(good | (length == 0) if drop_zeros else good))
    if len(wrong):
        raise IdentityError(
            f"{what}: row {wrong[0]} has length {length[wrong[0]]:.4g}; face vectors are of unit length "
            f"(within {UNIT_TOLERANCE:g})"
        )
    if good.all() and vectors.dtype == np.float32 and (np.abs(length - 1) <= ROUNDING).all():
        return vectors
    rows = np.flatnonzero(good)
    unit = np.empty((len(rows), vectors.shape[1]), np.float32)
    for start in range(0, len(rows), PIECE):
        part = rows[start : start + PIECE]
        unit[start : start + PIECE] = vectors[part] / length[part, None]
    return unit


def read_vectors(path: Path, *, encoder: str | None = None) -> tuple[np.ndarray, str | None]:
    """The face vectors of a file or of a folder, and whose they are.

    Args:
        path: an identity that `idgen embed` saved, another safetensors file with one tensor (N, D) or one
            named ``vectors``, a NumPy file, a Parquet table with a column ``face_vector`` or one column of
            lists, or a folder that `separated_people` filled. Safetensors and Parquet may name the encoder in
            their metadata, as ``encoder``.
        encoder: whose vectors are wanted, as an id.

    Returns:
        (N, D) as they lie in the file, and the id that it names; None where it names none.

    Raises:
        IdentityError: if it is missing, damaged, or holds no such vectors.
        EncoderMismatchError: if they are of another encoder than is wanted.
    """
    path = path.expanduser()
    if not path.exists():
        raise IdentityError(f"no such file: {path}")
    if not path.is_dir() and path.suffix not in READERS:
        raise IdentityError(
            f"{path} is none of {', '.join(READERS)}, nor a folder of new people; vectors are read from these"
        )
    read = _read_folder if path.is_dir() else READERS[path.suffix]
    try:
        vectors, named = read(path, encoder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, IdentityError | EncoderMismatchError):
            raise
        raise IdentityError(f"cannot read vectors from {path}: {error}") from None
    if encoder is not None and named not in (None, encoder):
        raise EncoderMismatchError(f"{path} holds vectors of {named}, wanted are those of {encoder}")
    return vectors, named


Read = tuple[np.ndarray, str | None]


def _read_safetensors(path: Path, encoder: str | None) -> Read:
    with safe_open(path, framework="np") as file:
        head = file.metadata() or {}
        if "idgen_identity" in head:
            feature = Identity.load(path).feature("face_vector", encoder)
            return feature.value[None], feature.encoder
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        flat = [name for name, shape in shapes.items() if len(shape) == 2]
        name = TENSOR if TENSOR in flat else flat[0] if len(flat) == 1 else None
        if name is None:
            raise IdentityError(
                f"{path} holds neither one tensor (N, D) nor one named {TENSOR!r}, but {shapes or 'nothing'}"
            )
        return file.get_tensor(name), head.get("encoder")


def _read_numpy(path: Path, _: str | None) -> Read:
    return np.load(path, mmap_mode="r", allow_pickle=False), None


def _read_parquet(path: Path, _: str | None) -> Read:
    import pyarrow as pa  # heavy
    from pyarrow import compute, parquet

    try:
        schema = parquet.read_schema(path)
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        lists = [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]
        name = COLUMN if COLUMN in lists else lists[0] if len(lists) == 1 else None
        if name is None:
            raise IdentityError(
                f"{path} has neither a column of lists {COLUMN!r} nor a single one of another name "
                f"(columns: {', '.join(schema.names)})"
            )
        column = parquet.read_table(path, columns=[name])[name]
    except pa.ArrowException as error:
        raise IdentityError(f"{path} is damaged or no Parquet table: {error}") from None
    widths = compute.unique(compute.list_value_length(column)).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
    if len(widths) != 1 or None in widths:
        raise IdentityError(f"{path}: rows of {name} must be of one width, got {widths or 'no row'}")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    named = (schema.metadata or {}).get(b"encoder")
    return flat.reshape(len(column), -1), named.decode() if named else None


def _read_folder(path: Path, _: str | None) -> Read:
    settings: dict[str, Any] = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
    return np.load(path / VECTORS, mmap_mode="r", allow_pickle=False), settings["encoder"]


READERS: dict[str, Callable[[Path, str | None], Read]] = {
    ".safetensors": _read_safetensors,
    ".npy": _read_numpy,
    ".parquet": _read_parquet,
}
