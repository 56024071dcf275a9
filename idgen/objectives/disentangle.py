"""What the identity must leave alone: the background, and the rest of the picture.

Shapes: B rows, D width of the face vectors, C channels, h and w of the latents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from idgen.errors import ConfigError
from idgen.objectives.denoising import denoising_loss
from idgen.objectives.identity import choose_negatives
from idgen.objectives.terms import FaceTargets, Step, Term, TermConfig, Values, spread

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


@dataclass(frozen=True, kw_only=True)
class BackgroundConfig(TermConfig):
    """The background must not depend on who it is.

    Attributes:
        disturbance: "shuffle", "mix" or "noise": see `disturbed`.
        mix: lowest and highest share of the own vector, for "mix".
        noise: length of what is added, for "noise".
    """

    disturbance: Disturbance = "shuffle"
    mix: tuple[float, ...] = (0.2, 0.8)
    noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mix) != 2 or not 0 <= self.mix[0] <= self.mix[1] <= 1:
            raise ConfigError(f"mix must be two rising shares in [0, 1], got {list(self.mix)}")
        if not self.noise > 0:
            raise ConfigError(f"noise must be greater than 0, got {self.noise}")


@dataclass(frozen=True, kw_only=True)
class PreservationConfig(TermConfig):
    """The model's answer should change no more than it must."""


def background(config: BackgroundConfig) -> Term:
    """The background under another identity, of rows with an identity and a face."""

    def on_background(step: Step) -> Values:
        faces, ask = _needed(step)
        rows = step.face_rows[step.face_mask[step.face_rows].amax(dim=(1, 2)) > 0]
        if not len(rows):
            return spread(step, rows, step.model_output.new_zeros(0))
        assert faces.draw is not None
        low, high = config.mix
        share = low + (high - low) * faces.draw[rows, 0]
        name = "codes" if "codes" in step.conditions else "id_embedding"
        disturb = _disturbed_codes if name == "codes" else _disturbed_vectors
        told = step.conditions[name].clone()
        told[rows] = disturb(told[rows], faces, rows, config, share)
        with torch.no_grad():
            with_other = ask(**{name: told})
        face = step.face_mask[rows]
        return spread(step, rows, background_loss(step.model_output[rows], with_other[rows], face))

    return on_background


def preservation(_config: PreservationConfig) -> Term:
    """The answer at strength 0, of rows with an identity."""

    def on_rows(step: Step) -> Values:
        _, ask = _needed(step)
        rows = step.face_rows
        with torch.no_grad():
            without = ask(id_scale=0.0)
        return spread(step, rows, preservation_loss(step.model_output[rows], without[rows]))

    return on_rows


def _needed(step: Step) -> tuple[FaceTargets, Callable[..., Tensor]]:
    if step.faces is None or step.ask is None:
        raise ConfigError(
            "background and preservation compare the model with itself under another identity: they train an "
            "adapter"
        )
    return step.faces, step.ask


def _disturbed_vectors(
    own: Tensor, faces: FaceTargets, rows: Tensor, config: BackgroundConfig, share: Tensor
) -> Tensor:
    assert faces.noise is not None
    other = faces.bank[_somebody_else(faces, rows)]
    noise = config.noise * faces.noise[rows]
    return disturbed(own, other, how=config.disturbance, share=share, noise=noise)


def _disturbed_codes(
    own: Tensor, faces: FaceTargets, rows: Tensor, config: BackgroundConfig, share: Tensor
) -> Tensor:
    """Somebody else's W+ codes, or those on the straight way there: codes have no length to keep."""
    assert faces.bank_codes is not None
    other = faces.bank_codes(_somebody_else(faces, rows))
    if config.disturbance == "noise":
        raise ConfigError("the disturbance noise is for face vectors; W+ codes take shuffle or mix")
    return other if config.disturbance == "shuffle" else torch.lerp(other, own, share[:, None, None])


def _somebody_else(faces: FaceTargets, rows: Tensor) -> Tensor:
    """Rows of the bank that show other people than these."""
    anchor = faces.id_embedding[rows]
    draw = None if faces.draw is None else faces.draw[rows]
    return choose_negatives(anchor, anchor, faces.person[rows], faces.bank, faces.bank_person, draw=draw)
