"""Exported sets, read back by the libraries that own the formats."""

import io
import json
import os
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
import pyarrow.parquet
import pytest
import webdataset
import yaml
from made_dataset import EACH, PEOPLE, kept_pictures, make_dataset, picture
from PIL import Image

from idgen.cli import main as idgen
from idgen.commands.datasets import export_main
from idgen.data.pictures import read_pictures
from idgen.synth.shards import write_shard


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "made")


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hugging Face datasets, without network and with its cache here."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def export(made: Path, to: str, *words: str) -> Path:
    out = made.parent / to
    assert export_main([str(made), "--to", to, "--out", str(out), *words]) == 0
    return out


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def large_dataset(folder: Path) -> dict[str, bytes]:
    """Nine people of two pictures of 330 kB each: three people fit into 2 MB, and no more."""
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    pictures = {f"{i // 2:02d}_{i % 2}": picture(i, size_px=330) for i in range(18)}
    base = {"decision": "kept"}
    write_shard(
        folder, 0, [(base | {"identity": key[:2], "key": key}, data) for key, data in pictures.items()]
    )
    assert all(300_000 < len(data) < 2**21 / 6 for data in pictures.values())
    return pictures


# ---- webdataset


def test_webdataset_reads_the_tars(made: Path) -> None:
    out = export(made, "webdataset")
    expected = kept_pictures()
    samples = list(webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(expected)
    for sample in samples:
        assert sample["png"] == expected[sample["__key__"]]
    decoded = list(webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False).decode("rgb8"))
    for sample in decoded:
        np.testing.assert_array_equal(sample["png"], pixels(expected[sample["__key__"]]))
        assert sample["cls"] == int(sample["__key__"][:5])
        assert sample["json"]["identity"] == sample["__key__"][:5]
        assert sample["json"]["seed"] == 1000 * int(sample["__key__"][:5]) + int(sample["__key__"][6:])
        assert "path" not in sample["json"]


def test_webdataset_reads_the_shards_of_the_dataset_itself(made: Path) -> None:
    names = [str(made / "shards" / f"0000{number}.tar") for number in range(2)]
    samples = list(webdataset.WebDataset(names, shardshuffle=False))
    assert {sample["__key__"]: sample["png"] for sample in samples} == kept_pictures()


def test_nobody_is_in_two_tars_and_none_is_larger_than_asked_for(tmp_path: Path) -> None:
    pictures = large_dataset(tmp_path / "made")
    out = export(tmp_path / "made", "webdataset", "--shard-mb", "2")
    tars = sorted(out.glob("*.tar"))
    assert [tar.name for tar in tars] == [f"train-00000{number}.tar" for number in range(3)]
    assert all(tar.stat().st_size <= 2 << 20 for tar in tars)
    keys = [[s["__key__"] for s in webdataset.WebDataset(str(tar), shardshuffle=False)] for tar in tars]
    assert [key for part in keys for key in part] == list(pictures)
    people = [{key[:2] for key in part} for part in keys]
    assert sum(map(len, people)) == len(set.union(*people)) == 9
    where = pyarrow.parquet.read_table(out / "manifest.parquet", columns=["key", "tar"]).to_pylist()
    assert [[row["key"] for row in where if row["tar"] == tar.name] for tar in tars] == keys


def test_somebody_larger_than_a_tar_has_one_alone(tmp_path: Path) -> None:
    large_dataset(tmp_path / "made")
    out = export(tmp_path / "made", "webdataset", "--shard-mb", "1")
    assert len(list(out.glob("*.tar"))) == 9


def test_hugging_face_reads_the_tars_too(made: Path, hugging_face: Any) -> None:
    out = export(made, "webdataset")
    found = hugging_face.load_dataset("webdataset", data_dir=str(out), split="train")
    assert [row["__key__"] for row in found] == list(kept_pictures())
    assert [row["cls"] for row in found] == [int(key[:5]) for key in kept_pictures()]


# ---- Parquet


def test_hugging_face_reads_the_parquet_files_and_the_folder(made: Path, hugging_face: Any) -> None:
    out = export(made, "parquet")
    expected = kept_pictures()
    ways = {
        "files": hugging_face.load_dataset(
            "parquet", data_files=str(out / "data" / "*.parquet"), split="train"
        ),
        "folder": hugging_face.load_dataset(str(out), split="train"),
    }
    for found in ways.values():
        assert found["key"] == list(expected)
        assert found["identity"] == [key[:5] for key in expected]
        assert isinstance(found.features["image"], hugging_face.Image)
        assert found.features["label"] == hugging_face.ClassLabel(names=[f"{i:05d}" for i in range(PEOPLE)])
        assert [found.features["label"].int2str(label) for label in found["label"]] == found["identity"]
        for row in found:
            np.testing.assert_array_equal(
                np.asarray(row["image"].convert("RGB")), pixels(expected[row["key"]])
            )
        raw = found.cast_column("image", hugging_face.Image(decode=False))
        assert [row["bytes"] for row in raw["image"]] == list(expected.values())
        assert found["similarity"] == [0.5 + int(key[6:]) / 10 for key in expected]


def test_the_readme_is_a_card_that_the_hub_reads(made: Path) -> None:
    from huggingface_hub import DatasetCard

    out = export(made, "parquet")
    card = DatasetCard.load(out / "README.md")
    assert card.data.to_dict()["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.parquet"}
    ]
    assert card.data.to_dict()["size_categories"] == ["n<1K"]
    assert card.text.strip() == (out / "DATASHEET.md").read_text().strip()
    head = (out / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(head)["license"] == "other"


def test_several_parquet_files_with_all_classes_and_small_row_groups(
    tmp_path: Path, hugging_face: Any
) -> None:
    pictures = large_dataset(tmp_path / "made")
    out = export(tmp_path / "made", "parquet", "--shard-mb", "2")
    names = [f"train-0000{number}-of-00003.parquet" for number in range(3)]
    assert sorted(path.name for path in (out / "data").iterdir()) == names
    found = hugging_face.load_dataset(str(out), split="train")
    assert found["key"] == list(pictures)
    assert found.features["label"].names == [f"{i:02d}" for i in range(9)]
    rows = pyarrow.parquet.read_table(out / "manifest.parquet", columns=["key", "file"]).to_pylist()
    for name in names:
        table = pyarrow.parquet.read_table(out / "data" / name)
        assert [row["key"] for row in rows if row["file"] == f"data/{name}"] == table["key"].to_pylist()


def test_a_row_group_has_a_hundred_pictures_at_most(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "dataset.json").write_text("{}")
    data = picture(0, size_px=8)
    rows = [({"identity": f"{i // 50}", "key": f"{i:03d}", "decision": "kept"}, data) for i in range(250)]
    write_shard(made, 0, rows)
    (file,) = (export(made, "parquet") / "data").iterdir()
    metadata = pyarrow.parquet.ParquetFile(file).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100, 100, 50]


# ---- folder


def test_hugging_face_reads_the_folder_of_people(made: Path, hugging_face: Any) -> None:
    out = export(made, "folder")
    found = hugging_face.load_dataset("imagefolder", data_dir=str(out), split="train")
    assert found.features["label"].names == [f"{i:05d}" for i in range(PEOPLE)]
    expected = kept_pictures()
    for row, (key, data) in zip(found, expected.items(), strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"].convert("RGB")), pixels(data))
        assert row["label"] == int(key[:5])


def test_idgen_measures_the_folder_of_people(made: Path) -> None:
    out = export(made, "folder")
    found = read_pictures(out)
    assert [p.name for p in found.pictures] == [f"{k[:5]}/{k}.png" for k in kept_pictures()]
    assert found.encoder_ids == ("mini@0123456789ab",)
    assert found.pictures[0].labels["label"] == 0.0
    assert len(found.people()) == PEOPLE
    assert found.pictures[EACH].read_bytes() == kept_pictures()["00001_000"]
    assert idgen(["inspect", str(out / "00000" / "00000_000.png")]) == 0  # still says how it was made


# ---- LMDB


class LMDB:
    """As the training code of HSFace reads it (SOTA-Face-Recognition-Train-and-Test, class LMDB)."""

    def __init__(self, db_path: str) -> None:
        self.env = lmdb.open(
            db_path, subdir=os.path.isdir(db_path), readonly=True, lock=False, readahead=False, meminit=False  # noqa: PTH112
        )  # fmt: skip
        with self.env.begin(write=False) as txn:
            self.length = msgpack.loads(txn.get(b"__len__"))
            self.keys = msgpack.loads(txn.get(b"__keys__"))
            self.classnum = msgpack.loads(txn.get(b"__classnum__"))

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        with self.env.begin(write=False) as txn:
            unpacked = msgpack.loads(txn.get(self.keys[index]))
        return unpacked[0], unpacked[1]


def test_the_training_code_of_hsface_reads_the_lmdb(made: Path) -> None:
    out = export(made, "lmdb")
    found = LMDB(str(out / "train.lmdb"))
    expected = kept_pictures()
    assert (found.length, found.classnum) == (len(expected), PEOPLE)
    assert found.keys == [str(i).encode() for i in range(len(expected))]
    assert [found[i] for i in range(found.length)] == [(data, int(key[:5])) for key, data in expected.items()]
    rows = pyarrow.parquet.read_table(out / "manifest.parquet", columns=["key", "entry"]).to_pylist()
    assert [(row["key"], row["entry"]) for row in rows] == [(key, str(i)) for i, key in enumerate(expected)]


def test_an_lmdb_larger_than_its_first_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = large_dataset(tmp_path / "made")
    monkeypatch.setattr("idgen.synth.export.lmdb.FIRST_MAP_BYTES", 1 << 18)
    found = LMDB(str(export(tmp_path / "made", "lmdb") / "train.lmdb"))
    assert [found[i][0] for i in range(found.length)] == list(pictures.values())


# ---- all of them


@pytest.mark.parametrize("to", ["folder", "webdataset", "parquet", "recordio", "lmdb"])
def test_equal_datasets_give_equal_files(made: Path, to: str, tmp_path: Path) -> None:
    first = export(made, to)
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / to
    export_main([str(made), "--to", to, "--out", str(again)])
    sums = (first / "SHA256SUMS").read_text()
    assert (again / "SHA256SUMS").read_text() == sums
    assert json.loads((first / "labels.json").read_text()) == {f"{i:05d}": i for i in range(PEOPLE)}
