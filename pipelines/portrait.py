"""A photo and a prompt in, pictures of that person out: the program behind `idgen generate`."""

# Heavy modules (torch, diffusers) are imported where they are used: a mistyped option is answered at once.
import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from idgen import __version__
from idgen.config import Parser, from_mapping, read_size, read_yaml
from idgen.errors import ConfigError, ImageError
from idgen.runs import PictureRun, default_folder, file_sha256, model_sha256, read_record
from idgen.startup import quick_imports

if TYPE_CHECKING:
    from PIL import Image

    from idgen.editing.editor import Editor, Effect
    from idgen.identity import Identity
    from idgen.metrics.consistency import Likeness
    from idgen.opening import Kit
    from idgen.pipeline import IDPipeline, IDPipelineXL
    from idgen.provenance import Provenance
    from idgen.reference import Reference

SEED_BOUND = 2**63  # torch seeds its generators with 64 bits, signed
PIXELS_AT_ONCE = 4 * 512 * 512  # of a micro-batch, if --batch-size is not given; four pictures of SD 1.5
MAX_BATCH = 8
HOME = Path("runs")  # where runs go without --out
# of the settings: paths, since what they lead to is recorded, and what decides no picture
NOT_IN_RECORD = (
    *("face", "model", "adapter", "encoder", "judge", "detector", "directions", "wplus", "wplus_adapter"),
    *("lora", "allow_unchecked", "out"),
)


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
    edit: str | None = None  # of the W+ code, as in `idgen.editing.directions.parse_edits`
    directions: Path | None = None
    wplus: str | None = None
    wplus_adapter: Path | None = None
    wplus_scale: float = 1.0
    size: str | None = None
    model: str = "mini"
    adapter: Path | None = None
    lora: Path | None = None  # file, or folder of `idgen train lora`
    lora_scale: float = 1.0
    encoder: str | None = None
    judge: str | None = None
    detector: str = "mini"
    which: str = "only"
    device: str = "auto"
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    batch_size: int | None = None
    allow_unchecked: bool = False  # go on where a list of people who refused is of other encoders
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
        _check("--wplus-scale", self.wplus_scale, 0, 10)
        _check("--lora-scale", self.lora_scale, -10, 10)
        _check("--batch-size", self.batch_size, 1, 1024)
        if self.directions is not None and self.edit is None:
            raise ConfigError("--directions says what can be edited; say what is, as in --edit smile=+2")
        if self.size is not None:
            read_size(self.size)
        if self.which not in {"only", "largest", "left", "right"} and not self.which.isdecimal():
            known = "only, largest, left, right or a number counted from 0"
            raise ConfigError(f"--which must be {known}, got {self.which!r}")

    @property
    def has_codes(self) -> bool:
        """Whether the person is read as a W+ code too."""
        return any(value is not None for value in (self.edit, self.wplus, self.wplus_adapter))


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
    ("--edit", str, "EDITS", "move the person along directions: smile=+2,turn=-1 (not edited)"),
    ("--directions", Path, "FILE", "what can be edited, by name (mini's smile, turn and woman)"),
    ("--wplus", str, "SPEC", "read the person as a W+ code too: mini, or an e4e, pSp or idgen file"),
    ("--wplus-adapter", Path, "FILE", "W+ adapter that gives it to the model (mini's)"),
    ("--wplus-scale", float, "S", "its strength, 0 for none (1)"),
    ("--size", str, "WxH", "pixels, 512 or 512x768 (what the model was trained for)"),
    ("--model", str, "NAME", "mini, a diffusers folder, or OWNER/NAME of the Hugging Face hub (mini)"),
    ("--adapter", Path, "FILE", "IP-Adapter FaceID file (the one that came with the model)"),
    ("--lora", Path, "FILE", "LoRA of this base, or the folder of `idgen train lora` (none)"),
    ("--lora-scale", float, "S", "its strength (1)"),
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
    allowed = "go on where people who refused (`idgen blocklist`) cannot be compared by these encoders"
    parser.add_argument("--allow-unchecked", action="store_true", help=allowed)
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
        from idgen import opening  # seconds
        from idgen.report.portraits import describe_edits, summary, write_sheet

    opening.hide_loading_bars()
    device = opening.choose_device(config.device)
    folder = opening.model_folder(config.model)
    kit = opening.open_kit(
        folder, adapter=config.adapter, encoder=config.encoder, judge=config.judge,
        detector=config.detector, faces=config.face,
    )  # fmt: skip
    editor = read_editor(config, folder)
    reference = read_person(config, kit)

    command = describe_command(config, kit, editor, model_sha256(folder))
    run = PictureRun(config.out or default_folder(HOME, config.prompt, command), command, config.count)
    if not run.is_finished:
        pipe = opening.open_model(folder, kit.adapter, device=device, precision=config.precision)
        pipe.set_progress_bar_config(disable=True)  # one bar for the whole run instead
        settings = resolve(config, pipe)
        identity, effects = who_is_drawn(config, kit, editor, reference)
        if editor is not None:
            pipe.load_adapter(editor.adapter)
        if config.lora is not None:
            opening.put_lora(pipe, config.lora, config.lora_scale)
        run.start(describe_run(settings, folder, reference) | {"edits": list(map(asdict, effects))})
        with run.saying_how_far():
            make_pictures(pipe, settings, kit, reference, identity, run)
    write_sheet(run, reference, kit.encoders, config.prompt, edits := describe_edits(run.details["edits"]))
    print("\n".join([*edits, summary(run, kit.encoders)]))


def check_files(config: GenerateConfig) -> None:
    """What can be told without opening anything: photos that are not there, a folder that is taken."""
    for path in config.face:
        if not path.is_file():
            raise ImageError(f"no such file: {path}")
    if config.out is not None:
        read_record(config.out)


def read_person(config: GenerateConfig, kit: "Kit") -> "Reference":
    """Who is meant, unless it is somebody who refused; says which photos were left out."""
    from idgen.blocklist import Blocklist
    from idgen.reference import read_reference

    reference = read_reference(config.face, kit.detector, kit.encoders, which=config.which)
    refused = Blocklist.load()
    for encoder in kit.encoders:
        seen = reference.identities[encoder.id]
        refused.check(seen, encoder=encoder, allow_unchecked=config.allow_unchecked or encoder is kit.judge)
    for path, photo in zip(config.face, reference.report, strict=True):
        if not photo.kept:
            alike = f"similarity {photo.similarity:.2f}"
            print(f"idgen: {path} is unlike the other photos ({alike}) and is left out", file=sys.stderr)
    return reference


def read_editor(config: GenerateConfig, model: Path) -> "Editor | None":
    """What reads and edits W+ codes, where the command asks for that."""
    if not config.has_codes:
        return None
    from idgen.editing.editor import open_editor

    return open_editor(
        model, edit=config.edit, wplus=config.wplus,
        adapter=config.wplus_adapter, directions=config.directions,
    )  # fmt: skip


def who_is_drawn(
    config: GenerateConfig, kit: "Kit", editor: "Editor | None", reference: "Reference"
) -> "tuple[Identity, list[Effect]]":
    """The identity that conditions, and what each edit leaves of the person."""
    identity = next(iter(reference.identities.values()))
    if editor is None:
        return identity, []
    kept = [path for path, photo in zip(config.face, reference.report, strict=True) if photo.kept]
    code = editor.read(kept, kit.detector, which=config.which)
    effects = editor.effects(code, kit.detector, kit.encoders)
    return replace(identity, features=(*identity.features, editor.edited(code))), effects


def describe_command(
    config: GenerateConfig, kit: "Kit", editor: "Editor | None", model_hash: str
) -> dict[str, Any]:
    """All that decides the pictures, as plain data. Of the photos only their hashes: these name nobody."""
    from idgen.opening import find_lora

    settings = asdict(config)
    for option in NOT_IN_RECORD:
        del settings[option]  # what they lead to follows
    if editor is None:
        del settings["edit"], settings["wplus_scale"]
    else:
        settings |= {
            "wplus": editor.encoder.id,
            "wplus_adapter": editor.adapter.sha256,
            "directions": editor.directions_sha256,
        }
    if config.lora is None:
        del settings["lora_scale"]
    else:
        settings["lora"] = file_sha256(find_lora(config.lora))
    return {
        **settings,
        "photos": [file_sha256(path) for path in config.face],
        "detector": kit.detector.name,
        "encoder": kit.encoder.id,
        "judge": kit.judge.id if kit.judge else None,
        "model": model_hash,
        "adapter": kit.adapter.sha256,
    }


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
    identity: "Identity",
    run: PictureRun,
) -> None:
    """Every planned micro-batch of which a picture is missing; pictures are measured and written singly."""
    from tqdm import tqdm

    from idgen.metrics.consistency import measure_likeness
    from idgen.provenance import save_picture

    eyes = reference.eyes(kit.encoders)
    batches = run.batches(settings.batch_size or 1)
    with tqdm(total=len(batches) * (settings.steps or 0), unit="step") as bar:
        for batch in batches:
            bar.set_description(f"{len(run.pictures)} of {run.count} pictures")
            made = denoise(pipe, settings, identity, batch, on_step=bar.update)
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
    identity: "Identity",
    batch: Sequence[int],
    *,
    on_step: Callable[[], object],
) -> tuple[list["Image.Image"], list[bool]]:
    """The pictures of one micro-batch, and which of them the model's safety checker made black."""
    from idgen.blocklist import Blocklist

    def step(_pipe: object, _step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return tensors

    width, height = read_size(settings.size or "")
    made = pipe(
        [settings.prompt] * len(batch),
        negative_prompt=[settings.negative] * len(batch),
        identity=identity,
        blocklist=Blocklist(),  # read_person has checked
        seed=[settings.seed + index for index in batch],
        id_scale=settings.id_scale,
        id_start=settings.id_start,
        id_end=settings.id_end,
        wplus_scale=settings.wplus_scale,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        id_guidance_scale=settings.id_guidance,
        width=width,
        height=height,
        callback_on_step_end=step,
    )
    return made.images, list(getattr(made, "nsfw_content_detected", None) or [False] * len(batch))


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
        lora_hash=run.command.get("lora"),
        encoder=kit.encoder.id,
        edit=settings.edit,
        similarity=likeness.similarity,
    )


if __name__ == "__main__":
    main()
