"""What the identity must leave alone: the background, and the rest of the picture.

Shapes: B rows, D width of the face vectors, C channels, h and w of the latents.
"""

from typing import Literal, get_args

from torch import Tensor
from torch.nn.functional import normalize

from idgen.errors import ConfigError
from idgen.objectives.denoising import denoising_loss

Disturbance = Literal["shuffle", "mix", "noise"]
DISTURBANCES: tuple[Disturbance, ...] = get_args(Disturbance)


def disturbed(
    id_embedding: Tensor, other: Tensor, *, how: Disturbance, share: Tensor, noise: Tensor
) -> Tensor:
    """Somebody else's face vector, or one on the way there, of unit length.

    "shuffle": the other person. "mix": ``share * own + (1 - share) * other``, as MasterWeaver (Wei et al.
    2024, https://arxiv.org/abs/2405.05806) with shares in [0.2, 0.8]. "noise": ``own + noise``, one of the
    disturbances of the W+ Adapter's second stage (Li et al. 2023, https://arxiv.org/abs/2311.17461).

    Args:
        id_embedding: (B, D) of the people.
        other: (B, D) of other people.
        how: which way.
        share: (B,) in [0, 1].
        noise: (B, D), about as long as the vectors.

    Raises:
        ConfigError: if there is no such way.
    """
    if how not in DISTURBANCES:
        raise ConfigError(f"disturbance must be one of {', '.join(DISTURBANCES)}, got {how!r}")
    if how == "shuffle":
        return other
    if how == "mix":
        return normalize(share[:, None] * id_embedding + (1 - share[:, None]) * other, dim=1)
    return normalize(id_embedding + noise, dim=1)


def background_loss(model_output: Tensor, with_other: Tensor, face: Tensor) -> Tensor:
    """``sum (1 - M) (e(w) - sg e(w'))^2 / sum (1 - M)``: the background must not depend on who it is.

    The disentangling term of the W+ Adapter's second stage and the background term of MasterWeaver; other
    than theirs it is a mean over the background, so that a large face does not make it small.

    Args:
        model_output: (B, C, h, w) e(w), with gradients.
        with_other: (B, C, h, w) e(w') of the same noise with a disturbed identity; its gradient is stopped.
        face: (B, h, w) M, see `face_mask`.

    Returns:
        (B,) >= 0.

    Raises:
        ConfigError: if a face fills a whole picture.
    """
    return denoising_loss(model_output, with_other.detach(), 1 - face)


def preservation_loss(model_output: Tensor, without: Tensor) -> Tensor:
    """``mean (e(w) - sg e(0))^2``: the identity should change the model's answer no more than it must.

    The preserving term of the W+ Adapter's second stage.

    Args:
        model_output: (B, C, h, w) e(w), with gradients.
        without: (B, C, h, w) of the same noise at strength 0; its gradient is stopped.

    Returns:
        (B,) >= 0.
    """
    return denoising_loss(model_output, without.detach())
