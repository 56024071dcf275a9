"""Whether the predicted face is that person: distances of face vectors, triplets, choice of negatives.

Shapes: B anchors, N vectors to choose negatives from, D embedding width. Vectors are float32 of unit length.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from idgen.errors import ConfigError

Mining = Literal["random", "semi-hard", "hard"]
MININGS: tuple[Mining, ...] = get_args(Mining)


def cosine_distance(anchor: Tensor, positive: Tensor) -> Tensor:
    """``d(a, p) = 1 - cos(a, p)``, one value a row.

    The identity term of PortraitBooth (Peng et al. 2023, https://arxiv.org/abs/2312.06354) in the form that
    ID-Booth's program gives it for comparison, with `late_weight` over the timesteps.

    Args:
        anchor: (B, D) of the predicted faces; gradients flow through these.
        positive: (B, D) of the same people.

    Returns:
        (B,) in [0, 2].
    """
    return 1 - (anchor * positive).sum(dim=-1)


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 1.0) -> Tensor:
    """``max(0, d(a, p) - d(a, n) + margin)`` with ``d = 1 - cos``, one value a row.

    The triplet identity objective of ID-Booth (Tomasevic et al. 2025, https://arxiv.org/abs/2504.07392),
    whose margin is 1. Other than FaceNet's it measures cosine distances, so the margin lives in (0, 2].

    Args:
        anchor: (B, D) of the predicted faces; gradients flow through these.
        positive: (B, D) of the same people.
        negative: (B, D) of other people.
        margin: wanted gap between the two distances, in (0, 2].

    Returns:
        (B,) >= 0.

    Raises:
        ConfigError: if ``margin`` is out of range.
    """
    if not 0 < margin <= 2:
        raise ConfigError(f"the margin must be in (0, 2] (distances are 1 - cosine), got {margin}")
    return torch.relu(cosine_distance(anchor, positive) - cosine_distance(anchor, negative) + margin)


def choose_negatives(
    anchor: Tensor,
    positive: Tensor,
    person: Tensor,
    bank: Tensor,
    bank_person: Tensor,
    *,
    mining: Mining = "random",
    draw: Tensor | None = None,
) -> Tensor:
    """Row of ``bank`` that stands against each anchor: somebody else's vector.

    "random": any other person's, each with the same probability. "semi-hard" (FaceNet, Schroff et al. 2015,
    https://arxiv.org/abs/1503.03832, section 3.2): the nearest that is still farther from the anchor than the
    positive is; where there is none, the farthest of all. "hard": the nearest.

    Args:
        anchor: (B, D).
        positive: (B, D).
        person: (B,) number of the person of each anchor.
        bank: (N, D), the whole batch or more; vectors of the anchors' own people are passed over.
        bank_person: (N,).
        mining: how.
        draw: (B, N) numbers drawn from [0, 1) that decide the choice at random: the same numbers choose the
            same vectors, in one process or several. Drawn here where not given.

    Returns:
        (B,) rows of ``bank``. No gradients.

    Raises:
        ConfigError: if ``mining`` is no such way, or the bank holds nobody else for an anchor.
    """
    if mining not in MININGS:
        raise ConfigError(f"mining must be one of {', '.join(MININGS)}, got {mining!r}")
    is_other = person[:, None] != bank_person[None, :]
    if not bool(is_other.any(dim=1).all()):
        lonely = (~is_other.any(dim=1)).nonzero().flatten().tolist()
        raise ConfigError(
            f"no negative for row {', '.join(map(str, lonely))}: every vector is of the same person; "
            "put several people into a batch, or prior pictures"
        )
    if mining == "random":
        draw = torch.rand(is_other.shape, device=is_other.device) if draw is None else draw
        return draw.masked_fill(~is_other, -1).argmax(dim=1)
    with torch.no_grad():
        distance = 1 - anchor.detach() @ bank.T
        nearest = distance.masked_fill(~is_other, torch.inf)
        if mining == "hard":
            return nearest.argmin(dim=1)
        is_farther = distance > cosine_distance(anchor.detach(), positive)[:, None]
        semi_hard = nearest.masked_fill(~is_farther, torch.inf)
        farthest = distance.masked_fill(~is_other, -torch.inf).argmax(dim=1)
        return torch.where(semi_hard.isfinite().any(dim=1), semi_hard.argmin(dim=1), farthest)
