"""Labelled sets of any format: recognised, opened lazily, and read without trust."""

import io
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import webdataset
from made_dataset import kept_pictures, make_dataset, plain_png
from torch.utils.data import DataLoader, Dataset

from idgen.commands.datasets import export_main
from idgen.data.pictures import Picture
from idgen.errors import ConfigError, IdgenError, ImageError
from idgen.synth.export.plain_pickle import read_plain_pickle
from idgen.synth.export.reading import open_labelled


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def write_lmdb(path: Path, values: dict[bytes, bytes], *, subdir: bool = False) -> Path:
    with (
        lmdb.open(str(path), subdir=subdir, lock=False, map_size=1 << 20) as env,
        env.begin(write=True) as txn,
    ):
        for key, value in values.items():
            txn.put(key, value)
    return path


def people_of(path: Path) -> list[tuple[str, bytes]]:
    return [(picture.identity, picture.read_bytes()) for picture in open_labelled(path).pictures]


THREE = [("a", plain_png(0)), ("a", plain_png(1)), ("b", plain_png(2))]
NUMBERED = [({"a": "0", "b": "1"}[who], data) for who, data in THREE]


# ---- what is recognised


def test_a_dataset_of_idgen(tmp_path: Path) -> None:
    found = open_labelled(make_dataset(tmp_path / "made"))
    assert [p.read_bytes() for p in found.pictures] == list(kept_pictures().values())
    assert found.encoder_ids == ("mini@0123456789ab",)
    assert (
        found.pictures[0].labels == {}
    )  # only where they are asked for: they take more memory than the rest
    assert open_labelled(tmp_path / "made", with_labels=True).pictures[0].labels["expression"] == "neutral"


def test_a_folder_of_people(tmp_path: Path) -> None:
    for number, (who, data) in enumerate(THREE):
        (tmp_path / who).mkdir(exist_ok=True)
        (tmp_path / who / f"{number}.png").write_bytes(data)
    assert people_of(tmp_path) == THREE


def test_a_table_of_paths(tmp_path: Path) -> None:
    for number, (_, data) in enumerate(THREE):
        (tmp_path / f"{number}.png").write_bytes(data)
    columns = {"path": [f"{i}.png" for i in range(3)], "identity": [who for who, _ in THREE]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
    assert people_of(tmp_path / "m.parquet") == THREE


def test_what_nobody_can_recognise(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file or folder"):
        open_labelled(tmp_path / "nowhere")
    (tmp_path / "faces.zip").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"faces.zip is no set of pictures that idgen knows: .tar, .rec, .lmdb"
    ):
        open_labelled(tmp_path / "faces.zip")
    with pytest.raises(ImageError, match="holds no picture"):
        open_labelled(tmp_path)
    (tmp_path / "faces.zip").unlink()
    write_tar(tmp_path / "x.tar", {"a/0.png": plain_png(0)})
    (tmp_path / "x.rec").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"holds several formats: x.rec \(recordio\), x.tar \(webdataset\); name"
    ):
        open_labelled(tmp_path)
    (tmp_path / "x.tar").unlink()
    (tmp_path / "y.rec").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"holds 2 sets: x.rec, y.rec; name the one that is meant"):
        open_labelled(tmp_path)
    with pytest.raises(ImageError, match=r"x.rec holds no picture"):
        open_labelled(tmp_path / "x.rec")
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(ImageError, match=r"bad.parquet is not a Parquet file that can be read"):
        open_labelled(tmp_path / "bad.parquet")


# ---- tars


def test_tars_that_webdataset_wrote(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "x-%06d.tar"), maxcount=2, verbose=0) as writer:
        for number, (who, data) in enumerate(THREE):
            writer.write({"__key__": f"{number:04d}", "png": data, "cls": {"a": 0, "b": 1}[who]})
    assert len(list(tmp_path.glob("*.tar"))) == 2
    assert people_of(tmp_path) == NUMBERED
    (tmp_path / "labels.json").write_text('{"anna": 0, "bert": 1}')
    assert [who for who, _ in people_of(tmp_path)] == ["anna", "anna", "bert"]
    (tmp_path / "labels.json").write_text('{"anna": 0}')
    with pytest.raises(ConfigError, match=r"has the class number 1, which has no name in labels.json"):
        open_labelled(tmp_path)
    for text in ("[]", '{"a": "x"}', '{"a": 1, "b": 1}'):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(
            ConfigError, match=r"must be a JSON of identities|two identities one class number"
        ):
            open_labelled(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {f"{who}/{i}.png": data for i, (who, data) in enumerate(THREE)},
        {f"x{i}.{end}": content for i, (who, data) in enumerate(THREE)
         for end, content in (("PNG", data), ("json", json.dumps({"identity": who, "label": 7}).encode()))},
        {f"./set/{who}/{i}.png": data for i, (who, data) in enumerate(THREE)}
        | {"./set/._junk.png": b"AppleDouble", "./set/README": b"text", "./set/list.txt": b"text"},
    ],
)  # fmt: skip
def test_tars_say_who_it_is_in_several_ways(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert people_of(write_tar(tmp_path / "x.tar", files)) == THREE


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (
            {"0.png": b"x"},
            ConfigError,
            "the sample 0 does not say whom it shows; it needs a .json with identity",
        ),
        (
            {"0.png": b"x", "0.jpg": b"x", "0.cls": b"1"},
            ConfigError,
            "the sample 0 has 2 pictures (png, jpg)",
        ),
        ({"0.png": b"x", "0.cls": b"anna"}, ConfigError, "the sample 0 has the class number 'anna'"),
        ({"0.png": b"x", "0.cls": b"-1"}, ConfigError, "the sample 0 has the class number '-1'"),
        ({"0.png": b"x", "0.json": b"{"}, ConfigError, "the JSON of the sample 0 cannot be read"),
        ({"0.png": b"x", "0.json": b"[" * 100_000}, ConfigError, "the JSON of the sample 0 cannot be read"),
        ({"0.png": b"x", "0.json": bytes(2 << 20)}, ImageError, "a text of the sample 0 has 2097152 bytes"),
        ({"../0.png": b"x"}, ImageError, "holds a file called '../0.png'"),
        ({"notes.txt": b"x"}, ImageError, "holds no picture"),
    ],
)
def test_tars_that_are_refused(
    tmp_path: Path, files: dict[str, bytes], error: type[IdgenError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        open_labelled(write_tar(tmp_path / "x.tar", files))


# ---- Parquet


def test_parquet_that_hugging_face_wrote(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    rows = {"image": [{"bytes": data, "path": None} for _, data in THREE], "label": [1, 1, 0]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(str(tmp_path / "train.parquet"))
    assert people_of(tmp_path / "train.parquet") == THREE
    assert people_of(tmp_path) == THREE
    found = open_labelled(tmp_path).pictures[0]
    assert found.data is None
    assert pickle.loads(pickle.dumps(found)).read_bytes() == found.read_bytes()


def test_parquet_in_other_shapes(tmp_path: Path) -> None:
    numbers = {"bytes": [data for _, data in THREE], "label": [0, 0, 1], "age": [1.0, 2.0, 3.0]}
    pyarrow.parquet.write_table(pa.table(numbers), tmp_path / "x.parquet", row_group_size=1)
    assert people_of(tmp_path / "x.parquet") == NUMBERED
    assert [p.labels["age"] for p in open_labelled(tmp_path, with_labels=True).pictures] == [1, 2, 3]
    (tmp_path / "labels.json").write_text('{"b": 1, "a": 0}')
    assert people_of(tmp_path / "x.parquet") == THREE
    names = {"bytes": [data for _, data in THREE], "label": ["a", "a", "b"]}
    pyarrow.parquet.write_table(pa.table(names), tmp_path / "x.parquet")
    assert people_of(tmp_path / "x.parquet") == THREE


def test_parquet_that_lacks_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pa.table({"image": [plain_png(1)], "age": [3]}), file)
    with pytest.raises(
        ConfigError, match=r"needs the columns image .*, and identity or label; it has image, age"
    ):
        open_labelled(file)
    pyarrow.parquet.write_table(pa.table({"image": [plain_png(1)] * 2, "identity": ["a", None]}), file)
    with pytest.raises(ConfigError, match="has rows without identity; each picture must say whom it shows"):
        open_labelled(file)
    pyarrow.parquet.write_table(pa.table({"image": [None, plain_png(1)], "identity": ["a", "b"]}), file)
    pictures = open_labelled(file).pictures
    with pytest.raises(ImageError, match="has no bytes of a picture in row 0 of row group 0"):
        pictures[0].read_bytes()
    assert pictures[1].read_bytes() == plain_png(1)
    pyarrow.parquet.write_table(pa.table({"image": [plain_png(2)], "identity": ["a"]}), file)
    assert pictures[0].read_bytes() == plain_png(2)  # and not what is remembered of the file that was there
    with pytest.raises(ImageError, match="has no bytes of a picture in row 1 of row group 0"):
        pictures[1].read_bytes()
    monkeypatch.setattr("idgen.synth.export.parquet.MAX_GROUP_BYTES", 10)
    pyarrow.parquet.write_table(pa.table({"image": [plain_png(3)], "identity": ["a"]}), file)
    with pytest.raises(
        ImageError, match=r"has a row group of \d+ bytes, which must be read at once; at most 10"
    ):
        pictures[0].read_bytes()
    file.write_bytes(b"no table")
    with pytest.raises(ImageError, match=r"x.parquet cannot be read"):
        pictures[0].read_bytes()
    file.unlink()
    with pytest.raises(ImageError, match=r"cannot read .*x.parquet: No such file"):
        pictures[0].read_bytes()


# ---- LMDB


def packed(pack: Callable[[Any], bytes]) -> dict[bytes, bytes]:
    """The layout of the family, with whatever packs the values."""
    keys = [str(i).encode() for i in range(3)]
    values = {key: pack([data, ord(who) - ord("a")]) for key, (who, data) in zip(keys, THREE, strict=True)}
    return {**values, b"__keys__": pack(keys), b"__len__": pack(3)}


@pytest.mark.parametrize("pack", [msgpack.packb, pickle.dumps, lambda v: pickle.dumps(v, 3)])
@pytest.mark.parametrize("subdir", [True, False])
def test_an_lmdb_of_the_family(tmp_path: Path, pack: Callable[[Any], bytes], subdir: bool) -> None:
    path = write_lmdb(tmp_path / "x.lmdb", packed(pack), subdir=subdir)
    assert people_of(path) == NUMBERED
    assert people_of(tmp_path) == NUMBERED


def test_an_lmdb_with_features_beside_the_pictures(tmp_path: Path) -> None:
    """As Vec2Face trains on: picture, feature, label."""
    values = {b"k": msgpack.packb([plain_png(1), b"feature", 4]), b"__keys__": msgpack.packb(["k"])}
    assert people_of(write_lmdb(tmp_path / "x.lmdb", values)) == [("4", plain_png(1))]


class Runs:
    """A pickle that runs a command where it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/idgen-pickle-was-run",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            packed(pickle.dumps) | {b"__keys__": pickle.dumps(Runs())},
            "is a pickle with more than plain data in it",
        ),
        (packed(msgpack.packb) | {b"1": pickle.dumps([Runs(), 1])}, "more than plain data in it"),
        (packed(msgpack.packb) | {b"1": msgpack.packb(7)}, "key 1: a list of a picture and a class number"),
        (
            packed(msgpack.packb) | {b"1": msgpack.packb([b"x", 1.5])},
            "key 1: a list of a picture and a class",
        ),
        (packed(msgpack.packb) | {b"1": b"\xc1"}, "key 1 is neither msgpack nor a pickle of plain data"),
        (packed(msgpack.packb) | {b"1": b"\xdd\xff\xff\xff\xff"}, "key 1 is neither msgpack nor a pickle"),
        (packed(msgpack.packb) | {b"__keys__": msgpack.packb([b"9"])}, "key 9 is not there"),
        (packed(msgpack.packb) | {b"__keys__": msgpack.packb("x")}, "__keys__ must be a list of keys"),
        ({b"image-0": b"x"}, "key __keys__ is not there"),
    ],
)
def test_lmdbs_that_are_refused(tmp_path: Path, values: dict[bytes, bytes], message: str) -> None:
    with pytest.raises(ImageError, match=re.escape(message)):
        open_labelled(write_lmdb(tmp_path / "x.lmdb", values))
    assert not Path("/tmp/idgen-pickle-was-run").exists()


def test_an_lmdb_that_is_damaged(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "x.lmdb", packed(msgpack.packb))
    whole = path.read_bytes()
    path.write_bytes(whole[:-4096])
    with pytest.raises(ImageError, match=r"x.lmdb is cut short: it should have \d+ pages"):
        open_labelled(path)
    path.write_bytes(b"no database")
    with pytest.raises(ImageError, match=r"x.lmdb is not an LMDB that can be read"):
        open_labelled(path)


def test_pickles_of_plain_data_only() -> None:
    for value in (
        [b"x" * 300, 5],
        {"a": (1, 2.5, None, True)},
        [str(i) for i in range(300)],
        2**70,
        b"x" * 70_000,
    ):
        for protocol in range(2, 6):
            if protocol > 2 or b"x" not in pickle.dumps(value, 4):  # protocol 2 calls a function for bytes
                assert read_plain_pickle(pickle.dumps(value, protocol), source="s") == value
    for value in (Runs(), np.zeros(2), Path("x"), Exception, {1, 2}):
        with pytest.raises(ImageError, match=r"s is a pickle with more than plain data in it \([A-Z_0-9]+\)"):
            read_plain_pickle(pickle.dumps(value), source="s")
    for data in (b"", b"\x80\x04", b"\x80\x04]", b"\x80\x04\x8c\xff", b"\x80\x04a.", b"\x80\x04h\x09."):
        with pytest.raises(ImageError, match="s is a damaged pickle"):
            read_plain_pickle(data, source="s")
    with pytest.raises(ImageError, match="s is a damaged pickle"):  # asks for a memo of 16 GB
        read_plain_pickle(b"\x80\x02K\x01r\xff\xff\xff\x7f.", source="s")


# ---- larger than memory, in other processes


class Bytes(Dataset[int]):
    def __init__(self, pictures: tuple[Picture, ...]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> int:
        return sum(self.pictures[index].read_bytes())


@pytest.mark.parametrize("to", ["dataset", "folder", "webdataset", "parquet", "recordio", "lmdb"])
def test_workers_of_a_data_loader_read_too(tmp_path: Path, to: str) -> None:
    path = make_dataset(tmp_path / "made")
    if to != "dataset":
        path = tmp_path / "out"
        export_main([str(tmp_path / "made"), "--to", to, "--out", str(path)])
    pictures = open_labelled(path).pictures
    expected = [sum(data) for data in kept_pictures().values()]
    first = pictures[0].read_bytes()  # here before the fork, too
    loader = DataLoader(Bytes(pictures), batch_size=4, num_workers=1, multiprocessing_context="fork")
    assert torch.cat(list(loader)).tolist() == expected
    assert pictures[0].read_bytes() == first
    assert sum(pickle.loads(pickle.dumps(pictures[3])).read_bytes()) == expected[3]  # as to a spawned process
