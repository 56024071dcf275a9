"""The generator of StyleGAN2 (Karras et al. 2020, https://arxiv.org/abs/1912.04958): codes in, faces out.

Its state dict has the keys of the ``g_ema`` of rosinality's stylegan2-pytorch, in which the published face
generators circulate. It needs no compiled operation.

Shapes: B batch, C width of a code, L layers that read a code, S side of the picture.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from idgen.errors import ConfigError
from idgen.stylegan.operations import EqualLinear, LowPass, ModulatedConv2d, PixelNorm, scaled_leaky_relu

FIRST_SIZE_PX = 4  # side of the learned constant that every picture grows from
MAPPING_LR_MULTIPLIER = 0.01  # the mapping network learns a hundred times slower, as published


def published_channels(multiplier: int = 2) -> dict[int, int]:
    """Width of the maps at each resolution in the published generators.

    Args:
        multiplier: 2 in the large configuration ("config F"), 1 in the small one.

    Returns:
        Resolution in pixels -> channels, from 4 to 1024.
    """
    fine = {64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
    return dict.fromkeys((4, 8, 16, 32), 512) | {size: width * multiplier for size, width in fine.items()}


def num_style_layers(size_px: int) -> int:
    """L, how many codes make a picture: ``2 log2(size_px) - 2``, 18 for 1024 pixels.

    Raises:
        ConfigError: if the size is not a power of two from 8 on.
    """
    log_size = size_px.bit_length() - 1
    if size_px < 2 * FIRST_SIZE_PX or size_px != 1 << log_size:
        raise ConfigError(f"the side of a StyleGAN picture must be a power of two from 8 on, got {size_px}")
    return 2 * log_size - 2


class CodeGenerator(nn.Module):
    """What shows codes (B, L, C): a `StyleGenerator`, or another network that reads codes of layers.

    Attributes:
        num_layers: L.
        style_dim: C.
        size_px: S.
    """

    num_layers: int
    style_dim: int
    size_px: int


class StyleGenerator(CodeGenerator):
    """Codes (B, L, C) to faces; the same code gives the same face, unless noise is asked for.

    Unlike the implementation whose files it reads, it takes codes in W+ (one for each layer) and nothing
    else: `map_styles` is a step of its own, and noise is fixed by default.

    Args:
        size_px: S, a power of two.
        style_dim: C.
        channels: width of the maps at each resolution from 4 to S; the published ones if not given.
        num_mapping_layers: depth of the mapping network.

    Raises:
        ConfigError: if the size is no power of two, or ``channels`` lacks a resolution.
    """

    def __init__(
        self,
        size_px: int,
        style_dim: int = 512,
        channels: Mapping[int, int] | None = None,
        num_mapping_layers: int = 8,
    ) -> None:
        super().__init__()
        self.num_layers = num_style_layers(size_px)
        self.size_px, self.style_dim = size_px, style_dim
        self.num_mapping_layers = num_mapping_layers
        self.channels = _check_channels(size_px, published_channels() if channels is None else channels)
        mapping = [
            EqualLinear(style_dim, style_dim, lr_multiplier=MAPPING_LR_MULTIPLIER, is_activated=True)
            for _ in range(num_mapping_layers)
        ]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        (_, width), *larger = self.channels.items()
        self.input = LearnedConstant(width)
        self.conv1 = StyledConv(width, width, style_dim)
        self.to_rgb1 = ToRGB(width, style_dim, upsample=False)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for _, next_width in larger:
            self.convs.append(StyledConv(width, next_width, style_dim, upsample=True))
            self.convs.append(StyledConv(next_width, next_width, style_dim))
            self.to_rgbs.append(ToRGB(next_width, style_dim))
            width = next_width
        self.noises = FixedNoises(list(self.channels))

    def map_styles(self, z: Tensor, *, truncation: float = 1.0, latent_avg: Tensor | None = None) -> Tensor:
        """Latent vectors to codes in W.

        ``w = a + t (f(z) - a)``, the truncation trick of Karras et al. 2019
        (https://arxiv.org/abs/1812.04948, appendix B): smaller t, more ordinary faces.

        Args:
            z: (B, C), drawn from a standard normal distribution.
            truncation: t; 1 leaves codes as they are, 0 gives the average face.
            latent_avg: a, the mean code (C,); needed unless t is 1.

        Returns:
            (B, C); ``expand_styles`` makes codes for a picture of them.

        Raises:
            ConfigError: if codes are to be truncated and the mean code is missing or of another shape.
        """
        styles = self.style(z)
        if truncation == 1.0:
            return styles
        if latent_avg is None or latent_avg.shape != (self.style_dim,):
            given = "none" if latent_avg is None else str(tuple(latent_avg.shape))
            raise ConfigError(
                f"truncation {truncation:g} needs the mean code latent_avg of shape ({self.style_dim},), "
                f"got {given}"
            )
        return latent_avg + truncation * (styles - latent_avg)

    def expand_styles(self, styles: Tensor) -> Tensor:
        """Codes in W, (B, C), as codes in W+, (B, L, C): the same one for every layer."""
        return styles[:, None].expand(-1, self.num_layers, -1)

    def forward(
        self, codes: Tensor, *, noise: torch.Generator | None = None, size_px: int | None = None
    ) -> Tensor:
        """Pictures of codes.

        Args:
            codes: (B, L, C).
            noise: where to draw the noise from that each layer adds, another for each row; the fixed noise
                of the file where None.
            size_px: stop at this size: every level adds to a picture, and the sum so far is one, too.

        Returns:
            (B, 3, S, S) in about [-1, 1], not clipped.

        Raises:
            ValueError: if the codes have another shape.
        """
        if codes.ndim != 3 or tuple(codes.shape[1:]) != (self.num_layers, self.style_dim):
            raise ValueError(
                f"a generator of {self.size_px} pixels wants codes of shape "
                f"(B, {self.num_layers}, {self.style_dim}), got {tuple(codes.shape)}"
            )
        noises = self.noises(len(codes), noise)
        maps = self.input(len(codes))
        maps = self.conv1(maps, codes[:, 0], noises[0])
        picture = self.to_rgb1(maps, codes[:, 1])
        for level, to_rgb in enumerate(self.to_rgbs):
            if picture.shape[-1] == size_px:
                break
            # a level reads three codes, and its last one is the first of the next level
            first, second = 2 * level + 1, 2 * level + 2
            maps = self.convs[first - 1](maps, codes[:, first], noises[first])
            maps = self.convs[second - 1](maps, codes[:, second], noises[second])
            picture = to_rgb(maps, codes[:, second + 1], picture)
        return picture


def _check_channels(size_px: int, channels: Mapping[int, int]) -> dict[int, int]:
    """Those of the resolutions that are needed, in order."""
    sizes = [FIRST_SIZE_PX << level for level in range((size_px // FIRST_SIZE_PX).bit_length())]
    missing = [size for size in sizes if size not in channels]
    if missing:
        raise ConfigError(
            f"channels of a generator of {size_px} pixels must name the width at {missing[0]} pixels; "
            f"it has {', '.join(map(str, channels)) or 'none'}"
        )
    return {size: channels[size] for size in sizes}


class LearnedConstant(nn.Module):
    """The maps of 4 x 4 pixels that every picture grows from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, FIRST_SIZE_PX, FIRST_SIZE_PX))

    def forward(self, num_rows: int) -> Tensor:
        """(num_rows, channels, 4, 4)."""
        return self.input.expand(num_rows, -1, -1, -1)


class FixedNoises(nn.Module):
    """One picture of noise for each convolution: one of 4 pixels, then two of each size."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = [sizes[0], *(size for size in sizes[1:] for _ in range(2))]
        for number, size in enumerate(self.sizes):
            self.register_buffer(f"noise_{number}", torch.randn(1, 1, size, size))

    def forward(self, num_rows: int, generator: torch.Generator | None) -> list[Tensor]:
        """The fixed ones, (1, 1, size, size), or new ones, (num_rows, 1, size, size)."""
        fixed = [self.get_buffer(f"noise_{number}") for number in range(len(self.sizes))]
        if generator is None:
            return fixed
        return [
            torch.randn(num_rows, 1, *kept.shape[2:], generator=generator, device=generator.device).to(kept)
            for kept in fixed
        ]


class NoiseInjection(nn.Module):
    """Adds noise of a learned strength, 0 at the start; the same to every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Tensor, noise: Tensor) -> Tensor:
        """Maps and noise of (B, 1, H, W), or of one row for all."""
        return maps + self.weight * noise


class BiasedActivation(nn.Module):
    """A bias for each channel, then the scaled leaky ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, I, H, W) of any size."""
        return scaled_leaky_relu(maps + self.bias[:, None, None])


class StyledConv(nn.Module):
    """Modulated convolution of 3 x 3, noise, bias, activation."""

    def __init__(
        self, in_channels: int, out_channels: int, style_dim: int, *, upsample: bool = False
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, style_dim, upsample=upsample)
        self.noise = NoiseInjection()
        self.activate = BiasedActivation(out_channels)

    def forward(self, maps: Tensor, codes: Tensor, noise: Tensor) -> Tensor:
        """Maps (B, I, H, W), codes (B, C), noise of the size of the result."""
        return self.activate(self.noise(self.conv(maps, codes), noise))


class ToRGB(nn.Module):
    """What a level adds to the picture, which is doubled in size first."""

    def __init__(self, in_channels: int, style_dim: int, *, upsample: bool = True) -> None:
        super().__init__()
        self.upsample = LowPass() if upsample else None
        self.conv = ModulatedConv2d(in_channels, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, maps: Tensor, codes: Tensor, picture: Tensor | None = None) -> Tensor:
        """Maps (B, I, H, W) and the picture so far, of half their size, to the picture (B, 3, H, W)."""
        added = self.conv(maps, codes) + self.bias
        if picture is None or self.upsample is None:
            return added
        return added + self.upsample(picture)
