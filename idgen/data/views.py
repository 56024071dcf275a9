"""Views of aligned faces for training a recogniser: cut as by a careless detector, blended, and degraded.

Shapes: B batch, H height, W width. Views are RGB in [0, 1]. All randomness comes from the generator given.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from idgen.data.images import ARCFACE_MARGIN
from idgen.errors import ConfigError

CROP_PX = 112


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How far views stray from the pictures."""

    blend_share: float = 0.4  # of the views show two people
    max_rotation_deg: float = 6.0
    max_scale: float = 0.06  # share of the crop's size
    max_shift_px: float = 3.0
    low_resolution_share: float = 0.5  # of the views were small once: generated pictures are
    min_side_px: int = 36
    max_side_px: int = 84

    def __post_init__(self) -> None:
        if not 0 < self.min_side_px <= self.max_side_px <= CROP_PX:
            raise ConfigError(
                f"views: 0 < min_side_px <= max_side_px <= {CROP_PX} is needed, "
                f"got {self.min_side_px} and {self.max_side_px}"
            )
        highest = {"blend_share": 1, "low_resolution_share": 1, "max_rotation_deg": 180, "max_scale": 0.5,
                   "max_shift_px": CROP_PX / 2}  # fmt: skip
        for name, most in highest.items():
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"views: {name} must be in [0, {most:g}], got {getattr(self, name)}")


def jittered_views(images: Tensor, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """Crops of (B, 3, 128, 128) as a detector that is a little off cuts them, half of them mirrored.

    Returns:
        (B, 3, 112, 112); with nothing to stray, the inner 112 pixels exactly.
    """
    batch, size = len(images), images.shape[-1]

    def spread(most: float) -> Tensor:
        # Squared: most faces are aligned well and a few are not.
        draw = torch.rand(batch, generator=generator) * 2 - 1
        return draw * draw.abs() * most

    angle = spread(math.radians(config.max_rotation_deg))
    scale = (1 - 2 * ARCFACE_MARGIN / size) * (1 + spread(config.max_scale))
    mirror = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    shift_x, shift_y = (spread(2 * config.max_shift_px / size) for _ in range(2))
    rows = [
        torch.stack([scale * angle.cos() * mirror, -scale * angle.sin(), shift_x], dim=1),
        torch.stack([scale * angle.sin() * mirror, scale * angle.cos(), shift_y], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [batch, 3, CROP_PX, CROP_PX], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def blend(views: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Mix a share of the views with their neighbours in the batch: as a whole, or one half of the face each.

    These are faces that nobody has. A teacher says where they belong, and so a student also learns what lies
    between the people of a small data set.
    """
    batch = len(views)
    other = views.roll(1, dims=0)
    draw = torch.rand(4, batch, 1, 1, 1, generator=generator)
    line = torch.linspace(-1, 1, CROP_PX)
    along = torch.where(draw[0] < 0.5, line.view(1, 1, 1, -1), line.view(1, 1, -1, 1))
    halves = torch.sigmoid((along - (draw[1] - 0.5)) * 12)
    weight = torch.where(draw[2] < 0.5, halves, 0.2 + 0.6 * draw[1])
    weight = torch.where(draw[3] < share, weight, torch.ones(()))
    return weight * views + (1 - weight) * other


def erase(views: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the views loses a rectangle of up to a quarter of its area, which becomes one random colour.

    Zhong et al. 2017, https://arxiv.org/abs/1708.04896; recognisers trained on few people need it.
    """
    batch, _, height, width = views.shape
    draw = torch.rand(5, batch, 1, 1, generator=generator)
    colour = torch.rand(batch, 3, 1, 1, generator=generator)
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    inside = (rows - draw[0] * height).abs() < draw[1] * height / 4
    inside = inside & ((columns - draw[2] * width).abs() < draw[3] * width / 4) & (draw[4] < share)
    return torch.where(inside[:, None], colour, views)


def degrade(views: Tensor, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """Other light and colour, a little noise, and for a share of the views a small size and back."""
    views = _small_and_back(_relit(views, generator), config, generator)
    noise = torch.randn(views.shape, generator=generator) * _between(views, 0, 0.03, generator)
    noise = noise * (_between(views, 0, 1, generator) < 0.3)
    return (views + noise).clamp(0, 1)


def _between(views: Tensor, low: float, high: float, generator: torch.Generator, channels: int = 1) -> Tensor:
    """Uniform numbers (B, channels, 1, 1)."""
    return low + (high - low) * torch.rand(len(views), channels, 1, 1, generator=generator)


def _relit(views: Tensor, generator: torch.Generator) -> Tensor:
    """Saturation (none for one in twenty), contrast, tint, brightness and gamma."""
    grey = views.mean(dim=1, keepdim=True)
    saturation = _between(views, 0.6, 1.3, generator) * (_between(views, 0, 1, generator) > 0.05)
    views = grey + (views - grey) * saturation
    gain = _between(views, 0.75, 1.25, generator) * _between(views, 0.93, 1.07, generator, channels=3)
    views = (views * gain + _between(views, -0.08, 0.08, generator)).clamp(1e-4, 1)
    return views ** _between(views, 0.75, 1.33, generator)


def _small_and_back(views: Tensor, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """Shrink the first parts of the batch, each to a size of its own, and enlarge them again."""
    parts = list(views.split(max(1, len(views) // 8)))
    for i in range(round(config.low_resolution_share * len(parts))):
        side = int(torch.randint(config.min_side_px, config.max_side_px + 1, (), generator=generator))
        small = F.interpolate(parts[i], size=side, mode="bilinear", antialias=True, align_corners=False)
        mode = "bicubic" if torch.rand((), generator=generator) < 0.5 else "bilinear"
        parts[i] = F.interpolate(small, size=views.shape[-1], mode=mode, align_corners=False)
    return torch.cat(parts)
