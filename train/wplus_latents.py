"""Make W+ codes in closed form: the principal components of the latents of a diffusion model.

    idgen train wplus_latents --config train/configs/wplus_latents.yaml --out runs/wplus

The latents of all photos, and of their mirror images, are computed once and kept; the codes are their
principal components (`idgen.stylegan.principal`). Leaves ``wplus.safetensors``, which
`idgen.encoders.wplus.load_wplus` opens, and says how much of the latents of the people set aside it keeps.

Shapes: N photos, P channels of the latents and S their side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm import tqdm

from idgen.config import program_arguments
from idgen.data.images import FaceTable, split_people, table_of_faces
from idgen.errors import ConfigError
from idgen.storage import replacing
from idgen.stylegan.checkpoint import PRINCIPAL, WPlusCard, write_wplus
from idgen.stylegan.principal import (
    LatentWPlusModel,
    latents_of,
    open_vae,
    principal_pair,
    principal_settings,
)
from idgen.training import Progress, TrainingRun

NAME, KEPT = "wplus.safetensors", "latents.npy"
PIECE = 64  # pictures encoded at once


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """Everything that decides a run of train/wplus_latents.py."""

    faces: Path | None = None  # a Parquet of portraits; by default faces_train.parquet of $IDGEN_FACES
    num_threads: int = 1
    model: str = "mini"  # whose autoencoder makes the latents: mini, or a folder in the layout of diffusers
    size_px: int = 64  # of the pictures that it reads
    num_layers: int = 6
    style_dim: int = 160
    whitening: float = 0.5  # 1: all components weigh alike, 0: as they vary
    licence: str = "research only"

    def __post_init__(self) -> None:
        if min(self.num_layers, self.style_dim, self.size_px, self.num_threads) < 1:
            raise ConfigError("num_layers, style_dim, size_px and num_threads must be at least 1")
        if not 0 <= self.whitening <= 1:
            raise ConfigError(f"whitening must be in [0, 1], got {self.whitening:g}")


@torch.no_grad()
def encode(config: LatentsConfig, table: FaceTable) -> Tensor:
    """Latents (2 N, P, S, S) of all photos, then of their mirror images."""
    vae = open_vae(config.model)
    images = table.pictures(config.size_px)
    parts = torch.cat([images, images.flip(-1)]).split(PIECE)
    bar = tqdm(parts, desc="encoding", unit="piece", disable=None)
    return torch.cat([latents_of(vae, part.float() / 127.5 - 1) for part in bar])


def read_latents(run: TrainingRun, config: LatentsConfig, table: FaceTable) -> Tensor:
    """What `encode` gives, computed once."""
    path = run.folder / KEPT
    if not path.exists():
        latents = encode(config, table)
        with replacing(path) as file:
            np.save(file, latents.numpy())
    return torch.from_numpy(np.load(path))


def main(argv: Sequence[str] | None = None) -> int:
    """Encode, fit, save, measure."""
    arguments = program_arguments(
        LatentsConfig, __doc__ or "", argv, settings={"faces": "Parquet of portraits"}
    )
    if arguments.dry_run:
        return 0
    config = arguments.config
    torch.set_num_threads(config.num_threads)
    run = TrainingRun(arguments.out, config)
    table, held = split_people(table_of_faces(config.faces))
    latents = read_latents(run, config, table)
    encoder, generator = principal_pair(
        latents, num_layers=config.num_layers, style_dim=config.style_dim, whitening=config.whitening
    )
    crop = {"size_px": config.size_px, "template": "portrait", "mean": 127.5, "std": 127.5}
    card = WPlusCard(
        kind=PRINCIPAL,
        crop=crop,
        licence=config.licence,
        settings=principal_settings(config.model, generator),
    )
    latent_avg = torch.zeros(config.num_layers, config.style_dim)  # components have no mean
    model = LatentWPlusModel(encoder, generator, latent_avg, open_vae(config.model))
    write_wplus(run.folder / NAME, model, card, dtype=torch.float16)
    unseen = encode(config, held)
    lost = mse_loss(generator(encoder(unseen)), unseen) / (unseen - latents.mean(dim=0)).square().mean()
    run.log("wplus", Progress(images_seen=len(latents)), {"variance_kept": 1 - lost.item()})
    print(f"saved {run.folder / NAME}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
