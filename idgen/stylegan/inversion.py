"""Encoders that read a face as StyleGAN codes: pSp and e4e, two heads on one pyramid of an IR-SE50.

pSp is Richardson et al. 2021 (https://arxiv.org/abs/2008.00951), e4e is Tov et al. 2021
(https://arxiv.org/abs/2102.02766). The state dicts have the keys of the published checkpoints below
``encoder.``, where nothing tells the one from the other.

Shapes: B batch, L layers of the generator, C width of a code, F channels of the coarsest maps.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from idgen.stylegan.model import CodeEncoder
from idgen.stylegan.operations import EqualLinear

INPUT_PX = 256  # side of the crops that the published encoders read
STAGE_UNITS = (3, 4, 14, 3)  # residual units at 1/2, 1/4, 1/8 and 1/16 of the input: an IR-50
SQUEEZE = 16  # how much narrower the middle of a squeeze-and-excitation block is
# Layers 0 to 2 read the maps at 1/16 of the input, 3 to 6 those at 1/8, the others those at 1/4.
FIRST_MIDDLE_LAYER, FIRST_FINE_LAYER = 3, 7


class SqueezeExcitation(nn.Module):
    """Scales each channel by what the whole picture says of it (Hu et al. 2018, 1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // SQUEEZE)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, I, H, W) of any size."""
        mean = maps.mean(dim=(2, 3), keepdim=True)
        return maps * torch.sigmoid(self.fc2(torch.relu(self.fc1(mean))))


class ResidualUnit(nn.Module):
    """A unit of the improved residual network of ArcFace, with squeeze and excitation at its end."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)  # keeps every stride-th pixel
            if in_channels == out_channels
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            SqueezeExcitation(out_channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H / stride, W / stride)."""
        return self.res_layer(maps) + self.shortcut_layer(maps)


class StyleHead(nn.Module):
    """Maps to one code: convolutions of stride 2 down to one pixel, then a linear layer.

    Args:
        in_channels: of the maps.
        style_dim: C.
        num_halvings: log2 of the side of the maps.
    """

    def __init__(self, in_channels: int, style_dim: int, num_halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for step in range(num_halvings):
            layers += [nn.Conv2d(style_dim if step else in_channels, style_dim, 3, 2, 1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(style_dim, style_dim)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, F, side, side) -> (B, C)."""
        return self.linear(self.convs(maps).flatten(1))


class PyramidEncoder(CodeEncoder):
    """What pSp and e4e share: an IR-SE50, a feature pyramid over it, and one head for each code.

    Args:
        num_layers: L, as many codes as the generator reads.
        style_dim: C.
        width: channels of the first maps; F is eight times that. 64 in the published encoders.
    """

    def __init__(self, num_layers: int, style_dim: int = 512, width: int = 64) -> None:
        super().__init__()
        self.num_layers, self.style_dim = num_layers, style_dim
        stages = [width << level for level in range(len(STAGE_UNITS))]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)
        )
        units, before = [], width
        for channels, count in zip(stages, STAGE_UNITS, strict=True):
            units += [
                ResidualUnit(before if k == 0 else channels, channels, 1 + (k == 0)) for k in range(count)
            ]
            before = channels
        self.body = nn.Sequential(*units)
        coarse_halvings = (INPUT_PX >> len(STAGE_UNITS)).bit_length() - 1  # 16 pixels: 4
        self.styles = nn.ModuleList(
            StyleHead(before, style_dim, coarse_halvings + _level(layer)) for layer in range(num_layers)
        )
        self.latlayer1 = nn.Conv2d(stages[2], before, 1)
        self.latlayer2 = nn.Conv2d(stages[1], before, 1)

    def heads(self, pixel_values: Tensor) -> list[Tensor]:
        """What each head says of a face.

        Args:
            pixel_values: (B, 3, 256, 256) in [-1, 1].

        Returns:
            L tensors (B, C).
        """
        maps, stages = self.input_layer(pixel_values), []
        ends = [sum(STAGE_UNITS[: level + 1]) - 1 for level in range(len(STAGE_UNITS))]
        for number, unit in enumerate(self.body):
            maps = unit(maps)
            if number in ends:
                stages.append(maps)
        middle = _enlarged(stages[3], self.latlayer1(stages[2]))
        fine = _enlarged(middle, self.latlayer2(stages[1]))
        pyramid = (stages[3], middle, fine)
        return [head(pyramid[_level(layer)]) for layer, head in enumerate(self.styles)]


def _level(layer: int) -> int:
    """Which maps of the pyramid a layer reads: 0 coarse, 1 middle, 2 fine."""
    return (layer >= FIRST_MIDDLE_LAYER) + (layer >= FIRST_FINE_LAYER)


def _enlarged(coarse: Tensor, finer: Tensor) -> Tensor:
    """The sum at the size of ``finer``; the published encoders let the corners of both meet."""
    return interpolate(coarse, size=finer.shape[2:], mode="bilinear", align_corners=True) + finer


class GradualStyleEncoder(PyramidEncoder):
    """pSp: each head gives a code of its own."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, 256, 256) in [-1, 1] -> (B, L, C), to be added to the generator's mean code."""
        return torch.stack(self.heads(pixel_values), dim=1)


class Encoder4Editing(PyramidEncoder):
    """e4e: the first head gives a code for all layers, the others what each of them adds to it.

    So the codes stay near W, where they can be edited; during its training the additions were switched on one
    after the other, here all of them are.
    """

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, 256, 256) in [-1, 1] -> (B, L, C), to be added to the generator's mean code."""
        base, *deltas = self.heads(pixel_values)
        return torch.stack([base, *(base + delta for delta in deltas)], dim=1)
