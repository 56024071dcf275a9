"""Identity tokens per stage in training: where they begin, and the UNet with them as one module.

Shapes: B rows, L text tokens, W text width, S stages, n tokens of a stage, K tokens of a few words.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from idgen.adapters.stages import StageTokens
from idgen.diffusion.denoiser import encode_texts
from idgen.errors import ConfigError
from idgen.pipeline import IDPipeline, IDPipelineXL

WEIGHT = "stage_tokens"  # name of the tokens among the weights that train


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How many identity tokens there are, and where they begin.

    Attributes:
        stages: S, equal parts of the timesteps, each with tokens of its own; 5 is SeFi-IDE's.
        tokens: n of each stage.
        words: part of the prompt whose text states they begin with.
        noise: what is added to these at random, as a share of their size; without it, tokens that begin with
            the same word would stay equal.
    """

    stages: int = 5
    tokens: int = 2
    words: str = "sks person"
    noise: float = 0.01

    def __post_init__(self) -> None:
        if self.stages < 1 or self.tokens < 1:
            raise ConfigError(f"stages and tokens must be at least 1, got {self.stages} and {self.tokens}")
        if not self.words.strip():
            raise ConfigError("words must be part of the prompt, such as 'sks person'; they are empty")
        if not self.noise >= 0:
            raise ConfigError(f"noise must not be negative, got {self.noise}")


def word_states(pipe: IDPipeline | IDPipelineXL, prompt: str, words: str) -> Tensor:
    """(K, W) what the text encoder says of some words of a prompt, token by token, float32 on the CPU.

    Raises:
        ConfigError: if the prompt does not hold these words, or is cut off before them.
    """
    tokenizer = pipe.tokenizer
    longest: int = tokenizer.model_max_length
    # SDXL's second tokenizer differs in its padding only: a word has the same place in both
    said: list[int] = tokenizer(prompt, truncation=True, max_length=longest).input_ids
    sought: list[int] = tokenizer(words, add_special_tokens=False).input_ids
    places = range(len(said) - len(sought) + 1)
    start = next((i for i in places if said[i : i + len(sought)] == sought), None)
    if start is None or not sought:
        raise ConfigError(
            f"the words {words!r} are not in the first {longest} tokens of the prompt {prompt!r}; name words "
            "that stand in it"
        )
    return encode_texts(pipe, [prompt]).hidden[0, start : start + len(sought)]


def start_tokens(
    pipe: IDPipeline | IDPipelineXL, prompt: str, settings: StageSettings, *, seed: int
) -> StageTokens:
    """New tokens, each the text state of one of the words and a little noise.

    Vectors that no text encoder would say have the wrong length for the attention layers, so that they get
    either all of the attention or none. Of more words than tokens the last ones count, which know of those
    before them; of fewer, each begins several tokens.

    Args:
        pipe: the model.
        prompt: of the training.
        settings: how many.
        seed: of the noise.

    Raises:
        ConfigError: if the prompt does not hold the words.
    """
    states = word_states(pipe, prompt, settings.words)[-settings.tokens :]
    begin = states[torch.arange(settings.tokens) % len(states)]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(settings.stages, *begin.shape, generator=generator)
    size = states.square().mean().sqrt()
    return StageTokens(begin + settings.noise * size * noise, pipe.scheduler.config["num_train_timesteps"])


class StagedUnet(nn.Module):
    """A UNet and the tokens of a person; its own weights are frozen, the tokens train, and LoRA on it too.

    Args:
        unet: with LoRA on it or not (`idgen.tuning.lora.add_lora`, before).
        tokens: that fit it.
    """

    def __init__(self, unet: UNet2DConditionModel, tokens: StageTokens) -> None:
        super().__init__()
        for name, weight in unet.named_parameters():
            if "lora_" not in name:  # peft's names
                weight.requires_grad_(False)
        tokens.requires_grad_(True).float()
        self.unet, self.tokens = unet, tokens

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights that train: ``stage_tokens`` (S, n, W), and LoRA's by their names in the UNet."""
        lora = {name: weight for name, weight in self.unet.named_parameters() if weight.requires_grad}
        return {WEIGHT: self.tokens.tokens, **lora}

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        has_tokens: Tensor | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - what the UNet returns
        """The UNet's answer with the tokens behind the text.

        Args:
            sample: (B, C, h, w).
            timestep: (B,), or one for all rows.
            encoder_hidden_states: (B, L, W).
            has_tokens: (B,) whether each row sees the tokens: not prior rows, nor any of the bare class. All
                rows where None.
            settings: whatever else the UNet takes; no ``encoder_attention_mask``.
        """
        if has_tokens is not None:
            settings["encoder_attention_mask"] = self.tokens.mask(encoder_hidden_states, has_tokens)
        hidden = self.tokens(encoder_hidden_states, timestep)
        return self.unet(sample, timestep, encoder_hidden_states=hidden, **settings)
