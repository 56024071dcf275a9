"""Rewards for pictures that are made as in generation: that they show the person, that they look well.

Shapes: F rows with a face.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from torch.nn.functional import softplus

from idgen.errors import ConfigError
from idgen.metrics.diversity import picture_diversity
from idgen.objectives.faces import PredictedFaces
from idgen.objectives.terms import Step, Term, TermConfig, Values, distance_to_person, on_faces
from idgen.preference.model import load_preference


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TermConfig):
    """A reward; it has no timesteps: pictures are made from pure noise, whatever noise the batch has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if tuple(self.timesteps) != (0.0, 1.0) or self.time_power:
            raise ConfigError(
                "a reward judges finished pictures: it has no timesteps and no time_power; rollout.late says "
                "how late its last step is"
            )


@dataclass(frozen=True, kw_only=True)
class IdentityRewardConfig(RewardConfig):
    """The generated face should be that of the person."""


@dataclass(frozen=True, kw_only=True)
class AestheticRewardConfig(RewardConfig):
    """The generated face should be whole and sharp.

    Attributes:
        model: of preferences, a file of `idgen train preference`; None for the embedded one.
    """

    model: Path | None = None


def aesthetic_loss(score: Tensor, reference_score: float) -> Tensor:
    """``softplus(s_ref - s(x))`` = -log of the probability that x is preferred to a real photo, (F,).

    The Bradley-Terry likelihood that the model of preferences was trained with, here with real photos' mean
    score in place of the other picture.
    """
    return softplus(reference_score - score)


def _on_generated(step: Step, loss_of: Callable[[PredictedFaces], Tensor]) -> Values:
    """Values of the generated faces, and how different the pictures are."""
    seen = step.generated_faces
    values = on_faces(step, seen, loss_of)
    return replace(values, said={**values.said, "diversity": picture_diversity(seen.images)})


def identity_reward(_config: IdentityRewardConfig) -> Term:
    """``1 - R_id`` with ``R_id = cos(E(x0), E(photo))``: the identity reward of ID-Aligner.

    (Chen et al. 2024, https://arxiv.org/abs/2404.15449.) E is the torch encoder on the aligned face; a
    picture without a face says nothing and is counted.
    """
    return lambda step: _on_generated(step, lambda seen: distance_to_person(step, seen))


def aesthetic_reward(config: AestheticRewardConfig) -> Term:
    """The aesthetic reward of ID-Aligner by idgen's own model of preferences, see `aesthetic_loss`.

    Raises:
        ModelNotFoundError: if there is no such file.
    """
    model = load_preference(config.model).requires_grad_(False).eval()

    def loss_of(seen: PredictedFaces) -> Tensor:
        return aesthetic_loss(model.to(seen.crops.device)(seen.crops), model.reference_score)

    return lambda step: _on_generated(step, loss_of)
