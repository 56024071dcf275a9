"""A model's UNet as training sees it: prompts that are encoded once, and one call for SD 1.x, 2.x and SDXL.

Shapes: P prompts, B rows, L tokens of text, W width of the text, C channels, h and w of the latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor, nn

from idgen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TextStates:
    """Prompts as the text encoders say them.

    Attributes:
        prompts: P different ones.
        hidden: (P, L, W).
        pooled: (P, W') of SDXL; None where a model has no such thing.
    """

    prompts: tuple[str, ...]
    hidden: Tensor
    pooled: Tensor | None

    def rows(self, prompts: Sequence[str]) -> Tensor:
        """(B,) where these prompts are. A prompt that was not encoded is a KeyError."""
        place = {prompt: row for row, prompt in enumerate(self.prompts)}
        return torch.tensor([place[prompt] for prompt in prompts], dtype=torch.long)


@torch.no_grad()
def encode_texts(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, prompts: Sequence[str]
) -> TextStates:
    """Encode each different prompt once, as the pipeline itself does it; on the CPU."""
    known = tuple(dict.fromkeys(prompts))
    said: list[Sequence[Any]] = [
        pipe.encode_prompt(
            prompt, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        for prompt in known
    ]
    pooled = None  # SDXL's fourfold answer has it in the third place
    if isinstance(pipe, StableDiffusionXLPipeline):
        pooled = torch.cat([states[2].float().cpu() for states in said])
    hidden = torch.cat([states[0].float().cpu() for states in said])
    return TextStates(prompts=known, hidden=hidden, pooled=pooled)


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """The call of a UNet.

    Attributes:
        unet: it, or what wraps it for several processes.
        texts: every prompt of the training.
        size_px: side of the pictures: SDXL is told it.
    """

    unet: nn.Module
    texts: TextStates
    size_px: int

    def of(self, unet: nn.Module) -> "Denoiser":
        """The same for another UNet, or for what wraps it."""
        return replace(self, unet=unet)

    def __call__(self, noisy: Tensor, timesteps: Tensor, text_rows: Tensor, **conditions: Tensor) -> Tensor:
        """What the model says of (B, C, h, w), in float32, with gradients.

        Args:
            noisy: latents.
            timesteps: (B,).
            text_rows: (B,) rows of ``texts``.
            conditions: whatever else the UNet is told of each row.
        """
        hidden = self.texts.hidden[text_rows].to(noisy)
        settings: dict[str, Any] = dict(conditions)
        if self.texts.pooled is not None:
            size = self.size_px
            time_ids = torch.tensor([[size, size, 0, 0, size, size]], dtype=noisy.dtype, device=noisy.device)
            pooled = self.texts.pooled[text_rows].to(noisy)
            settings["added_cond_kwargs"] = {
                "text_embeds": pooled,
                "time_ids": time_ids.expand(len(noisy), 6),
            }
        said = self.unet(noisy, timesteps, encoder_hidden_states=hidden, return_dict=False, **settings)
        return said[0].float()

    def guided(
        self, text_rows: Tensor, guidance: float, **conditions: Tensor
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The call with classifier-free guidance: ``u + guidance (c - u)``, gradients through c alone.

        u is the answer to the empty prompt and conditions of zeros (Ho and Salimans 2022,
        https://arxiv.org/abs/2207.12598). At guidance 1 that is c, and u is not computed.

        Raises:
            ConfigError: if the empty prompt is not among ``texts`` and guidance is not 1.
        """
        if guidance == 1:
            return lambda noisy, timesteps: self(noisy, timesteps, text_rows, **conditions)
        if "" not in self.texts.prompts:
            raise ConfigError("guidance needs the empty prompt among the encoded texts")
        empty = self.texts.rows([""]).expand(len(text_rows))
        nothing = {name: torch.zeros_like(value) for name, value in conditions.items()}

        def ask(noisy: Tensor, timesteps: Tensor) -> Tensor:
            said = self(noisy, timesteps, text_rows, **conditions)
            with torch.no_grad():
                without = self(noisy.detach(), timesteps, empty, **nothing)
            return without + guidance * (said - without)

        return ask


def picture_px(pipe: StableDiffusionPipeline | StableDiffusionXLPipeline) -> int:
    """Side of the pictures that a model was made for, in pixels."""
    unet: UNet2DConditionModel = pipe.unet
    return int(unet.config["sample_size"]) * pipe.vae_scale_factor
