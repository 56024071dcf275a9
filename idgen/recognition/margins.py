"""Heads that teach a recogniser to tell labelled people apart, with a margin.

Shapes: B batch, D embedding width, C people.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from idgen.errors import ConfigError


class MarginHead(nn.Module):
    """Cross-entropy over cosines to a learned centre of each person; the own cosine is made harder first.

    ``arcface``: ``cos(theta + m)`` (Deng et al. 2019, https://arxiv.org/abs/1801.07698, eq. 3), continued
    beyond ``theta = pi - m`` as ``cos(theta) - m sin(m)``, so that it keeps falling.
    ``cosface``: ``cos(theta) - m`` (Wang et al. 2018, https://arxiv.org/abs/1801.09414, eq. 4).

    Args:
        dim: D.
        num_people: C.
        kind: "arcface" or "cosface".
        margin: m, in radians for arcface, of the cosine for cosface; 0 gives the plain normalised softmax.
        scale: s, which the cosines are multiplied by.

    Raises:
        ConfigError: for another kind, a margin outside [0, 1) or a scale that is not positive.
    """

    def __init__(
        self, dim: int, num_people: int, *, kind: str = "cosface", margin: float = 0.35, scale: float = 32.0
    ) -> None:
        super().__init__()
        if kind not in ("arcface", "cosface"):
            raise ConfigError(f"the margin must be of the kind arcface or cosface, got {kind!r}")
        if not 0 <= margin < 1 or scale <= 0:
            raise ConfigError(f"margin must be in [0, 1) and scale positive, got {margin} and {scale}")
        self.kind, self.margin, self.scale = kind, margin, scale
        self.centres = nn.Parameter(torch.randn(num_people, dim) / math.sqrt(dim))

    def forward(self, embedding: Tensor, person: Tensor, strength: float = 1.0) -> Tensor:
        """The loss of each face.

        Args:
            embedding: (B, D), of any length.
            person: (B,) int64 in [0, C).
            strength: share of the margin in [0, 1]; growing from 0, the first steps are easier.

        Returns:
            (B,) unreduced, at least 0.
        """
        cosine = normalize(embedding.float(), dim=1) @ normalize(self.centres.float(), dim=1).T
        own = cosine.gather(1, person[:, None])
        return cross_entropy(
            self.scale * cosine.scatter(1, person[:, None], self._harder(own, strength * self.margin)),
            person,
            reduction="none",
        )

    def _harder(self, cosine: Tensor, margin: float) -> Tensor:
        if self.kind == "cosface":
            return cosine - margin
        sine = (1 - cosine.square()).clamp_min(1e-7).sqrt()
        turned = cosine * math.cos(margin) - sine * math.sin(margin)
        return torch.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))
