"""How well a recogniser that is being trained tells people apart whom it does not see.

Shapes: N pictures, D embedding width.
"""

import numpy as np
import torch
from torch import Tensor, nn

from idgen.data.images import FaceTable
from idgen.errors import ConfigError
from idgen.metrics.verification import fold_accuracies
from idgen.pixels import to_pixel_values
from idgen.training import reduced_precision


def held_out_pairs(table: FaceTable, seed: int = 0, folds: int = 5) -> dict[str, np.ndarray]:
    """Up to five genuine pairs a person, and as many impostors within the same fold of people."""
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
    fold, first, second, same = (np.array(column) for column in zip(*pairs, strict=True))
    return {"fold": fold, "first": first, "second": second, "same": same}


@torch.no_grad()
def embed_rows(
    network: nn.Module, table: FaceTable, rows: np.ndarray, *, bfloat16: bool = False, batch_size: int = 96
) -> Tensor:
    """Raw embeddings (N, D) of these rows of a table."""
    parts = []
    for part in np.array_split(rows, 1 + len(rows) // batch_size):
        with reduced_precision(torch.device("cpu"), wanted=bfloat16):
            parts.append(network(to_pixel_values(table.crops(part))).float())
    return torch.cat(parts)


def held_out_accuracy(embedding: np.ndarray, table: FaceTable) -> float:
    """Accuracy on pairs of the table, thresholds from other people: (N, D) of unit length -> [0, 1]."""
    pairs = held_out_pairs(table)
    similarity = (embedding[pairs["first"]] * embedding[pairs["second"]]).sum(axis=1)
    return float(fold_accuracies(similarity, pairs["same"], pairs["fold"]).mean())
