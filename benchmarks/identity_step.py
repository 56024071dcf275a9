"""What a training step with the triplet costs for each picture seen: idgen against the straightforward way.

    python benchmarks/identity_step.py --repeats 5

The straightforward way is that of ID-Booth's program, in plain diffusers and peft: one photo and one prior
picture a step; latents and texts encoded in each step; the detector, at its ordinary size, on each predicted
picture; a full decode. Model, precision, terms, timesteps, noise, encoder and alignment are the same. Roads
are timed in turn, repeat after repeat; the median counts.

    python benchmarks/identity_step.py --model sd15 --device cuda --precision bf16 --batch 4

has the networks of Stable Diffusion 1.5 at 512 pixels with random weights. No face can be seen in what they
draw: there both ways look where the face of the photo is, after the detector has had its turn.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cosine_similarity, mse_loss, normalize
from transformers import CLIPTextConfig, CLIPTextModel

from idgen.config import Parser
from idgen.diffusion.denoiser import Denoiser, encode_texts
from idgen.diffusion.latents import Latents, decode_latents, encode_latents
from idgen.diffusion.prediction import NoiseSchedule
from idgen.diffusion.tiny_decoder import TinyDecoder, load_decoder
from idgen.encoders.arcface import load_encoder
from idgen.encoders.onnx_torch import TorchEncoder
from idgen.faces.align import ARCFACE_TEMPLATE
from idgen.faces.detect import load_detector
from idgen.faces.scrfd import ScrfdDetector
from idgen.mini import DECODER, FACES
from idgen.objectives.config import TermsConfig, build_terms
from idgen.objectives.faces import FaceReader, aligned_crops
from idgen.objectives.terms import DenoisingConfig, PriorConfig, TripletConfig, weighed
from idgen.pipeline import IDPipeline
from idgen.pixels import to_array, to_pil
from idgen.tuning.corpus import Corpus, Probes, plan_batch, run_step
from idgen.tuning.lora import LoraSettings, add_lora

PROMPTS = ("photo of sks person", "photo of a person")
NUM_PICTURES = 16  # of each kind
SD15_LEVELS = (320, 640, 1280, 1280)
AUTOENCODER_LEVELS = (128, 256, 512, 512)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What both ways work with.

    Attributes:
        pipe: the model, with a LoRA on its UNet.
        unet: it, in the precision of the run.
        device: that computes.
        side_px: of the pictures.
        draws_faces: whether a face can be found in what the model draws.
    """

    pipe: IDPipeline
    unet: nn.Module
    device: torch.device
    side_px: int
    draws_faces: bool


def random_sd15() -> IDPipeline:
    """The networks of Stable Diffusion 1.5 as they are before any training; prompts are read as by mini."""
    torch.manual_seed(0)
    mini = IDPipeline.from_pretrained("mini")
    text = CLIPTextConfig(
        vocab_size=mini.text_encoder.config.vocab_size, hidden_size=768, intermediate_size=3072,
        num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=77, projection_dim=768,
    )  # fmt: skip
    mini.tokenizer.model_max_length = 77
    autoencoder: dict[str, Any] = {
        "block_out_channels": AUTOENCODER_LEVELS, "layers_per_block": 2, "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    }  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=SD15_LEVELS
    )
    parts: dict[str, Any] = {
        "vae": AutoencoderKL(**autoencoder), "text_encoder": CLIPTextModel(text),
        "tokenizer": mini.tokenizer, "unet": unet, "safety_checker": None, "feature_extractor": None,
        "scheduler": DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    }  # fmt: skip
    return IDPipeline(**parts, requires_safety_checker=False)


def set_up(model: str, device: str, precision: str) -> tuple[Bench, Tensor]:
    """The model, and pictures (2 N, 3, S, S) in [0, 1]: faces of nobody, drawn by mini, else noise."""
    pipe = IDPipeline.from_pretrained("mini") if model == "mini" else random_sd15()
    pipe.unload_adapter()
    pipe.set_progress_bar_config(disable=True)
    side = pipe.unet.config["sample_size"] * pipe.vae_scale_factor
    if model == "mini":
        drawn = [
            pipe("a photo of a person", seed=i, output_type="pt").images for i in range(2 * NUM_PICTURES)
        ]
        images = torch.cat(drawn)
    else:
        images = torch.rand(2 * NUM_PICTURES, 3, side, side, generator=torch.Generator().manual_seed(0))
    accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
    for frozen in (pipe.vae, pipe.text_encoder):
        torch.nn.Module.requires_grad_(frozen, False)
        frozen.to(accelerator.device, torch.float32 if precision == "no" else torch.bfloat16)
    add_lora(pipe.unet, LoraSettings(), seed=0)
    pipe.unet.to(accelerator.device)
    bench = Bench(
        pipe=pipe, unet=accelerator.prepare_model(pipe.unet), device=accelerator.device, side_px=side,
        draws_faces=model == "mini",
    )  # fmt: skip
    return bench, images


def build(bench: Bench, images: Tensor) -> Corpus:
    """The corpus that idgen computes once."""
    template = (ARCFACE_TEMPLATE + 8) * (bench.side_px / 128)
    vectors = normalize(torch.randn(len(images), 128, generator=torch.Generator().manual_seed(0)), dim=1)
    is_prior = torch.arange(len(images)) >= NUM_PICTURES
    return Corpus(
        latents=Latents.joined([encode_latents(bench.pipe.vae, part) for part in images.split(8)]),
        is_prior=is_prior, text_row=is_prior.long(), id_embedding=vectors,
        person=torch.arange(len(images)), landmarks=template.expand(len(images), 5, 2),
    )  # fmt: skip


def reader_of(bench: Bench, decoder: str) -> FaceReader:
    """What sees the faces in idgen's steps; ``decoder`` is "full" or "mini"."""
    vae: Any = bench.pipe.vae
    if decoder == "mini" and bench.draws_faces:
        vae = load_decoder(DECODER)
    elif decoder == "mini":  # of the size of the published TAESD, for as many doublings
        vae = TinyDecoder(latent_channels=4, width=64, blocks=(3, 3, 3, 1)).requires_grad_(False)
    return FaceReader(
        vae=vae.to(bench.device, bench.pipe.vae.dtype), encoder=face_encoder(bench),
        detector=ScrfdDetector(FACES / "det_mini.onnx").fitted(bench.side_px),
    )  # fmt: skip


def face_encoder(bench: Bench) -> TorchEncoder:
    """The encoder of both ways, frozen."""
    return load_encoder("mini").torch_encoder().requires_grad_(False).to(bench.device)


def our_step(bench: Bench, corpus: Corpus, batch: int, decoder: str) -> Callable[[int], None]:
    """A step of idgen on ``batch`` photos and as many prior pictures."""
    terms = build_terms(
        TermsConfig(denoising=DenoisingConfig(), prior=PriorConfig(), triplet=TripletConfig())
    )
    schedule = NoiseSchedule.of(bench.pipe.scheduler)
    reader = reader_of(bench, decoder)
    denoiser = Denoiser(unet=bench.unet, texts=encode_texts(bench.pipe, PROMPTS), size_px=bench.side_px)

    def step(number: int) -> None:
        plan = plan_batch(corpus, schedule, size=batch, prior_size=batch, step=number, seed=0)
        seen = run_step(corpus, plan, denoiser, schedule, device=bench.device, probes=Probes(reader=reader))
        weighed(terms, seen, number)[0].backward()

    return step


def their_step(bench: Bench, corpus: Corpus, images: Tensor, found: list[bool]) -> Callable[[int], None]:
    """A step of the straightforward way: everything again for one photo and one prior picture.

    Where the detector sees no face the term is left out, as there; ``found`` hears of each step. idgen takes
    the landmarks of the photo then, and so looks at a face in every row.
    """
    pipe, device = bench.pipe, bench.device
    schedule, encoder, detector = NoiseSchedule.of(pipe.scheduler), face_encoder(bench), load_detector("mini")
    vectors = corpus.id_embedding.to(device)

    def step(number: int) -> None:
        plan = plan_batch(corpus, schedule, size=1, prior_size=1, step=number, seed=0)
        t, noise = plan.timesteps.to(device), plan.noise.to(device)
        with torch.no_grad():
            (posterior,) = pipe.vae.encode(
                (images[plan.rows] * 2 - 1).to(device, pipe.vae.dtype), return_dict=False
            )
            x0 = posterior.sample().float() * pipe.vae.config["scaling_factor"]
            ids = pipe.tokenizer(list(PROMPTS), padding="max_length", return_tensors="pt").input_ids
            hidden = pipe.text_encoder(ids.to(device))[0].float()
        noisy = schedule.add_noise(x0, noise, t)
        said = bench.unet(noisy, t, encoder_hidden_states=hidden, return_dict=False)[0].float()
        target = schedule.target(x0, noise, t)
        loss = mse_loss(said[:1], target[:1]) + mse_loss(said[1:], target[1:])
        shown = decode_latents(pipe.vae, schedule.x0(said[:1], noisy[:1], t[:1]))
        faces = detector.detect(to_array(to_pil(shown[0].detach().clamp(0, 1))))
        found.append(bool(faces))
        landmarks = torch.from_numpy(faces[0].landmarks)[None] if faces else corpus.landmarks[:1]
        if faces or not bench.draws_faces:
            anchor = encoder(aligned_crops(shown, landmarks.to(device), encoder.crop.size_px))[0]
            photo, other = vectors[plan.rows[0]], vectors[plan.rows[1]]
            distance = torch.relu(anchor @ other - anchor @ photo + 1)
            loss = loss + (1 - t[0] / schedule.num_timesteps) ** 2 * distance
        loss.backward()

    return step


def gradient_agreement(bench: Bench, corpus: Corpus) -> list[float]:
    """Cosine of the similarity's gradients through the small decoder and through the full one, for each row.

    By the predicted latents of all photos, at timesteps from 0 to 0.9 T in equal steps.
    """
    pipe, device = bench.pipe, bench.device
    schedule = NoiseSchedule.of(pipe.scheduler)
    texts = encode_texts(pipe, PROMPTS)
    rows = torch.arange(NUM_PICTURES)
    at = torch.linspace(0, 0.9 * schedule.num_timesteps, NUM_PICTURES).long().to(device)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((NUM_PICTURES, *corpus.latents.mean.shape[1:]), generator=generator).to(device)
    noisy = schedule.add_noise(corpus.latents.mean[rows].float().to(device), noise, at)
    hidden = texts.hidden[:1].expand(len(rows), -1, -1).to(device)
    with torch.no_grad():
        said = bench.unet(noisy, at, encoder_hidden_states=hidden).sample.float()
    gradients = []
    for decoder in ("full", "mini"):
        x0 = schedule.x0(said, noisy, at).requires_grad_()
        reader = replace(reader_of(bench, decoder), detector=None)
        seen = reader.read(x0, corpus.landmarks[rows].to(device))
        (seen.id_embedding * corpus.id_embedding[rows].to(device)).sum().backward()
        assert x0.grad is not None
        gradients.append(x0.grad.flatten(1))
    return cosine_similarity(*gradients, dim=1).tolist()


def waited(device: torch.device) -> float:
    """The time, once everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def kept_bytes(step: Callable[[], None]) -> int:
    """What autograd keeps for the backward pass, each storage once."""
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with saved_tensors_hooks(pack, lambda value: value):
        step()
    return sum(kept.values())


def time_both(
    ours: Callable[[int], None], theirs: Callable[[int], None], device: torch.device, batch: int, repeats: int
) -> dict[str, float]:
    """Seconds for each picture seen: the median over the repeats, the roads in turn."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(repeats + 1):
        start = waited(device)
        for i in range(batch):
            theirs(repeat * batch + i)
        middle = waited(device)
        ours(repeat)
        if repeat:  # the first is to warm up
            times["theirs"].append((middle - start) / (2 * batch))
            times["ours"].append((waited(device) - middle) / (2 * batch))
    return {name: statistics.median(values) for name, values in times.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Time both and print the ratio."""
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else "", prog=Path(__file__).name)
    parser.add_argument(
        "--model", choices=("mini", "sd15"), default="mini", help="sd15: random weights (mini)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (cpu)")
    parser.add_argument(
        "--precision", choices=("no", "bf16"), default="no", help="of both ways (no: float32)"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="photos in a step of idgen (8)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decoder", choices=("full", "mini"), default="full", help="of idgen's steps (full)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    bench, images = set_up(options.model, options.device, options.precision)
    corpus = build(bench, images)
    found: list[bool] = []
    ours = our_step(bench, corpus, options.batch, options.decoder)
    theirs, one = their_step(bench, corpus, images, found), our_step(bench, corpus, 1, options.decoder)
    medians = time_both(ours, theirs, bench.device, options.batch, options.repeats)
    print(f"straightforward: {1000 * medians['theirs']:.1f} ms for each picture seen")
    print(f"idgen, {options.batch} + {options.batch} pictures a step: {1000 * medians['ours']:.1f} ms")
    print(f"{medians['theirs'] / medians['ours']:.2f} times as fast, on {bench.device}")
    print(
        f"a face seen in {sum(found)} of {len(found)} straightforward steps, idgen looks at one in every row"
    )
    memory = {
        name: max(kept_bytes(lambda s=step, i=i: s(i)) for i in range(min(options.batch, 8)))
        for name, step in {"straightforward": theirs, "idgen": one}.items()
    }
    said = [f"{name} {size / 2**20:.1f} MiB" for name, size in memory.items()]
    print(f"kept at most for the backward pass of 1 + 1 pictures: {', '.join(said)}")
    if options.decoder != "full" and bench.draws_faces:
        agreement = gradient_agreement(bench, corpus)
        print(
            "cosine of the similarity's gradients, small decoder and full: mean "
            f"{statistics.mean(agreement):.3f}, lowest {min(agreement):.3f} of {len(agreement)} rows"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
