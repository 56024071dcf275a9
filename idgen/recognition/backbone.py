"""A small face recogniser of plain convolutions, which are faster on a CPU than depthwise ones.

Shapes: B batch, D embedding width, C channels, H height, W width.
"""

import torch
from torch import Tensor, nn

CROP_PX = 112


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, fig. 2) with PReLU; the first one strides."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(num_out),
            nn.PReLU(num_out),
            nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(num_out),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and num_in == num_out
            else nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_out, H / stride, W / stride)."""
        return self.body(maps) + self.shortcut(maps)


class SmallResNet(nn.Module):
    """Pixel values (B, 3, 112, 112) in [-1, 1] -> raw embedding (B, D).

    The head weighs every place of the last map on its own (the global depthwise convolution of MobileFaceNet,
    Chen et al. 2018), which costs a hundredth of the dense layer that ArcFace networks have there.

    Args:
        widths: channels of the stem (56 x 56) and of each stage, which halves the side.
        blocks: number of blocks in each stage.
        head_width: channels that the head weighs.
        dim: D.
    """

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...], head_width: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        )
        self.stages = nn.ModuleList([stem])
        for num_in, num_out, num_blocks in zip(widths[:-1], widths[1:], blocks, strict=True):
            first = Block(num_in, num_out, 2)
            further = [Block(num_out, num_out, 1) for _ in range(num_blocks - 1)]
            self.stages.append(nn.Sequential(first, *further))
        side = CROP_PX // 2 ** len(widths)
        self.head = nn.Sequential(
            nn.Conv2d(widths[-1], head_width, 1, bias=False),
            nn.BatchNorm2d(head_width),
            nn.PReLU(head_width),
            nn.Conv2d(head_width, head_width, side, groups=head_width, bias=False),
            nn.BatchNorm2d(head_width),
            nn.Flatten(),
            nn.Linear(head_width, dim),
        )

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The output (B, C, H, W) of the stem and of every stage."""
        outputs = []
        for stage in self.stages:
            pixel_values = stage(pixel_values)
            outputs.append(pixel_values)
        return outputs

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The raw embedding (B, D)."""
        return self.head(self.maps(pixel_values)[-1])

    def matrices(self) -> list[nn.Parameter]:
        """The weights that mix channels and are no end of the network: those that Muon is for."""
        inner = [p for stage in list(self.stages)[1:] for p in stage.parameters() if p.ndim == 4]
        return [*inner, self.head.get_parameter("0.weight")]


class Symmetric(nn.Module):
    """A recogniser that looks at a face and its mirror image, so that both have one embedding.

    Args:
        network: (B, 3, H, W) -> (B, D).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The mean of both embeddings: (B, D)."""
        both = self.network(torch.cat([pixel_values, pixel_values.flip(-1)]))
        return both.reshape(2, -1, both.shape[-1]).mean(dim=0)
