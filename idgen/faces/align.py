"""Faces brought to the ArcFace or the FFHQ pose: the similarity transform in closed form, and the warp.

Shapes: B batch, C channels, H height, W width. Points are (x, y) in pixels; whole numbers are pixel centres.
Everything is plain torch, so gradients flow to the pixels and to the landmarks.
"""

from typing import Literal

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
# Half the side of an FFHQ crop: the larger of so many distances from eye to eye, or from eyes to mouth.
FFHQ_EYE_WIDTHS, FFHQ_MOUTH_HEIGHTS = 2.0, 1.8
FFHQ_CENTRE_SHIFT = 0.1  # how far below the eyes its centre lies, in distances from the eyes to the mouth


def similarity_matrix(source: Tensor, target: Tensor) -> Tensor:
    """The rotation, scale and shift that bring ``source`` closest to ``target``, without reflection.

    With a point as a complex number z (source) or w (target) and their means removed, minimising
    ``sum |a z + b - w|^2`` gives ``a = sum(conj(z) w) / sum |z|^2`` and ``b = mean(w) - a mean(z)``. It is
    the solution of Umeyama (1991, https://doi.org/10.1109/34.88573), eq. 40 to 42, in two dimensions.

    Args:
        source: (B, N, 2) points, N >= 2.
        target: (B, N, 2) or (N, 2) points.

    Returns:
        (B, 2, 3) matrices M with ``target ~ M @ [x, y, 1]``: what ``cv2.warpAffine`` takes.

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


def ffhq_matrix(landmarks: Tensor, size_px: int) -> Tensor:
    """The similarity that brings faces to the pose of FFHQ, on which published StyleGANs are trained.

    With e from eye to eye, m from the middle of the eyes to that of the mouth's corners, and ``rot90(x, y) =
    (-y, x)``, the crop's axis to the right is ``a = e - rot90(m)``, scaled to half its side
    ``max(2.0 |e|, 1.8 |m|)``; the one down is ``rot90(a)``, and its centre lies ``0.1 m`` below the eyes
    (Karras et al. 2018, https://arxiv.org/abs/1710.10196, appendix C; constants of the FFHQ dataset's own
    script). The nose has no say.

    Args:
        landmarks: (B, 5, 2) in pixels, in the order of `ARCFACE_TEMPLATE`.
        size_px: side of the crop.

    Returns:
        (B, 2, 3) matrices from pixels of the image to pixels of the crop.

    Raises:
        FaceError: if eyes and mouth of a face leave its direction open.
    """
    left_eye, right_eye, _, left_mouth, right_mouth = landmarks.unbind(dim=1)
    eyes, mouth = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    across, down = right_eye - left_eye, mouth - eyes
    direction = across - torch.stack([-down[:, 1], down[:, 0]], dim=1)
    length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    if not bool((length > 0).all()):
        raise FaceError("the eyes and the mouth of a face leave open where is up; the face cannot be aligned")
    half = torch.maximum(
        FFHQ_EYE_WIDTHS * torch.linalg.vector_norm(across, dim=1, keepdim=True),
        FFHQ_MOUTH_HEIGHTS * torch.linalg.vector_norm(down, dim=1, keepdim=True),
    )
    # rows: the unit axes of the crop, in crop pixels for each pixel of the image
    right = direction / length * (size_px / 2) / half
    linear = torch.stack([right, torch.stack([-right[:, 1], right[:, 0]], dim=1)], dim=1)
    centre = eyes + FFHQ_CENTRE_SHIFT * down
    middle = (size_px - 1) / 2  # whole numbers are pixel centres
    return torch.cat([linear, middle - linear @ centre[..., None]], dim=2)


def invert(matrix: Tensor) -> Tensor:
    """The (B, 2, 3) matrices of the opposite direction."""
    linear = torch.linalg.inv(matrix[:, :, :2])
    return torch.cat([linear, -linear @ matrix[:, :, 2:]], dim=2)


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply (B, 2, 3) matrices to (B, N, 2) points."""
    return points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]


def warp(
    image: Tensor, matrix: Tensor, size_px: int, *, outside: Literal["zeros", "reflection"] = "zeros"
) -> Tensor:
    """Bilinear warp: ``cv2.warpAffine`` without its rounding to 1/32 pixel.

    Args:
        image: (B, C, H, W), any range.
        matrix: (B, 2, 3), from pixels of the image to pixels of the result.
        size_px: height and width of the result.
        outside: what lies around the picture: black, or its mirror image.

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
        image, grid.to(image.dtype), mode="bilinear", padding_mode=outside, align_corners=False
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


def align_ffhq(image: Tensor, landmarks: Tensor, size_px: int) -> Tensor:
    """Crops in the pose of FFHQ: a square with hair and chin, which often reaches beyond the photo.

    There the photo is mirrored, as in FFHQ, whose script also blurs what it mirrors.

    Args:
        image: (B, C, H, W), any range.
        landmarks: (B, 5, 2) in pixels of the image, in the order of `ARCFACE_TEMPLATE`.
        size_px: side of the crop.

    Returns:
        (B, C, size_px, size_px).

    Raises:
        FaceError: as `ffhq_matrix`.
    """
    return warp(image, ffhq_matrix(landmarks, size_px), size_px, outside="reflection")
