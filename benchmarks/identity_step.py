"""What a training step with the triplet costs for each picture seen: idgen against the straightforward way.

    python benchmarks/identity_step.py --repeats 5

The straightforward way is that of ID-Booth's program, in plain diffusers and peft: one photo and one prior
picture a step; latents and texts encoded in each step; the detector, at its ordinary size, on each predicted
picture; a full decode. Model, precision, terms, timesteps, noise, encoder and alignment are the same. Roads
are timed in turn, repeat after repeat; the median counts.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cosine_similarity, mse_loss, normalize

from idgen.config import Parser
from idgen.diffusion.denoiser import Denoiser, encode_texts
from idgen.diffusion.latents import Latents, decode_latents, encode_latents
from idgen.diffusion.prediction import NoiseSchedule
from idgen.diffusion.tiny_decoder import load_decoder
from idgen.encoders.arcface import load_encoder
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
SIDE = 64


def pictures(pipe: IDPipeline) -> Tensor:
    """Faces of nobody, drawn by the model: (2 N, 3, 64, 64) in [0, 1]."""
    drawn = [pipe("a photo of a person", seed=i, output_type="pt").images for i in range(2 * NUM_PICTURES)]
    return torch.cat(drawn)


def build(pipe: IDPipeline, images: Tensor) -> Corpus:
    """The corpus that idgen computes once."""
    template = (ARCFACE_TEMPLATE + 8) / 2
    vectors = normalize(torch.randn(len(images), 128, generator=torch.Generator().manual_seed(0)), dim=1)
    is_prior = torch.arange(len(images)) >= NUM_PICTURES
    return Corpus(
        latents=Latents.joined([encode_latents(pipe.vae, part) for part in images.split(8)]),
        is_prior=is_prior, text_row=is_prior.long(), id_embedding=vectors,
        person=torch.arange(len(images)), landmarks=template.expand(len(images), 5, 2),
    )  # fmt: skip


def reader_of(pipe: IDPipeline, decoder: str) -> FaceReader:
    """What sees the faces in idgen's steps; ``decoder`` is "full" or "mini"."""
    return FaceReader(
        vae=pipe.vae if decoder == "full" else load_decoder(DECODER),
        encoder=load_encoder("mini").torch_encoder().requires_grad_(False),
        detector=ScrfdDetector(FACES / "det_mini.onnx").fitted(SIDE),
    )


def our_step(pipe: IDPipeline, corpus: Corpus, batch: int, decoder: str) -> Callable[[int], None]:
    """A step of idgen on ``batch`` photos and as many prior pictures."""
    terms = build_terms(
        TermsConfig(denoising=DenoisingConfig(), prior=PriorConfig(), triplet=TripletConfig())
    )
    schedule = NoiseSchedule.of(pipe.scheduler)
    reader = reader_of(pipe, decoder)
    denoiser = Denoiser(unet=pipe.unet, texts=encode_texts(pipe, PROMPTS), size_px=SIDE)

    def step(number: int) -> None:
        plan = plan_batch(corpus, schedule, size=batch, prior_size=batch, step=number, seed=0)
        seen = run_step(
            corpus, plan, denoiser, schedule, device=torch.device("cpu"), probes=Probes(reader=reader)
        )
        weighed(terms, seen, number)[0].backward()

    return step


def their_step(pipe: IDPipeline, corpus: Corpus, images: Tensor, found: list[bool]) -> Callable[[int], None]:
    """A step of the straightforward way: everything again for one photo and one prior picture.

    Where the detector sees no face the term is left out, as there; ``found`` hears of each step. idgen takes
    the landmarks of the photo then, and so looks at a face in every row.
    """
    schedule = NoiseSchedule.of(pipe.scheduler)
    encoder = load_encoder("mini").torch_encoder().requires_grad_(False)
    detector = load_detector("mini")

    def step(number: int) -> None:
        plan = plan_batch(corpus, schedule, size=1, prior_size=1, step=number, seed=0)
        t = plan.timesteps
        with torch.no_grad():
            (posterior,) = pipe.vae.encode(images[plan.rows] * 2 - 1, return_dict=False)
            x0 = posterior.sample() * pipe.vae.config["scaling_factor"]
            ids = pipe.tokenizer(list(PROMPTS), padding="max_length", return_tensors="pt").input_ids
            hidden = pipe.text_encoder(ids)[0]
        noisy = schedule.add_noise(x0, plan.noise, t)
        said = pipe.unet(noisy, t, encoder_hidden_states=hidden, return_dict=False)[0]
        target = schedule.target(x0, plan.noise, t)
        loss = mse_loss(said[:1], target[:1]) + mse_loss(said[1:], target[1:])
        shown = decode_latents(pipe.vae, schedule.x0(said[:1], noisy[:1], t[:1]))
        faces = detector.detect(to_array(to_pil(shown[0].detach().clamp(0, 1))))
        found.append(bool(faces))
        if faces:
            crop = aligned_crops(shown, torch.from_numpy(faces[0].landmarks)[None], encoder.crop.size_px)
            anchor = encoder(crop)[0]
            photo, other = corpus.id_embedding[plan.rows[0]], corpus.id_embedding[plan.rows[1]]
            distance = torch.relu(anchor @ other - anchor @ photo + 1)
            loss = loss + (1 - t[0] / schedule.num_timesteps) ** 2 * distance
        loss.backward()

    return step


def gradient_agreement(pipe: IDPipeline, corpus: Corpus) -> list[float]:
    """Cosine of the similarity's gradients through the small decoder and through the full one, for each row.

    By the predicted latents of all photos, at timesteps from 0 to 0.9 T in equal steps.
    """
    schedule = NoiseSchedule.of(pipe.scheduler)
    texts = encode_texts(pipe, PROMPTS)
    rows = torch.arange(NUM_PICTURES)
    at = torch.linspace(0, 0.9 * schedule.num_timesteps, NUM_PICTURES).long()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((NUM_PICTURES, *corpus.latents.mean.shape[1:]), generator=generator)
    noisy = schedule.add_noise(corpus.latents.mean[rows].float(), noise, at)
    with torch.no_grad():
        said = pipe.unet(noisy, at, encoder_hidden_states=texts.hidden[:1].expand(len(rows), -1, -1)).sample
    gradients = []
    for decoder in ("full", "mini"):
        x0 = schedule.x0(said, noisy, at).requires_grad_()
        reader = replace(reader_of(pipe, decoder), detector=None)
        seen = reader.read(x0, corpus.landmarks[rows])
        (seen.id_embedding * corpus.id_embedding[rows]).sum().backward()
        assert x0.grad is not None
        gradients.append(x0.grad.flatten(1))
    return cosine_similarity(*gradients, dim=1).tolist()


def kept_bytes(step: Callable[[], None]) -> int:
    """What autograd keeps for the backward pass, each storage once."""
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with saved_tensors_hooks(pack, lambda value: value):
        step()
    return sum(kept.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Time both and print the ratio."""
    parser = Parser(description=__doc__.splitlines()[0] if __doc__ else "", prog=Path(__file__).name)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="photos in a step of idgen (8)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decoder", choices=("full", "mini"), default="full", help="of idgen's steps (full)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    pipe = IDPipeline.from_pretrained("mini")
    pipe.unload_adapter()
    pipe.set_progress_bar_config(disable=True)
    images = pictures(pipe)
    torch.nn.Module.requires_grad_(pipe.vae, False)
    torch.nn.Module.requires_grad_(pipe.text_encoder, False)
    corpus = build(pipe, images)
    add_lora(pipe.unet, LoraSettings(), seed=0)
    found: list[bool] = []
    ours = our_step(pipe, corpus, options.batch, options.decoder)
    theirs, one = their_step(pipe, corpus, images, found), our_step(pipe, corpus, 1, options.decoder)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(options.repeats + 1):
        start = time.perf_counter()
        for i in range(options.batch):
            theirs(repeat * options.batch + i)
        middle = time.perf_counter()
        ours(repeat)
        if repeat:  # the first is to warm up
            times["theirs"].append((middle - start) / (2 * options.batch))
            times["ours"].append((time.perf_counter() - middle) / (2 * options.batch))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"straightforward: {1000 * medians['theirs']:.1f} ms for each picture seen")
    print(f"idgen, {options.batch} + {options.batch} pictures a step: {1000 * medians['ours']:.1f} ms")
    print(f"{medians['theirs'] / medians['ours']:.2f} times as fast, on {options.threads} threads")
    print(
        f"a face seen in {sum(found)} of {len(found)} straightforward steps, idgen looks at one in every row"
    )
    memory = {
        name: max(kept_bytes(lambda s=step, i=i: s(i)) for i in range(options.batch))
        for name, step in {"straightforward": theirs, "idgen": one}.items()
    }
    said = [f"{name} {size / 2**20:.1f} MiB" for name, size in memory.items()]
    print(f"kept at most for the backward pass of 1 + 1 pictures: {', '.join(said)}")
    if options.decoder != "full":
        agreement = gradient_agreement(pipe, corpus)
        print(
            "cosine of the similarity's gradients, small decoder and full: mean "
            f"{statistics.mean(agreement):.3f}, lowest {min(agreement):.3f} of {len(agreement)} rows"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
