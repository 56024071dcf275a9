"""How often the model scores a photograph above its distorted copy.

Shapes: N pictures, S side of a crop.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from idgen.data.images import FaceTable
from idgen.preference.distort import DISTORTIONS, Distortion, make_pair
from idgen.preference.model import CROP_PX

SIDES_PX = (56, 112)  # of crops that are judged: of pictures of 64 pixels, mini's, and of 128
BATCH_SIZE = 64


def at_side(crops: Tensor, side_px: int) -> Tensor:
    """Crops (N, 3, 112, 112) as they are in pictures of another resolution: (N, 3, side_px, side_px)."""
    size = (side_px, side_px)
    return interpolate(crops, size=size, mode="bilinear", antialias=True, align_corners=False)


def to_input(crops: Tensor) -> Tensor:
    """Crops of any side, enlarged for the model: (N, 3, 112, 112)."""
    return interpolate(crops, size=(CROP_PX, CROP_PX), mode="bilinear", align_corners=False)


@torch.no_grad()
def pair_scores(
    model: nn.Module, table: FaceTable, kind: Distortion, side_px: int, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of every picture of a table and of its mildly distorted copy: (N,) and (N,).

    Args:
        model: crops (B, 3, 112, 112) -> scores (B,).
        table: the pictures.
        kind: of distortion.
        side_px: resolution at which the distortion happens.
        seed: of the distortions; they are the same for every model.
    """
    number = list(DISTORTIONS).index(kind.name)
    generator = torch.Generator().manual_seed((seed * 1000 + side_px) * 1000 + number)
    better, worse = [], []
    for rows in torch.arange(len(table)).split(BATCH_SIZE):
        pair = make_pair(kind, at_side(table.crops(rows.numpy()), side_px), generator)
        better.append(model(to_input(pair[0])))
        worse.append(model(to_input(pair[1])))
    return torch.cat(better).numpy(), torch.cat(worse).numpy()


def shares_of_people(model: nn.Module, table: FaceTable, kind: Distortion, side_px: int) -> np.ndarray:
    """Of each person in the table, the share of pairs that are ranked right: (people,)."""
    better, worse = pair_scores(model, table, kind, side_px)
    return np.asarray([(better > worse)[rows].mean() for rows in table.people().values()])


@torch.no_grad()
def mean_score(model: nn.Module, table: FaceTable, sides_px: tuple[int, ...] = SIDES_PX) -> float:
    """The mean score of the photographs of a table, over these resolutions."""
    scores = [
        model(to_input(at_side(table.crops(rows.numpy()), side_px)))
        for side_px in sides_px
        for rows in torch.arange(len(table)).split(BATCH_SIZE)
    ]
    return torch.cat(scores).mean().item()
