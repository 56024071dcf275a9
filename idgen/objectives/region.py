"""Where the face is in the latents: a soft ellipse from five landmarks.

Shapes: B rows, h and w of the latents, P places of an attention layer.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from idgen.errors import ConfigError
from idgen.faces.align import ARCFACE_TEMPLATE, similarity_matrix, transform_points

# The face in the ArcFace template of 112 pixels: from the hairline to the chin, from ear to ear.
CENTRE, RADII = (56.0, 64.0), (40.0, 50.0)
EDGE = 0.08  # share of the radius over which the mask falls from 0.73 to 0.27


def face_mask(landmarks: Tensor, picture_px: int, size: tuple[int, int]) -> Tensor:
    """How much each place of the latents belongs to the face.

    ``sigmoid((1 - r) / EDGE)`` with r the distance from the centre of the face over its radius, after the
    similarity that brings the landmarks to the ArcFace template. It needs no parsing network, where the
    published programs take one (W+ Adapter) or the detector's box (MasterWeaver).

    Args:
        landmarks: (B, 5, 2) in pixels of the square picture; NaN where there is no face.
        picture_px: side of the picture.
        size: (h, w).

    Returns:
        (B, h, w) float32 in [0, 1], without gradients; 0 all over where there is no face.
    """
    height, width = size
    rows = (torch.arange(height, device=landmarks.device) + 0.5) * (picture_px / height) - 0.5
    columns = (torch.arange(width, device=landmarks.device) + 0.5) * (picture_px / width) - 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    places = torch.stack([x, y], dim=-1).reshape(1, -1, 2)
    mask = landmarks.new_zeros(len(landmarks), height, width)
    known = landmarks.isfinite().all(dim=(1, 2)).nonzero().flatten()
    if len(known):
        matrix = similarity_matrix(landmarks[known], ARCFACE_TEMPLATE)
        seen = transform_points(matrix, places.expand(len(known), -1, -1).to(matrix))
        away = (seen - seen.new_tensor(CENTRE)) / seen.new_tensor(RADII)
        mask[known] = torch.sigmoid((1 - away.norm(dim=-1)) / EDGE).view(-1, height, width)
    return mask.detach()


def mask_of_layer(mask: Tensor, places: int) -> Tensor:
    """The mask at the resolution of an attention layer: its mean over each of the layer's places.

    Args:
        mask: (B, h, w).
        places: P of the layer.

    Returns:
        (B, P) float32 in [0, 1].

    Raises:
        ConfigError: if halving the latents never gives so many places.
    """
    height, width = mask.shape[1:]
    while height * width > places:  # each level of a UNet halves the latents, and rounds up
        height, width = -(-height // 2), -(-width // 2)
    if height * width != places:
        raise ConfigError(f"no halving of {mask.shape[1]} x {mask.shape[2]} latents has {places} places")
    return adaptive_avg_pool2d(mask.float()[:, None], (height, width)).flatten(1)
