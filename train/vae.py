"""Train mini's autoencoder: pixels to latents and back.

    python train/vae.py --config train/configs/vae_cpu.yaml --out runs/vae

Leaves a diffusers folder ``vae`` in the run folder, which train/mini.py takes as ``vae``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn.functional import l1_loss

from idgen.config import program_arguments
from idgen.data.images import training_faces
from idgen.training import (
    MovingAverage,
    Progress,
    TrainingRun,
    batch_rows,
    reduced_precision,
    step_generator,
)


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Everything that decides a run of train/vae.py."""

    seed: int = 0
    faces: Path | None = None  # a Parquet of portraits; by default faces_train.parquet of $IDGEN_FACES
    num_threads: int = 2
    start: Path | None = None  # weights to begin with: a folder with a VAE of the same widths
    size_px: int = 64
    block_out_channels: tuple[int, ...] = (32, 64, 128)  # each further level halves the picture
    layers_per_block: int = 1
    latent_channels: int = 8
    steps: int = 1600
    batch_size: int = 32
    learning_rate: float = 1e-3
    kl_weight: float = 1e-5  # summed over a latent pixel; keeps the latents near unit scale, no more
    edge_weight: float = 1.0  # L1 on differences of neighbouring pixels: L1 alone blurs
    ema_decay: float = 0.995


def vae_objective(
    vae: AutoencoderKL, pixel_values: Tensor, config: VaeConfig
) -> tuple[Tensor, dict[str, float]]:
    """Scalar to minimise and its named terms: L1 on pixels, L1 on edges, KL to the unit Gaussian."""
    with reduced_precision(pixel_values.device):
        (posterior,) = vae.encode(pixel_values, return_dict=False)
        (decoded,) = vae.decode(posterior.sample(), return_dict=False)  # pyright: ignore[reportArgumentType]
    decoded = decoded.float()
    pixel = l1_loss(decoded, pixel_values)
    edge = l1_loss(decoded.diff(dim=-1), pixel_values.diff(dim=-1)) + l1_loss(
        decoded.diff(dim=-2), pixel_values.diff(dim=-2)
    )
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()
    loss = pixel + config.edge_weight * edge + config.kl_weight * divergence
    return loss, {"l1": pixel.item(), "edge": edge.item(), "kl": divergence.item(), "std": mean.std().item()}


def train_vae(run: TrainingRun, c: VaeConfig, images: Tensor, device: torch.device) -> AutoencoderKL:
    """Fit the autoencoder; returns it with averaged weights."""
    num_levels = len(c.block_out_channels)
    torch.manual_seed(c.seed)
    layout: dict[str, Any] = {
        "block_out_channels": c.block_out_channels,
        "down_block_types": ("DownEncoderBlock2D",) * num_levels,
        "up_block_types": ("UpDecoderBlock2D",) * num_levels,
        "latent_channels": c.latent_channels,
        "layers_per_block": c.layers_per_block,
        "norm_num_groups": 16,
        "mid_block_add_attention": False,  # latents are local here: attention is dear and gives little
        "sample_size": c.size_px,
    }
    vae = AutoencoderKL(**layout)
    torch.nn.Module.to(vae, device)  # the decorated method of diffusers hides its argument from type checkers
    if c.start:
        vae.load_state_dict(AutoencoderKL.from_pretrained(c.start).state_dict())
    optimizer = torch.optim.AdamW(vae.parameters(), lr=c.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    average = MovingAverage({"vae": vae}, c.ema_decay)
    progress = Progress()
    if state := run.load("vae"):
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average.weights = {k: v.to(device) for k, v in state["average"].items()}
        progress = Progress(**state["progress"])

    while progress.step < c.steps:
        torch.manual_seed(step_generator(c.seed, progress.step).initial_seed())
        rows = batch_rows(len(images), c.batch_size, progress.step, c.seed)
        pixel_values = images[rows].to(device).float() / 127.5 - 1
        pixel_values = torch.where(
            torch.rand(len(rows), 1, 1, 1, device=device) < 0.5, pixel_values.flip(-1), pixel_values
        )

        loss, terms = vae_objective(vae, pixel_values, c)
        if not loss.isfinite():
            raise FloatingPointError(f"loss is {loss.item()} at step {progress.step}: {terms}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = c.learning_rate * min(
                1, (progress.step + 1) / 100, (c.steps - progress.step) / (0.3 * c.steps)
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        progress.step += 1
        progress.images_seen += len(rows)
        average.update({"vae": vae}, progress.step)
        if progress.step % 50 == 0:
            run.log("vae", progress, terms)
        if run.checkpoint_due(progress.step, c.steps):
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "average": average.weights}
            run.save("vae", {**state, "progress": vars(progress)})
    vae.load_state_dict(average.of("vae"))
    return vae.eval()


@torch.no_grad()
def measure_scale(vae: AutoencoderKL, images: Tensor, device: torch.device) -> float:
    """The factor that brings the latents to unit standard deviation: Stable Diffusion's 0.18215."""
    samples = images[:: max(1, len(images) // 512)].to(device).float() / 127.5 - 1
    return (
        1
        / torch.cat([vae.encode(part, return_dict=False)[0].mean for part in samples.split(64)]).std().item()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure the latents' scale, save the folder."""
    arguments = program_arguments(VaeConfig, __doc__ or "", argv)
    if arguments.dry_run:
        return 0
    config = arguments.config
    torch.set_num_threads(config.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = TrainingRun(arguments.out, replace(config, num_threads=0))
    images = training_faces(config.faces).pictures(config.size_px)
    vae = train_vae(run, config, images, device)
    vae.register_to_config(scaling_factor=measure_scale(vae, images, device))
    vae.half().save_pretrained(run.folder / "vae")
    print(f"saved {run.folder / 'vae'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
