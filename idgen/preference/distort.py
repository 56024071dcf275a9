"""Kinds of mild distortion: what a generator does to a face, done to a photograph.

Shapes: B batch, S side of the crop. Crops are (B, 3, S, S), RGB in [0, 1], in the ArcFace pose. All
randomness comes from the generator given.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate, pad

from idgen.faces.align import ARCFACE_TEMPLATE, TEMPLATE_SIZE_PX

# Strengths were fixed before the model was trained, so that a kind it ranks badly is not made stronger later.
# Each is clearly seen beside the original and leaves a face that anybody would recognise. What belongs to the
# raster is in pixels of the crop, at whatever resolution it has; what belongs to the face is in shares of the
# side. ImageNet-C and CIFAR-C (Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261) give the
# mildest grade for pictures of 224 and of 32 pixels; crops of 56 to 112 pixels lie between the two.
BLUR_SIGMA_PX = 1.0  # ImageNet-C: 1, CIFAR-C: 0.4
PIXELATE_SHARE = 0.7  # of the side remains; ImageNet-C: 0.6, CIFAR-C: 0.95
JPEG_QUALITY = 40  # ImageNet-C: 25, CIFAR-C: 80
NOISE_STD = 0.05  # ImageNet-C: 0.08, CIFAR-C: 0.04
HALO_SIGMA_PX, HALO_AMOUNT = 1.5, 1.5  # unsharp mask with edges clearly outlined
CONTRAST_SHARE = 0.6  # remains; ImageNet-C: 0.4, CIFAR-C: 0.75
CAST_LOG_GAIN = 0.25  # length of the three log gains: 20 % more of one channel, 10 % less of the others
ELASTIC_RMS, ELASTIC_POINTS = 0.013, 8  # 1.5 px of 112, and a bend about every eye's width (16 px)
EYE_MOVE, EYE_SCALE, EYE_RADIUS = 0.05, 1.35, 0.09  # a sixth of the distance between the eyes
MOUTH_MOVE, MOUTH_RADIUS = 0.06, 0.11  # sideways, a fifth of the distance between the eyes
STRETCH = 0.25  # of its width is added to one half of the face

ChangeCrops = Callable[[Tensor, torch.Generator, float], Tensor]


@dataclass(frozen=True)
class Distortion:
    """A kind of distortion.

    Attributes:
        name: of the kind.
        change: (crops, generator, strength) -> changed crops; of a warp the field (B, S, S, 2) that says, in
            shares of the side, how far from each place lies what is shown there.
        is_warp: whether pixels move.
    """

    name: str
    change: ChangeCrops
    is_warp: bool = False

    def __call__(
        self,
        crops: Tensor,
        generator: torch.Generator,
        strength: float = 1.0,
        *,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Distorted crops in [0, 1], of the same shape.

        Args:
            crops: (B, 3, S, S); they stay as they are.
            generator: all randomness comes from it.
            strength: 1 is the mild one.
            shift: (B, 1, 1, 2) of the whole picture, for warps (`resample`).
        """
        changed = self.change(crops, generator, strength)
        if self.is_warp:
            return _warp(crops, changed if shift is None else changed + shift)
        return changed.clamp(0, 1)


def blur(crops: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Gaussian blur."""
    return _gaussian(crops, BLUR_SIGMA_PX * strength)


def pixelate(crops: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Averaged down to a smaller size, and back by repeating pixels."""
    side = crops.shape[-1]
    small = max(2, round(side * PIXELATE_SHARE**strength))
    return interpolate(interpolate(crops, size=(small, small), mode="area"), size=(side, side))


def jpeg(crops: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Compressed by JPEG: blocks of 8 pixels and colours at half the size."""
    # libjpeg's tables grow as 5000 / quality below 50, so strength divides the quality
    quality = max(1, min(95, round(JPEG_QUALITY / strength)))
    arrays = (crops.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.stack([_through_jpeg(array, quality) for array in arrays])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(crops) / 255


def noise(crops: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Normal noise in every pixel and channel."""
    return crops + torch.randn(crops.shape, generator=generator).to(crops) * NOISE_STD * strength


def halo(crops: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Sharpened too much: edges ring."""
    return crops + HALO_AMOUNT * strength * (crops - _gaussian(crops, HALO_SIGMA_PX))


def cast(crops: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """A tint of a random hue: gains of the channels whose logarithms add up to nothing."""
    angle = torch.rand(len(crops), 1, generator=generator) * 2 * math.pi
    thirds = torch.arange(3) * 2 * math.pi / 3
    gains = (CAST_LOG_GAIN * strength * math.sqrt(2 / 3) * (angle + thirds).cos()).exp()
    return crops * gains[:, :, None, None].to(crops)


def washed_out(crops: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Less contrast around the mean of the picture."""
    mean = crops.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (crops - mean) * CONTRAST_SHARE**strength


def elastic(crops: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """The field of a warp: every part of the face moves a little, smoothly, in a direction of its own."""
    shape = (len(crops), 2, ELASTIC_POINTS, ELASTIC_POINTS)
    coarse = torch.randn(shape, generator=generator).to(crops) * ELASTIC_RMS * strength
    field = interpolate(coarse, size=crops.shape[-2:], mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1)


def eye(crops: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """The field of a warp: one eye is moved, or made larger or smaller."""
    draw = torch.rand(4, len(crops), generator=generator)
    centre = _template(crops)[(draw[0] < 0.5).long()]
    angle = draw[1] * 2 * math.pi
    move = torch.stack([angle.cos(), angle.sin()], dim=1).to(crops) * EYE_MOVE * strength
    scale = torch.where(draw[2] < 0.5, EYE_SCALE**strength, EYE_SCALE**-strength).to(crops)
    is_moved = (draw[3] < 0.5).to(crops.device)
    away, weight = _around(crops, centre, EYE_RADIUS)
    moved = -weight[..., None] * move[:, None, None]
    scaled = weight[..., None] * away * (1 / scale - 1)[:, None, None, None]
    return torch.where(is_moved[:, None, None, None], moved, scaled)


def mouth(crops: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """The field of a warp: the mouth is moved sideways."""
    side = torch.where(torch.rand(len(crops), generator=generator) < 0.5, -1.0, 1.0).to(crops)
    centre = _template(crops)[3:].mean(dim=0).expand(len(crops), 2)
    _, weight = _around(crops, centre, MOUTH_RADIUS)
    sideways = -weight * side[:, None, None] * MOUTH_MOVE * strength
    return torch.stack([sideways, torch.zeros_like(sideways)], dim=-1)


def stretch(crops: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """The field of a warp: one half of the face is wider than the other."""
    side = torch.where(torch.rand(len(crops), generator=generator) < 0.5, -1.0, 1.0).to(crops)
    middle = torch.full((len(crops), 2), 0.5).to(crops)
    away, _ = _around(crops, middle, 1.0)
    outwards = (away[..., 0] * side[:, None, None]).clamp(min=0)
    sideways = -side[:, None, None] * outwards * (1 - 1 / (1 + STRETCH * strength))
    return torch.stack([sideways, torch.zeros_like(sideways)], dim=-1)


DISTORTIONS = {
    kind.name: kind
    for kind in (
        Distortion("blur", blur), Distortion("pixelation", pixelate), Distortion("jpeg", jpeg),
        Distortion("noise", noise), Distortion("halo", halo), Distortion("cast", cast),
        Distortion("washed out", washed_out), Distortion("elastic", elastic, is_warp=True),
        Distortion("eye", eye, is_warp=True), Distortion("mouth", mouth, is_warp=True),
        Distortion("stretch", stretch, is_warp=True),
    )
}  # fmt: skip


def resample(crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Crops moved as a whole by up to half a pixel each way, and the shift, for a warp to begin with.

    Interpolation softens. Where both members of a pair were moved alike, only structure tells them apart.
    """
    shift = (torch.rand(len(crops), 1, 1, 2, generator=generator).to(crops) - 0.5) / crops.shape[-1]
    return _warp(crops, shift), shift


def make_pair(
    kind: Distortion, crops: Tensor, generator: torch.Generator, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The better and the worse member: (crops, distorted crops); of a warp, both resampled."""
    if not kind.is_warp:
        return crops, kind(crops, generator, strength)
    better, shift = resample(crops, generator)
    return better, kind(crops, generator, strength, shift=shift)


def _warp(crops: Tensor, field: Tensor) -> Tensor:
    """What lies ``field`` (B, S, S, 2: x and y in shares of the side) away from each place of the crop."""
    still = torch.eye(2, 3).to(crops).expand(len(crops), 2, 3)
    grid = affine_grid(still, list(crops.shape), align_corners=False)
    moved = grid_sample(crops, grid + 2 * field, "bicubic", padding_mode="reflection", align_corners=False)
    return moved.clamp(0, 1)


def _around(crops: Tensor, centre: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Places seen from ``centre`` (B, 2): (B, S, S, 2), and a bell of that radius around it, (B, S, S)."""
    line = (torch.arange(crops.shape[-1]).to(crops) + 0.5) / crops.shape[-1]
    places = torch.stack([line[None, :].expand(len(line), -1), line[:, None].expand(-1, len(line))], dim=-1)
    away = places - centre[:, None, None]
    return away, (-away.square().sum(dim=-1) / (2 * radius**2)).exp()


def _template(crops: Tensor) -> Tensor:
    """Eyes, nose and corners of the mouth: (5, 2) in shares of the side."""
    return (ARCFACE_TEMPLATE.to(crops) + 0.5) / TEMPLATE_SIZE_PX


def _gaussian(crops: Tensor, sigma_px: float) -> Tensor:
    reach = max(1, math.ceil(3 * sigma_px))
    line = torch.arange(-reach, reach + 1).to(crops)
    weights = (-line.square() / (2 * sigma_px**2)).exp()
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = pad(crops, (reach,) * 4, mode="reflect")
    rows = torch.conv2d(padded, weights, groups=3)
    return torch.conv2d(rows, weights.mT, groups=3)


def _through_jpeg(array: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))
