"""``idgen synthesize plan``, ``diff``, ``export``, ``import``, ``check``: all but making the pictures."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from idgen.config import Parser
from idgen.errors import ConfigError, ModelNotFoundError, StorageError
from idgen.synth.wording import number_of

if TYPE_CHECKING:
    import numpy as np
    from tqdm import tqdm

    from idgen.data.pictures import PictureSet
    from idgen.synth.export.align import Aligner
    from idgen.synth.export.base import Exporter
    from idgen.synth.export.datasheet import Exported


def plan_main(argv: Sequence[str]) -> int:
    """Write a plan that can be read and edited before anything is made."""
    parser = Parser(
        prog="idgen synthesize plan",
        description="Plan who is on which picture, with which attributes, prompt and seed: a Parquet file "
        "of one row a picture. Edit it as you like; `idgen synthesize --plan FILE` makes what it says.",
    )
    parser.add_argument("--people", type=int, metavar="N", help="how many new people")
    parser.add_argument("--pictures", type=int, metavar="K", help="of each")
    parser.add_argument(
        "--like", type=Path, metavar="DATA", help="as many people, and of each as many pictures, as a set has"
    )
    parser.add_argument(
        "--least",
        type=int,
        metavar="K",
        help="of --like, leave out people with fewer pictures (1)",
    )
    parser.add_argument(
        "--grammar", type=Path, metavar="FILE", help="YAML of attributes, prompts (portraits)"
    )
    parser.add_argument(
        "--distribution",
        type=Path,
        metavar="FILE",
        help="YAML of weights, or a Parquet table to measure (as --grammar says)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of attributes and pictures (0)")
    parser.add_argument("--name", default="new", metavar="TEXT", help="begins the names of the people (new)")
    parser.add_argument(
        "--out", type=Path, default=Path("plan.parquet"), metavar="FILE", help="(plan.parquet)"
    )
    options = parser.parse_args(argv)
    _check_plan(options)
    _need_pyarrow()

    from idgen.synth.curate import check_grammar
    from idgen.synth.distribution import distribution_of
    from idgen.synth.grammar import read_grammar
    from idgen.synth.planning import make_plan

    grammar = read_grammar(options.grammar)
    check_grammar(grammar)
    sizes = None if options.like is None else _sizes_of(options.like, options.least or 1)
    plan = make_plan(
        grammar,
        len(sizes) if sizes is not None else options.people,
        options.pictures,
        options.seed,
        pictures=sizes,
        distribution=distribution_of(options.distribution or {}, grammar),
        name=options.name,
    )
    plan.write(options.out)
    print(f"{options.out}: {number_of(len(plan), 'picture')} of {number_of(plan.num_people, 'person')}")
    for row in plan.summary():
        print(f"  {row['axis']} {row['value']}: {row['planned']} {row['unit']}")
    return 0


def _check_plan(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is read."""
    given = [name for name in ("people", "pictures") if getattr(options, name) is not None]
    if options.like is None and len(given) < 2:
        raise ConfigError("a plan takes --people and --pictures, or --like: one of the two")
    if options.like is not None and given:
        raise ConfigError(
            f"--like says how many people and pictures there are; it goes without --{given[0]}, got "
            f"{getattr(options, given[0])}"
        )
    if options.least is not None and options.like is None:
        raise ConfigError(f"--least {options.least} goes with --like: it leaves out people of that set")
    if options.least is not None and options.least < 1:
        raise ConfigError(f"--least must be from 1 up, got {options.least}")
    if options.out.suffix != ".parquet":
        raise ConfigError(f"a plan is a Parquet file: --out must end in .parquet, got {options.out}")
    if options.out.exists():
        raise ConfigError(f"{options.out} exists; choose another --out")


def _sizes_of(path: Path, least: int) -> "np.ndarray":
    from idgen.synth.export.reading import open_labelled
    from idgen.synth.planning import histogram_of

    sizes = histogram_of(picture.identity for picture in open_labelled(path).pictures)
    if not (sizes >= least).any():
        raise ConfigError(f"nobody in {path} has {least} pictures; the most of one person is {sizes.max()}")
    return sizes[sizes >= least]


def diff_main(argv: Sequence[str]) -> int:
    """Say what changed from one plan to another; exit code 1 if anything did."""
    parser = Parser(
        prog="idgen synthesize diff",
        description="Compare two plans, picture by picture. If an editor dropped the metadata of AFTER, "
        "those of BEFORE are taken. Exit code 0: they say the same; 1: they differ.",
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help="plan.parquet")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the other one")
    parser.add_argument("--rows", type=int, default=20, metavar="N", help="pictures that are listed (20)")
    options = parser.parse_args(argv)
    if options.rows < 0:
        raise ConfigError(f"--rows must be from 0 up, got {options.rows}")
    _need_pyarrow()

    from itertools import islice

    from idgen.synth.plan import Plan
    from idgen.synth.plan_diff import diff_plans
    from idgen.synth.plan_file import has_metadata

    like = None if has_metadata(options.after) else options.before
    found = diff_plans(Plan.read(options.before), Plan.read(options.after, like=like))
    if like is not None:
        print(f"{options.after} has no metadata of a plan; that of {options.before} is taken")
    if found.is_empty:
        print("the plans say the same")
        return 0
    num_changed = found.changed.shape[1]
    print(f"{num_changed} pictures changed, {len(found.added)} added, {len(found.removed)} removed")
    for name in found.head:
        print(f"  the metadata differ: {name}")
    for name, number in found.columns.items():
        print(f"  {name}: {number} pictures")
    for change in islice(found.rows(), options.rows):
        cells = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in change.columns.items())
        print(f"{change.kind} {change.identity} {change.picture}: {cells}")
    return 1


def export_main(argv: Sequence[str]) -> int:
    """Write a dataset in another format."""
    parser = Parser(
        prog="idgen synthesize export",
        description="Write the kept pictures of a dataset in another format, with manifest, class numbers, "
        "datasheet and checksums.",
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder that `idgen synthesize` made")
    parser.add_argument(
        "--to", required=True, metavar="FORMAT", help="folder, webdataset, parquet, recordio or lmdb"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--align",
        type=int,
        metavar="PX",
        help="cut the faces out for recognisers, which want 112 (left as made)",
    )
    parser.add_argument(
        "--detector", default="mini", metavar="SPEC", help="that finds faces for --align (mini)"
    )
    parser.add_argument(
        "--shard-mb",
        type=int,
        metavar="N",
        help="size of a file of webdataset and parquet, in megabytes (500)",
    )
    options = parser.parse_args(argv)
    _need_pyarrow()

    from idgen.synth.dataset import Dataset
    from idgen.synth.export.exporting import export_dataset

    exporter = _exporter(options.to, options.shard_mb)
    aligner = None if options.align is None else _aligner(options.detector, options.align)
    dataset = Dataset.open(options.dataset)
    with _bar(dataset.num_pictures, "exporting") as bar:
        exported = export_dataset(
            dataset, options.out, options.to, exporter, aligner=aligner, advance=bar.update
        )
    for line in [*_told(exported, options.out), dataset.unfinished]:
        if line:
            print(line)
    return 0


def _told(exported: "Exported", out: Path) -> list[str]:
    pictures, people = number_of(exported.num_pictures, "picture"), number_of(exported.num_people, "person")
    lines = [f"{out}: {pictures} of {people} as {exported.to}"]
    if exported.left_out:
        lines.append(f"left out, no usable face found: {len(exported.left_out)} pictures")
    if exported.people_left_out:
        lines.append(f"left out, no picture left: {len(exported.people_left_out)} people")
    return lines


def _exporter(to: str, shard_mb: int | None) -> "Exporter":
    from idgen.synth.export.base import SHARDED, exporters

    if shard_mb is None:
        return exporters.build(to)
    if to in exporters and to not in SHARDED:
        raise ConfigError(f"--shard-mb is for {' and '.join(SHARDED)}; {to} has no shards")
    return exporters.build(to, shard_mb=shard_mb)


def _aligner(detector: str, size_px: int) -> "Aligner":
    from idgen.faces.detect import load_detector
    from idgen.synth.export.align import Aligner

    return Aligner(load_detector(detector), size_px)


def import_main(argv: Sequence[str]) -> int:
    """Read a set of any known format."""
    parser = Parser(
        prog="idgen synthesize import",
        description="Read labelled pictures of any known format: a dataset of idgen, a folder of people, "
        "tars of WebDataset, Parquet, RecordIO (.rec) or LMDB.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a file or a folder")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR|FILE.parquet",
        help="a folder to make, with one folder a person; or a manifest alone",
    )
    options = parser.parse_args(argv)
    _need_pyarrow()

    from idgen.synth.export.importing import import_folder, import_manifest
    from idgen.synth.export.reading import open_labelled

    if options.out.suffix == ".parquet" and options.out.exists():
        raise ConfigError(f"{options.out} exists; choose another --out")
    pictures = open_labelled(options.source, with_labels=True)
    write = import_manifest if options.out.suffix == ".parquet" else import_folder
    with _bar(len(pictures), "importing") as bar:
        write(pictures, options.out, advance=bar.update)
    print(f"{options.out}: {_size(pictures)}")
    if write is import_manifest and any(picture.path is None for picture in pictures.pictures):
        print(
            f"{options.out} lists pictures that lie inside {options.source}, and cannot be opened instead of "
            "it; `--out DIR` makes a folder that can"
        )
    return 0


def _size(pictures: "PictureSet") -> str:
    return f"{number_of(len(pictures), 'picture')} of {number_of(len(pictures.people()), 'person')}"


def check_main(argv: Sequence[str]) -> int:
    """Compare everything with its checksums."""
    parser = Parser(
        prog="idgen synthesize check",
        description="Read a dataset, or what it was exported to, and compare everything with its checksums.",
    )
    parser.add_argument(
        "dataset", type=Path, metavar="DATASET", help="folder of `idgen synthesize`, or with SHA256SUMS"
    )
    options = parser.parse_args(argv)
    _need_pyarrow()

    from idgen.synth.dataset import Dataset, is_dataset
    from idgen.synth.export.checksums import SUMS, check_sums, read_sums

    folder: Path = options.dataset
    if (folder / SUMS).is_file() and not is_dataset(folder):
        sums = read_sums(folder)
        with _bar(len(sums), "checking", unit="file") as bar:
            problems = check_sums(folder, sums, advance=bar.update)
        what = number_of(len(sums), "file")
    else:
        damaged: list[str] = []
        dataset = Dataset.open(folder, damaged)
        with _bar(dataset.num_planned, "checking") as bar:
            problems = [*damaged, *dataset.check(advance=bar.update)]
        what = (
            f"{number_of(len(dataset.shards), 'shard')}, {number_of(dataset.num_pictures, 'picture')} of "
            f"{number_of(dataset.num_people, 'person')} ({dataset.num_planned:,} planned)"
        )
        if dataset.unfinished:
            what += f"; {dataset.unfinished}"
    for problem in problems:
        print(problem)
    if problems:
        raise StorageError(f"{folder} is damaged: {number_of(len(problems), 'problem')}, listed above")
    print(f"{folder}: all well; {what}")
    return 0


def _bar(total: int, what: str, unit: str = "picture") -> "tqdm":
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit, disable=None, leave=False)


def _need_pyarrow() -> None:
    """Tables are read by every one of these commands.

    Raises:
        ModelNotFoundError: if pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ModelNotFoundError('pyarrow is not installed: `pip install "idgen[formats]"`') from None


COMMANDS = {
    "plan": plan_main,
    "diff": diff_main,
    "export": export_main,
    "import": import_main,
    "check": check_main,
}


def main(argv: Sequence[str]) -> int:
    """Run one of `COMMANDS`, named by the first word."""
    return COMMANDS[argv[0]](argv[1:])
