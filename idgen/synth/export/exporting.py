"""From a dataset to a folder of one format, with manifest, class numbers, datasheet and checksums."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.data.pictures import MANIFEST, Picture, Slice
from idgen.errors import ConfigError, StorageError
from idgen.provenance import TRAINED_MODEL
from idgen.storage import replacing, write_bytes, write_json
from idgen.synth.dataset import Dataset
from idgen.synth.export.align import Aligner
from idgen.synth.export.base import LABELS, Exporter, Item, Person
from idgen.synth.export.checksums import write_sums
from idgen.synth.export.datasheet import Exported, datasheet
from idgen.synth.export.output import whole_folder
from idgen.synth.shards import KEPT
from idgen.synth.tars import picture_kind

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
ABOUT, DATASHEET, README = "export.json", "DATASHEET.md", "README.md"


def export_dataset(
    dataset: Dataset,
    out: Path,
    to: str,
    exporter: Exporter,
    *,
    aligner: Aligner | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Exported:
    """Write the kept pictures of a dataset in another format; the folder is whole or not there.

    People come by name, and so do their class numbers; each picture is compared with its checksum on the way.

    Args:
        dataset: its finished shards are exported.
        out: the folder to make.
        to: name of the format.
        exporter: of that format.
        aligner: cuts the faces out; without it no byte of a picture changes.
        advance: told 1 after each picture.

    Raises:
        ConfigError: if the format cannot hold a picture or a name, or no picture is left.
        RunFolderError: if ``out`` is not empty.
        StorageError: if a shard is damaged, or the disk is full.
        ImageError: if a picture cannot be read.
    """
    manifest = dataset.manifest()
    people = _People(dataset, manifest, to, exporter.kinds, aligner, advance)
    with whole_folder(out) as folder:
        places = exporter.write(people, folder, people.columns)
        exported = people.exported()
        _write_manifest(folder / MANIFEST, people.table(places), dataset.encoder_ids)
        write_json(folder / LABELS, {name: number for number, name in enumerate(people.names)})
        write_json(folder / ABOUT, _about(dataset, exported))
        name = dataset.folder.resolve().name
        sheet = datasheet(name, dataset.about, manifest, exported, len(dataset.shards))
        write_bytes(folder / DATASHEET, sheet.encode())
        readme = exporter.readme(sheet, exported.num_pictures)
        if readme is not None:
            write_bytes(folder / README, readme.encode())
        write_sums(folder)
    return exported


class _People:
    """The people of a dataset by name, one after the other, and what was seen on the way."""

    def __init__(
        self,
        dataset: Dataset,
        manifest: "pyarrow.Table",
        to: str,
        kinds: frozenset[str],
        aligner: Aligner | None,
        advance: Callable[[int], object],
    ) -> None:
        import pyarrow

        kept = manifest.filter(pyarrow.array([value == KEPT for value in manifest["decision"].to_pylist()]))
        self.kept = kept.sort_by([("identity", "ascending"), ("key", "ascending")])
        twice = [key for key, num in Counter(self.kept["key"].to_pylist()).items() if num > 1]
        if twice:
            raise StorageError(
                f"{dataset.folder} has the key {twice[0]} in two shards; `idgen synthesize check` says which"
            )
        self.dataset, self.to, self.kinds, self.aligner, self.advance = dataset, to, kinds, aligner, advance
        self.shards = {shard.number: shard for shard in dataset.shards}
        self.stored: dict[tuple[int, str], Slice] = {
            (shard.number, name): piece
            for shard in dataset.shards
            for name, piece in shard.pictures().items()
        }
        self.rows: list[int] = []  # of `kept`, that went out
        self.sha256: list[str] = []
        self.labels: list[int] = []
        self.names: list[str] = []
        self.left_out: list[str] = []
        self.people_left_out: list[str] = []
        self.count: Counter[str] = Counter()
        self.num_bytes = self.num_marked = 0
        self.columns = pyarrow.schema(  # less the path, which is that in the tar of the shard
            [column for column in self.kept.schema if column.name != "path"]
            + [pyarrow.field("label", pyarrow.int64())]
            + ([pyarrow.field("source_sha256", pyarrow.string())] if aligner else [])
        )

    def __iter__(self) -> Iterator[Person]:
        identities = enumerate(self.kept["identity"].to_pylist())
        for identity, group in itertools.groupby(identities, key=lambda pair: pair[1]):
            numbers = [number for number, _ in group]
            rows = self.kept.slice(numbers[0], len(numbers)).to_pylist()
            items = [self._item(row, number) for row, number in zip(rows, numbers, strict=True)]
            found = tuple(item for item in items if item is not None)
            if not found:
                self.people_left_out.append(identity)
                continue
            self.names.append(identity)
            yield Person(identity=identity, label=len(self.names) - 1, items=found)
        if not self.names:
            why = "no face was found in any picture" if self.left_out else "no picture was kept"
            raise ConfigError(f"nothing to export from {self.dataset.folder}: {why}")

    def _item(self, row: dict[str, Any], number: int) -> Item | None:
        """The picture of a row of the manifest, aligned where that was asked for."""
        data = self._original(row)
        sent = data if self.aligner is None else self._aligned(row, data)
        self.advance(1)
        if sent is None:
            self.left_out.append(row["key"])
            return None
        kind = picture_kind(sent)
        if kind not in self.kinds:
            raise ConfigError(
                f"{self.to} holds {', '.join(sorted(self.kinds))} and the picture {row['path']} is {kind}; "
                "export to another format, or with --align 112, which makes PNG"
            )
        sha256 = hashlib.sha256(sent).hexdigest()
        self.rows.append(number)
        self.sha256.append(sha256)
        self.labels.append(len(self.names))  # the person is named once the first picture is there
        self.count[kind] += 1
        self.num_bytes += len(sent)
        self.num_marked += TRAINED_MODEL.encode() in sent
        own = {name: value for name, value in row.items() if name in self.columns.names}
        own |= {"sha256": sha256, "label": len(self.names)}
        if self.aligner is not None:
            own["source_sha256"] = row["sha256"]
        return Item(key=row["key"], kind=kind, data=sent, row=own)

    def _original(self, row: dict[str, Any]) -> bytes:
        shard = self.shards[row["shard"]]
        piece = self.stored.get((shard.number, row["path"]))
        if piece is None:
            raise shard.damaged(f"the picture {row['path']} is not in its tar")
        data = piece.read()
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise shard.damaged(f"the picture {row['path']} is not what was written: its sha256 differs")
        return data

    def _aligned(self, row: dict[str, Any], data: bytes) -> bytes | None:
        assert self.aligner is not None
        return self.aligner(Picture(identity=row["identity"], name=row["path"], data=data))

    def table(self, places: list[dict[str, Any]]) -> "pyarrow.Table":
        """The manifest of what went out, with where it lies."""
        import pyarrow

        table = self.kept.take(self.rows)
        added: dict[str, list[Any]] = {"label": self.labels, "sha256": self.sha256}
        if self.aligner is not None:
            added["source_sha256"] = table["sha256"].to_pylist()
        table = table.drop_columns(["path", "sha256"])
        added |= {name: [place[name] for place in places] for name in places[0]}
        for name, values in added.items():
            table = table.append_column(name, pyarrow.array(values))
        return table

    def exported(self) -> Exported:
        """What went out."""
        aligned = ""
        if self.aligner is not None:
            size, eye = self.aligner.size_px, self.aligner.detector.name
            aligned = (
                f"to {size} x {size} pixels in the ArcFace pose, by the largest face of the detector {eye}"
            )
        return Exported(
            to=self.to,
            num_people=len(self.names),
            num_pictures=len(self.rows),
            num_bytes=self.num_bytes,
            kinds=dict(self.count),
            num_marked=self.num_marked,
            aligned=aligned,
            left_out=self.left_out,
            people_left_out=self.people_left_out,
        )


def _about(dataset: Dataset, exported: Exported) -> dict[str, Any]:
    return {
        "idgen_export": FORMAT,
        "to": exported.to,
        "num_people": exported.num_people,
        "num_pictures": exported.num_pictures,
        "num_marked": exported.num_marked,
        "aligned": exported.aligned,
        "left_out": list(exported.left_out),
        "people_left_out": list(exported.people_left_out),
        "encoder_ids": list(dataset.encoder_ids),
        "dataset": dict(dataset.about),
    }


def _write_manifest(path: Path, table: "pyarrow.Table", encoder_ids: tuple[str, ...]) -> None:
    import pyarrow.parquet

    said = {"idgen": json.dumps({"encoder_ids": list(encoder_ids)})}
    with replacing(path) as file:
        pyarrow.parquet.write_table(table.replace_schema_metadata(said), file)
