"""The two terms that keep person and photo apart in DisenBooth: weak denoising, contrastive embedding.

Shapes: B rows, R of them of the person, W width of the text, C channels, h and w of the latents.
"""

from dataclasses import dataclass

from torch.nn.functional import cosine_similarity

from idgen.errors import ConfigError
from idgen.objectives.denoising import denoising_loss
from idgen.objectives.terms import Step, Term, TermConfig, Values


@dataclass(frozen=True, kw_only=True)
class TextOnlyConfig(TermConfig):
    """The text alone must still say the person, a little; the published weight."""

    weight: float = 0.01


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(TermConfig):
    """What the image branch says must not be what the text says; the published weight."""

    weight: float = 0.001


def text_only(_config: TextOnlyConfig) -> Term:
    """``mean (e(text) - target)^2``: the weak denoising term of DisenBooth, gradients to the model's weights.

    (Chen et al. 2023, https://arxiv.org/abs/2305.03374, eq. 4: weight 0.01 beside the error with both.)
    """

    def term(step: Step) -> Values:
        if step.ask is None or step.image_states is None:
            raise _no_branch()
        rows = step.instance_rows
        alone = step.ask(image_scale=0.0)[rows]
        return Values(rows=rows, loss=denoising_loss(alone, step.target[rows]))

    return term


def contrastive(_config: ContrastiveConfig) -> Term:
    """``cos(mean over tokens of the text, f)`` in [-1, 1]: the contrastive embedding term of DisenBooth.

    (Chen et al. 2023, https://arxiv.org/abs/2305.03374, eq. 5: weight 0.001.) Gradients to the image branch.
    """

    def term(step: Step) -> Values:
        if step.image_states is None:
            raise _no_branch()
        text, image = step.image_states()
        rows = step.instance_rows
        return Values(rows=rows, loss=cosine_similarity(text[rows].float(), image[rows].float(), dim=1))

    return term


def _no_branch() -> ConfigError:
    return ConfigError("text_only and contrastive need an image branch: they train a LoRA (idgen train lora)")
