"""How well a recogniser that is being trained tells people apart whom it does not see.

Shapes: N pictures, D embedding width, P pairs.
"""

import csv
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from idgen.data.images import FaceTable
from idgen.data.pairs import PairList, folds_of
from idgen.encoders.base import FaceEncoder
from idgen.encoders.gallery import embed_pictures
from idgen.errors import ConfigError
from idgen.faces.detect import load_detector
from idgen.metrics.verification import fold_accuracies, standard_error, tar_at_far
from idgen.pixels import to_pixel_values
from idgen.recognition.corpus import is_aligned
from idgen.storage import write_bytes
from idgen.training import reduced_precision


def held_out_pairs(table: FaceTable, seed: int = 0, folds: int = 5) -> dict[str, np.ndarray]:
    """Up to five genuine pairs a person, and as many impostors within the same fold of people.

    Raises:
        ConfigError: for fewer than two people a fold, or where fewer than two folds have a genuine pair.
    """
    rng = np.random.default_rng(seed)
    people = list(table.people().values())
    whole = len(people) // folds * folds
    if whole < 2 * folds:
        raise ConfigError(f"at least {2 * folds} people have to be held out to choose on, got {len(people)}")
    pairs = []
    for i, rows in enumerate(people):
        chosen = rng.permutation(rows)[: 2 * min(5, len(rows) // 2)].reshape(-1, 2)
        for a, b in chosen:
            other = people[(i + folds * int(rng.integers(1, len(people) // folds))) % whole]
            pairs += [(i % folds, a, b, True), (i % folds, a, rng.choice(other), False)]
    if len({fold for fold, *_ in pairs}) < 2:
        raise ConfigError(
            f"of the {len(people)} people held out to choose on, too few have two pictures to compare"
        )
    fold, first, second, same = (np.array(column) for column in zip(*pairs, strict=True))
    return {"fold": fold, "first": first, "second": second, "same": same}


@torch.no_grad()
def embed_rows(
    network: nn.Module, table: FaceTable, rows: np.ndarray, *, bfloat16: bool = False, batch_size: int = 96
) -> Tensor:
    """Raw embeddings (N, D) of these rows of a table."""
    parts, device = [], next(network.parameters()).device
    for part in np.array_split(rows, 1 + len(rows) // batch_size):
        with reduced_precision(device, wanted=bfloat16):
            parts.append(network(to_pixel_values(table.crops(part)).to(device)).float().cpu())
    return torch.cat(parts)


def held_out_numbers(embedding: np.ndarray, table: FaceTable) -> dict[str, float]:
    """The numbers of `idgen evaluate verification` on the pairs that `write_held_out_pairs` writes.

    Args:
        embedding: (N, D) of the table, of unit length.
        table: of people set aside.
    """
    pairs = held_out_pairs(table)
    similarity = (embedding[pairs["first"]] * embedding[pairs["second"]]).sum(axis=1)
    return _numbers(similarity, pairs["same"], pairs["fold"])


def write_held_out_pairs(path: Path, table: FaceTable) -> None:
    """The pairs that a run is verified on, as a list that `idgen evaluate verification` reads.

    Raises:
        StorageError: if the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["fold", "file_a", "file_b", "same"])
    pairs = held_out_pairs(table)
    for fold, first, second, same in zip(*(pairs[name].tolist() for name in pairs), strict=True):
        writer.writerow([fold, table.files[first], table.files[second], int(same)])
    write_bytes(path, text.getvalue().encode())


def _numbers(similarity: np.ndarray, same: np.ndarray, fold: np.ndarray) -> dict[str, float]:
    accuracies = fold_accuracies(similarity, same, fold)
    return {
        "accuracy": float(accuracies.mean()),
        "standard_error": standard_error(accuracies),
        "tar_at_far_0.01": tar_at_far(similarity, same, 0.01)[0],
    }


def verify_pairs(
    encoder: FaceEncoder, pairs: PairList, *, detector: str = "mini", store: Path | None = None
) -> dict[str, float]:
    """The numbers of `idgen evaluate verification` for one encoder.

    Args:
        encoder: whose vectors are compared.
        pairs: each fold is decided by the threshold that is best on the others.
        detector: as in `load_detector`; finds the faces where not all pictures have the size of aligned ones.
        store: folder that keeps the vectors.

    Returns:
        accuracy, its standard error, the true accept rate at a false accept rate of 1 %, and the share of the
        pictures with a face; those without have similarity 0 to everything.

    Raises:
        MeasureError: as `folds_of`.
    """
    fold = folds_of(pairs)
    aligned = all(is_aligned(picture.open()) for picture in pairs.pictures)
    gallery = embed_pictures(
        pairs.pictures, load_detector(detector), [encoder], store=store, aligned=aligned, label="pairs"
    )
    vectors = gallery.vectors[encoder.id]
    similarity = np.einsum("pd,pd->p", vectors[pairs.first], vectors[pairs.second], dtype=np.float64)
    return {**_numbers(similarity, pairs.same, fold), "face_found": float(gallery.found.mean())}
