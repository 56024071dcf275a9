"""A dataset of shards: opened, joined, looked through, checked."""

import hashlib
import json
import pickle
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from made_dataset import ABOUT, kept_pictures, make_dataset, plain_png, rows_of
from PIL import Image

from idgen.data.pictures import Picture, Slice
from idgen.errors import ConfigError, ImageError, StorageError
from idgen.provenance import read_provenance
from idgen.synth.dataset import Dataset
from idgen.synth.shards import write_shard


def test_the_pictures_are_those_that_were_kept_and_no_byte_is_changed(tmp_path: Path) -> None:
    dataset = Dataset.open(make_dataset(tmp_path / "made"))
    expected = kept_pictures()
    found = {picture.name.removesuffix(".png"): picture for picture in dataset.kept()}
    assert list(found) == list(expected)
    for key, picture in found.items():
        assert picture.read_bytes() == expected[key]
        assert picture.identity == key[:5]
        assert picture.prompt == "a man"
        assert picture.labels["seed"] == 1000 * int(key[:5]) + int(key[6:])
        (tmp_path / "one.png").write_bytes(picture.read_bytes())
        assert read_provenance(tmp_path / "one.png").prompt == "a man"
    assert (dataset.num_pictures, dataset.num_people, dataset.num_planned) == (15, 6, 18)
    assert dataset.about == ABOUT
    assert dataset.encoder_ids == ("mini@0123456789ab",)
    assert dataset.check() == []


def test_pictures_stay_on_the_disk(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "made")
    pictures = list(Dataset.open(folder).kept())
    for picture in pictures:
        assert picture.data is None
        assert isinstance(picture.stored, Slice)
    assert len(pickle.dumps(pictures[0])) < 1000  # what a worker of a DataLoader is sent
    assert pickle.loads(pickle.dumps(pictures[0])).read_bytes() == pictures[0].read_bytes()
    assert pictures[0].open().size == (16, 16)
    (folder / "shards" / "00000.tar").write_bytes(b"short")
    with pytest.raises(ImageError, match=r"00000.tar ends before byte \d+: it is cut short"):
        pictures[0].read_bytes()
    (folder / "shards" / "00000.tar").unlink()
    with pytest.raises(ImageError, match=r"cannot read .*00000.tar: No such file"):
        pictures[0].read_bytes()


def test_the_manifest_is_that_of_all_shards_in_order(tmp_path: Path) -> None:
    rows = Dataset.open(make_dataset(tmp_path / "made", num_shards=3)).manifest().to_pylist()
    expected = list(rows_of(range(6)))
    assert [row["key"] for row in rows] == [row["key"] for row, _ in expected]
    assert [row["shard"] for row in rows] == [0] * 6 + [1] * 6 + [2] * 6
    for row, (given, data) in zip(rows, expected, strict=True):
        assert row["sha256"] == (hashlib.sha256(data).hexdigest() if data else None)
        assert row["decision"] == given["decision"]
        np.testing.assert_equal(row["similarity"], given["similarity"])


def test_columns_that_only_some_shards_fill(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "made", num_shards=1)
    base = {"decision": "kept", "identity": "x"}
    write_shard(folder, 1, [(base | {"key": "x_0", "note": None, "yaw": 1, "extra": True}, plain_png(1))])
    write_shard(folder, 2, [(base | {"identity": "y", "key": "y_0", "note": "a", "yaw": 0.5}, plain_png(2))])
    table = Dataset.open(folder).manifest()
    assert table["note"].to_pylist()[-2:] == [None, "a"]
    assert table["yaw"].to_pylist()[-2:] == [1.0, 0.5]
    assert table["extra"].to_pylist()[-2:] == [True, None]
    write_shard(folder, 3, [(base | {"identity": "z", "key": "z_0", "yaw": "left"}, plain_png(3))])
    with pytest.raises(StorageError, match=r"shards of .*made do not fit each other .* of different runs"):
        Dataset.open(folder).manifest()


def test_a_shard_without_its_json_does_not_exist(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "made")
    (folder / "shards" / "00000.json").unlink()
    assert [picture.identity for picture in Dataset.open(folder).kept()][:1] == ["00003"]
    (folder / "shards" / "00001.json").unlink()
    with pytest.raises(
        ConfigError, match="made has no finished shard; `idgen synthesize` with the same settings"
    ):
        Dataset.open(folder)


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such folder: .*nowhere"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"is no dataset of `idgen synthesize`: it has no dataset.json"):
        Dataset.open(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(StorageError, match=r"dataset.json (cannot be read|must hold facts by name)"):
            Dataset.open(tmp_path)


def test_the_check_names_each_damaged_shard(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "made", num_shards=3)
    told: list[int] = []
    for number in (0, 2):
        tar = folder / "shards" / f"{number:05d}.tar"
        tar.write_bytes(tar.read_bytes().replace(b"IDAT", b"IDAS", 1))
    problems = Dataset.open(folder).check(advance=told.append)
    assert [line[:11] for line in problems] == ["shard 00000", "shard 00002"]
    assert all("its sha256 differs" in line and "makes that shard anew" in line for line in problems)
    assert told == [6, 6, 6]


def test_the_check_sees_a_person_who_is_in_two_shards(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "made")
    write_shard(folder, 2, rows_of(range(1)))
    problems = Dataset.open(folder).check()
    assert problems[0] == "the identity 00000 is in two shards, 00000 and 00002"
    assert problems[1:] == [f"the key 00000_00{i} is in two shards, 00000 and 00002" for i in range(3)]


def test_a_tar_that_lacks_a_picture_of_the_manifest(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "made")
    (tmp_path / "other").mkdir()
    other = write_shard(tmp_path / "other", 0, list(rows_of(range(3)))[1:])
    own = folder / "shards" / "00000"
    own.with_suffix(".tar").write_bytes(other.file("tar").read_bytes())
    said = json.loads(own.with_suffix(".json").read_text())
    said["tar"] = {"sha256": other.sha256["tar"], "bytes": other.num_bytes["tar"]}
    own.with_suffix(".json").write_text(json.dumps(said))
    with pytest.raises(StorageError, match=r"the picture 00000_000.png is not in its tar. Delete"):
        list(Dataset.open(folder).kept())


def test_an_encoder_that_nobody_names(tmp_path: Path) -> None:
    assert Dataset.open(make_dataset(tmp_path / "a", about={})).encoder_ids == ()


def test_a_picture_in_memory_is_upright_and_of_a_sane_size() -> None:
    stream = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    Image.new("RGB", (8, 4)).save(stream, "JPEG", exif=exif)
    assert Picture(identity="", name="x", data=stream.getvalue()).open().size == (4, 8)
    for side, message in ((12_000, "has 12000 x 12000 pixels; at most 100"), (60_000, "is damaged: .*bomb")):
        huge = bytearray(plain_png(1))
        huge[16:24] = side.to_bytes(4, "big") * 2
        huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
        with pytest.raises(ImageError, match=f"the picture 'x' of the table {message}"):
            Picture(identity="", name="x", data=bytes(huge)).open()
