"""The network of mini's detector: small, with the outputs of SCRFD.

Shapes: B batch, H and W multiples of 32, A anchors of all strides (two for every cell; strides 8, 16, 32).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from idgen.faces.scrfd import ANCHORS_PER_CELL, STRIDES

# The two anchors of a cell stand for faces around these sizes (as in SCRFD). The network speaks of distances
# in units of them, so that one head serves all strides.
ANCHOR_SIZES_PX = ((16.0, 32.0), (64.0, 128.0), (256.0, 512.0))
NUM_VALUES = 1 + 4 + 10  # score, distances to the sides of the box, offsets of five landmarks
PRIOR = (
    0.01  # the score of an untrained network; Lin et al. 2017 (https://arxiv.org/abs/1708.02002), section 4.1
)


def convolution(inputs: int, outputs: int, *, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Residual(nn.Module):
    """Two convolutions around which the input is added (He et al. 2016, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, h, w) in and out."""
        return relu(features + self.second(self.first(features)))


class DetectorNet(nn.Module):
    """Stem, three stages, a top-down neck and one head for all strides.

    Unlike SCRFD it has one head for all strides, which works in units of the anchors' sizes.
    """

    def __init__(self, width: int = 64, neck_width: int = 48) -> None:
        """Build with random weights.

        Args:
            width: channels of the stages; the stem has a quarter and half of it.
            neck_width: channels of neck and head.
        """
        super().__init__()
        self.stem = nn.Sequential(
            convolution(3, width // 4, stride=2), convolution(width // 4, width // 2, stride=2)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(convolution(inputs, width, stride=2), *(Residual(width) for _ in range(depth)))
            for inputs, depth in ((width // 2, 2), (width, 2), (width, 2))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, neck_width, 1) for _ in STRIDES)
        self.smooth = nn.ModuleList(convolution(neck_width, neck_width) for _ in STRIDES)
        self.head = nn.Sequential(
            nn.Conv2d(neck_width, neck_width, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(neck_width, ANCHORS_PER_CELL * NUM_VALUES, 1),
        )
        last = self.head[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.normal_(last.weight, std=0.01)
        nn.init.constant_(last.bias, 0.0)
        with torch.no_grad():  # score logits start at the prior, distances at half a face
            bias = last.bias.view(ANCHORS_PER_CELL, NUM_VALUES)
            bias[:, 0] = -torch.log(torch.tensor((1 - PRIOR) / PRIOR))
            bias[:, 1:5] = 0.5

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw predictions of every anchor.

        Args:
            pixel_values: (B, 3, H, W) RGB, ``(x - 127.5) / 128``.

        Returns:
            Score logits (B, A), distances (B, A, 4) and offsets (B, A, 10), the last two in pixels.
        """
        values = torch.cat(self.levels(pixel_values), dim=1)
        return values[..., 0], values[..., 1:5], values[..., 5:]

    def levels(self, pixel_values: Tensor) -> list[Tensor]:
        """Predictions (B, A_s, 15) of each stride s: logit, distances and offsets, the last two in pixels."""
        features = self.stem(pixel_values)
        levels = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            features = stage(features)
            levels.append(lateral(features))
        for upper in (1, 0):
            levels[upper] = levels[upper] + interpolate(levels[upper + 1], scale_factor=2.0, mode="nearest")
        outputs = [self.head(smooth(level)) for smooth, level in zip(self.smooth, levels, strict=True)]
        return [_values(output, sizes) for output, sizes in zip(outputs, ANCHOR_SIZES_PX, strict=True)]


def _values(output: Tensor, sizes_px: tuple[float, ...]) -> Tensor:
    """(B, 2 * 15, h, w) -> (B, h * w * 2, 15) float32: cells in reading order, each with its two anchors."""
    cells = output.permute(0, 2, 3, 1).float().unflatten(3, (ANCHORS_PER_CELL, NUM_VALUES))
    units = [[1.0] + [size] * (NUM_VALUES - 1) for size in sizes_px]
    return (cells * cells.new_tensor(units)).flatten(1, 3)


class ScrfdOutputs(nn.Module):
    """What is exported: one picture in, nine outputs as insightface's SCRFD reads them."""

    def __init__(self, net: DetectorNet, *, threshold: float = 0.5) -> None:
        """Wrap a network.

        Args:
            net: what was trained.
            threshold: score from which on something is a face, in (0, 1). It is exported as 0.5, where
                insightface and idgen draw the line.
        """
        super().__init__()
        self.net = net
        self.shift = math.log(threshold / (1 - threshold))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(1, 3, H, W) -> scores (A_s, 1), then distances (A_s, 4), then offsets (A_s, 10), in strides."""
        levels = [level[0] for level in self.net.levels(pixel_values)]
        scores = [(level[:, :1] - self.shift).sigmoid() for level in levels]
        distances = [level[:, 1:5] / stride for level, stride in zip(levels, STRIDES, strict=True)]
        offsets = [level[:, 5:] / stride for level, stride in zip(levels, STRIDES, strict=True)]
        return (*scores, *distances, *offsets)
