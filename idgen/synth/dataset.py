"""A dataset of made people as ``idgen synthesize`` writes it: shards, and ``dataset.json`` that says how."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from idgen.data.pictures import Picture, labels_of_row
from idgen.errors import ConfigError, StorageError
from idgen.synth.shards import FOLDER, KEPT, Shard, read_shards

if TYPE_CHECKING:
    import pyarrow

ABOUT = "dataset.json"
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
    def open(cls, path: str | Path) -> Self:
        """The dataset in a folder; checksums are compared by `check` only.

        Raises:
            ConfigError: if there is none, or none of its shards is finished.
            StorageError: if a file of a finished shard is missing or has another size.
        """
        folder = Path(path).expanduser()
        about = _read_about(folder)
        shards = read_shards(folder)
        if not shards:
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
        problems: list[str] = []
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
