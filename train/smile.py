"""Train the small network that says whether a face smiles: `idgen synthesize` checks its pictures with it.

    idgen train smile --out smile.safetensors

It learns the weak label ``p_happy`` of the training people, and is tested on the tenth that is set aside.
Needs IDGEN_FACES (faces_train.parquet). Ten minutes of one core.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import (
    affine_grid,
    avg_pool2d,
    binary_cross_entropy_with_logits,
    grid_sample,
    interpolate,
)
from tqdm import tqdm

from idgen.config import Parser
from idgen.data.captions import CLEAR
from idgen.data.images import FaceTable, split_people, table_of_faces
from idgen.errors import ConfigError
from idgen.faces.smile import LUMA, SIDE_PX, SmileNet, smile_net

PIECE = 256  # photos that are made grey at once
GREY_PX = 56  # what a portrait of 64 pixels, such as mini draws, has of a face
BATCH, EPOCHS = 128, 16
HIGHEST_RATE, DECAY = 4e-3, 1e-2
# What a detector and a generator do to a crop: standard deviations of turn (radians), scale and shift (shares
# of half the side), and the most noise.
TURN, SCALE, SHIFT, NOISE = 0.06, 0.05, 0.05, 0.05


def grey_crops(table: FaceTable) -> Tensor:
    """(N, 1, 56, 56) in [0, 1]."""
    pieces = []
    for start in tqdm(range(0, len(table), PIECE), desc="making grey", unit="piece", disable=None):
        crops = table.crops(list(range(start, min(start + PIECE, len(table)))))
        grey = (crops * LUMA).sum(dim=1, keepdim=True)
        pieces.append(interpolate(grey, size=(GREY_PX, GREY_PX), mode="area"))
    return torch.cat(pieces)


def varied(grey: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 1, 56, 56) -> (B, 1, S, S): turned, scaled, shifted, mirrored, softened, noisy; each by chance."""
    num = len(grey)
    turn = torch.randn(num, generator=generator) * TURN
    scale = 1 + torch.randn(num, generator=generator) * SCALE
    shift = torch.randn(num, 2, generator=generator) * SHIFT
    mirror = torch.where(torch.rand(num, generator=generator) < 0.5, -1.0, 1.0)
    across = torch.stack([turn.cos() * scale * mirror, -turn.sin() * scale, shift[:, 0]], dim=1)
    down = torch.stack([turn.sin() * scale * mirror, turn.cos() * scale, shift[:, 1]], dim=1)
    soft = torch.rand(num, 1, 1, 1, generator=generator)
    grey = torch.lerp(grey, avg_pool2d(grey, 3, stride=1, padding=1, count_include_pad=False), soft)
    grid = affine_grid(torch.stack([across, down], dim=1), [num, 1, SIDE_PX, SIDE_PX], align_corners=False)
    moved = grid_sample(grey, grid, padding_mode="border", align_corners=False)
    strength = torch.rand(num, 1, 1, 1, generator=generator) * NOISE
    return moved + torch.randn(moved.shape, generator=generator) * strength


def train(grey: Tensor, p_happy: Tensor, *, epochs: int, seed: int) -> SmileNet:
    """Fit the network to probabilities by cross-entropy."""
    torch.manual_seed(seed)
    net, generator = SmileNet(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=DECAY)
    num_batches = len(grey) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, HIGHEST_RATE, total_steps=epochs * num_batches)
    for _ in tqdm(range(epochs), desc="training", unit="epoch", disable=None):
        order = torch.randperm(len(grey), generator=generator)
        for rows in order[: num_batches * BATCH].split(BATCH):
            loss = binary_cross_entropy_with_logits(net(varied(grey[rows], generator)), p_happy[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def accuracy(net: SmileNet, table: FaceTable) -> dict[str, float]:
    """Agreement with the labels: of all photos, and of those whose label is clear, mean of both answers."""
    pieces = [table.crops(list(range(i, min(i + PIECE, len(table))))) for i in range(0, len(table), PIECE)]
    said = torch.cat([net.probability(crops) for crops in pieces]).numpy() >= 0.5
    label = table.labels["p_happy"]
    right, happy = said == (label >= 0.5), label >= 0.5
    clear = (label <= CLEAR[0]) | (label >= CLEAR[1])
    balanced = np.mean([right[clear & happy].mean(), right[clear & ~happy].mean()])
    return {"all": float(right.mean()), "clear": float(right[clear].mean()), "balanced": float(balanced)}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, save, test on people that were set aside."""
    parser = Parser(description=__doc__)
    parser.add_argument("--faces", type=Path, help="Parquet of portraits (of IDGEN_FACES)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"rounds through all photos ({EPOCHS})")
    parser.add_argument("--seed", type=int, default=0, help="of the training (0)")
    parser.add_argument("--out", type=Path, required=True, help="the file")
    options = parser.parse_args(argv)
    if options.epochs < 1:
        raise ConfigError(f"--epochs must be at least 1, got {options.epochs}")
    faces, set_aside = split_people(table_of_faces(options.faces))
    if len(faces) < BATCH:
        raise ConfigError(f"at least {BATCH} photos are needed to train on, got {len(faces)}")
    p_happy = torch.from_numpy(faces.labels["p_happy"])
    known = torch.isfinite(p_happy)
    train(grey_crops(faces)[known], p_happy[known], epochs=options.epochs, seed=options.seed).save(
        options.out
    )
    found = accuracy(smile_net(options.out), set_aside)
    print(
        f"{options.out}: as the labels of {len(set_aside)} photos of people set aside: {found['all']:.1%}; "
        f"where these are clear {found['clear']:.1%}, mean of both answers {found['balanced']:.1%}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
