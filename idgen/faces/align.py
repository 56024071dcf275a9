"""Faces brought to the ArcFace pose: the similarity transform in closed form, and the warp.

Shapes: B batch, C channels, H height, W width. Points are (x, y) in pixels; whole numbers are pixel centres.
Everything is plain torch, so gradients flow to the pixels and to the landmarks.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from idgen.errors import FaceError

# Where the five landmarks (left eye, right eye, nose, left and right corner of the mouth, as seen in the
# image) lie in a crop of 112 pixels: the template of insightface, on which ArcFace-like recognisers are
# trained.
ARCFACE_TEMPLATE = torch.tensor(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
TEMPLATE_SIZE_PX = 112


def similarity_matrix(source: Tensor, target: Tensor) -> Tensor:
    """The rotation, scale and shift that bring ``source`` closest to ``target``, without reflection.

    With a point as a complex number z (source) or w (target) and their means removed, minimising
    ``sum |a z + b - w|^2`` gives ``a = sum(conj(z) w) / sum |z|^2`` and ``b = mean(w) - a mean(z)``. It is
    the solution of Umeyama (1991, https://doi.org/10.1109/34.88573), eq. 40 to 42, in two dimensions.

    Args:
        source: (B, N, 2) points, N >= 2.
        target: (B, N, 2) or (N, 2) points.

    Returns:
        (B, 2, 3) matrices M with ``target ~ M @ [x, y, 1]``: what `cv2.warpAffine` takes.

    Raises:
        FaceError: if all points of a source coincide, so that no rotation is defined.
    """
    target = target.to(source).expand_as(source)
    source_mean, target_mean = source.mean(dim=1), target.mean(dim=1)
    z, w = source - source_mean[:, None], target - target_mean[:, None]
    spread = z.square().sum(dim=(1, 2))
    if not bool((spread > 0).all()):
        raise FaceError("the landmarks of a face all lie on one point; the face cannot be aligned")
    real = (z * w).sum(dim=(1, 2)) / spread
    imaginary = (z[..., 0] * w[..., 1] - z[..., 1] * w[..., 0]).sum(dim=1) / spread
    linear = torch.stack([torch.stack([real, -imaginary], -1), torch.stack([imaginary, real], -1)], dim=1)
    shift = target_mean - (linear @ source_mean[..., None])[..., 0]
    return torch.cat([linear, shift[..., None]], dim=2)


def invert(matrix: Tensor) -> Tensor:
    """The (B, 2, 3) matrices of the opposite direction."""
    linear = torch.linalg.inv(matrix[:, :, :2])
    return torch.cat([linear, -linear @ matrix[:, :, 2:]], dim=2)


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply (B, 2, 3) matrices to (B, N, 2) points."""
    return points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]


def warp(image: Tensor, matrix: Tensor, size_px: int) -> Tensor:
    """Bilinear warp, black outside of the picture: `cv2.warpAffine` without its rounding to 1/32 pixel.

    Args:
        image: (B, C, H, W), any range.
        matrix: (B, 2, 3), from pixels of the image to pixels of the result.
        size_px: height and width of the result.

    Returns:
        (B, C, size_px, size_px). It does not smooth: a picture that shrinks to less than half is shrunk
        first.
    """
    height, width = image.shape[-2:]
    steps = torch.arange(size_px, dtype=matrix.dtype, device=matrix.device)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1).reshape(1, -1, 2).expand(len(matrix), -1, -1)
    source = transform_points(invert(matrix), pixels)
    size = torch.tensor([width, height], dtype=matrix.dtype, device=matrix.device)
    grid = ((2 * source + 1) / size - 1).reshape(len(matrix), size_px, size_px, 2)  # pixel centres -> [-1, 1]
    return grid_sample(
        image, grid.to(image.dtype), mode="bilinear", padding_mode="zeros", align_corners=False
    )


def align_faces(image: Tensor, landmarks: Tensor, size_px: int = TEMPLATE_SIZE_PX) -> Tensor:
    """Crops in the ArcFace pose.

    Args:
        image: (B, C, H, W), any range.
        landmarks: (B, 5, 2) in pixels of the image, in the order of `ARCFACE_TEMPLATE`.
        size_px: side of the crop; the template grows with it.

    Returns:
        (B, C, size_px, size_px).
    """
    template = ARCFACE_TEMPLATE.to(landmarks) * (size_px / TEMPLATE_SIZE_PX)
    return warp(image, similarity_matrix(landmarks, template), size_px)
