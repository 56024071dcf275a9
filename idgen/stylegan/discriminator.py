"""Tells photos from what a generator makes: for adversarial training only, it is in no file.

Shapes: B batch, S side of the picture.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from idgen.stylegan.generator import FIRST_SIZE_PX
from idgen.stylegan.operations import EqualConv2d, EqualLinear, scaled_leaky_relu


class HalvingBlock(nn.Module):
    """Two convolutions and a halving, with a shortcut (Karras et al. 2020, sec. 4.2)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.first = EqualConv2d(num_in, num_in, 3, padding=1)
        self.second = EqualConv2d(num_in, num_out, 3, padding=1)
        self.shortcut = EqualConv2d(num_in, num_out, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, num_in, H, W) -> (B, num_out, H / 2, W / 2)."""
        seen = scaled_leaky_relu(self.second(scaled_leaky_relu(self.first(maps))))
        return (avg_pool2d(seen, 2) + self.shortcut(avg_pool2d(maps, 2))) * 2**-0.5


class Discriminator(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] to one number each, large for photos (Karras et al. 2020).

    Args:
        channels: width of the maps from 4 pixels up to S, as the generator's.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        widths = list(channels)
        self.from_rgb = EqualConv2d(3, widths[-1], 1)
        pairs = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.blocks = nn.Sequential(*[HalvingBlock(num_in, num_out) for num_in, num_out in pairs])
        self.last = EqualLinear(widths[0] * FIRST_SIZE_PX**2, widths[0], is_activated=True)
        self.said = EqualLinear(widths[0], 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B,)."""
        maps: Tensor = self.blocks(scaled_leaky_relu(self.from_rgb(pixel_values)))
        return self.said(self.last(torch.flatten(maps, 1)))[:, 0]
