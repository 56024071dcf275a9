"""IResNet, the network of ArcFace; its files of weights are those of insightface's arcface_torch.

Shapes: B batch, C channels, H height, W width, D embedding width.
"""

import torch
from torch import Tensor, nn

from idgen.recognition.backbone import CROP_PX

WIDTHS = (64, 64, 128, 256, 512)  # of the stem, and of the four stages
BLOCKS = {"iresnet18": (2, 2, 2, 2), "iresnet34": (3, 4, 6, 3), "iresnet50": (3, 4, 14, 3),
          "iresnet100": (3, 13, 30, 3)}  # fmt: skip


class IBlock(nn.Module):
    """Norm, convolution, norm, PReLU, convolution that may stride, norm; and a shortcut."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.prelu = nn.PReLU(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(num_out)
        self.downsample = None
        if stride != 1 or num_in != num_out:
            shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(num_out))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_out, H / stride, W / stride)."""
        seen = self.prelu(self.bn2(self.conv1(self.bn1(maps))))
        seen = self.bn3(self.conv2(seen))
        return seen + (maps if self.downsample is None else self.downsample(maps))


class IResNet(nn.Module):
    """Pixel values (B, 3, 112, 112) in [-1, 1] -> raw embedding (B, D).

    Deng et al. 2019, https://arxiv.org/abs/1801.07698, section 3.1: norm, dropout, a dense layer over the
    last map of 7 x 7, and a norm whose scale stays 1. Unlike a ResNet, the stem does not stride.

    Args:
        blocks: number of blocks in each of the four stages.
        dim: D.
        widths: channels of the stem and of the stages.
        dropout: share of the last map that is dropped in training.
    """

    def __init__(
        self, blocks: tuple[int, ...], dim: int, *, widths: tuple[int, ...] = WIDTHS, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dim = dim
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        stages = [
            nn.Sequential(
                IBlock(num_in, num_out, 2), *(IBlock(num_out, num_out, 1) for _ in range(count - 1))
            )
            for num_in, num_out, count in zip(widths[:-1], widths[1:], blocks, strict=True)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[-1] * (CROP_PX // 2 ** len(blocks)) ** 2, dim)
        self.features = nn.BatchNorm1d(dim)
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The raw embedding (B, D)."""
        maps = self.prelu(self.bn1(self.conv1(pixel_values)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)
        return self.features(self.fc(self.dropout(torch.flatten(self.bn2(maps), 1))))
