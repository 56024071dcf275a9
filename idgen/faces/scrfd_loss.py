"""What a detector is trained with: which anchors stand for which face, and how wrong they are.

Shapes: B batch, A anchors of all strides, N faces of one picture. Boxes are x1, y1, x2, y2 in pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from idgen.faces.scrfd import STRIDES, anchor_centres
from idgen.faces.scrfd_net import ANCHOR_SIZES_PX

MAX_OCTAVES = 0.75  # anchors stand for faces up to this many octaves from their size: one or two sizes a face
IGNORED_OCTAVES = (
    1.5  # anchors in the middle of a face of up to this many octaves are neither face nor background
)
LANDMARK_TURN = (
    0.01  # error as a share of the face at which the loss turns from square to straight: a pixel of 100
)
RADIUS_STRIDES = 1.5  # anchors this near to the middle of a face, in strides, stand for it ...
RADIUS_FACES = 0.3  # ... but not further from it than this share of the face


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What every anchor should say."""

    face: Tensor  # (B, A) int64: index of the face in its picture; -1 background; -2 not to be judged
    boxes: Tensor  # (B, A, 4) px
    landmarks: Tensor  # (B, A, 10) px


def anchors(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centres (A, 2), sizes (A,) and strides (A,) in pixels of all anchors of a picture."""
    centres, sizes, strides = [], [], []
    for stride, pair in zip(STRIDES, ANCHOR_SIZES_PX, strict=True):
        points = torch.from_numpy(anchor_centres(height, width, stride))
        centres.append(points)
        sizes.append(torch.tensor(pair).repeat(len(points) // 2))
        strides.append(torch.full((len(points),), float(stride)))
    return torch.cat(centres), torch.cat(sizes), torch.cat(strides)


def assign(boxes: Tensor, is_clear: Tensor, height: int, width: int) -> Tensor:
    """Which face each anchor stands for.

    Args:
        boxes: (N, 4) faces of one picture.
        is_clear: (N,) bool; around a face that is not clear (too small, mostly outside) nothing is judged.
        height: of the picture.
        width: of the picture.

    Returns:
        (A,) int64 as in `Targets.face`. Of several faces the one whose size fits best wins.
    """
    centres, sizes, strides = anchors(height, width)
    result = torch.full((len(centres),), -1)
    if not len(boxes):
        return result
    middles, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    distance = (centres[:, None] - middles[None]).norm(dim=2)  # (A, N)
    octaves = (sizes[:, None] / sides[None]).log2().abs()
    # Faces beyond the largest or below the smallest anchor belong to those.
    octaves = torch.minimum(octaves, (sizes[:, None] / sides.clamp(16, 512)[None]).log2().abs())
    near = distance <= torch.minimum(RADIUS_STRIDES * strides[:, None], RADIUS_FACES * sides[None])
    nearest = (distance + 1e4 * (octaves > MAX_OCTAVES)) <= (distance + 1e4 * (octaves > MAX_OCTAVES)).amin(0)
    positive = is_clear[None] & (octaves <= MAX_OCTAVES) & (near | nearest)
    inside = distance <= 0.5 * sides[None]
    ignored = inside & torch.where(is_clear[None], octaves <= IGNORED_OCTAVES, torch.tensor(True))
    result[ignored.any(dim=1)] = -2
    cost = torch.where(positive, octaves + distance / sides[None], torch.inf)
    best = cost.min(dim=1)
    return torch.where(best.values.isfinite(), best.indices, result)


def targets(faces: list[tuple[Tensor, Tensor, Tensor]], height: int, width: int) -> Targets:
    """Targets of a batch from the (boxes (N, 4), landmarks (N, 5, 2), is_clear (N,)) of its pictures."""
    found = [assign(boxes, is_clear, height, width) for boxes, _, is_clear in faces]
    return Targets(
        face=torch.stack(found),
        boxes=torch.stack([_of(boxes, index) for (boxes, _, _), index in zip(faces, found, strict=True)]),
        landmarks=torch.stack(
            [_of(m.flatten(1), index) for (_, m, _), index in zip(faces, found, strict=True)]
        ),
    )


def _of(values: Tensor, index: Tensor) -> Tensor:
    return values[index.clamp_min(0)] if len(values) else values.new_zeros(len(index), values.shape[1])


def paired_iou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union and its distance form, box by box.

    ``DIoU = IoU - d^2 / c^2`` with d the distance of the centres and c the diagonal of the box around both
    (Zheng et al. 2020, https://arxiv.org/abs/1911.08287, eq. 6).

    Args:
        boxes: (N, 4).
        others: (N, 4).

    Returns:
        IoU (N,) in [0, 1] and DIoU (N,) in (-1, 1].
    """
    top_left, bottom_right = (
        torch.maximum(boxes[:, :2], others[:, :2]),
        torch.minimum(boxes[:, 2:], others[:, 2:]),
    )
    inner = (bottom_right - top_left).clamp_min(0).prod(dim=1)
    areas = [(b[:, 2:] - b[:, :2]).clamp_min(0).prod(dim=1) for b in (boxes, others)]
    iou = inner / (areas[0] + areas[1] - inner).clamp_min(1e-6)
    outer = torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])
    shift = (boxes[:, :2] + boxes[:, 2:] - others[:, :2] - others[:, 2:]) / 2
    return iou, iou - shift.square().sum(dim=1) / outer.square().sum(dim=1).clamp_min(1e-6)


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """Focal loss whose positive target is how well the box fits: (n,) and (n,) in [0, 1] -> (n,).

    ``|y - p|^2 BCE(p, y)`` (Li et al. 2020, https://arxiv.org/abs/2006.04388, eq. 3 with beta = 2).
    """
    entropy = binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return (quality - logits.sigmoid()).square() * entropy


def detection_terms(
    predictions: tuple[Tensor, Tensor, Tensor], wanted: Targets, height: int, width: int
) -> dict[str, Tensor]:
    """The three terms of the loss, each a mean over the anchors that stand for a face.

    Args:
        predictions: of `DetectorNet`: logits (B, A), distances (B, A, 4) px, offsets (B, A, 10) px.
        wanted: targets of the batch.
        height: of the pictures.
        width: of the pictures.

    Returns:
        score (quality focal loss over all anchors that are judged), box (1 - DIoU) and landmarks (smooth L1
        of the error as a share of the face's size).
    """
    logits, distances, offsets = predictions
    positive, judged = wanted.face >= 0, wanted.face > -2
    count = positive.sum().clamp_min(1)
    centres = anchors(height, width)[0].expand(len(logits), -1, -1)[positive]
    boxes = torch.cat([centres - distances[positive][:, :2], centres + distances[positive][:, 2:]], dim=1)
    iou, distance_iou = paired_iou(boxes, wanted.boxes[positive])
    quality = torch.zeros_like(logits)
    quality[positive] = iou.detach().clamp(0, 1)
    sides = (wanted.boxes[positive][:, 2:] - wanted.boxes[positive][:, :2]).prod(dim=1).sqrt()[:, None]
    marks = (centres.repeat(1, 5) + offsets[positive] - wanted.landmarks[positive]) / sides
    return {
        "score": quality_focal_loss(logits[judged], quality[judged]).sum() / count,
        "box": (1 - distance_iou).sum() / count,
        "landmarks": smooth_l1_loss(marks, torch.zeros_like(marks), beta=LANDMARK_TURN, reduction="sum")
        / (10 * count),
    }
