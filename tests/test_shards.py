"""Shards: written whole or not there, equal for equal pictures, and damage is told."""

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from made_dataset import files_of_at_most, plain_png, rows_of

from idgen.errors import ConfigError, ImageError, StorageError
from idgen.synth.shards import Shard, read_shards, write_shard
from idgen.synth.tars import MAX_MEMBER_BYTES, members, packed_member


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return write_shard(tmp_path, 3, rows_of(range(2)), facts={"plan_sha256": "x"})


def row(**values: Any) -> dict[str, Any]:
    return {"identity": "a", "key": "a_0", "decision": "kept", **values}


def test_equal_pictures_give_equal_files(tmp_path: Path, shard: Shard) -> None:
    (tmp_path / "again").mkdir()
    again = write_shard(tmp_path / "again", 3, rows_of(range(2)), facts={"plan_sha256": "x"})
    for suffix in ("tar", "parquet", "json"):
        assert again.file(suffix).read_bytes() == shard.file(suffix).read_bytes()


def test_a_tar_has_names_and_bytes_and_nothing_else(tmp_path: Path, shard: Shard) -> None:
    expected = {r["key"]: data for r, data in rows_of(range(2)) if data is not None}
    with tarfile.open(shard.file("tar")) as tar:
        entries = tar.getmembers()
        assert [e.name for e in entries] == [f"{key}.{end}" for key in expected for end in ("png", "json")]
        for entry in entries:
            assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, 0, "", "")
            content = tar.extractfile(entry)
            assert content is not None
            if entry.name.endswith("png"):
                assert content.read() == expected[entry.name[:-4]]
            else:
                said = json.load(content)
                assert said["path"] == entry.name[:-5] + ".png"
                assert said["sha256"] == hashlib.sha256(expected[said["key"]]).hexdigest()


def test_the_table_has_rejected_pictures_too(tmp_path: Path, shard: Shard) -> None:
    rows = pyarrow.parquet.read_table(shard.file("parquet")).to_pylist()
    given = list(rows_of(range(2)))
    assert [r["key"] for r in rows] == [r["key"] for r, _ in given]
    for found, (expected, data) in zip(rows, given, strict=True):
        assert found["sha256"] == (hashlib.sha256(data).hexdigest() if data else None)
        assert found["path"] == (f"{expected['key']}.png" if data else None)
        assert found["seed"] == expected["seed"]
    assert [r["decision"] for r in rows].count("no face") == 1
    assert (shard.num_planned, shard.num_kept, shard.num_people) == (6, 5, 2)
    assert shard.facts == {"plan_sha256": "x"}


def test_it_comes_back(tmp_path: Path, shard: Shard) -> None:
    write_shard(tmp_path, 0, rows_of(range(2, 4)))
    found = read_shards(tmp_path)
    assert [s.number for s in found] == [0, 3]
    assert found[1] == shard
    found[1].check()
    expected = [data for _, data in rows_of(range(2)) if data is not None]
    assert [piece.read() for piece in found[1].pictures().values()] == expected


def test_an_interrupt_leaves_no_shard_and_a_new_one_takes_its_place(tmp_path: Path, shard: Shard) -> None:
    def stopped() -> Iterator[tuple[dict[str, Any], bytes | None]]:
        yield from list(rows_of(range(2)))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, 3, stopped())
    assert read_shards(tmp_path) == ()
    assert {path.name for path in shard.folder.iterdir()} == {"00003.tar", "00003.parquet"}  # of the old one
    again = write_shard(tmp_path, 3, rows_of(range(2)), facts={"plan_sha256": "x"})
    assert again == shard


@pytest.mark.parametrize("room", [100, 2000, 5000])
def test_a_full_disk_leaves_nothing_under_a_final_name(tmp_path: Path, room: int) -> None:
    rows = list(rows_of(range(2)))
    with (
        files_of_at_most(room),
        pytest.raises(StorageError, match=r"was not written: .*nothing was left behind"),
    ):
        write_shard(tmp_path, 0, rows)
    assert list((tmp_path / "shards").iterdir()) == []
    assert read_shards(tmp_path) == ()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write into .*shards"):
        write_shard(tmp_path, 0, [(row(), plain_png(1))])


# ---- damage


WAY_OUT = r"\. Delete .*00003\.json and run `idgen synthesize` again: it makes that shard anew"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_what_is_missing_or_cut_short_is_seen_at_once(tmp_path: Path, shard: Shard, suffix: str) -> None:
    whole = shard.file(suffix).read_bytes()
    shard.file(suffix).write_bytes(whole[:-100])
    sizes = f"has {len(whole) - 100} bytes instead of {len(whole)}"
    with pytest.raises(StorageError, match=f"shard 00003 of .* is damaged: 00003.{suffix} {sizes}{WAY_OUT}"):
        read_shards(tmp_path)
    shard.file(suffix).unlink()
    with pytest.raises(StorageError, match=f"00003.{suffix} is missing{WAY_OUT}"):
        read_shards(tmp_path)


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_changed_byte_is_seen_by_the_check(tmp_path: Path, shard: Shard, suffix: str) -> None:
    flip(shard.file(suffix), 600)
    (found,) = read_shards(tmp_path)
    with pytest.raises(
        StorageError, match=f"00003.{suffix} is not what was written: its sha256 differs{WAY_OUT}"
    ):
        found.check()


def test_pictures_and_manifest_must_agree_even_where_the_files_are_right(
    tmp_path: Path, shard: Shard
) -> None:
    """Such as after somebody repaired the JSON by hand."""
    rows = list(rows_of(range(2)))
    (tmp_path / "other").mkdir()
    for changed, message in (
        ([(rows[0][0], rows[2][1]), *rows[1:]], "the picture 00000_000.png is not what was written"),
        (rows[:-1], "its manifest keeps 5 pictures, and its tar has 4 or others"),
    ):
        other = write_shard(tmp_path / "other", 3, changed)
        shard.file("tar").write_bytes(other.file("tar").read_bytes())
        said = json.loads(shard.file("json").read_text())
        said["tar"] = {"sha256": other.sha256["tar"], "bytes": other.num_bytes["tar"]}
        shard.file("json").write_text(json.dumps(said))
        (found,) = read_shards(tmp_path)
        with pytest.raises(StorageError, match=message):
            found.check()


def test_a_json_that_cannot_be_read_or_is_newer(tmp_path: Path, shard: Shard) -> None:
    said = json.loads(shard.file("json").read_text())
    for text in ("", "[]", '{"idgen_shard": 1}', json.dumps(said | {"num_kept": "many"})):
        shard.file("json").write_text(text)
        with pytest.raises(StorageError, match=f"00003.json cannot be read{WAY_OUT}"):
            read_shards(tmp_path)
    shard.file("json").write_text(json.dumps(said | {"idgen_shard": 2}))
    with pytest.raises(ConfigError, match=r"written by a newer idgen \(format 2, this one reads 1\)"):
        read_shards(tmp_path)


# ---- what may be in a row


@pytest.mark.parametrize(
    ("values", "data", "message"),
    [
        (
            {"key": "../a"},
            plain_png(1),
            "a row's key must be letters, digits, - and _, 100 at most, got '../a'",
        ),
        ({"key": "a.b"}, plain_png(1), "got 'a.b'"),
        ({"identity": ""}, plain_png(1), "the row a_0 needs a text under identity, got ''"),
        ({"decision": None}, plain_png(1), "needs a text under decision, got None"),
        ({"decision": "no face"}, plain_png(1), "has the decision 'no face' and a picture; 'kept' pictures"),
        ({}, None, "has the decision 'kept' and no picture"),
        ({}, b"GIF89a", "the picture of the row a_0 is neither PNG, JPEG nor WebP"),
        ({"box": [1, 2]}, plain_png(1), "has a list under box; a manifest holds text and numbers"),
        ({"sha256": "0"}, plain_png(1), "the row a_0 has another sha256 than its picture"),
        ({"shard": 1}, plain_png(1), "has a column shard; idgen itself fills that one"),
    ],
)
def test_rows_that_do_not_fit(
    tmp_path: Path, values: dict[str, Any], data: bytes | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        write_shard(tmp_path, 0, [(row(**values), data)])
    assert list((tmp_path / "shards").iterdir()) == []


def test_rows_that_do_not_fit_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shard 00000 has the key 'a_0' twice"):
        write_shard(tmp_path, 0, [(row(), plain_png(1)), (row(), plain_png(2))])
    with pytest.raises(ConfigError, match="the column 'age' of the manifest mixes kinds of values"):
        write_shard(tmp_path, 0, [(row(age="old"), plain_png(1)), (row(key="a_1", age=3), plain_png(2))])
    with pytest.raises(ConfigError, match="shard 00000 would have no rows"):
        write_shard(tmp_path, 0, [])
    assert read_shards(tmp_path) == ()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    values = {"seed": np.int64(2**40), "similarity": np.float32(0.5), "is_old": np.bool_(True), "note": None}
    shard = write_shard(tmp_path, 0, [(row(**values), plain_png(1)), (row(key="a_1", late=1), plain_png(2))])
    first, second = shard.table().to_pylist()
    assert (first["seed"], first["similarity"], first["is_old"], first["late"]) == (2**40, 0.5, True, None)
    assert second["late"] == 1


# ---- tars of strangers


def entry(name: str, data: bytes = b"x", **values: Any) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    for field, value in values.items():
        setattr(header, field, value)
    return header.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entry("/etc/passwd"), "a file called '/etc/passwd', which is no name inside of a folder"),
        (entry("a/../../b.png"), "a file called 'a/../../b.png'"),
        (entry("a\\..\\b.png"), "which is no name inside of a folder"),
        (entry("a\n.png"), "a file called 'a\\n.png'"),
        (
            entry("a.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            "'a.png', which is a link, a device",
        ),
        (entry("a.png", b"", type=tarfile.LNKTYPE, linkname="b"), "which is a link, a device"),
        (entry("a.png", b"", type=tarfile.CHRTYPE), "which is a link, a device"),
        (entry("a.png", b"", type=tarfile.FIFOTYPE), "which is a link, a device"),
        (entry("a.png", b"", size=MAX_MEMBER_BYTES + 1), f"of {MAX_MEMBER_BYTES + 1} bytes; at most"),
        (entry("a.png", b"", size=-512), "of -512 bytes; at most"),
        (entry("a.png", b"", size=1 << 20), "is cut short: 'a.png' ends behind its end"),
        (entry("a.png") + entry("./a.png"), "holds 'a.png' twice"),
        (b"no tar at all" * 100, "is no tar that can be read"),
        (b"\x1f\x8b" + bytes(600), "is no tar that can be read"),
    ],
)
def test_what_no_set_of_pictures_needs_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content + bytes(1024))
    with pytest.raises(ImageError, match=re.escape(message)):
        list(members(path))


def test_tars_of_the_usual_kinds_are_read(tmp_path: Path) -> None:
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{kind}.tar"
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / "a.png").write_bytes(plain_png(1))
        (tmp_path / "in" / ("b" * 90 + ".txt")).write_bytes(b"text")
        with tarfile.open(path, "w", format=kind) as tar:
            tar.add(tmp_path / "in", arcname=".")
        found = {member.name: member.data.read() for member in members(path)}
        assert found == {"a.png": plain_png(1), "b" * 90 + ".txt": b"text"}


def test_a_packed_member_is_what_tarfile_packs() -> None:
    for name in ("a.png", "ä" * 60 + "/b.json", "x" * 300):
        header = tarfile.TarInfo(name)
        header.size = 5
        assert packed_member(name, b"bytes") == header.tobuf() + b"bytes" + bytes(507)
