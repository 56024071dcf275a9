"""A dataset of new people: found apart from each other, planned, drawn, judged; behind `idgen synthesize`."""

# Heavy modules (torch, diffusers) are imported where they are used: a mistyped option is answered at once.
import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from idgen import __version__
from idgen.config import Parser, from_mapping, override, read_size, read_yaml
from idgen.errors import ConfigError, StorageError, WorkerError
from idgen.startup import quick_imports

if TYPE_CHECKING:
    from idgen.opening import Kit
    from idgen.synth.curate import CurationRules
    from idgen.synth.folder import DatasetFolder
    from idgen.synth.making import Progress
    from idgen.synth.plan import Plan
    from idgen.synth.recipe import Layout, Recipe

COMMANDS = "plan, diff, export, import, check"  # of the command line, beside this program
# of the settings: what leads to things whose content is recorded, and what decides no picture
NOT_IN_RECORD = (
    *("people", "pictures", "plan", "plan_like", "grammar", "distribution", "name", "model"),
    *("adapter", "encoder", "judge", "detector", "gallery", "curation", "allow_unchecked", "device"),
    *("threads", "engine", "ray_address", "out"),
)


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """Everything that decides a dataset; None stands for what lies beside the model, or follows from it."""

    out: Path
    people: int | None = None
    pictures: int | None = None
    plan: Path | None = None
    plan_like: Path | None = None
    grammar: Path | None = None
    distribution: Path | dict[str, Any] = field(default_factory=dict)  # or axis -> value -> weight
    name: str = "new"
    seed: int = 0
    source: str = "pca"
    max_cosine: float | None = None
    gallery: tuple[Path, ...] = ()
    galleries_aligned: bool = False
    id_scale: float = 1.0
    id_start: float = 0.0
    id_end: float = 1.0
    steps: int | None = None
    guidance: float | None = None
    id_guidance: float | None = None
    size: str | None = None
    retries: int = 3
    curation: dict[str, Any] = field(default_factory=dict)  # of `idgen.synth.curate.CurationRules`
    format: Literal["png", "jpeg", "webp"] = "png"
    quality: int = 95
    model: str = "mini"
    adapter: Path | None = None
    encoder: str | None = None
    judge: str | None = None
    detector: str = "mini"
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    batch_size: int | None = None
    shard_people: int | None = None
    device: str = "auto"
    threads: int | None = None
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    allow_unchecked: bool = False

    def __post_init__(self) -> None:
        if self.plan is None and (self.people is None or self.pictures is None):
            raise ConfigError("--people and --pictures must be given, or a --plan that says both")
        if self.plan is None and self.plan_like is not None:
            raise ConfigError(
                f"--plan-like {self.plan_like} goes with --plan, the file that was edited from it"
            )
        changed = {"pictures": None, "grammar": None, "distribution": {}, "name": "new"}
        if self.plan and (own := [name for name, usual in changed.items() if getattr(self, name) != usual]):
            raise ConfigError(f"--plan says which pictures are made; it goes without --{own[0]}")
        bounds = {
            "people": (1, 2**31 - 1), "pictures": (1, 2**22 - 1), "seed": (0, 2**63 - 1),
            "max_cosine": (-1, 1), "id_scale": (0, 10), "id_start": (0, 1), "id_end": (0, 1),
            "steps": (1, 1000), "guidance": (0, 100), "id_guidance": (0, 100), "retries": (0, 100),
            "quality": (1, 100), "batch_size": (1, 1024), "shard_people": (1, 2**31 - 1), "threads": (1, 256),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} must be between {low:g} and {high:g}, got {value:g}")
        if self.id_end <= self.id_start:
            raise ConfigError(f"--id-end must be above --id-start, got {self.id_end:g} and {self.id_start:g}")
        if self.size is not None:
            read_size(self.size)
        if self.ray_address is not None and self.engine != "ray":
            raise ConfigError(
                f"--ray-address {self.ray_address} goes with --engine ray, got --engine {self.engine}"
            )


# Option, type, what stands for its value in --help, help with the default.
OPTIONS: tuple[tuple[str, type, str, str], ...] = (
    ("--people", int, "N", "how many new people"),
    ("--pictures", int, "K", "of each"),
    ("--plan", Path, "FILE", "made by `idgen synthesize plan`, and edited, instead of --pictures"),
    ("--plan-like", Path, "FILE", "the plan that --plan was edited from, if its metadata was lost"),
    ("--out", Path, "DIR", "folder of the dataset; one that is found there goes on"),
    ("--grammar", Path, "FILE", "YAML of attributes and prompts (portraits)"),
    ("--distribution", Path, "FILE", "YAML of weights, or a Parquet table to measure (as --grammar says)"),
    ("--name", str, "TEXT", "begins the names of the people (new)"),
    ("--seed", int, "N", "of the people, the plan and the pictures (0)"),
    ("--source", str, "S", "pca[:FILE], vmf:FILE, uniform, file:FILE, interpolation:S, mixture:W*S,.. (pca)"),
    ("--max-cosine", float, "C", "between two people (the encoder's threshold at FMR 1e-4)"),
    ("--id-scale", float, "S", "strength of the identity (1)"),
    ("--id-start", float, "T", "the identity has a say from this part of the denoising on (0)"),
    ("--id-end", float, "T", "and up to this part (1)"),
    ("--steps", int, "N", "of denoising (what the model likes best)"),
    ("--guidance", float, "G", "classifier-free guidance, 1 for none (what the model likes best)"),
    ("--id-guidance", float, "G", "the same for the identity apart from the text (as --guidance)"),
    ("--size", str, "WxH", "pixels (what the model was trained for)"),
    ("--retries", int, "N", "how often a rejected picture is drawn again (3)"),
    ("--format", str, "KIND", "png, jpeg or webp (png)"),
    ("--quality", int, "Q", "of jpeg and webp, 1 to 100 (95)"),
    ("--model", str, "NAME", "mini, a diffusers folder, or OWNER/NAME of the Hugging Face hub (mini)"),
    ("--adapter", Path, "FILE", "IP-Adapter FaceID file (the one that came with the model)"),
    ("--encoder", str, "SPEC", "mini, an insightface pack or an ONNX file (the one that the adapter names)"),
    ("--judge", str, "SPEC", "a second encoder, that only measures (the embedded one)"),
    ("--detector", str, "SPEC", "mini, yunet:FILE, scrfd:FILE or an insightface pack (mini)"),
    ("--precision", str, "TYPE", "float32, float16, bfloat16 or auto (auto)"),
    ("--batch-size", int, "N", "pictures made at once (pixels of 4 of 512 x 512, at most 16)"),
    ("--shard-people", int, "N", "people of a shard, the unit that is made whole or again (256 pictures)"),
    ("--device", str, "NAMES", "cpu, mps, cuda, cuda:0,cuda:1 (one process each) or auto: every GPU (auto)"),
    ("--threads", int, "N", "that judge and write beside each device (its share of the cores, at most 16)"),
    ("--engine", str, "NAME", "local, or ray: tasks of a cluster that sees --out at the same path (local)"),
    ("--ray-address", str, "ADDR", "of the cluster (auto)"),
    ("--config", Path, "FILE", "YAML file with these settings; options override it"),
)


def read_command(argv: Sequence[str] | None) -> tuple[SynthesizeConfig, bool, bool]:
    """The settings of the command line over those of --config over the defaults; --dry-run, --repair."""
    about = f"{__doc__} Further commands, with --help of their own: {COMMANDS}."
    parser = Parser(prog="idgen synthesize", description=about, argument_default=argparse.SUPPRESS)
    for option, kind, metavar, text in OPTIONS:
        parser.add_argument(option, type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--gallery", action="append", type=Path, metavar="PHOTOS", help="real people to keep away from"
    )
    flags = {
        "--galleries-aligned": "their photos are aligned (112 or 128 pixels)",
        "--allow-unchecked": "go on where people who refused cannot be compared by these encoders",
        "--dry-run": "say what would be made, what it needs and how long it takes, and stop",
        "--repair": "compare what is there with its checksums first, and make again what is damaged",
    }
    for option, text in flags.items():
        parser.add_argument(option, action="store_true", help=text)
    settings = "any setting, such as curation.min_similarity=0.3 or curation.check_attributes=false"
    parser.add_argument("--set", action="append", metavar="NAME=VALUE", help=settings)
    options = vars(parser.parse_args(argv))
    from_file = read_yaml(options.pop("config")) if "config" in options else {}
    is_dry, is_repair = (options.pop(name, False) for name in ("dry_run", "repair"))
    if is_dry and is_repair:
        raise ConfigError("--dry-run changes nothing and --repair does; leave one of them out")
    assignments = options.pop("set", [])
    values = override({**from_file, **options}, assignments)
    if "out" not in values:
        raise ConfigError("--out must be given (`idgen synthesize --help` shows how)")
    return from_mapping(SynthesizeConfig, values), is_dry, is_repair


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command, make what is missing, say what is there."""
    config, is_dry, is_repair = read_command(argv)
    with quick_imports():
        from idgen.opening import hide_loading_bars, model_folder, open_kit  # seconds
        from idgen.synth.counting import counted
        from idgen.synth.engines import choose_devices
        from idgen.synth.estimate import estimate
        from idgen.synth.finding import clear_dataset, find_people, open_dataset, open_source
        from idgen.synth.findings import write_findings
        from idgen.synth.galleries import embed_galleries, forget_galleries
        from idgen.synth.recipe import Layout
        from idgen.synth.work import PLAN

    hide_loading_bars()
    devices = choose_devices(config.device.split(","), config.engine)
    model = model_folder(config.model)
    kit = open_kit(
        model, adapter=config.adapter, encoder=config.encoder, judge=config.judge, detector=config.detector
    )
    plan = read_or_make_plan(config)
    size = read_size(config.size) if config.size else None
    layout = Layout.choose(
        model, plan, size=size, batch_size=config.batch_size, shard_people=config.shard_people
    )
    command = describe_command(config, kit, plan, model, layout)
    dataset = open_dataset(config.out, command, num_shards=layout.num_shards(plan))
    if is_repair and dataset.about:
        with dataset.locked():
            for line in dataset.give_up_damaged():
                print(f"idgen: {line}; it is made again", file=sys.stderr)
    if dataset.is_finished:
        print(f"{config.out} is finished: {dataset.summary()}")
        return 0
    people = open_source(
        config.source, plan, kit.encoder, max_cosine=config.max_cosine,
        has_galleries=bool(config.gallery), allow_unchecked=config.allow_unchecked,
    )  # fmt: skip
    if is_dry:
        recipe = describe_recipe(config, kit, layout, dataset, model, devices)
        print("\n".join(estimate(recipe, kit, plan, dataset, devices)))
        return 0
    with dataset.locked(), saying_how_far(dataset, layout, plan):
        clear_dataset(dataset)
        dataset.start(describe_origin(config, kit, plan, model))
        real = embed_galleries(
            config.gallery, config.out, kit.detector, kit.encoders, aligned=config.galleries_aligned
        )
        find_people(
            plan, kit, config.out, source=people, max_cosine=config.max_cosine, seed=config.seed,
            galleries=[gallery[kit.encoder.id] for gallery in real.values()],
            allow_unchecked=config.allow_unchecked,
        )  # fmt: skip
        plan.write(config.out / PLAN)
        recipe = describe_recipe(config, kit, layout, dataset, model, devices)
        missing = dataset.missing()
        for line in dataset.damaged:
            print(f"idgen: {line}", file=sys.stderr)
        work = make(config, recipe, missing, devices)
        for _ in counted(work, layout.num_pictures(plan, missing)):
            pass
        report = write_findings(config.out, encoders=kit.encoders, galleries=real)
        forget_galleries(config.out)
        dataset.finish()
    print(f"{config.out}: {dataset.summary()}; {report}")
    return 0


def read_or_make_plan(config: SynthesizeConfig) -> "Plan":
    """Who is on which picture: as given, or by the grammar."""
    from idgen.synth.curate import check_grammar
    from idgen.synth.distribution import distribution_of
    from idgen.synth.grammar import read_grammar
    from idgen.synth.origin import without_folders
    from idgen.synth.plan import Plan
    from idgen.synth.planning import make_plan

    if config.plan is None:
        assert config.people is not None
        grammar = read_grammar(config.grammar)
        check_grammar(grammar)
        return make_plan(
            grammar,
            config.people,
            config.pictures,
            config.seed,
            distribution=distribution_of(config.distribution, grammar),
            source={"source": without_folders(config.source), "seed": config.seed},
            name=config.name,
        )
    plan = Plan.read(config.plan, like=config.plan_like)
    check_grammar(plan.grammar)
    last = int(plan.numbers("person").max())
    if config.people is not None and config.people <= last:
        raise ConfigError(
            f"--people is {config.people}, but {config.plan} speaks of person {last}, counted from 0: "
            f"at least {last + 1} people are needed; leave --people out to find as many"
        )
    return plan


def describe_command(
    config: SynthesizeConfig, kit: "Kit", plan: "Plan", model: Path, layout: "Layout"
) -> dict[str, Any]:
    """All that decides the pictures, as plain data; another command does not go on with a dataset."""
    from idgen.runs import model_sha256
    from idgen.synth.galleries import fingerprint
    from idgen.synth.origin import without_folders

    settings = asdict(config)
    for option in NOT_IN_RECORD:
        del settings[option]  # what they lead to follows
    return {
        "people": plan.num_people,
        "pictures": len(plan),
        **settings,
        "source": without_folders(config.source),
        **asdict(layout),
        "plan_sha256": plan.plan_sha256,
        "galleries": [fingerprint(path) for path in config.gallery],
        "curation": asdict(read_rules(config, kit)),
        "detector": kit.detector.name,
        "encoder": kit.encoder.id,
        "judge": kit.judge.id if kit.judge else None,
        "model": model_sha256(model),
        "adapter": kit.adapter.sha256,
    }


def describe_origin(config: SynthesizeConfig, kit: "Kit", plan: "Plan", model: Path) -> dict[str, Any]:
    """What a reader of dataset.json wants to know from the start; no path of this machine."""
    from idgen.synth.origin import made_from, model_name, without_folders

    return {
        "idgen": __version__,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "onnxruntime")},
        **made_from(kit, model, model_name(config.model, model)),
        "sources": {"people": without_folders(config.source), "galleries": len(config.gallery)},
        "rules": asdict(read_rules(config, kit)),
        "seed": config.seed,
        "plan_sha256": plan.plan_sha256,
    }


def read_rules(config: SynthesizeConfig, kit: "Kit") -> "CurationRules":
    """What decides which pictures are kept."""
    from idgen.synth.curate import CurationRules

    return from_mapping(CurationRules, config.curation, at="curation").resolved(kit.encoder)


def describe_recipe(
    config: SynthesizeConfig,
    kit: "Kit",
    layout: "Layout",
    dataset: "DatasetFolder",
    model: Path,
    devices: Sequence[str],
) -> "Recipe":
    """What every process must know that makes shards."""
    from idgen.synth.engines import choose_threads
    from idgen.synth.origin import model_name
    from idgen.synth.recipe import Recipe, absolute_spec

    same = (
        *("precision", "steps", "guidance", "id_guidance", "id_scale", "id_start", "id_end"),
        *("retries", "quality", "allow_unchecked"),
    )
    given: dict[str, Any] = {name: getattr(config, name) for name in same}
    given["adapter"] = config.adapter and config.adapter.absolute()
    for name in ("model", "encoder", "judge", "detector"):
        given[name] = absolute_spec(getattr(config, name))
    return Recipe(
        **given,
        dataset=config.out.absolute(),
        layout=layout,
        kind=config.format,
        rules=read_rules(config, kit),
        threads=config.threads or choose_threads(devices, config.engine),
        model_name=model_name(config.model, model),
        model_hash=dataset.command["model"],
        created=dataset.started,
        facts=dataset.facts,
    )


def make(
    config: SynthesizeConfig, recipe: "Recipe", missing: Sequence[int], devices: Sequence[str]
) -> "Iterator[Progress]":
    """Make the missing shards, wherever the command wants it."""
    from idgen.synth.engines import local_engine, ray_engine

    if config.engine == "ray":
        return ray_engine(recipe, missing, config.ray_address or "auto", devices)
    return local_engine(recipe, missing, devices)


@contextmanager
def saying_how_far(dataset: "DatasetFolder", layout: "Layout", plan: "Plan") -> "Iterator[None]":
    """A block in which Ctrl-C, a full disk and a process that died say what is there, and how to go on."""
    from idgen.synth.shards import DamagedShardError

    try:
        yield
    except (KeyboardInterrupt, StorageError, WorkerError) as error:
        said = str(error)
        if isinstance(error, DamagedShardError):
            said = f"{dataset.give_up(error)}; it is made again next time"
        left = layout.num_pictures(plan, dataset.missing())
        how = dataset.how_to_go_on(error, left, most_bytes=3 * layout.width * layout.height)
        if isinstance(error, KeyboardInterrupt):
            print(f"idgen: {how}", file=sys.stderr)
            raise
        kind = WorkerError if isinstance(error, WorkerError) else StorageError
        raise kind(f"{said}; {how}") from None


if __name__ == "__main__":
    raise SystemExit(main())
