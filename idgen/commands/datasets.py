"""``idgen synthesize export``, ``import``, ``check``: datasets in other formats, and their checksums."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from idgen.config import Parser
from idgen.errors import ConfigError, ModelNotFoundError, StorageError

if TYPE_CHECKING:
    from tqdm import tqdm

    from idgen.data.pictures import PictureSet
    from idgen.synth.export.align import Aligner
    from idgen.synth.export.base import Exporter
    from idgen.synth.export.datasheet import Exported


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
    lines = [f"{out}: {exported.num_pictures} pictures of {exported.num_people} people as {exported.to}"]
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
    return 0


def _size(pictures: "PictureSet") -> str:
    return f"{len(pictures)} pictures of {len(pictures.people())} people"


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
        what = f"{len(sums)} files"
    else:
        dataset = Dataset.open(folder)
        with _bar(dataset.num_planned, "checking") as bar:
            problems = dataset.check(advance=bar.update)
        what = (
            f"{len(dataset.shards)} shards, {dataset.num_pictures} pictures of {dataset.num_people} people "
            f"({dataset.num_planned} planned)"
        )
        if dataset.unfinished:
            what += f"; {dataset.unfinished}"
    for problem in problems:
        print(problem)
    if problems:
        raise StorageError(f"{folder} is damaged: {len(problems)} problems, listed above")
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
