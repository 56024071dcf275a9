"""A recogniser unlike mini's: bottlenecks, attention to channels, one average over the whole face.

It is the second eye, so it shares as little as it can with the first: neither blocks, head nor activation.

Shapes: B batch, C channels, H height, W width, D embedding width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class SqueezeBlock(nn.Module):
    """Narrow, look around, weigh the channels, widen; the input is added where it fits.

    The weights of the channels come from their means (Hu et al. 2018, https://arxiv.org/abs/1709.01507).
    """

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        inner = num_out // 2
        self.narrow = nn.Sequential(nn.Conv2d(num_in, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.SiLU())
        self.look = nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner), nn.SiLU()
        )
        self.weigh = nn.Sequential(nn.Linear(inner, inner // 4), nn.SiLU(), nn.Linear(inner // 4, inner))
        self.widen = nn.Sequential(nn.Conv2d(inner, num_out, 1, bias=False), nn.BatchNorm2d(num_out))
        keeps = stride == 1 and num_in == num_out
        self.shortcut = (
            nn.Identity()
            if keeps
            else nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
                nn.Conv2d(num_in, num_out, 1, bias=False),
                nn.BatchNorm2d(num_out),
            )
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_out, H / stride, W / stride)."""
        seen = self.look(self.narrow(maps))
        seen = seen * self.weigh(seen.mean(dim=(2, 3))).sigmoid()[:, :, None, None]
        return silu(self.widen(seen) + self.shortcut(maps))


class SqueezeNet112(nn.Module):
    """Pixel values (B, 3, 112, 112) in [-1, 1] -> raw embedding (B, D).

    Args:
        widths: channels of each stage; the first comes after a patch of 4 x 4 pixels, each further one halves
            the side.
        blocks: number of blocks in each stage.
        dim: D.
        dropout: share of the averaged features that is dropped in training.
    """

    def __init__(
        self, widths: tuple[int, ...], blocks: tuple[int, ...], dim: int, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.dim = dim
        stages: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 6, 4, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.SiLU()
        ]  # fmt: skip
        width = widths[0]
        for number, (num_out, num_blocks) in enumerate(zip(widths, blocks, strict=True)):
            for i in range(num_blocks):
                stages.append(SqueezeBlock(width, num_out, 2 if i == 0 and number else 1))
                width = num_out
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.BatchNorm1d(width), nn.Dropout(dropout), nn.Linear(width, dim), nn.BatchNorm1d(dim)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The raw embedding (B, D)."""
        return self.head(self.stages(pixel_values).float().mean(dim=(2, 3)))


def mirrored_mean(network: nn.Module, pixel_values: Tensor) -> Tensor:
    """The mean of the embeddings of a face and its mirror image: (B, D)."""
    both = network(torch.cat([pixel_values, pixel_values.flip(-1)]))
    return both.reshape(2, -1, both.shape[-1]).mean(dim=0)


class Mirrored(nn.Module):
    """A network that looks at the mirror image of a face too: `mirrored_mean` as a module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> (B, D)."""
        return mirrored_mean(self.network, pixel_values)
