"""Train mini, the embedded Stable Diffusion in miniature: text encoder, UNet and FaceID adapter at once.

    python train/mini.py --config train/configs/mini_cpu.yaml --out runs/mini

Goes on from the last checkpoint in the run folder. At the end the averaged weights are written as `base` (an
ordinary diffusers folder) and `adapter`; a larger `denoiser.steps` then goes on from there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from idgen.adapters.card import AdapterCard
from idgen.adapters.checkpoint import read_adapter, write_adapter
from idgen.adapters.install import IDAdapter, install_adapter
from idgen.adapters.projection import FaceIDProjection
from idgen.config import program_arguments
from idgen.data.captions import Attributes, attributes, caption, every_phrase
from idgen.data.images import FaceTable, training_faces
from idgen.data.vocabulary import write_vocabulary
from idgen.encoders.arcface import load_encoder
from idgen.encoders.base import FaceEncoder
from idgen.mini import BASE
from idgen.training import (
    MovingAverage,
    Progress,
    TrainingRun,
    batch_rows,
    reduced_precision,
    step_generator,
)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text encoder: a small CLIP text model over a byte-level vocabulary."""

    hidden_size: int = 192  # also the width that the UNet attends to
    num_layers: int = 3
    num_heads: int = 6
    max_length: int = 32  # tokens; a word of a training caption is one token


@dataclass(frozen=True, kw_only=True)
class UnetConfig:
    """Denoiser: no attention at full size, where it costs most; attention heads are 32 wide."""

    block_out_channels: tuple[int, ...] = (64, 192, 192)
    layers_per_block: tuple[int, ...] = (1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Joint training of text encoder, UNet and adapter on latents."""

    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 6e-4
    warmup_steps: int = 100
    cooldown: float = 0.25  # share of the steps over which the rate falls to zero
    ema_decay: float = 0.998
    num_tokens: int = 16
    other_photo: float = 0.3  # probability of conditioning on another photo of the person, where there is one
    base_alone: float = 0.12  # of leaving the identity branch out: the base must be a model by itself
    zero_identity: float = 0.05  # probability of the zero vector with a caption
    no_text: float = 0.10  # probability of the empty caption with an identity
    unconditional: float = 0.08  # probability of both at once: the negative row of guidance


@dataclass(frozen=True, kw_only=True)
class MiniConfig:
    """Everything that decides a run of train/mini.py."""

    seed: int = 0
    faces: Path | None = None  # a Parquet of portraits; by default faces_train.parquet of $IDGEN_FACES
    num_threads: int = 2
    # Recognisers whose face vectors condition the model; the card names the first. Others must share its
    # space, as teacher and student do: the model then does not hang on the faults of one.
    encoders: tuple[str, ...] = ("mini",)
    start: Path | None = None  # weights to begin with: a folder with `base` and `adapter`, as idgen/mini
    vae: Path = BASE / "vae"  # a folder that train/vae.py made; by default the embedded one
    text: TextConfig = field(default_factory=TextConfig)
    unet: UnetConfig = field(default_factory=UnetConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)


def open_tokenizer(run: TrainingRun, config: MiniConfig) -> CLIPTokenizer:
    """The tokenizer of ``start`` or of the run so far, else a new one that knows every caption word whole."""
    if config.start:
        return CLIPTokenizer.from_pretrained(config.start / "base" / "tokenizer")
    folder = run.folder / "tokenizer"
    if not (folder / "vocab.json").exists():
        write_vocabulary(folder, [word.strip(",") for phrase in every_phrase() for word in phrase.split()])
    length = config.text.max_length
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length)


def build_text_encoder(config: TextConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text model for the tokenizer's vocabulary."""
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    layout = CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=config.max_length, hidden_size=config.hidden_size,
        projection_dim=config.hidden_size, intermediate_size=4 * config.hidden_size,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, **special,
    )  # fmt: skip
    return CLIPTextModel(layout)


def build_unet(config: MiniConfig, latent_shape: Sequence[int]) -> UNet2DConditionModel:
    """A Stable Diffusion UNet for latents (C, h, w)."""
    widths = config.unet.block_out_channels
    num_attended = len(widths) - 1
    num_channels, latent_px, _ = latent_shape
    layout: dict[str, Any] = {
        "sample_size": latent_px, "in_channels": num_channels, "out_channels": num_channels,
        "block_out_channels": widths, "layers_per_block": config.unet.layers_per_block,
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * num_attended),
        "up_block_types": (*("CrossAttnUpBlock2D",) * num_attended, "UpBlock2D"),
        "attention_head_dim": tuple(width // 32 for width in widths),  # read as the number of heads
        "cross_attention_dim": config.text.hidden_size, "use_linear_projection": True,
    }  # fmt: skip
    return UNet2DConditionModel(**layout)


def build_adapter(unet: UNet2DConditionModel, id_dim: int, config: MiniConfig) -> IDAdapter:
    """A FaceID adapter whose projection is at work from the first step."""
    num_tokens = config.denoiser.num_tokens
    adapter = IDAdapter.for_unet(unet, id_dim=id_dim, num_tokens=num_tokens)
    adapter.image_proj = FaceIDProjection(id_dim, config.text.hidden_size, num_tokens, 4 * id_dim)
    # A unit vector has entries of 1/sqrt(D): initialised as usual, the GELU would see only its centre.
    adapter.image_proj.proj[0].get_parameter("weight").data.mul_(math.sqrt(id_dim))
    return adapter


def build_scheduler() -> DDIMScheduler:
    """v-prediction, on a schedule that ends in pure noise (Lin et al. 2023, arXiv:2305.08891)."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Everything the denoiser is trained on; index 0 of M is the picture, 1 its mirror image."""

    latents: Tensor  # (M=2, N, C, h, w) of unit standard deviation
    id_embedding: Tensor  # (E, M=2, N, D), E recognisers of one space
    attributes: list[Attributes]  # of the pictures, N
    same_person: list[list[int]]  # rows of the same person, the row itself included, N


@torch.no_grad()
def encode_pictures(run: TrainingRun, table: FaceTable, vae: AutoencoderKL) -> Tensor:
    """Latents (M, N, C, h, w) of every picture and its mirror image; kept in the run folder."""
    if cached := run.load("latents"):
        return cached["latents"]
    images = table.pictures(vae.config["sample_size"]).split(128)
    latents = []
    for mirror in (False, True):
        for part in images:
            pixel_values = part.to(vae.device).float() / 127.5 - 1
            seen = pixel_values.flip(-1) if mirror else pixel_values
            with reduced_precision(vae.device):
                (posterior,) = vae.encode(seen, return_dict=False)
            latents.append(posterior.mean.float().cpu() * vae.config["scaling_factor"])
    both = torch.cat(latents).half().unflatten(0, (2, -1))
    run.save("latents", {"latents": both})
    return both


def embed_faces(run: TrainingRun, table: FaceTable, encoders: Sequence[FaceEncoder]) -> Tensor:
    """Face vectors (E, M, N, D) of every picture and its mirror image; kept in the run folder."""
    if cached := run.load("id_embedding"):
        return cached["id_embedding"]
    vectors = []
    for rows in torch.arange(len(table)).split(128):
        crops = table.crops(rows.numpy())
        views = (crops, crops.flip(-1))
        vectors.append(torch.stack([torch.stack([e.encode(view).unit for view in views]) for e in encoders]))
    run.save("id_embedding", {"id_embedding": torch.cat(vectors, dim=2)})
    return torch.cat(vectors, dim=2)


def build_corpus(
    run: TrainingRun, table: FaceTable, vae: AutoencoderKL, encoders: Sequence[FaceEncoder]
) -> Corpus:
    """Everything the denoiser learns from."""
    people, said = table.people(), [attributes(table, row) for row in range(len(table))]
    same_person = [people[person] for person in table.identities]
    latents, id_embedding = encode_pictures(run, table, vae), embed_faces(run, table, encoders)
    return Corpus(latents=latents, id_embedding=id_embedding, attributes=said, same_person=same_person)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Latents, captions, face vectors, and the strength of the identity branch: 1, or 0 to leave it out."""

    latents: Tensor
    captions: list[str]
    id_embedding: Tensor
    id_scale: Tensor


def make_batch(corpus: Corpus, config: DenoiserConfig, step: int, seed: int) -> Batch:
    """Batch ``step``: which rows, mirrored or not, with which caption and photo, and what is left out."""
    rng = np.random.default_rng([seed, step, 1])
    rows = batch_rows(len(corpus.attributes), config.batch_size, step, seed)
    mirrored = rng.integers(2, size=len(rows))
    sources, captions = rows.copy(), []
    for i, row in enumerate(rows):
        said = corpus.attributes[row].mirrored() if mirrored[i] else corpus.attributes[row]
        captions.append(caption(said, rng))
        if rng.random() < config.other_photo:
            sources[i] = corpus.same_person[row][rng.integers(len(corpus.same_person[row]))]
    which = rng.integers(len(corpus.id_embedding), size=len(rows))
    embedding = corpus.id_embedding[which, mirrored, sources].clone()
    scale = torch.ones(len(rows))
    bounds = np.cumsum([config.unconditional, config.zero_identity, config.no_text, config.base_alone])
    for i, case in enumerate(np.searchsorted(bounds, rng.random(len(rows)), side="right")):
        if case in (0, 1):
            embedding[i] = 0
        if case in (0, 2) or (case == 3 and rng.random() < 0.2):  # the base alone is guided too
            captions[i] = ""
        if case == 3:
            scale[i] = 0
    latents = corpus.latents[mirrored, rows].float()
    return Batch(latents=latents, captions=captions, id_embedding=embedding, id_scale=scale)


def denoiser_objective(
    models: dict[str, torch.nn.Module],
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    batch: Batch,
    generator: torch.Generator,
) -> Tensor:
    """Squared error of the predicted velocity, (B,) (Salimans and Ho 2022, arXiv:2202.00512)."""
    unet, text_encoder, adapter = models["unet"], models["text_encoder"], models["adapter"]
    device = next(unet.parameters()).device
    num_rows, num_timesteps = len(batch.latents), scheduler.config["num_train_timesteps"]
    noise = torch.randn(batch.latents.shape, generator=generator)
    # One timestep from each of B equal parts: uniform as a whole, with less variance from batch to batch.
    uniform = (
        torch.randperm(num_rows, generator=generator) + torch.rand(num_rows, generator=generator)
    ) / num_rows
    timesteps = (uniform * num_timesteps).long().to(device)
    latents, noise = batch.latents.to(device), noise.to(device)
    noisy = scheduler.add_noise(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
    target = scheduler.get_velocity(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
    said = tokenizer(batch.captions, padding="max_length", truncation=True, return_tensors="pt")
    # On the CPU the fused attention's backward is five times slower than plain products (64 keys, measured).
    fused = [] if device.type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with reduced_precision(device), sdpa_kernel([*fused, SDPBackend.MATH]):
        text = text_encoder(said.input_ids.to(device))[0]
        assert isinstance(adapter, IDAdapter)
        adapter.condition(batch.id_embedding.to(device), batch.id_scale.to(device))
        predicted = unet(noisy, timesteps, encoder_hidden_states=text).sample
    return (predicted.float() - target).square().mean(dim=(1, 2, 3))


def load_weights(models: dict[str, torch.nn.Module], folder: Path) -> None:
    """Begin with exported weights: averaged, in halves, without the optimizer's state."""
    base = folder / "base"
    models["unet"].load_state_dict(UNet2DConditionModel.from_pretrained(base / "unet").state_dict())
    models["text_encoder"].load_state_dict(CLIPTextModel.from_pretrained(base / "text_encoder").state_dict())
    models["adapter"].load_state_dict(read_adapter(folder / "adapter").adapter.state_dict())


def train_denoiser(
    run: TrainingRun, config: MiniConfig, corpus: Corpus, device: torch.device
) -> dict[str, torch.nn.Module]:
    """Fit text encoder, UNet and adapter together; returns them with averaged weights."""
    c = config.denoiser
    torch.manual_seed(config.seed)
    tokenizer = open_tokenizer(run, config)
    unet = build_unet(config, corpus.latents.shape[2:])
    adapter = build_adapter(unet, corpus.id_embedding.shape[-1], config)
    install_adapter(unet, adapter)
    models: dict[str, torch.nn.Module] = {
        "unet": unet,
        "text_encoder": build_text_encoder(config.text, tokenizer),
        "adapter": adapter,
    }
    if config.start:
        load_weights(models, config.start)
    for model in models.values():
        model.to(device)
    scheduler = build_scheduler()
    weights = [p for model in models.values() for p in model.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=c.learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    average = MovingAverage(models, c.ema_decay)
    progress = Progress()
    if state := run.load("denoiser"):
        for name, model in models.items():
            model.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
        average.weights = {k: v.to(device) for k, v in state["average"].items()}
        progress = Progress(**state["progress"])

    while progress.step < c.steps:
        generator = step_generator(config.seed, progress.step)
        batch = make_batch(corpus, c, progress.step, config.seed)
        losses = denoiser_objective(models, tokenizer, scheduler, batch, generator)
        loss = losses.mean()
        if not loss.isfinite():
            raise FloatingPointError(f"loss is {loss.item()} at step {progress.step}")
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        remaining = (c.steps - progress.step) / max(1.0, c.cooldown * c.steps)
        for group in optimizer.param_groups:
            group["lr"] = c.learning_rate * min(1.0, (progress.step + 1) / c.warmup_steps, remaining)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        progress.step += 1
        progress.images_seen += len(losses)
        average.update(models, progress.step)
        if progress.step % 20 == 0:
            with_identity = (
                losses.detach()[(batch.id_scale > 0) & batch.id_embedding.any(dim=1)].mean().item()
            )
            said = {"loss": loss.item(), "with_id": with_identity, "grad": grad_norm.item()}
            run.log("denoiser", progress, said)
        if run.checkpoint_due(progress.step, c.steps):
            run.save("denoiser", {**{name: model.state_dict() for name, model in models.items()},
                                  "optimizer": optimizer.state_dict(), "average": average.weights,
                                  "progress": vars(progress)})  # fmt: skip
    for name, model in models.items():
        model.load_state_dict(average.of(name))
        model.eval()
    return models


def export(
    run: TrainingRun,
    models: dict[str, torch.nn.Module],
    vae: AutoencoderKL,
    encoder: FaceEncoder,
    config: MiniConfig,
) -> None:
    """Write `base`, which plain diffusers opens, and `adapter`; fp16, each file below 16 MB."""
    unet, text_encoder, adapter = (models[name] for name in ("unet", "text_encoder", "adapter"))
    assert isinstance(adapter, IDAdapter)
    adapter.clear()
    pipe = StableDiffusionPipeline(
        vae=vae.half(), text_encoder=text_encoder.half(), unet=unet.half(),  # pyright: ignore[reportArgumentType]
        tokenizer=open_tokenizer(run, config),
        scheduler=build_scheduler(), safety_checker=None, feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(run.folder / "base", max_shard_size="15MB")
    config_file = run.folder / "base" / "text_encoder" / "config.json"
    # Stored in halves, computed in float32 like the others: transformers takes the type that the file names.
    config_file.write_text(config_file.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    card = AdapterCard(
        base_model="mini", encoder=encoder.id, num_tokens=config.denoiser.num_tokens, licence="research-only",
        training_run=f"train/mini.py, {config.denoiser.steps} steps of {config.denoiser.batch_size}",
    )  # fmt: skip
    (run.folder / "adapter").mkdir(exist_ok=True)
    write_adapter(run.folder / "adapter" / "faceid_mini.safetensors", adapter, card, dtype=torch.float16)
    print(f"saved {run.folder / 'base'} and {run.folder / 'adapter'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Build the corpus, train, export."""
    arguments = program_arguments(MiniConfig, __doc__ or "", argv)
    if arguments.dry_run:
        return 0
    config = arguments.config
    torch.set_num_threads(config.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = TrainingRun(
        arguments.out, replace(config, num_threads=0, denoiser=replace(config.denoiser, steps=0))
    )
    vae = AutoencoderKL.from_pretrained(config.vae).eval()
    vae.register_to_config(_name_or_path="mini")  # else the export would tell a path of this disk
    torch.nn.Module.to(vae, device)  # the decorated method of diffusers hides its argument from type checkers
    encoders = [load_encoder(spec) for spec in config.encoders]
    corpus = build_corpus(run, training_faces(config.faces), vae, encoders)
    models = train_denoiser(run, config, corpus, device)
    export(run, models, vae, encoders[0], config)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
