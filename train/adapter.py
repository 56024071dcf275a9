"""Train an identity adapter on many people, with the identity objectives of your choice.

    idgen train adapter --config train/configs/ip_adapter_faceid.yaml --faces PICTURES --out runs/adapter

PICTURES is a Parquet file, a folder with a manifest, or one with a folder for each person. Faces, latents and
captions are computed once and kept in the run folder; a tenth of the people is set aside, and samples show
some of them. Started again, the same command goes on from the last checkpoint. Leaves ``adapter/``, which
``load_ip_adapter`` of diffusers and `idgen generate --adapter` open. On several processes: ``torchrun
--nproc-per-node 2 --no-python idgen train adapter ...``.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator

from idgen.adapters.checkpoint import write_adapter
from idgen.config import program_arguments
from idgen.data.captions import caption, read_attributes
from idgen.data.images import split_names
from idgen.data.pictures import Picture, PictureSet, read_pictures
from idgen.data.sampler import PersonSampler
from idgen.diffusion.denoiser import Denoiser, picture_px
from idgen.diffusion.prediction import NoiseSchedule
from idgen.diffusion.rollout import RolloutConfig
from idgen.encoders.arcface import load_encoder
from idgen.encoders.base import FaceEncoder
from idgen.encoders.gallery import PORTRAIT_PX
from idgen.encoders.wplus import WPlusEncoder, load_wplus
from idgen.errors import ConfigError
from idgen.identity import Identity
from idgen.objectives.config import TermsConfig, build_terms
from idgen.objectives.editing import EditingConfig, text_layers
from idgen.objectives.terms import DenoisingConfig, weighed
from idgen.opening import hide_loading_bars, model_folder
from idgen.pipeline import IDPipeline, IDPipelineXL, open_pipeline
from idgen.portraits import Portraits, Studio, code_of, read_portraits
from idgen.training import TrainingRun
from idgen.tuning.adapter import (
    AdaptedUnet,
    DropConfig,
    averaged,
    conditions_of,
    plan_adapter_batch,
)  # fmt: skip
from idgen.tuning.beginning import Beginning
from idgen.tuning.captions import Captions
from idgen.tuning.corpus import Corpus, Probes, check_divisible, join, part_of, run_step
from idgen.tuning.memory import MemoryPlan, trained_bytes, weight_bytes
from idgen.tuning.optimize import Optimization, OptimizerConfig
from idgen.tuning.samples import Judges, Sitter, draw_samples, may_be_drawn
from idgen.tuning.studio import FramingName, face_reader, open_studio, step_activations


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """People set aside who are drawn now and then; ``every`` 0 for never."""

    every: int = 500
    people: int = 4
    prompt: str = "a photo of a person"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Everything that decides a run of train/adapter.py."""

    seed: int = 0
    faces: Path | None = None  # pictures of many people
    aligned: bool = False  # they are crops of 112 pixels, or 128 with 8 around the crop
    skip_bad: bool = False  # leave out files that do not open, and pictures without a face
    held_out: float = 0.1  # share of the people who are never trained on: choose settings on these
    prompt: str = "a photo of a person"  # of pictures of which nothing else is known
    wordings: int = 4  # captions of a picture whose labels are known
    model: str = "mini"
    start: str = "auto"  # adapter to go on from: a file, "new", or "auto": the model's own where it has one
    kind: Literal["face", "wplus"] = "face"  # what the adapter reads: face vectors, or W+ codes
    wplus: Path | None = None  # for kind wplus: encoder of the codes with its generator
    landmark_noise: float = 0.0  # for kind wplus: a detector's scatter, in distances of the eyes (0.085)
    train_projection: bool = True  # W+ Adapter's second stage keeps the projector as it is
    num_tokens: int = 4  # of a new adapter of face vectors
    licence: str | None = None  # of the result; where None that of the adapter it began with
    encoder: str = "mini"
    id_encoder: str | None = None  # that identity terms see through; where None the one that conditions
    judge: str = "judge"
    detector: str = "mini"
    framing: FramingName = "auto"
    size_px: int | None = None
    detect_in_prediction: bool = True
    decoder: str = "full"  # as in train/lora.py
    pictures_per_person: int = 2  # K; batch_size / K people in a step
    drop: DropConfig = field(default_factory=DropConfig)
    terms: TermsConfig = field(default_factory=lambda: TermsConfig(denoising=DenoisingConfig()))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)  # how pictures are made for a reward
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(batch_size=16))
    samples: SampleSettings = field(default_factory=SampleSettings)

    def __post_init__(self) -> None:
        if "prior" in self.terms.active():
            raise ConfigError(
                "the term prior keeps a LoRA's model what it was; an adapter leaves the model alone"
            )
        if self.terms.has_branch or "attention" in self.terms.active():
            raise ConfigError(
                "the terms text_only, contrastive and attention train a LoRA (idgen train lora)"
            )
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out must be in [0, 1), got {self.held_out}")
        if (self.kind == "wplus") != (self.wplus is not None):
            raise ConfigError(
                "kind wplus needs an encoder of codes (wplus: FILE), and no other kind takes one"
            )
        if self.kind == "face" and not self.train_projection:
            raise ConfigError("train_projection false is for kind wplus")
        if self.id_encoder is not None and not self.terms.sees_faces:
            raise ConfigError(f"no term looks at faces, so none needs id_encoder {self.id_encoder}")
        if not 0 <= self.landmark_noise < 1:
            raise ConfigError(f"landmark_noise must be in [0, 1), got {self.landmark_noise:g}")
        if self.wordings < 1 or self.num_tokens < 1:
            raise ConfigError("wordings and num_tokens must be at least 1")
        if self.pictures_per_person < 1 or self.optimizer.batch_size % self.pictures_per_person:
            raise ConfigError(
                f"batch_size {self.optimizer.batch_size} is not a multiple of pictures_per_person "
                f"{self.pictures_per_person}"
            )


OPTIONS = {
    "faces": "Parquet file, folder with a manifest, or with a folder for each person",
    "model": "mini, a diffusers folder, or OWNER/NAME of the Hugging Face hub",
    "aligned": "the pictures are aligned: 112 pixels, or 128 with 8 around the crop",
    "skip_bad": "leave out what cannot be used",
}


def split(config: AdapterConfig) -> tuple[PictureSet, PictureSet]:
    """The pictures to train on, and those of the people set aside."""
    if config.faces is None:
        raise ConfigError("--faces is missing: give pictures of many people, as train/adapter.py says")
    found = read_pictures(config.faces)
    people = found.people()
    set_aside, rest = split_names(list(people), held_out=config.held_out)
    if len(rest) < 2:
        raise ConfigError(
            f"{config.faces} holds {len(people)} people; an adapter needs two at least to train on"
        )
    return tuple(found.subset([r for name in names for r in people[name]]) for names in (rest, set_aside))  # pyright: ignore[reportReturnType]


def captions_of(picture: Picture, config: AdapterConfig, number: int) -> list[str]:
    """What the picture shows, in ``wordings`` ways: as its table says, else from its labels."""
    if picture.prompt:
        return [picture.prompt] * config.wordings
    labels = {name: value for name, value in picture.labels.items() if not isinstance(value, str)}
    if not labels:
        return [config.prompt] * config.wordings
    image = picture.open()
    if image.size != (PORTRAIT_PX, PORTRAIT_PX):
        return [config.prompt] * config.wordings
    said = read_attributes(labels, np.asarray(image))
    return [caption(said, np.random.default_rng([config.seed, number, i])) for i in range(config.wordings)]


def beginning(config: AdapterConfig, encoder: FaceEncoder | WPlusEncoder) -> Beginning:
    """What the training begins with."""
    terms, c = ", ".join(config.terms.active()), config.optimizer
    return Beginning(
        start=config.start, encoder=encoder, licence=config.licence, num_tokens=config.num_tokens,
        base_model=config.model if config.model == "mini" else Path(config.model).name, seed=config.seed,
        training_run=f"train/adapter.py, {c.steps} steps of {c.batch_size}: {terms}",
    )  # fmt: skip


def build_corpus(
    config: AdapterConfig, pipe: IDPipeline | IDPipelineXL, studio: Studio, pictures: PictureSet
) -> tuple[Corpus, Captions, Portraits]:
    """Latents and vectors, and the encoded captions that go with each picture."""
    portraits = read_portraits(pictures.pictures, studio, aligned=config.aligned, skip_bad=config.skip_bad)
    for name in portraits.skipped:
        print(f"idgen: left out, since it cannot be used: {name}", file=sys.stderr)
    by_name = {picture.name: picture for picture in pictures.pictures}
    captions = [captions_of(by_name[name], config, number) for number, name in enumerate(portraits.names)]
    editing = config.terms.active().get("editing")
    edits = editing.edits if isinstance(editing, EditingConfig) else ()
    said = Captions.encoded(pipe, captions, edits, seed=config.seed)
    corpus = join(portraits, [wordings[0] for wordings in captions], None, "", said.texts)
    return corpus, said, portraits


def build_probes(config: AdapterConfig, studio: Studio, device: torch.device) -> Probes:
    """What the terms want to know beside the model's answer."""
    terms, reader = config.terms, None
    if terms.sees_faces:
        reader = face_reader(
            studio, config.id_encoder or config.encoder, device,
            detect_in_prediction=config.detect_in_prediction, decoder=config.decoder,
        )  # fmt: skip
    editing = terms.active().get("editing")
    return Probes(
        reader=reader, rollout=config.rollout if terms.generates else None,
        edit_layers=editing.layers if isinstance(editing, EditingConfig) else "",
    )  # fmt: skip


def prepare_samples(
    config: AdapterConfig, pipe: IDPipeline | IDPipelineXL, studio: Studio, people: PictureSet, folder: Path
) -> Callable[[int], dict[str, float]]:
    """A function that draws people who are set aside, and says how alike they are."""
    judges = Judges.of(studio.detector, studio.encoder, load_encoder(config.judge))
    sitters = []
    for rows in people.people().values():
        if len(sitters) == config.samples.people:
            break
        vectors = judges.mean_vectors([people.pictures[rows[0]]], aligned=config.aligned)
        if vectors is None:  # nobody to see on this one
            continue
        who = Identity.from_vector(vectors[0], studio.encoder.id)
        if not may_be_drawn(who, studio.encoder):
            continue
        if studio.wplus is not None:
            who = Identity((code_of(people.pictures[rows[0]], studio, studio.wplus, aligned=config.aligned),))
        sitters.append(Sitter(prompt=config.samples.prompt, references=vectors, identity=who))
    return lambda step: draw_samples(
        pipe, sitters, judges, seed=config.seed, title=f"people set aside, step {step}",
        path=folder / "samples" / f"step-{step:06d}.png",
    )  # fmt: skip


def describe(config: AdapterConfig, pipe: IDPipeline | IDPipelineXL, model: AdaptedUnet) -> str:
    """The plan of a run and the memory it will need."""
    own, aside = split(config)
    settings, trained = config.optimizer, model.trained()
    side = config.size_px or picture_px(pipe)
    faces = (config.id_encoder or config.encoder) if config.terms.sees_faces else None
    modules = {"unet": model, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    rows = -(-settings.batch_size // settings.accumulation)
    plan = MemoryPlan(
        weights=weight_bytes(modules),
        trained=trained_bytes(trained, with_average=bool(settings.ema_decay)),
        activations=step_activations(pipe, model, rows, side, config.prompt, faces=faces),
    )
    return (
        f"{len(own)} pictures of {len(own.people())} people, {len(aside.people())} people set aside\n"
        f"{settings.steps} steps of {settings.batch_size // config.pictures_per_person} people with "
        f"{config.pictures_per_person} pictures at {side} pixels; terms: {', '.join(config.terms.active())}\n"
        f"trains {sum(v.numel() for v in trained.values()):,} weights in {len(trained)} tensors\n{plan}"
    )


def train(config: AdapterConfig, folder: Path, accelerator: Accelerator) -> None:
    """Prepare everything once, then the loop."""
    own, aside = split(config)
    pipe = open_pipeline(model_folder(config.model) if config.model != "mini" else "mini")
    pipe.set_progress_bar_config(disable=True)
    torch.nn.Module.requires_grad_(pipe.vae, False)
    pipe.to(accelerator.device)
    studio = open_studio(
        pipe, folder / "cache", model=config.model, encoder=config.encoder, detector=config.detector,
        framing=config.framing, size_px=config.size_px,
    )  # fmt: skip
    wplus = None if config.wplus is None else load_wplus(config.wplus)
    second = None if config.id_encoder is None else load_encoder(config.id_encoder)
    studio = replace(studio, wplus=wplus, second=second, landmark_noise=config.landmark_noise)
    with accelerator.main_process_first():  # the others find what it has computed
        begun = beginning(config, wplus or studio.encoder)
        first = begun.open(pipe, folder)
        corpus, captions, portraits = build_corpus(config, pipe, studio, own)
    c = config.optimizer
    sampler = PersonSampler(
        portraits.person.numpy(), people=c.batch_size // config.pictures_per_person,
        pictures=config.pictures_per_person, seed=config.seed,
    )  # fmt: skip
    check_divisible(c.batch_size, 0, accelerator.num_processes * c.accumulation)
    probes = build_probes(config, studio, accelerator.device)
    if probes.edit_layers:
        text_layers(
            pipe.unet, probes.edit_layers
        )  # refuses what the UNet does not have, before the run begins
    terms, schedule = build_terms(config.terms), NoiseSchedule.of(pipe.scheduler)
    # not before all that can be refused was: a folder with a configuration is a run
    run = TrainingRun(folder, config) if accelerator.is_main_process else None
    adapter = first.adapter
    model = AdaptedUnet(pipe.unet, adapter, train_projection=config.train_projection)
    optimization = Optimization(run, c, accelerator, model, model.trained())
    optimization.resume(folder)
    denoiser = Denoiser(unet=optimization.model, texts=captions.texts, size_px=studio.framing.size_px)
    draws = run is not None and config.samples.every and len(aside)
    samples = prepare_samples(config, pipe, studio, aside, folder) if draws else None

    for step in optimization.steps():
        batch = plan_adapter_batch(
            corpus, schedule, sampler, config.drop, wordings=config.wordings, step=step, seed=config.seed
        )
        for index, block in optimization.parts():
            with block:
                part = part_of(batch, corpus, index, optimization.num_parts)
                seen = run_step(
                    corpus, part, denoiser, schedule, device=accelerator.device, probes=probes,
                    text_row=captions.rows(part), edit_rows=captions.edit_rows(part),
                    is_wanted=part.has_identity, conditions=conditions_of(corpus, part),
                )  # fmt: skip
                loss, said = weighed(terms, seen, step)
                optimization.backward(loss, said)
        said = optimization.update(len(batch.rows))
        optimization.record(said)
        if samples is not None and (step + 1) % config.samples.every == 0:
            optimization.record(samples(step + 1), always=True)
        optimization.save_if_due()  # last: what was not saved is done again, samples included

    if run is not None:
        adapter.clear()
        adapter.load_state_dict(averaged(adapter, optimization.result))
        path = folder / "adapter" / begun.file_name
        path.parent.mkdir(exist_ok=True)
        write_adapter(path, adapter, begun.card(adapter, first.card.licence), dtype=torch.float16)
        how = (
            f"pipe.load_adapter({str(path)!r})" if wplus else f"idgen generate --adapter {path} --face PHOTO"
        )
        print(f"saved {path}; try it: {how} ...")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the settings; plan, or train."""
    arguments = program_arguments(AdapterConfig, __doc__ or "", argv, settings=OPTIONS)
    config, folder = arguments.config, arguments.out
    hide_loading_bars()
    if arguments.dry_run:
        pipe = open_pipeline(model_folder(config.model) if config.model != "mini" else "mini")
        encoder = load_encoder(config.encoder)
        wplus = None if config.wplus is None else load_wplus(config.wplus)
        with TemporaryDirectory() as place:  # for a new adapter; nothing is left in --out
            adapter = beginning(config, wplus or encoder).open(pipe, Path(place)).adapter
        model = AdaptedUnet(pipe.unet, adapter, train_projection=config.train_projection)
        print(describe(config, pipe, model))
        return 0
    TrainingRun.check(folder, config)
    train(config, folder, Accelerator(mixed_precision=config.optimizer.precision))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
