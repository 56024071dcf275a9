"""A dataset of made people as ``idgen synthesize`` writes it: shards, and ``dataset.json`` that says how."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError  # which NumPy lets through where the head of a file is damaged
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from idgen.data.pictures import Picture, labels_of_row
from idgen.errors import ConfigError, StorageError
from idgen.synth.people_folder import CHUNKS
from idgen.synth.plan import Plan
from idgen.synth.shards import FOLDER, KEPT, Shard, read_shards
from idgen.synth.vectors import VECTORS
from idgen.synth.wording import number_of

if TYPE_CHECKING:
    import pyarrow

ABOUT, PLAN, PEOPLE = "dataset.json", "plan.parquet", "people"  # in the folder of a dataset
MOST_NAMES = 10  # shards that a line lists
COLUMNS = ("identity", "key", "decision", "path", "sha256")  # of every manifest


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The finished shards of a dataset. Pictures stay on the disk until they are looked at.

    Attributes:
        folder: of the dataset.
        about: what dataset.json says: settings, models, licences, numbers.
        shards: in order, at least one.
    """

    folder: Path
    about: Mapping[str, Any]
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, path: str | Path, damaged: list[str] | None = None) -> Self:
        """The dataset in a folder; checksums are compared by `check` only.

        Args:
            path: the folder.
            damaged: as for `read_shards`.

        Raises:
            ConfigError: if there is none, or none of its shards is finished.
            StorageError: if a file of a finished shard is missing or has another size.
        """
        folder = Path(path).expanduser()
        about = _read_about(folder)
        shards = read_shards(folder, damaged)
        if not shards and not damaged:
            raise ConfigError(
                f"{folder} has no finished shard; `idgen synthesize` with the same settings goes on with it"
            )
        return cls(folder=folder, about=about, shards=shards)

    @property
    def num_pictures(self) -> int:
        """Pictures that were kept."""
        return sum(shard.num_kept for shard in self.shards)

    @property
    def num_planned(self) -> int:
        """Pictures that the finished shards were to have."""
        return sum(shard.num_planned for shard in self.shards)

    @property
    def num_people(self) -> int:
        """People of whom at least one picture was kept; nobody is in two shards."""
        return sum(shard.num_people for shard in self.shards)

    @property
    def unfinished(self) -> str:
        """A line on the shards that are not there yet, where dataset.json says how many there will be."""
        whole = self.about.get("num_shards")
        if not isinstance(whole, int) or len(self.shards) >= whole:
            return ""
        return (
            f"{len(self.shards)} of {whole} shards are finished; `idgen synthesize` with the same settings "
            "goes on with the others"
        )

    @property
    def lost(self) -> str:
        """A line on the shards that dataset.json calls finished and that are not there; empty without any."""
        whole = self.about.get("num_shards")
        if not self.about.get("finished") or not isinstance(whole, int):
            return ""
        said = {int(path.stem) for path in (self.folder / FOLDER).glob("*.json") if path.stem.isdecimal()}
        gone = sorted(set(range(whole)) - said)
        if not gone:
            return ""
        named = ", ".join(f"{number:05d}" for number in gone[:MOST_NAMES])
        more = f" and {len(gone) - MOST_NAMES} more" if len(gone) > MOST_NAMES else ""
        return (
            f"{ABOUT} calls {number_of(whole, 'shard')} finished, but {len(gone)} of them "
            f"{'is' if len(gone) == 1 else 'are'} missing ({named}{more}); "
            "the same `idgen synthesize` command makes again what is missing"
        )

    @property
    def encoder_ids(self) -> tuple[str, ...]:
        """Encoders that conditioned or chose the pictures, as far as dataset.json names them."""
        named = self.about.get("encoder_ids", [])
        return tuple(sorted({str(name) for name in named})) if isinstance(named, list) else ()

    def manifest(self) -> "pyarrow.Table":
        """One row a planned picture, of all finished shards in order, with the shard's number.

        Raises:
            StorageError: if a shard's part is damaged, or the parts do not fit each other.
        """
        import pyarrow  # heavy

        parts = []
        for shard in self.shards:
            part = shard.table()
            lacking = [name for name in COLUMNS if name not in part.column_names]
            if lacking or part.num_rows != shard.num_planned:
                raise shard.damaged(f"its manifest lacks {', '.join(lacking) or 'rows'}")
            number = pyarrow.array([shard.number] * part.num_rows, pyarrow.int64())
            parts.append(part.append_column("shard", number))
        try:
            return pyarrow.concat_tables(parts, promote_options="permissive")
        except pyarrow.ArrowException as error:
            raise StorageError(
                f"the shards of {self.folder} do not fit each other ({error}); they are of different runs"
            ) from None

    def kept(self) -> Iterator[Picture]:
        """The pictures, in the order of shards and rows, each with what the manifest says of it.

        Raises:
            StorageError: if a shard is damaged: a picture of the manifest is not in its tar.
        """
        for shard in self.shards:
            stored = shard.pictures()
            for row in shard.table().to_pylist():
                if row["decision"] != KEPT:
                    continue
                if row["path"] not in stored:
                    raise shard.damaged(f"the picture {row['path']} is not in its tar")
                yield Picture(
                    identity=row["identity"],
                    name=row["path"],
                    stored=stored[row["path"]],
                    prompt=str(row.get("prompt") or ""),
                    reference=str(row.get("reference") or ""),
                    labels=labels_of_row(row),
                )

    def check(self, *, advance: Callable[[int], object] = lambda _: None) -> list[str]:
        """Read everything and compare it with its checksums.

        Args:
            advance: told the number of pictures planned in each shard when it is done.

        Returns:
            A line for each thing that is wrong; none where all is well.
        """
        beside = damage_beside_shards(self.folder, self.about)
        way_out = "the same `idgen synthesize` command with --repair makes it again"
        problems = [*([self.lost] if self.lost else []), *(f"{what}; {way_out}" for what in beside)]
        where: dict[str, int] = {}  # identity or key -> its shard
        for shard in self.shards:
            try:
                shard.check()
                rows = shard.table().select(["identity", "key"]).to_pylist()
            except StorageError as error:
                problems.append(str(error))
                continue
            finally:
                advance(shard.num_planned)
            for name in sorted({f"{kind} {row[kind]}" for row in rows for kind in ("identity", "key")}):
                if where.setdefault(name, shard.number) != shard.number:
                    problems.append(f"the {name} is in two shards, {where[name]:05d} and {shard.number:05d}")
        return problems


def damage_beside_shards(folder: Path, about: Mapping[str, Any]) -> list[str]:
    """A line on each of the plan and the vectors of the people that is not what was written.

    Args:
        folder: of the dataset.
        about: what dataset.json says; of what ``idgen synthesize`` did not make, nothing is asked.
    """
    if "idgen_dataset" not in about:
        return []
    found = (_damage_of_plan(folder / PLAN, about.get("plan_sha256")), _damage_of_people(folder / PEOPLE))
    return [what for what in found if what]


def _damage_of_plan(path: Path, sha256: object) -> str:
    import pyarrow

    if not path.is_file():
        return f"{path} is missing"
    try:
        found = Plan.read(path).plan_sha256
    except (ConfigError, pyarrow.ArrowException, OSError, ValueError) as error:
        what = " ".join(str(error).split())  # Arrow's messages have several lines
        return what if isinstance(error, ConfigError) else f"{path} cannot be read: {what}"
    return "" if found == sha256 else f"{path} is not the plan of this dataset: its sha256 differs"


def _damage_of_people(folder: Path) -> str:
    """Each chunk of vectors has its checksum in the file of chunks."""
    path, start = folder / VECTORS, 0
    for file in (path, folder / CHUNKS):
        if not file.is_file():
            return f"{file} is missing"
    try:
        vectors = np.load(path, mmap_mode="r")
        for number, line in enumerate((folder / CHUNKS).read_text(encoding="utf-8").splitlines()):
            said = json.loads(line)
            if said["chunk"] != number:
                return f"{folder / CHUNKS} has chunk {said['chunk']} in the place of {number}"
            data = np.ascontiguousarray(vectors[start : start + said["accepted"]], "<f4")
            if len(data) != said["accepted"] or zlib.crc32(data.tobytes()) != said["crc32"]:
                return f"{path} is not what was written: a checksum in {CHUNKS} differs"
            start += len(data)
    except (OSError, EOFError, ValueError, KeyError, TypeError, TokenError):
        return f"{path} or {CHUNKS} beside it cannot be read"
    return "" if len(vectors) == start else f"{path} has {len(vectors)} people instead of {start}"


def is_dataset(path: Path) -> bool:
    """Whether a folder looks like what ``idgen synthesize`` writes."""
    return (path / ABOUT).is_file() and (path / FOLDER).is_dir()


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    if not folder.is_dir():
        raise ConfigError(f"no such folder: {folder}")
    if not path.is_file():
        raise ConfigError(f"{folder} is no dataset of `idgen synthesize`: it has no {ABOUT}")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read ({error}); `idgen synthesize` with the same settings writes it again"
        ) from None
    if not isinstance(about, dict):
        raise StorageError(f"{path} must hold facts by name, got {type(about).__name__}")
    return about
