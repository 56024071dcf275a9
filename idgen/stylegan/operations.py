"""What StyleGAN2 is made of, in plain torch: filtered resampling, modulated convolution, equalised layers.

Parameters bear the names of the published checkpoints. Everything can be differentiated twice.

Shapes: B batch, I and O input and output channels, H height, W width, K side of a kernel, C width of a code.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, leaky_relu, linear, pad

FILTER_TAPS = (1.0, 3.0, 3.0, 1.0)  # the low-pass filter of StyleGAN2, Karras et al. 2020, sec. 4.1
EPSILON = 1e-8  # under every square root of a mean or sum of squares, as published
ACTIVATION_GAIN = math.sqrt(2)  # keeps the variance of what passes a leaky ReLU about 1
NEGATIVE_SLOPE = 0.2


def low_pass(gain: float = 1.0) -> Tensor:
    """The (4, 4) filter [1, 3, 3, 1] x [1, 3, 3, 1], scaled to the sum ``gain``."""
    taps = torch.tensor(FILTER_TAPS)
    kernel = torch.outer(taps, taps)
    return kernel * (gain / kernel.sum())


def upfirdn2d(
    image: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """Insert zeros, pad, convolve and keep every ``down``-th pixel, each channel by itself.

    ``y[i] = sum_j kernel[j] x[(down i - j + K - 1 - padding[0]) / up]`` along each axis, where x is 0
    between its samples and outside (Karras et al. 2020, https://arxiv.org/abs/1912.04958, appendix B).

    Args:
        image: (B, I, H, W).
        kernel: (K, K).
        up: each pixel is followed by ``up - 1`` zeros.
        down: of the result, every ``down``-th pixel is kept, the first included.
        padding: zeros before and after, counted in upsampled pixels; negative numbers cut.

    Returns:
        (B, I, H', W') with ``H' = (up H + padding[0] + padding[1] - K) // down + 1``.
    """
    channels, side = image.shape[1], kernel.shape[0]
    before, after = padding
    weight = kernel.to(image).expand(channels, 1, side, side)
    if up == 1:  # conv2d correlates, so that the kernel is turned around
        return conv2d(_pad(image, before, after), weight.flip(2, 3), stride=down, groups=channels)
    # a transposed convolution spreads each pixel over K x K, as if K - 1 zeros stood around the sparse image
    spread = conv_transpose2d(image, weight, stride=up, groups=channels)
    return _pad(spread, before - (side - 1), after - side + up)[:, :, ::down, ::down]


def _pad(image: Tensor, before: int, after: int) -> Tensor:
    return pad(image, (before, after, before, after)) if before or after else image


def modulated_conv2d(
    maps: Tensor, weight: Tensor, styles: Tensor, *, demodulate: bool = True, blur: Tensor | None = None
) -> Tensor:
    """A convolution whose input channels are scaled by a style, one for each row.

    ``w'_oik = s_i w_oik / sqrt(sum_ik (s_i w_oik)^2 + 1e-8)``, eq. 1 and 3 of Karras et al. 2020
    (https://arxiv.org/abs/1912.04958). Instead of one kernel a row, in a grouped convolution, the maps are
    scaled before and after a common one: the same numbers, and less work on a CPU.

    Args:
        maps: (B, I, H, W).
        weight: (O, I, K, K) with K odd.
        styles: (B, I) scales.
        demodulate: whether to divide by the root, which makes the expected variance of each output 1.
        blur: (4, 4) filter of a convolution that doubles the size; None keeps the size.

    Returns:
        (B, O, H, W), or (B, O, 2 H, 2 W) with ``blur``.
    """
    scaled = maps * styles[:, :, None, None]
    side = weight.shape[-1]
    if blur is None:
        mixed = conv2d(scaled, weight, padding=side // 2)
    else:
        spread = conv_transpose2d(scaled, weight.transpose(0, 1), stride=2)  # 2 H + K - 2
        excess = blur.shape[0] - 1 - (side - 2)
        mixed = upfirdn2d(spread, blur, padding=((excess + 1) // 2, excess // 2))
    if not demodulate:
        return mixed
    power = styles.square() @ weight.square().sum(dim=(2, 3)).T
    return mixed * torch.rsqrt(power + EPSILON)[:, :, None, None]


def scaled_leaky_relu(values: Tensor) -> Tensor:
    """``sqrt(2) max(x, 0.2 x)``: leaves the variance of what it is given about as it was."""
    return leaky_relu(values, NEGATIVE_SLOPE) * ACTIVATION_GAIN


class PixelNorm(nn.Module):
    """``x / sqrt(mean(x^2) + 1e-8)``: brings each row (B, C) to the length sqrt(C)."""

    def forward(self, values: Tensor) -> Tensor:
        """(B, C) -> (B, C)."""
        return values * torch.rsqrt(values.square().mean(dim=1, keepdim=True) + EPSILON)


class EqualLinear(nn.Module):
    """A linear layer that learns at the same pace whatever its width.

    The weights are kept at unit variance and scaled by ``lr_multiplier / sqrt(C)`` when used (Karras et al.
    2018, https://arxiv.org/abs/1710.10196, sec. 4.1).

    Args:
        in_dim: C.
        out_dim: width of the result.
        bias_init: what the bias is at the start.
        lr_multiplier: slows learning down; the bias is scaled by it too.
        is_activated: whether a leaky ReLU follows.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
        is_activated: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_dim,), bias_init))
        self.lr_multiplier = lr_multiplier
        self.scale = lr_multiplier / math.sqrt(in_dim)
        self.is_activated = is_activated

    def forward(self, values: Tensor) -> Tensor:
        """(..., C) -> (..., out_dim)."""
        out = linear(values, self.weight * self.scale, self.bias * self.lr_multiplier)
        return scaled_leaky_relu(out) if self.is_activated else out


class EqualConv2d(nn.Module):
    """A convolution with the scaled weights of `EqualLinear`: by ``1 / sqrt(I K^2)``."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.stride, self.padding = stride, padding

    def forward(self, maps: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        return conv2d(maps, self.weight * self.scale, self.bias, self.stride, self.padding)


class LowPass(nn.Module):
    """Holds the filter of an upsampling layer, which the files keep as a buffer: 4 times `low_pass`."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        # four times: of each four pixels of what it smoothes, three are the zeros of an upsampling
        self.register_buffer("kernel", low_pass(gain=4.0))

    def forward(self, image: Tensor) -> Tensor:
        """A picture of twice the size: (B, I, H, W) -> (B, I, 2 H, 2 W)."""
        excess = self.kernel.shape[0] - 2
        return upfirdn2d(image, self.kernel, up=2, padding=((excess + 1) // 2 + 1, excess // 2))


class ModulatedConv2d(nn.Module):
    """`modulated_conv2d` with a linear layer that turns a code into the scales; about 1 at the start."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        *,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel_size, kernel_size))
        self.modulation = EqualLinear(style_dim, in_channels, bias_init=1.0)
        self.blur = LowPass() if upsample else None
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.demodulate = demodulate

    def forward(self, maps: Tensor, codes: Tensor) -> Tensor:
        """Maps (B, I, H, W) and codes (B, C) to (B, O, H, W), or twice the size."""
        return modulated_conv2d(
            maps,
            self.weight[0] * self.scale,
            self.modulation(codes),
            demodulate=self.demodulate,
            blur=None if self.blur is None else self.blur.kernel,
        )
