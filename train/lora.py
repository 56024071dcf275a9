"""Train a LoRA on a handful of photos of one person, with the identity objectives of your choice.

    idgen train lora --config train/configs/id_booth.yaml --photos PHOTOS --out runs/anna

PHOTOS is a folder of pictures of one person. Faces, latents, texts and prior pictures are computed once and
kept in the run folder; started again, the same command goes on from the last checkpoint. Leaves
``pytorch_lora_weights.safetensors``, which ``load_lora_weights`` of diffusers opens, and
``kohya.safetensors``, the same with the names of kohya's scripts. On several processes: ``torchrun
--nproc-per-node 2 --no-python idgen train lora ...``.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from idgen.adapters.stages import STAGE_TOKENS_NAME, StageTokens, write_stage_tokens
from idgen.blocklist import Blocklist
from idgen.config import program_arguments
from idgen.data.pictures import Picture, read_pictures
from idgen.diffusion.denoiser import Denoiser, encode_texts, picture_px
from idgen.diffusion.prediction import NoiseSchedule
from idgen.diffusion.rollout import RolloutConfig
from idgen.encoders.arcface import load_encoder
from idgen.encoders.base import FaceEncoder
from idgen.errors import ConfigError, FaceError
from idgen.identity import Identity, mean_similarity
from idgen.objectives.config import TermsConfig, build_terms
from idgen.objectives.terms import DenoisingConfig, weighed
from idgen.opening import hide_loading_bars, model_folder
from idgen.pipeline import IDPipeline, IDPipelineXL, open_pipeline
from idgen.portraits import Portraits, Studio, cut_pictures, find_second_person, read_portraits
from idgen.training import TrainingRun
from idgen.tuning.corpus import Corpus, Probes, check_divisible, join, part_of, plan_batch, run_step
from idgen.tuning.lora import WEIGHTS_NAME, LoraSettings, load_lora, write_lora
from idgen.tuning.memory import MemoryPlan, trained_bytes, weight_bytes
from idgen.tuning.optimize import Optimization, OptimizerConfig
from idgen.tuning.personal import PersonalModel, personal_model
from idgen.tuning.prior import own_prior, prior_pictures
from idgen.tuning.samples import Judges, Sitter, draw_samples
from idgen.tuning.stages import WEIGHT, StageSettings
from idgen.tuning.studio import FramingName, face_reader, open_studio, step_activations

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Pictures of the class, which keep the model what it was: drawn by the model, or a folder of yours."""

    prompt: str = "photo of a person"
    count: int = 200
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What is drawn now and then; ``every`` 0 for never."""

    every: int = 500
    prompts: tuple[str, ...] = ("photo of sks person", "photo of sks person, smiling",
                                "photo of sks person, blue background")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Everything that decides a run of train/lora.py."""

    seed: int = 0
    photos: Path | None = None  # a folder of photos of one person
    prompt: str = "photo of sks person"
    model: str = "mini"
    encoder: str = "mini"  # whose face vectors the identity terms compare
    judge: str = "judge"  # measures the samples and has no part in the training
    detector: str = "mini"
    framing: FramingName = "auto"  # auto: aligned for mini, which knows nothing else
    size_px: int | None = None  # what the model was made for
    aligned: bool = False  # the photos are crops of 112 pixels, or 128 with 8 around the crop
    skip_bad: bool = False  # leave out files that do not open, photos without a face, and of somebody else
    keep_unlike: bool = False  # train on all photos, also where they look like two people
    detect_in_prediction: bool = True  # landmarks in the predicted picture; else those of the photo, faster
    decoder: str = (
        "full"  # of predicted pictures: the model's own, "mini" (small, quick), or a file of train/decoder.py
    )
    start: Path | None = None  # run or file of a LoRA to go on from
    lora: LoraSettings | None = field(default_factory=LoraSettings)  # null: tokens alone
    stages: StageSettings | None = None  # identity tokens of each stage of the denoising
    prior: PriorSettings = field(default_factory=PriorSettings)
    terms: TermsConfig = field(default_factory=lambda: TermsConfig(denoising=DenoisingConfig()))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)  # how pictures are made for a reward
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    samples: SampleSettings = field(default_factory=SampleSettings)

    def __post_init__(self) -> None:
        if self.terms.asks_again:
            raise ConfigError(
                "the terms background and preservation compare a model with and without an identity: "
                "they train an adapter (idgen train adapter), not a LoRA"
            )
        if self.lora is None and self.stages is None:
            raise ConfigError("nothing would train: set lora, stages or both")
        if self.lora is None and self.start is not None:
            raise ConfigError("start is a LoRA to go on from, and lora is null")
        if "attention" in self.terms.active() and self.stages is None:
            raise ConfigError(
                "the term attention looks at identity tokens, and there are none: set stages, such as "
                "`--set stages.tokens=2`"
            )

    @property
    def has_prior(self) -> bool:
        """Whether prior pictures have a part: as pictures to keep, or as somebody else."""
        return bool({"prior", "triplet"} & self.terms.active().keys())


OPTIONS = {
    "photos": "folder with photos of one person",
    "model": "mini, a diffusers folder, or OWNER/NAME of the Hugging Face hub",
    "skip_bad": "leave out what cannot be used, and photos of somebody else",
}


def photos_of(config: LoraConfig) -> tuple[Picture, ...]:
    """The photos; at least two, or nothing can be said of who is on them."""
    if config.photos is None:
        raise ConfigError("--photos is missing: give a folder with photos of one person")
    found = read_pictures(config.photos, flat=True)
    if len(found.people()) > 1:
        names = ", ".join(list(found.people())[:3])
        raise ConfigError(f"{config.photos} holds folders of several people ({names}, ...); a LoRA is of one")
    if len(found) < 2:
        raise ConfigError(f"{config.photos} holds one photo; a LoRA needs two at least, and five do better")
    return found.pictures


def refuse_strangers(portraits: Portraits, config: LoraConfig) -> list[int]:
    """Rows that show the person; refuses photos that look like somebody else, unless told what to do."""
    vectors = portraits.id_embedding.numpy()
    is_other = find_second_person(vectors)
    if config.keep_unlike or not is_other.any():
        return list(range(len(portraits)))
    closeness = mean_similarity(vectors)
    listed = ", ".join(f"{portraits.names[row]} ({closeness[row]:.2f})" for row in is_other.nonzero()[0])
    if not config.skip_bad:
        raise FaceError(
            f"these photos look like somebody else (mean similarity to the others): {listed}; remove them, "
            "leave them out with --skip-bad, or keep them with --set keep_unlike=true"
        )
    print(f"idgen: left out, since they look like somebody else: {listed}", file=sys.stderr)
    return (~is_other).nonzero()[0].tolist()


def refuse_listed(vectors: "Tensor", encoder: FaceEncoder) -> None:
    """Nothing is trained to draw somebody who refused, as far as they can be compared."""
    mean = torch.nn.functional.normalize(vectors.mean(dim=0), dim=0)
    who = Identity.from_vector(mean.numpy(), encoder.id)
    Blocklist.load().check(who, encoder=encoder, allow_unchecked=True)


def prior_of(config: LoraConfig, pipe: IDPipeline | IDPipelineXL, store: Path) -> tuple[Picture, ...]:
    """The prior pictures: the user's, or drawn by the model."""
    settings = config.prior
    if settings.folder:
        return own_prior(settings.folder, settings.count)
    return prior_pictures(
        pipe, store, prompt=settings.prompt, count=settings.count, seed=config.seed,
        model=model_folder(config.model),
    )  # fmt: skip


def build_corpus(
    config: LoraConfig, pipe: IDPipeline | IDPipelineXL, studio: Studio
) -> tuple[Corpus, Denoiser, Portraits]:
    """Photos and prior pictures as latents, vectors and encoded prompts."""
    photos = photos_of(config)
    portraits = read_portraits(photos, studio, aligned=config.aligned, skip_bad=config.skip_bad)
    for name in portraits.skipped:
        print(f"idgen: left out, since it cannot be used: {name}", file=sys.stderr)
    own = refuse_strangers(portraits, config)
    refuse_listed(portraits.id_embedding[own], studio.encoder)
    portraits = portraits.subset(own)
    if len(portraits) < 2:
        raise ConfigError(f"{config.photos} holds {len(portraits)} photos that can be used; two are needed")
    prior, settings = None, config.prior
    if config.has_prior:
        as_drawn = studio.framed("square")  # the model's own pictures are framed as it frames
        prior = read_portraits(prior_of(config, pipe, studio.store), as_drawn, faces_needed=False)
        if "triplet" in config.terms.active() and not prior.has_face.any():
            raise FaceError(
                f"none of the {len(prior)} prior pictures shows a face, and the triplet needs somebody else: "
                "take another prior.prompt, or a prior.folder with portraits of other people"
            )
    texts = encode_texts(pipe, [config.prompt, settings.prompt, ""])
    corpus = join(portraits, [config.prompt] * len(portraits), prior, settings.prompt, texts)
    return corpus, Denoiser(unet=pipe.unet, texts=texts, size_px=studio.framing.size_px), portraits


def build_model(config: LoraConfig, pipe: IDPipeline | IDPipelineXL, corpus: Corpus | None) -> PersonalModel:
    """The model with what trains on it."""
    return personal_model(
        pipe, lora=config.lora, stages=config.stages, has_branch=config.terms.has_branch,
        prompt=config.prompt, corpus=corpus, seed=config.seed,
    )  # fmt: skip


def build_probes(config: LoraConfig, studio: Studio, personal: PersonalModel, device: torch.device) -> Probes:
    """What the terms want to know beside the model's answer."""
    terms, reader = config.terms, None
    if terms.sees_faces:
        reader = face_reader(
            studio, config.encoder, device, detect_in_prediction=config.detect_in_prediction,
            decoder=config.decoder,
        )  # fmt: skip
    watched = 0 if config.stages is None or "attention" not in terms.active() else config.stages.tokens
    return Probes(
        reader=reader, rollout=config.rollout if terms.generates else None, branch=personal.branch,
        num_id_tokens=watched,
    )  # fmt: skip


def save(
    config: LoraConfig, pipe: IDPipeline | IDPipelineXL, personal: PersonalModel,
    weights: "dict[str, Tensor]", folder: Path,
) -> None:  # fmt: skip
    """Write what was trained; the image branch was only there to keep the photos out of the rest."""
    if personal.tokens is not None:
        tokens = StageTokens(weights[WEIGHT], personal.tokens.num_timesteps)
        write_stage_tokens(folder / STAGE_TOKENS_NAME, tokens)
        print(f"saved {folder / STAGE_TOKENS_NAME}; in idgen: pipe.load_stage_tokens({str(folder)!r})")
    if config.lora is not None:
        write_lora(pipe.unet, config.lora, folder, weights=weights)
        print(f"saved {folder / WEIGHTS_NAME}; in diffusers: pipe.load_lora_weights({str(folder)!r})")


def describe(config: LoraConfig, pipe: IDPipeline | IDPipelineXL) -> str:
    """The plan of a run and the memory it will need."""
    settings, personal = config.optimizer, build_model(config, pipe, None)
    trained = personal.trained
    side = config.size_px or picture_px(pipe)
    rows = settings.batch_size + (settings.prior_batch_size if config.has_prior else 0)
    faces = config.encoder if config.terms.sees_faces else None
    modules = {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    plan = MemoryPlan(
        weights=weight_bytes(modules),
        trained=trained_bytes(trained, with_average=bool(settings.ema_decay)),
        activations=step_activations(
            pipe, pipe.unet, -(-rows // settings.accumulation), side, config.prompt, faces=faces
        ),
    )
    return (
        f"{len(photos_of(config))} photos, {settings.steps} steps of {settings.batch_size} photos"
        + (f" and {settings.prior_batch_size} prior pictures" if config.has_prior else "")
        + f" at {side} pixels; terms: {', '.join(config.terms.active())}\n"
        f"trains {sum(v.numel() for v in trained.values()):,} weights in {len(trained)} tensors\n{plan}"
    )


def prepare_samples(
    config: LoraConfig, pipe: IDPipeline | IDPipelineXL, studio: Studio, portraits: Portraits, folder: Path
) -> Callable[[int], dict[str, float]]:
    """A function that draws the sheet of a step and says how alike the samples are."""
    used = set(portraits.names)
    photos = [photo for photo in photos_of(config) if photo.name in used]
    judges = Judges.of(studio.detector, studio.encoder, load_encoder(config.judge))
    references = judges.mean_vectors(photos, aligned=config.aligned)
    assert references is not None  # photos without a face are not among these
    sitters = [Sitter(prompt=prompt, references=references) for prompt in config.samples.prompts]
    shown = photos[0].open() if config.aligned else cut_pictures(photos[:1], studio)[0]
    return lambda step: draw_samples(
        pipe, sitters, judges, seed=config.seed, photo=shown,
        path=folder / "samples" / f"step-{step:06d}.png", title=f"step {step}",
    )  # fmt: skip


def train(config: LoraConfig, folder: Path, accelerator: Accelerator) -> None:
    """Prepare everything once, then the loop."""
    pipe = open_pipeline(model_folder(config.model))
    pipe.unload_adapter()
    pipe.set_progress_bar_config(disable=True)
    torch.nn.Module.requires_grad_(pipe.vae, False)
    pipe.to(accelerator.device)
    schedule = NoiseSchedule.of(pipe.scheduler)
    studio = open_studio(
        pipe, folder / "cache", model=config.model, encoder=config.encoder, detector=config.detector,
        framing=config.framing, size_px=config.size_px,
    )  # fmt: skip
    with accelerator.main_process_first():  # the others find what it has computed
        corpus, denoiser, portraits = build_corpus(config, pipe, studio)
    terms, personal = build_terms(config.terms), build_model(config, pipe, corpus)
    if config.start is not None:
        load_lora(pipe.unet, config.start)
    if personal.tokens is not None:
        pipe.load_stage_tokens(personal.tokens)  # the samples show them as they are then
    probes = build_probes(config, studio, personal, accelerator.device)
    c = config.optimizer
    prior_size = c.prior_batch_size if config.has_prior else 0
    check_divisible(c.batch_size, prior_size, accelerator.num_processes * c.accumulation)
    # not before all that can be refused was: a folder with a configuration is a run
    run = TrainingRun(folder, config) if accelerator.is_main_process else None
    optimization = Optimization(run, c, accelerator, personal.model, personal.trained)
    optimization.resume(folder)
    denoiser = denoiser.of(optimization.model)
    draws = run is not None and config.samples.every
    samples = prepare_samples(config, pipe, studio, portraits, folder) if draws else None

    for step in optimization.steps():
        batch = plan_batch(
            corpus, schedule, size=c.batch_size, prior_size=prior_size, step=step, seed=config.seed
        )
        for index, block in optimization.parts():
            with block:
                part = part_of(batch, corpus, index, optimization.num_parts)
                seen = run_step(
                    corpus, part, denoiser, schedule, device=accelerator.device, probes=probes,
                    conditions=personal.conditions(corpus, part),
                )  # fmt: skip
                loss, said = weighed(terms, seen, step)
                optimization.backward(loss, said)
        said = optimization.update(len(batch.rows))
        optimization.record(said)
        if samples is not None and (step + 1) % config.samples.every == 0:
            optimization.record(samples(step + 1), always=True)
        optimization.save_if_due()  # last: what was not saved is done again, samples included

    if run is not None:
        save(config, pipe, personal, optimization.result, folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the settings; plan, or train."""
    arguments = program_arguments(LoraConfig, __doc__ or "", argv, settings=OPTIONS)
    config, folder = arguments.config, arguments.out
    hide_loading_bars()
    if arguments.dry_run:
        pipe = open_pipeline(model_folder(config.model))
        pipe.unload_adapter()
        print(describe(config, pipe))
        return 0
    photos_of(config)
    TrainingRun.check(folder, config)
    train(config, folder, Accelerator(mixed_precision=config.optimizer.precision))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
