"""A photo and a prompt in, pictures of that person out: the program behind `idgen generate`."""

# Heavy modules (torch, diffusers) are imported where they are used: a mistyped option is answered at once.
import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from idgen import __version__
from idgen.config import Parser, from_mapping, read_size, read_yaml
from idgen.errors import ConfigError, ImageError
from idgen.runs import PictureRun, file_sha256, model_sha256, read_record, short_hash
from idgen.startup import quick_imports

if TYPE_CHECKING:
    from PIL import Image

    from idgen.encoders.base import FaceEncoder
    from idgen.metrics.consistency import Eye, Likeness
    from idgen.opening import Kit
    from idgen.pipeline import IDPipeline, IDPipelineXL
    from idgen.provenance import Provenance
    from idgen.reference import Reference

SEED_BOUND = 2**63  # torch seeds its generators with 64 bits, signed
PIXELS_AT_ONCE = 4 * 512 * 512  # of a micro-batch, if --batch-size is not given; four pictures of SD 1.5
MAX_BATCH = 8
HOME = Path("runs")  # where runs go without --out
SHEET_LIMIT, SHEET_PX = 400, 224  # pictures on the contact sheet, and the side of each


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Everything that decides the pictures; None stands for what lies beside the model."""

    face: tuple[Path, ...]
    prompt: str
    negative: str = ""
    count: int = 4
    seed: int = 0  # picture i has the seed `seed + i`
    id_scale: float = 1.0
    id_start: float = 0.0  # share of the denoising from which on the identity is injected
    id_end: float = 1.0
    steps: int | None = None
    guidance: float | None = None
    id_guidance: float | None = None
    size: str | None = None
    model: str = "mini"
    adapter: Path | None = None
    encoder: str | None = None
    judge: str | None = None
    detector: str = "mini"
    which: str = "only"
    device: str = "auto"
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    batch_size: int | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if not self.face:
            raise ConfigError("--face is missing: give at least one photo of the person")
        _check("--count", self.count, 1, 100_000)
        _check("--seed", self.seed, 0, SEED_BOUND - self.count)
        _check("--id-scale", self.id_scale, 0, 10)
        _check("--id-start", self.id_start, 0, 1)
        _check("--id-end", self.id_end, 0, 1)
        if self.id_end <= self.id_start:
            raise ConfigError(f"--id-end must be above --id-start, got {self.id_end:g} and {self.id_start:g}")
        _check("--steps", self.steps, 1, 1000)
        _check("--guidance", self.guidance, 0, 100)
        _check("--id-guidance", self.id_guidance, 0, 100)
        _check("--batch-size", self.batch_size, 1, 1024)
        if self.size is not None:
            read_size(self.size)
        if self.which not in {"only", "largest", "left", "right"} and not self.which.isdecimal():
            known = "only, largest, left, right or a number counted from 0"
            raise ConfigError(f"--which must be {known}, got {self.which!r}")


def _check(option: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ConfigError(f"{option} must be between {low:g} and {high:g}, got {value:g}")


# Option, type, what stands for its value in --help, help with the default.
OPTIONS: tuple[tuple[str, type, str, str], ...] = (
    ("--prompt", str, "TEXT", "what the pictures show"),
    ("--negative", str, "TEXT", "what they should not show"),
    ("--count", int, "N", "number of pictures (4)"),
    ("--seed", int, "N", "of the first picture; the next ones have the numbers after it (0)"),
    ("--id-scale", float, "S", "strength of the identity, 0 for none (1)"),
    ("--id-start", float, "T", "the identity has a say from this part of the denoising on (0)"),
    ("--id-end", float, "T", "and up to this part (1)"),
    ("--steps", int, "N", "of denoising (what the model likes best)"),
    ("--guidance", float, "G", "classifier-free guidance, 1 for none (what the model likes best)"),
    ("--id-guidance", float, "G", "the same for the identity apart from the text (as --guidance)"),
    ("--size", str, "WxH", "pixels, 512 or 512x768 (what the model was trained for)"),
    ("--model", str, "NAME", "mini, a diffusers folder, or OWNER/NAME of the Hugging Face hub (mini)"),
    ("--adapter", Path, "FILE", "IP-Adapter FaceID file (the one that came with the model)"),
    ("--encoder", str, "SPEC", "mini, an insightface pack or an ONNX file (the one that the adapter names)"),
    ("--judge", str, "SPEC", "a second encoder, that only measures similarity (the embedded one)"),
    ("--detector", str, "SPEC", "mini, yunet:FILE, scrfd:FILE or an insightface pack (mini)"),
    ("--which", str, "W", "of several faces in a photo: largest, left, right, or a number from 0"),
    ("--device", str, "NAME", "cpu, cuda, cuda:N, mps or auto (auto)"),
    ("--precision", str, "TYPE", "float32, float16, bfloat16 or auto (auto)"),
    ("--batch-size", int, "N", "pictures made at once (what has the pixels of 4 of 512 x 512, at most 8)"),
    ("--out", Path, "DIR", "folder for the pictures (in runs/, named after the command)"),
    ("--config", Path, "FILE", "YAML file with these settings; options override it"),
)


def read_command(argv: Sequence[str] | None = None) -> GenerateConfig:
    """The settings of the command line over those of --config over the defaults."""
    parser = Parser(prog="idgen generate", description=__doc__, argument_default=argparse.SUPPRESS)
    faces = "photo of the person, or identity of `idgen embed`; several are averaged, outliers left out"
    parser.add_argument("--face", action="append", type=Path, metavar="PHOTO", help=faces)
    for option, kind, metavar, text in OPTIONS:
        parser.add_argument(option, type=kind, metavar=metavar, help=text)
    options = vars(parser.parse_args(argv))
    from_file = read_yaml(options.pop("config")) if "config" in options else {}
    values = {**from_file, **options}
    if missing := [f"--{name}" for name in ("face", "prompt") if name not in values]:
        raise ConfigError(f"{' and '.join(missing)} must be given (`idgen generate --help` shows how)")
    return from_mapping(GenerateConfig, values)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command, make the pictures, say where they are."""
    config = read_command(argv)
    check_files(config)
    with quick_imports():
        from idgen.opening import (
            choose_device,
            hide_loading_bars,
            model_folder,
            open_kit,
            open_model,
        )  # seconds

    hide_loading_bars()
    device = choose_device(config.device)
    folder = model_folder(config.model)
    kit = open_kit(
        folder,
        adapter=config.adapter,
        encoder=config.encoder,
        judge=config.judge,
        detector=config.detector,
        faces=config.face,
    )
    reference = read_person(config, kit)

    command = describe_command(config, kit, model_sha256(folder))
    run = PictureRun(config.out or default_folder(command), command, config.count)
    if not run.is_finished:
        pipe = open_model(folder, kit.adapter, device=device, precision=config.precision)
        pipe.set_progress_bar_config(disable=True)  # one bar for the whole run instead
        settings = resolve(config, pipe)
        run.start(describe_run(settings, folder, reference))
        with saying_how_far(run):
            make_pictures(pipe, settings, kit, reference, run)
    write_sheet(config, kit, reference, run)
    print(summary(kit, run))


@contextmanager
def saying_how_far(run: PictureRun) -> Iterator[None]:
    """On Ctrl-C: what is there, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        done = f"{len(run.pictures)} of {run.count} pictures are in {run.folder}"
        print(f"idgen: {done}; the same command goes on from there", file=sys.stderr)
        raise


def check_files(config: GenerateConfig) -> None:
    """What can be told without opening anything: photos that are not there, a folder that is taken."""
    for path in config.face:
        if not path.is_file():
            raise ImageError(f"no such file: {path}")
    if config.out is not None:
        read_record(config.out)


def read_person(config: GenerateConfig, kit: "Kit") -> "Reference":
    """Who is meant; says which photos were left out."""
    from idgen.reference import read_reference

    reference = read_reference(config.face, kit.detector, kit.encoders, which=config.which)
    for path, photo in zip(config.face, reference.report, strict=True):
        if not photo.kept:
            alike = f"similarity {photo.similarity:.2f}"
            print(f"idgen: {path} is unlike the other photos ({alike}) and is left out", file=sys.stderr)
    return reference


def describe_command(config: GenerateConfig, kit: "Kit", model_hash: str) -> dict[str, Any]:
    """All that decides the pictures, as plain data. Of the photos only their hashes: these name nobody."""
    settings = asdict(config)
    for option in ("face", "model", "adapter", "encoder", "judge", "detector", "out"):
        del settings[option]  # paths; what they lead to follows
    return {
        **settings,
        "photos": [file_sha256(path) for path in config.face],
        "detector": kit.detector.name,
        "encoder": kit.encoder.id,
        "judge": kit.judge.id if kit.judge else None,
        "model": model_hash,
        "adapter": kit.adapter.sha256,
    }


def default_folder(command: dict[str, Any]) -> Path:
    """A folder named after the command, so that the same command finds what it has made."""
    words = re.sub(r"[^a-z0-9]+", "-", command["prompt"].lower()).strip("-")[:40].strip("-")
    return HOME / f"{words or 'pictures'}-{short_hash(command)}"


def resolve(config: GenerateConfig, pipe: "IDPipeline | IDPipelineXL") -> GenerateConfig:
    """The settings with everything filled in that the model decides."""
    side = pipe.unet.config["sample_size"] * pipe.vae_scale_factor
    width, height = read_size(config.size or str(side))
    fitting = max(1, min(MAX_BATCH, PIXELS_AT_ONCE // (width * height)))
    return replace(
        config,
        steps=config.steps or pipe.defaults.num_inference_steps,
        guidance=pipe.defaults.guidance_scale if config.guidance is None else config.guidance,
        size=f"{width}x{height}",
        batch_size=config.batch_size or fitting,
        device=str(pipe.device),
        precision=str(pipe.dtype).removeprefix("torch."),
    )


def describe_run(settings: GenerateConfig, model: Path, reference: "Reference") -> dict[str, Any]:
    """What a reader of run.json wants to know beside the command; no path and no name of a photo."""
    resolved = ("steps", "guidance", "size", "batch_size", "device", "precision")
    return {
        "idgen": __version__,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "onnxruntime")},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": "mini" if settings.model == "mini" else model.name,
        "settings": {name: getattr(settings, name) for name in resolved},
        "photos": [{"similarity_to_others": p.similarity, "kept": p.kept} for p in reference.report],
    }


def make_pictures(
    pipe: "IDPipeline | IDPipelineXL",
    settings: GenerateConfig,
    kit: "Kit",
    reference: "Reference",
    run: PictureRun,
) -> None:
    """Every planned micro-batch of which a picture is missing; pictures are measured and written singly."""
    from tqdm import tqdm

    from idgen.metrics.consistency import measure_likeness
    from idgen.provenance import save_picture

    eyes = open_eyes(kit, reference)
    batches = run.batches(settings.batch_size or 1)
    with tqdm(total=len(batches) * (settings.steps or 0), unit="step") as bar:
        for batch in batches:
            bar.set_description(f"{len(run.pictures)} of {run.count} pictures")
            made = denoise(pipe, settings, reference, batch, on_step=bar.update)
            for index, image, is_blocked in zip(batch, *made, strict=True):
                if index in run.pictures:
                    continue
                likeness = measure_likeness(image, kit.detector, eyes)
                save_picture(image, run.path(index), provenance(settings, kit, run, index, likeness))
                run.add(index, {"seed": settings.seed + index, **asdict(likeness), "is_blocked": is_blocked})
        bar.set_description(f"{len(run.pictures)} of {run.count} pictures")


def denoise(
    pipe: "IDPipeline | IDPipelineXL",
    settings: GenerateConfig,
    reference: "Reference",
    batch: Sequence[int],
    *,
    on_step: Callable[[], object],
) -> tuple[list["Image.Image"], list[bool]]:
    """The pictures of one micro-batch, and which of them the model's safety checker made black."""

    def step(_pipe: object, _step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return tensors

    width, height = read_size(settings.size or "")
    made = pipe(
        [settings.prompt] * len(batch),
        negative_prompt=[settings.negative] * len(batch),
        identity=next(iter(reference.identities.values())),
        seed=[settings.seed + index for index in batch],
        id_scale=settings.id_scale,
        id_start=settings.id_start,
        id_end=settings.id_end,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        id_guidance_scale=settings.id_guidance,
        width=width,
        height=height,
        callback_on_step_end=step,
    )
    return made.images, list(getattr(made, "nsfw_content_detected", None) or [False] * len(batch))


def open_eyes(kit: "Kit", reference: "Reference") -> "dict[str, Eye]":
    """The encoders with the reference as each of them sees it."""
    from idgen.metrics.consistency import Eye

    def look_with(encoder: "FaceEncoder") -> "Eye":
        person = reference.identities[encoder.id].face_vector.value
        return Eye(encode=lambda crops: encoder.encode(crops).unit, reference=person)

    return {encoder.id: look_with(encoder) for encoder in kit.encoders}


def provenance(
    settings: GenerateConfig, kit: "Kit", run: PictureRun, index: int, likeness: "Likeness"
) -> "Provenance":
    """What picture ``index`` says of itself: nothing of the photo."""
    from idgen.provenance import Provenance

    return Provenance(
        prompt=settings.prompt,
        negative_prompt=settings.negative,
        seed=settings.seed + index,
        steps=settings.steps or 0,
        guidance_scale=settings.guidance or 0.0,
        id_scale=settings.id_scale,
        model=run.details["model"],
        model_hash=run.command["model"],
        adapter_hash=kit.adapter.sha256,
        encoder=kit.encoder.id,
        similarity=likeness.similarity,
    )


def write_sheet(config: GenerateConfig, kit: "Kit", reference: "Reference", run: PictureRun) -> None:
    """`sheet.png`: the reference beside the pictures, similarity by each encoder under each."""
    from PIL import Image

    from idgen.pixels import to_pil
    from idgen.report.sheet import Tile, contact_sheet
    from idgen.storage import replacing

    tiles = []
    for index in range(min(run.count, SHEET_LIMIT)):
        with Image.open(run.path(index)) as image:
            image.thumbnail((SHEET_PX, SHEET_PX))
            lines = describe_likeness(kit, run.pictures[index])
            tiles.append(Tile(image=image.convert("RGB"), title=run.path(index).name, **lines))
    who = None if reference.crop is None else Tile(image=to_pil(reference.crop), title="reference")
    notes = [f"similarity: cosine with the reference by {kit.encoder.id}, which conditioned the pictures"]
    if kit.judge:
        notes.append(f"second eye: cosine by {kit.judge.id}, which only measured")
    if run.count > SHEET_LIMIT:
        notes.append(f"the first {SHEET_LIMIT} of {run.count} pictures")
    sheet = contact_sheet(tiles, reference=who, title=config.prompt, notes=notes, tile_px=SHEET_PX)
    with replacing(run.folder / "sheet.png") as file:
        sheet.save(file, "PNG")


def describe_likeness(kit: "Kit", picture: dict[str, Any]) -> dict[str, Any]:
    """The lines under a picture."""
    if picture["is_blocked"]:
        return {"lines": ("blocked: safety checker",), "is_bad": True}
    if not picture["face_found"]:
        return {"lines": ("no face found",), "is_bad": True}
    names = ("similarity", "second eye")
    values = [picture["similarity"][encoder.id] for encoder in kit.encoders]
    return {"lines": tuple(f"{name} {value:.2f}" for name, value in zip(names, values, strict=False))}


def summary(kit: "Kit", run: PictureRun) -> str:
    """Where the pictures are and how alike, for people."""
    pictures = [run.pictures[i] for i in range(run.count)]
    found = sum(picture["face_found"] for picture in pictures)
    means = {e.id: sum(p["similarity"][e.id] for p in pictures) / run.count for e in kit.encoders}
    alike = ", ".join(f"{mean:.2f} by {name}" for name, mean in means.items())
    return (
        f"{run.count} picture{'s' if run.count > 1 else ''} in {run.folder}, side by side in its sheet.png\n"
        f"face found in {found} of {run.count}; mean similarity to the reference {alike}"
    )


if __name__ == "__main__":
    main()
