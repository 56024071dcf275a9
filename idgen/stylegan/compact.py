"""A small encoder from pictures to W+ codes, for generators of small pictures.

The published encoders read 256 pixels with a ResNet-50 and have 270 million weights. This one looks at the
generator's own size, and says all codes of a picture from one vector.

Shapes: B batch, L layers and C width of the generator's codes, S side of the picture.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from idgen.errors import ConfigError
from idgen.stylegan.model import CodeEncoder
from idgen.stylegan.operations import PixelNorm

LAST_SIZE_PX = 4


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, https://arxiv.org/abs/1512.03385, fig. 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(width // 16, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(width // 16, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, maps: Tensor) -> Tensor:
        """(B, width, H, W) of any size."""
        return maps + self.body(maps)


class CompactEncoder(CodeEncoder):
    """Pictures (B, 3, S, S) in [-1, 1] to codes (B, L, C) as offsets from the generator's mean code.

    ``offset_l = W_l h + b_l`` with ``h = PixelNorm(f(x))``: the codes of all layers come from one vector of
    ``bottleneck`` numbers. It is the bottleneck that makes neighbours look alike, so that a direction in the
    codes means something; without it each layer would copy its part of the picture.

    Args:
        size_px: S, a power of two.
        num_layers: L.
        style_dim: C.
        widths: channels after each halving of the picture, down to 4 pixels; multiples of 16.
        bottleneck: width of h.

    Raises:
        ConfigError: if ``widths`` do not lead from S to 4 pixels.
    """

    def __init__(
        self, *, size_px: int, num_layers: int, style_dim: int, widths: Sequence[int], bottleneck: int
    ) -> None:
        super().__init__()
        if LAST_SIZE_PX << len(widths) != size_px:
            raise ConfigError(
                f"widths must name {(size_px // LAST_SIZE_PX).bit_length() - 1} levels, from "
                f"{size_px // 2} to {LAST_SIZE_PX} pixels, got {tuple(widths)}"
            )
        if not all(width >= 16 and width % 16 == 0 for width in widths):
            raise ConfigError(f"widths must be multiples of 16, got {tuple(widths)}")
        self.settings = {
            "size_px": size_px, "num_layers": num_layers, "style_dim": style_dim, "widths": list(widths),
            "bottleneck": bottleneck,
        }  # fmt: skip
        self.num_layers, self.style_dim = num_layers, style_dim
        levels, width = [], 3
        for next_width in widths:
            levels += [nn.Conv2d(width, next_width, 4, stride=2, padding=1), ResidualBlock(next_width)]
            width = next_width
        self.body = nn.Sequential(*levels, nn.GroupNorm(width // 16, width), nn.SiLU())
        self.squeeze = nn.Conv2d(width, width // 4, 1)
        self.to_vector = nn.Linear(width // 4 * LAST_SIZE_PX**2, bottleneck)
        self.norm = PixelNorm()
        self.to_codes = nn.Linear(bottleneck, num_layers * style_dim)
        nn.init.normal_(self.to_codes.weight, std=bottleneck**-0.5)
        nn.init.zeros_(self.to_codes.bias)

    def vector(self, pixel_values: Tensor) -> Tensor:
        """H (B, bottleneck), of length sqrt(bottleneck)."""
        maps = self.squeeze(self.body(pixel_values))
        return self.norm(self.to_vector(maps.flatten(1)))

    def codes(self, vector: Tensor) -> Tensor:
        """(B, bottleneck) -> (B, L, C)."""
        return self.to_codes(vector).unflatten(1, (self.num_layers, self.style_dim))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, L, C)."""
        return self.codes(self.vector(pixel_values))
