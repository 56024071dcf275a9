"""Teach a small decoder what a model's own one says: for identity terms, which decode in every step.

    idgen train decoder --model mini --faces $IDGEN_FACES/faces_train.parquet --out runs/decoder

Latents of photos, and pictures that the model predicts from noisy ones, are decoded by the model once and
kept in memory; the small decoder learns them, and what the encoder sees in them. Leaves
``decoder.safetensors``, which `idgen train lora` and `idgen train adapter` take as ``decoder``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import l1_loss
from tqdm import tqdm

from idgen.config import program_arguments
from idgen.data.images import arcface_crops, training_faces
from idgen.diffusion.denoiser import Denoiser, encode_texts, picture_px
from idgen.diffusion.latents import decode_latents, encode_latents
from idgen.diffusion.prediction import NoiseSchedule
from idgen.diffusion.tiny_decoder import TinyDecoder
from idgen.encoders.arcface import load_encoder
from idgen.encoders.onnx_torch import TorchEncoder
from idgen.errors import ConfigError
from idgen.opening import hide_loading_bars, model_folder
from idgen.pipeline import IDPipeline, IDPipelineXL, open_pipeline
from idgen.training import MovingAverage, Progress, TrainingRun, batch_rows

NAME, STATE, PIECE = "decoder.safetensors", "decoder", 16
PROMPT = "a photo of a person"


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Everything that decides a run of train/decoder.py."""

    seed: int = 0
    faces: Path | None = (
        None  # a Parquet of aligned portraits; by default faces_train.parquet of $IDGEN_FACES
    )
    model: str = "mini"
    encoder: str = "mini"  # what it sees in both pictures should be the same
    width: int = 32
    blocks: tuple[int, ...] = (3, 2, 1)
    pictures: int = 3000  # photos, each with its latents and with a prediction
    steps: int = 800
    batch_size: int = 16
    id_rows: int = 4  # of a batch that the encoder looks at
    id_weight: float = 0.2
    learning_rate: float = 2e-3
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        if min(self.pictures, self.steps, self.batch_size, self.width) < 1 or self.id_rows < 0:
            raise ConfigError("pictures, steps, batch_size and width must be at least 1, id_rows at least 0")
        if self.id_rows > self.batch_size or not self.learning_rate > 0:
            raise ConfigError("id_rows must be at most batch_size, and learning_rate greater than 0")


@torch.no_grad()
def collect(config: DecoderConfig, pipe: IDPipeline | IDPipelineXL) -> tuple[Tensor, Tensor]:
    """Latents (2 N, C, h, w) of photos and predictions, and what the model's decoder makes of them."""
    side = picture_px(pipe)
    table = training_faces(config.faces)
    images = table.pictures(side)[:: max(1, len(table) // config.pictures)][: config.pictures]
    schedule = NoiseSchedule.of(pipe.scheduler)
    denoiser = Denoiser(unet=pipe.unet, texts=encode_texts(pipe, [PROMPT]), size_px=side)
    generator = torch.Generator().manual_seed(config.seed)
    latents, pictures = [], []
    for part in tqdm(images.split(PIECE), desc="decoding", unit="piece", disable=None):
        x0 = encode_latents(pipe.vae, part.float() / 255).mean.float()
        at = torch.randint(schedule.num_timesteps, (len(x0),), generator=generator)
        noisy = schedule.add_noise(x0, torch.randn(x0.shape, generator=generator), at)
        said = denoiser(noisy, at, torch.zeros(len(x0), dtype=torch.long))
        both = torch.cat([x0, schedule.x0(said, noisy, at)])
        latents.append(both.half())
        pictures.append(decode_latents(pipe.vae, both).half())
    return torch.cat(latents), torch.cat(pictures)


def objective(
    made: Tensor, wanted: Tensor, encoder: TorchEncoder, config: DecoderConfig
) -> tuple[Tensor, dict[str, float]]:
    """L1 on pixels and on edges, and the cosine of what the encoder sees, in the first rows."""
    pixel = l1_loss(made, wanted)
    edge = sum(l1_loss(made.diff(dim=d), wanted.diff(dim=d)) for d in (-1, -2))
    loss = pixel + edge
    said = {"l1": float(pixel.detach()), "edge": float(torch.as_tensor(edge).detach())}
    if config.id_rows:
        rows, size = slice(0, config.id_rows), encoder.crop.size_px
        with torch.no_grad():
            person = encoder(arcface_crops(wanted[rows], size))
        apart = (1 - (encoder(arcface_crops(made[rows], size)) * person).sum(dim=1)).mean()
        loss = loss + config.id_weight * apart
        said["similarity"] = 1 - float(apart.detach())
    return loss, said


def train(run: TrainingRun, config: DecoderConfig, latents: Tensor, pictures: Tensor) -> TinyDecoder:
    """Fit the small decoder; returns it with averaged weights."""
    torch.manual_seed(config.seed)
    decoder = TinyDecoder(latent_channels=latents.shape[1], width=config.width, blocks=config.blocks)
    encoder = load_encoder(config.encoder).torch_encoder().requires_grad_(False)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    average, progress = MovingAverage({"decoder": decoder}, config.ema_decay), Progress()
    if state := run.load(STATE):
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        average.weights = state["average"]
        progress = Progress(**state["progress"])
    while progress.step < config.steps:
        step = progress.step
        rows = torch.from_numpy(batch_rows(len(latents), config.batch_size, step, config.seed))
        made = decode_latents(decoder, latents[rows].float())
        loss, said = objective(made, pictures[rows].float(), encoder, config)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(
                1, (step + 1) / 50, (config.steps - step) / (0.5 * config.steps)
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.images_seen += len(rows)
        average.update({"decoder": decoder}, progress.step)
        if progress.step % 20 == 0:
            run.log(STATE, progress, {**said, "loss": float(loss.detach())})
        if run.checkpoint_due(progress.step, config.steps):
            run.save(STATE, {"decoder": decoder.state_dict(), "optimizer": optimizer.state_dict(),
                             "average": average.weights, "progress": vars(progress)})  # fmt: skip
    decoder.load_state_dict(average.of("decoder"))
    return decoder.eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Collect, train, save."""
    settings = {
        "model": "mini, a diffusers folder, or OWNER/NAME of the hub",
        "faces": "Parquet of portraits",
    }
    arguments = program_arguments(DecoderConfig, __doc__ or "", argv, settings=settings)
    if arguments.dry_run:
        return 0
    hide_loading_bars()
    config = arguments.config
    TrainingRun.check(arguments.out, config)
    pipe = open_pipeline(model_folder(config.model))
    pipe.unload_adapter()
    latents, pictures = collect(config, pipe)
    run = TrainingRun(arguments.out, config)
    train(run, config, latents, pictures).save(run.folder / NAME)
    print(f"saved {run.folder / NAME}; train with it: --set decoder={run.folder / NAME}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
