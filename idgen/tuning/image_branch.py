"""What a photo shows beside the person, as a learned summand of the text: the image branch of DisenBooth.

Shapes: B rows, N pictures, V width of an image vector, L tokens, W width of the text, C channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, gelu

from idgen.diffusion.latents import Latents

GRID = 4  # cells a side that the latents are averaged to


def latent_vectors(latents: Latents) -> Tensor:
    """Light, background and posture of pictures: their latents averaged to 4 x 4 cells, (N, 16 C).

    The published program takes the vector of OpenCLIP's ViT-H, 2 GB of network that know the person as well;
    16 cells of the autoencoder know where what colour is, and no face.
    """
    return adaptive_avg_pool2d(latents.mean.float(), GRID).flatten(1)


class ImageBranch(nn.Module):
    """``f = W_2 gelu(W_1 (sigmoid(m) * v))``: which parts of v are not of the person, m, is learned.

    DisenBooth (Chen et al. 2023, https://arxiv.org/abs/2305.03374, section 3.2), whose adapter keeps the
    width and adds its input; here the width changes. ``W_2`` begins at a tenth of its usual size: the text
    leads.
    """

    def __init__(self, vector_dim: int, text_dim: int) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(vector_dim))
        self.down = nn.Linear(vector_dim, text_dim)
        self.up = nn.Linear(text_dim, text_dim)
        with torch.no_grad():
            self.up.weight.mul_(0.1)

    def forward(self, vector: Tensor) -> Tensor:
        """(B, V) -> (B, W)."""
        return self.up(gelu(self.down(torch.sigmoid(self.mask) * vector)))


class ImageConditionedUnet(nn.Module):
    """A UNet that is told, beside the text, what the image branch says."""

    def __init__(self, unet: nn.Module, branch: ImageBranch) -> None:
        super().__init__()
        self.unet, self.branch = unet, branch

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        image_vector: Tensor | None = None,
        image_scale: Tensor | float = 0.0,
        **settings: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - what the UNet returns
        """The answer to text + image_scale * f, the same summand for every token.

        Args:
            sample: noisy latents.
            timestep: (B,).
            encoder_hidden_states: (B, L, W).
            image_vector: (B, V); None for the text alone.
            image_scale: (B,) or one; 0 is the text alone.
            settings: everything else that the UNet takes.
        """
        if image_vector is not None:
            said = self.branch(image_vector.float())
            scale = torch.as_tensor(image_scale, dtype=said.dtype, device=said.device).expand(len(said))
            summand = (said * scale[:, None])[:, None].to(encoder_hidden_states.dtype)
            encoder_hidden_states = encoder_hidden_states + summand
        return self.unet(sample, timestep, encoder_hidden_states=encoder_hidden_states, **settings)
