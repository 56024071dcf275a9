"""The model that a LoRA's training sees: the UNet, and what is put around it for this or that method.

Shapes: B rows, N pictures, V width of an image vector.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from idgen.adapters.stages import StageTokens
from idgen.pipeline import IDPipeline, IDPipelineXL
from idgen.tuning.corpus import Batch, Corpus
from idgen.tuning.image_branch import GRID, ImageBranch, ImageConditionedUnet, latent_vectors
from idgen.tuning.lora import LoraSettings, add_lora
from idgen.tuning.stages import WEIGHT, StagedUnet, StageSettings, start_tokens

BRANCH = "image_branch"  # name of its weights among those that train


@dataclass(frozen=True, kw_only=True)
class PersonalModel:
    """What trains, and what the model is told of each row.

    Attributes:
        model: what the loop calls.
        trained: the weights that train, by name.
        tokens: identity tokens of each stage, where there are any.
        branch: the image branch, where there is one.
        image_vectors: (N, V) that the image branch reads, likewise.
    """

    model: nn.Module
    trained: dict[str, nn.Parameter]
    tokens: StageTokens | None = None
    branch: ImageBranch | None = None
    image_vectors: Tensor | None = None

    def conditions(self, corpus: Corpus, batch: Batch) -> dict[str, Tensor]:
        """What the model is told beside the text; prior rows are of nobody, and are told nothing."""
        is_own = ~corpus.is_prior[batch.rows]
        told: dict[str, Tensor] = {}
        if self.tokens is not None:
            told["has_tokens"] = is_own
        if self.image_vectors is not None:
            told |= {"image_vector": self.image_vectors[batch.rows], "image_scale": is_own.float()}
        return told


def personal_model(
    pipe: IDPipeline | IDPipelineXL,
    *,
    lora: LoraSettings | None,
    stages: StageSettings | None,
    has_branch: bool,
    prompt: str,
    corpus: Corpus | None,
    seed: int,
) -> PersonalModel:
    """Put LoRA, identity tokens and an image branch on a model, as far as they are wanted.

    Everything else of the model is frozen.

    Args:
        pipe: the model.
        lora: of the UNet, or None.
        stages: identity tokens, or None.
        has_branch: whether there is an image branch.
        prompt: that holds the words which the tokens begin with.
        corpus: whose latents the image branch reads; None to plan a run, when there is none yet.
        seed: of what begins at random.

    Raises:
        ConfigError: if LoRA or tokens do not fit.
    """
    torch.nn.Module.requires_grad_(pipe.unet, False)
    model, tokens, branch, vectors = pipe.unet, None, None, None
    trained = {} if lora is None else add_lora(pipe.unet, lora, seed=seed)
    if stages is not None:
        tokens = start_tokens(pipe, prompt, stages, seed=seed)
        model = StagedUnet(model, tokens)
        trained[WEIGHT] = tokens.tokens
    if has_branch:
        channels, width = pipe.unet.config["in_channels"], pipe.unet.config["cross_attention_dim"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            branch = ImageBranch(channels * GRID**2, width)
        model = ImageConditionedUnet(model, branch)
        trained |= {f"{BRANCH}.{name}": weight for name, weight in branch.named_parameters()}
        vectors = None if corpus is None else latent_vectors(corpus.latents)
    return PersonalModel(
        model=model.to(pipe.device), trained=trained, tokens=tokens, branch=branch, image_vectors=vectors
    )
