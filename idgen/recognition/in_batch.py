"""Heads with centres that also compare the pictures of a batch with each other.

Shapes: B batch, D embedding width, C people, N pairs.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from idgen.errors import ConfigError
from idgen.recognition.margins import MarginHead, SoftmaxHead, refuse


class UnifiedNegativesHead(MarginHead):
    """UNPG: pairs of two people in the batch are further negatives in the softmax of every face.

    ``L = -log(exp(s p) / (exp(s p) + sum_j exp(s n_j) + sum_k exp(s u_k)))``, with ``u`` the cosines of
    those pairs that are no outliers (Jung et al. 2022, https://arxiv.org/abs/2203.11593). Own cosines are
    made harder as by ArcFace.

    Args:
        dim: D.
        num_people: C.
        margin: in radians.
        scale: s.
        whisker: how many distances between the quartiles a cosine may lie outside of them.

    Raises:
        ConfigError: as for `MarginHead`.
    """

    def __init__(
        self, dim: int, num_people: int, *, margin: float = 0.5, scale: float = 64.0, whisker: float = 1.5
    ) -> None:
        super().__init__(dim, num_people, kind="arcface", margin=margin, scale=scale)
        self.whisker = whisker

    def loss(self, embedding: Tensor, centres: Tensor, person: Tensor, strength: float) -> Tensor:
        """Of each face: (B,)."""
        logits = self.logits(embedding, centres, person, strength)
        further = self.scale * usual_negatives(embedding, person, self.whisker)
        return cross_entropy(
            torch.cat([logits, further.expand(len(logits), -1)], dim=1), person, reduction="none"
        )


def usual_negatives(embedding: Tensor, person: Tensor, whisker: float) -> Tensor:
    """Cosines (N,) of the pairs of two people, each pair once, without outliers.

    Kept is what lies within ``[q1 - w (q3 - q1), q3 + w (q3 - q1)]``; the quartiles are the values at a
    quarter and at three quarters of the sorted row, as in the authors' code.
    """
    unit = normalize(embedding.float(), dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
    is_negative = person[first] != person[second]
    cosine = (unit[first[is_negative]] * unit[second[is_negative]]).sum(dim=1)
    if not len(cosine):
        return cosine
    ordered = cosine.detach().sort().values
    low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    reach = whisker * (high - low)
    return cosine[(cosine >= low - reach) & (cosine <= high + reach)]


class JointHead(SoftmaxHead):
    """Plain softmax and a triplet term at once, as re-identification does.

    ``CE + w max(0, max_p d(a, p) - min_n d(a, n) + m)``: for each face the farthest picture of its person
    and the nearest of another one in the batch (Hermans et al. 2017, https://arxiv.org/abs/1703.07737, eq. 5;
    both together as in Luo et al. 2019, https://arxiv.org/abs/1903.07071). d is the distance of unit vectors.

    Args:
        dim: D.
        num_people: C.
        margin: m, in [0, 2).
        triplet_weight: w.

    Raises:
        ConfigError: for another margin, or where a scale is given.
    """

    needs_pairs = True

    def __init__(
        self, dim: int, num_people: int, *, margin: float = 0.3, scale: float | None = None,
        triplet_weight: float = 1.0,
    ) -> None:  # fmt: skip
        refuse("softmax_triplet", scale=scale)
        if not 0 <= margin < 2:
            raise ConfigError(
                f"the margin of softmax_triplet must be in [0, 2), a distance of unit vectors, got {margin}"
            )
        super().__init__(dim, num_people)
        self.margin, self.triplet_weight = margin, triplet_weight

    def loss(self, embedding: Tensor, centres: Tensor, person: Tensor, strength: float) -> Tensor:
        """Of each face: (B,)."""
        triplet = hard_triplet_loss(embedding, person, self.margin)
        return super().loss(embedding, centres, person, strength) + self.triplet_weight * triplet


def hard_triplet_loss(embedding: Tensor, person: Tensor, margin: float) -> Tensor:
    """The hardest triplet of each face: (B,); 0 where the batch has no second picture, or nobody else."""
    unit = normalize(embedding.float(), dim=1)
    distance = (2 - 2 * unit @ unit.T).clamp_min(1e-12).sqrt()  # a square root has no slope at 0
    same = person[:, None] == person[None, :]
    positive = same & ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    farthest = distance.masked_fill(~positive, -torch.inf).amax(dim=1)
    nearest = distance.masked_fill(same, torch.inf).amin(dim=1)
    has_both = positive.any(dim=1) & ~same.all(dim=1)
    return torch.where(has_both, torch.relu(farthest - nearest + margin), torch.zeros_like(nearest))
