"""Heads that teach a recogniser to tell labelled people apart, with a margin.

Shapes: B batch, D embedding width, C people (or those of them that take part), K centres of a person.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from idgen.errors import ConfigError


class CentreHead(nn.Module):
    """Cross-entropy over cosines to learned centres; a head says what becomes of the own one.

    Args:
        dim: D.
        num_people: C.
        margin: how much harder the own cosine is made.
        scale: s, which the cosines are multiplied by.
        centres_each: K.
    """

    needs_pairs = False  # whether each person must have two pictures at least

    def __init__(
        self, dim: int, num_people: int, *, margin: float, scale: float, centres_each: int = 1
    ) -> None:
        super().__init__()
        self.dim, self.margin, self.scale = dim, margin, scale
        self.centres = nn.Parameter(torch.randn(num_people, centres_each * dim) / math.sqrt(dim))

    def forward(self, embedding: Tensor, person: Tensor, strength: float = 1.0) -> Tensor:
        """The loss of each face.

        Args:
            embedding: (B, D), of any length.
            person: (B,) int64 in [0, C).
            strength: share of the margin in [0, 1]; growing from 0, the first steps are easier.

        Returns:
            (B,) unreduced, at least 0.
        """
        return self.loss(embedding, self.centres, person, strength)

    def loss(self, embedding: Tensor, centres: Tensor, person: Tensor, strength: float) -> Tensor:
        """The same with these centres (C, K D), which need not be all."""
        return cross_entropy(self.logits(embedding, centres, person, strength), person, reduction="none")

    def logits(self, embedding: Tensor, centres: Tensor, person: Tensor, strength: float) -> Tensor:
        """What the softmax is taken of: (B, C)."""
        cosine = self.cosines(embedding, centres)
        own = cosine.gather(1, person[:, None])
        return self.scale * cosine.scatter(1, person[:, None], self.own(own, embedding, strength))

    def cosines(self, embedding: Tensor, centres: Tensor) -> Tensor:
        """Of each face to each person: (B, C)."""
        return normalize(embedding.float(), dim=1) @ normalize(centres.float(), dim=1).T

    def own(self, cosine: Tensor, embedding: Tensor, strength: float) -> Tensor:
        """The cosine (B, 1) to the own centre, made harder."""
        raise NotImplementedError


class MarginHead(CentreHead):
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
        centres_each: K, for `SubcenterHead`.

    Raises:
        ConfigError: for another kind, a margin outside [0, 1) or a scale that is not positive.
    """

    def __init__(
        self, dim: int, num_people: int, *, kind: str = "cosface", margin: float = 0.35, scale: float = 32.0,
        centres_each: int = 1,
    ) -> None:  # fmt: skip
        if kind not in ("arcface", "cosface"):
            raise ConfigError(f"the margin must be of the kind arcface or cosface, got {kind!r}")
        check_margin(margin, scale)
        super().__init__(dim, num_people, margin=margin, scale=scale, centres_each=centres_each)
        self.kind = kind

    def own(self, cosine: Tensor, embedding: Tensor, strength: float) -> Tensor:
        """By the formula of the kind."""
        return self._harder(cosine, strength * self.margin)

    def _harder(self, cosine: Tensor, margin: float) -> Tensor:
        if self.kind == "cosface":
            return cosine - margin
        sine = (1 - cosine.square()).clamp_min(1e-7).sqrt()
        turned = cosine * math.cos(margin) - sine * math.sin(margin)
        return torch.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))


class SubcenterHead(MarginHead):
    """ArcFace with several centres a person, of which the nearest counts: wrong labels get one of their own.

    ``cos(theta_j) = max_k cos(theta_jk)`` (Deng et al. 2020, "Sub-center ArcFace", ECCV,
    https://doi.org/10.1007/978-3-030-58621-8_43).

    Args:
        dim: D.
        num_people: C.
        margin: in radians.
        scale: s.
        centres_each: K.

    Raises:
        ConfigError: as for `MarginHead`.
    """

    def __init__(
        self, dim: int, num_people: int, *, margin: float = 0.5, scale: float = 64.0, centres_each: int = 3
    ) -> None:
        super().__init__(
            dim, num_people, kind="arcface", margin=margin, scale=scale, centres_each=centres_each
        )

    def cosines(self, embedding: Tensor, centres: Tensor) -> Tensor:
        """To the nearest of the K centres of each person: (B, C)."""
        every = super().cosines(embedding, centres.reshape(-1, self.dim))
        return every.reshape(len(embedding), len(centres), -1).amax(dim=2)


class AngularHead(CentreHead):
    """A-Softmax: the angle to the own centre counts m-fold; the length of the embedding is the scale.

    ``|x| psi(theta)`` with ``psi(theta) = (-1)^k cos(m theta) - 2 k`` on ``[k pi / m, (k + 1) pi / m]``,
    against ``|x| cos(theta_j)`` (Liu et al. 2017, "SphereFace", https://arxiv.org/abs/1704.08063, eq. 7).
    ``psi`` is mixed with the cosine as ``(l cos(theta) + psi(theta)) / (1 + l)``. The authors let ``l`` fall
    as ``1 / (1 + g t)`` down to 5; here ``l = 5 / strength``, the same law where strength grows evenly.

    Args:
        dim: D.
        num_people: C.
        margin: m, a whole number from 1 to 8.
        least_lambda: l at full strength.

    Raises:
        ConfigError: for another m, or where a scale is given.
    """

    def __init__(
        self, dim: int, num_people: int, *, margin: float = 4, scale: float | None = None,
        least_lambda: float = 5.0,
    ) -> None:  # fmt: skip
        refuse("asoftmax", scale=scale)
        if margin not in range(1, 9):
            raise ConfigError(f"the margin of asoftmax must be a whole number from 1 to 8, got {margin}")
        super().__init__(dim, num_people, margin=int(margin), scale=1.0)
        self.least_lambda = least_lambda

    def logits(self, embedding: Tensor, centres: Tensor, person: Tensor, strength: float) -> Tensor:
        """Cosines times the length of the embedding."""
        length = torch.linalg.vector_norm(embedding.float(), dim=1, keepdim=True)
        return length * super().logits(embedding, centres, person, strength)

    def own(self, cosine: Tensor, embedding: Tensor, strength: float) -> Tensor:
        """The mixture; ``cos(m theta)`` is the Chebyshev polynomial of the cosine, which needs no angle."""
        before, multiple = torch.ones_like(cosine), cosine
        for _ in range(int(self.margin) - 1):
            before, multiple = multiple, 2 * cosine * multiple - before
        angle = cosine.detach().clamp(-1, 1).acos()
        k = (angle * self.margin / math.pi).floor().clamp_max(self.margin - 1)
        psi = (1 - 2 * (k % 2)) * multiple - 2 * k
        return (self.least_lambda * cosine + strength * psi) / (self.least_lambda + strength)


class AdaFaceHead(CentreHead):
    """AdaFace: the margin goes by the length of the embedding, which tells the quality of a picture.

    ``cos(theta + g_angle) - g_add`` with ``g_angle = -m z``, ``g_add = m z + m`` and
    ``z = clip((|x| - mean) / (std / h), -1, 1)``; mean and std of the lengths run along (Kim et al. 2022,
    https://arxiv.org/abs/2204.00964). As in the authors' code lengths count within [0.001, 100] and have no
    gradient, and angles and cosines stay 0.001 away from their ends.

    Args:
        dim: D.
        num_people: C.
        margin: m.
        scale: s.
        spread: h.
        share: of a batch in the running mean and std.

    Raises:
        ConfigError: for a margin outside [0, 1) or a scale that is not positive and finite.
    """

    norm_mean: Tensor
    norm_std: Tensor

    def __init__(
        self, dim: int, num_people: int, *, margin: float = 0.4, scale: float = 64.0, spread: float = 0.333,
        share: float = 0.01,
    ) -> None:  # fmt: skip
        check_margin(margin, scale)
        super().__init__(dim, num_people, margin=margin, scale=scale)
        self.spread, self.share = spread, share
        self.register_buffer("norm_mean", torch.tensor(20.0))  # where the authors begin
        self.register_buffer("norm_std", torch.tensor(100.0))

    def cosines(self, embedding: Tensor, centres: Tensor) -> Tensor:
        """A little away from 1 and -1, where an angle has no gradient."""
        return super().cosines(embedding, centres).clamp(-1 + 1e-3, 1 - 1e-3)

    def own(self, cosine: Tensor, embedding: Tensor, strength: float) -> Tensor:
        """By the quality of each picture; in training the running numbers move first."""
        norm = torch.linalg.vector_norm(embedding.detach().float(), dim=1, keepdim=True).clamp(1e-3, 100)
        if self.training:
            self.norm_mean.lerp_(norm.mean(), self.share)
            self.norm_std.lerp_(norm.std(), self.share)
        z = ((norm - self.norm_mean) / (self.norm_std + 1e-3) * self.spread).clamp(-1, 1)
        margin = strength * self.margin
        angle = (cosine.acos() - margin * z).clamp(1e-3, math.pi - 1e-3)
        return angle.cos() - (margin + margin * z)


class SoftmaxHead(CentreHead):
    """Plain cross-entropy over ``w_j x``: no margin, no unit length, no bias (ArcFace, eq. 1 with b = 0).

    Args:
        dim: D.
        num_people: C.

    Raises:
        ConfigError: where a margin or a scale is given.
    """

    def __init__(
        self, dim: int, num_people: int, *, margin: float | None = None, scale: float | None = None
    ) -> None:
        refuse("softmax", margin=margin, scale=scale)
        super().__init__(dim, num_people, margin=0.0, scale=1.0)

    def logits(self, embedding: Tensor, centres: Tensor, person: Tensor, strength: float) -> Tensor:
        """(B, C)."""
        return embedding.float() @ centres.float().T


def check_margin(margin: float, scale: float) -> None:
    """Refuse what no head can use.

    Raises:
        ConfigError: for a margin outside [0, 1) or a scale that is not positive and finite.
    """
    if not 0 <= margin < 1 or not 0 < scale < math.inf:
        raise ConfigError(f"margin must be in [0, 1) and scale positive and finite, got {margin} and {scale}")


def refuse(head: str, **given: float | None) -> None:
    """Refuse settings that a head does not have.

    Raises:
        ConfigError: if one of them is given.
    """
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"the head {head} has no {name}, got {value}; leave it out")
