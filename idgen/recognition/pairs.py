"""Losses on pairs and triplets of a batch, with their miners, from pytorch-metric-learning.

They need batches of several people with several pictures each, and have no centres. Margins are squared
distances of unit vectors for ``triplet`` and distances for ``distance_margin``.

Shapes: B batch, D embedding width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from idgen.errors import ConfigError
from idgen.recognition.margins import refuse

# A loss and its miner; the miner may be None.
Made = tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Any] | None]


class PairHead(nn.Module):
    """One loss of the library, fed with what its miner chose.

    Args:
        name: "triplet", "multi_similarity", "supcon" or "distance_margin".
        margin: of triplet (0.2 if not given) or distance_margin (0.2); the others have none.

    Raises:
        ConfigError: for a margin or scale that the loss does not have, or where the library is missing.
    """

    needs_pairs = True

    def __init__(self, name: str, *, margin: float | None = None, scale: float | None = None) -> None:
        super().__init__()
        refuse(name, scale=scale)
        if name in ("multi_similarity", "supcon"):
            refuse(name, margin=margin)
        highest = 4 if name == "triplet" else 2  # of a squared distance of unit vectors, and of a distance
        if margin is not None and not 0 <= margin < highest:
            raise ConfigError(f"the margin of {name} must be in [0, {highest}), got {margin}")
        self.name = name
        self._loss, self._miner = _make(name, 0.2 if margin is None else margin)

    def forward(self, embedding: Tensor, person: Tensor, strength: float = 1.0) -> Tensor:
        """The loss of the batch.

        Args:
            embedding: (B, D), of any length.
            person: (B,) int64.
            strength: has no say here.

        Returns:
            A number, at least 0; 0 where the miner finds nothing to learn from.
        """
        return self._loss(embedding.float(), person, self.mine(embedding, person))

    def mine(self, embedding: Tensor, person: Tensor) -> Any:  # noqa: ANN401 - tuples of indices
        """Anchors, positives and negatives, or pairs of each kind; None where all pairs count."""
        with torch.no_grad():
            return None if self._miner is None else self._miner(embedding.float(), person)


def _make(name: str, margin: float) -> Made:
    try:
        from pytorch_metric_learning import distances, losses, miners
    except ImportError:
        raise ConfigError(
            f"the head {name} needs pytorch-metric-learning, which is not installed: "
            "pip install 'idgen[metric]'"
        ) from None
    if name == "triplet":  # Schroff et al. 2015, https://arxiv.org/abs/1503.03832, eq. 3 and 4
        squared = distances.LpDistance(p=2, power=2, normalize_embeddings=True)
        return (
            losses.TripletMarginLoss(margin=margin, distance=squared),
            miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard", distance=squared),
        )
    if name == "multi_similarity":  # Wang et al. 2019, https://arxiv.org/abs/1904.06627
        return losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5), miners.MultiSimilarityMiner(
            epsilon=0.1
        )
    if name == "supcon":  # Khosla et al. 2020, https://arxiv.org/abs/2004.11362, eq. 2
        return losses.SupConLoss(temperature=0.1), None
    # Wu et al. 2017, https://arxiv.org/abs/1706.07567: margin loss with distance-weighted sampling
    miner = miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)
    return losses.MarginLoss(margin=margin, beta=1.2), miner
