"""MobileFaceNet, a recogniser for small machines; modules are named as in insightface's arcface_torch.

Shapes: B batch, C channels, H height, W width, D embedding width.
"""

from torch import Tensor, nn

from idgen.recognition.backbone import CROP_PX

BLOCKS = (4, 6, 2)  # bottlenecks of each stage after the one that strides
EXPANDED = (128, 256, 512, 256)  # channels inside: stage 1, entry of stage 2, entry of stage 3, stage 3
LAST = 512


class Unit(nn.Module):
    """Convolution, norm and, where it is not linear, PReLU."""

    def __init__(
        self, num_in: int, num_out: int, *, kernel: int = 1, stride: int = 1, padding: int = 0,
        groups: int = 1, is_linear: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        convolution = nn.Conv2d(num_in, num_out, kernel, stride, padding, groups=groups, bias=False)
        activation = [] if is_linear else [nn.PReLU(num_out)]
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(num_out), *activation)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_out, H', W')."""
        return self.layers(maps)


class Bottleneck(nn.Module):
    """Widen, look at each channel alone, narrow, as in MobileNetV2; the input is added where none strides."""

    def __init__(self, num_in: int, num_out: int, expanded: int, stride: int) -> None:
        super().__init__()
        self.adds = stride == 1
        self.layers = nn.Sequential(
            Unit(num_in, expanded),
            Unit(expanded, expanded, kernel=3, stride=stride, padding=1, groups=expanded),
            Unit(expanded, num_out, is_linear=True),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_out, H / stride, W / stride)."""
        return maps + self.layers(maps) if self.adds else self.layers(maps)


class Stage(nn.Module):
    """Bottlenecks that keep the shape."""

    def __init__(self, width: int, expanded: int, count: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[Bottleneck(width, width, expanded, 1) for _ in range(count)])

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return self.layers(maps)


class Weighing(nn.Module):
    """The end: a weight for each place of the last map, a linear layer, norms."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Unit(LAST, LAST, kernel=CROP_PX // 16, groups=LAST, is_linear=True),
            nn.Flatten(),
            nn.Linear(LAST, dim, bias=False),
            nn.BatchNorm1d(dim),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, 7, 7) -> (B, D)."""
        return self.layers(maps)


class MobileFaceNet(nn.Module):
    """Pixel values (B, 3, 112, 112) in [-1, 1] -> raw embedding (B, D).

    Chen et al. 2018, https://arxiv.org/abs/1804.07573, table 1. With the widths (128, 256) it is the ``mbf``
    of insightface, which doubles the channels and leaves those inside of the bottlenecks as they are.

    Args:
        dim: D.
        widths: channels of stage 1, and of stages 2 and 3.
        blocks: bottlenecks of each stage, less the one that strides.
    """

    def __init__(
        self, dim: int, *, widths: tuple[int, ...] = (64, 128), blocks: tuple[int, ...] = BLOCKS
    ) -> None:
        super().__init__()
        self.dim = dim
        first, second = widths
        self.layers = nn.ModuleList([
            Unit(3, first, kernel=3, stride=2, padding=1),
            Unit(first, first, kernel=3, padding=1, groups=min(first, 64)),
            Bottleneck(first, first, EXPANDED[0], 2),
            Stage(first, EXPANDED[0], blocks[0]),
            Bottleneck(first, second, EXPANDED[1], 2),
            Stage(second, EXPANDED[1], blocks[1]),
            Bottleneck(second, second, EXPANDED[2], 2),
            Stage(second, EXPANDED[3], blocks[2]),
        ])  # fmt: skip
        self.conv_sep = Unit(second, LAST)
        self.features = Weighing(dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The raw embedding (B, D)."""
        maps = pixel_values
        for layer in self.layers:
            maps = layer(maps)
        return self.features(self.conv_sep(maps))
