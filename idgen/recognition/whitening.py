"""A linear map after a recogniser that evens out how pictures of one person vary.

Shapes: N pictures, D embedding width.
"""

import torch
from torch import Tensor


def whitening(
    embedding: Tensor, owner: Tensor, *, exponent: float, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """The centre and the symmetric matrix of ``z = matrix (x - centre)``, with ``matrix ~ S^-exponent``.

    S is the covariance within people, shrunk towards a multiple of the identity. Within-class covariance
    normalisation (Hatch et al. 2006) has the exponent 1/2; a smaller one keeps more of the original geometry.

    Args:
        embedding: (N, D) raw vectors.
        owner: (N,) number of the person, 0 and up, each with two pictures at least.
        exponent: in [0, 1]; 0 only centres.
        shrinkage: share of the multiple of the identity, in [0, 1].

    Returns:
        centre (D,) and matrix (D, D); the mean length of a vector stays what it was.
    """
    num_people = int(owner.max()) + 1
    sums = torch.zeros(num_people, embedding.shape[1]).index_add_(0, owner, embedding)
    within = embedding - (sums / torch.bincount(owner)[:, None])[owner]
    covariance = within.T @ within / (len(within) - num_people)
    level = covariance.diagonal().mean() * torch.eye(len(covariance))
    values, vectors = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * level)
    matrix = vectors @ torch.diag(values**-exponent) @ vectors.T
    centre = embedding.mean(dim=0)
    length = embedding.norm(dim=1).mean() / ((embedding - centre) @ matrix).norm(dim=1).mean()
    return centre, matrix * length
