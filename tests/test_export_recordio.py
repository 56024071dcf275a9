"""RecordIO: byte for byte as mxnet writes it, and readable as arcface_torch reads it."""

import base64
import numbers
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from made_dataset import kept_pictures, make_dataset, plain_png, with_chunk

from idgen.commands.datasets import export_main
from idgen.errors import ConfigError, ImageError
from idgen.synth.export.reading import open_labelled
from idgen.synth.export.recordio import packed_labels, packed_record, read_recordio
from idgen.synth.shards import write_shard

MAGIC = struct.pack("<I", 0xCED7230A)

# Written by mxnet 1.9.1 (MXIndexedRecordIO, pack): five pictures of the people 0 0 1 2 2 with the labels as
# numbers or as arrays [person, 0.5]; the second to fourth picture hold the magic number, at multiples of 4.
BY_MXNET = {
    "number": (
        "c-rGqzJ5-Dfq{XE0T(#nz`!8j$OTlFiX_U2rm8c*&z+Y`iVMi(_4IHF0@5rX%mFf3Z8E1OkP`89aSW-LlbrJ4NlF8w"
        "8k<VPY-R?QdIqUNtJ-5ALp)vmT-G@yGy$0)`&<|p6kz5vkzpTuK~Y#qVp1~5ECU9H1bOp7W@KkPL3YL_25IkVmLtf{"
        "Ky^cdJu?|@;6-u+km~@Vjeu^csBFBFJ{Q?FkC0vSltJcw?SXBmfdbO&fd~@^7Bbw!4Rw#9k+BIZT#U|qu}5~vGbER="
        "N-)TJzP5Hm4;Q4g;J`{rT6l<TnKy%+^FyX|ENKBbjj~~+(FUOV9URcrv16!n0H);z40Rls<~e}UJpc?Kg&h"
    ),
    "array": (
        "c-rGqzJ5-Dfq{XE0T(#nz`!8j$OTlFi=>VbyJGv!06%wLE-5Y`o7dCBB?w5ffG`J0quOLnO&}%W>EaktF(*0Y!IP8*"
        "Mm08-hS|&vEcFahg;ur4K&E)Q`njxgN@xNyLH7DEFet$6Wum}d_JX3YlEkEBkeLPy3<>h)fy~Ixd4lYmO$^fB)htJl"
        "orCTcW(;RE*c0m(UL>~wxeg%O2<WDY%El|{bCF&32-#In8D!qq9@vH&NFcodNbX|63?Bz#-Ng-cm!Xld2`rq9&U~>)"
        "cF{8=7qLn($a=oEc0>;+<g~&{fqUSVK18<En?cU`AyYb*w1S+L*|5fsg9Excc1-61-PeGjjsw#?2T=Y100mTriU"
    ),
}


# ---- mxnet's reader, after dmlc-core's src/recordio.cc and mxnet's recordio.py, by struct alone


class Header(NamedTuple):
    flag: int
    label: Any
    id: int
    id2: int


class Records:
    """What mxnet.recordio.MXIndexedRecordIO does when it reads."""

    def __init__(self, folder: Path) -> None:
        self.data = (folder / "train.rec").read_bytes()
        lines = [line.split("\t") for line in (folder / "train.idx").read_text().splitlines()]
        self.idx = {int(number): int(start) for number, start in lines}
        self.keys = list(self.idx)

    def next_record(self, at: int) -> tuple[bytes, int]:
        record = b""
        while True:
            magic, word = struct.unpack_from("<II", self.data, at)
            assert magic == 0xCED7230A
            flag, length = (word >> 29) & 7, word & ((1 << 29) - 1)
            record += self.data[at + 8 : at + 8 + length]
            at += 8 + ((length + 3) >> 2 << 2)
            if flag in (0, 3):
                return record, at
            record += MAGIC

    def read_idx(self, number: int) -> bytes:
        return self.next_record(self.idx[number])[0]

    def read_through(self) -> list[bytes]:
        at, found = 0, []
        while at < len(self.data):
            record, at = self.next_record(at)
            found.append(record)
        return found

    @staticmethod
    def unpack(record: bytes) -> tuple[Header, bytes]:
        header = Header(*struct.unpack("<IfQQ", record[:24]))
        record = record[24:]
        if header.flag > 0:
            header = header._replace(label=np.frombuffer(record, np.float32, header.flag))
            record = record[header.flag * 4 :]
        return header, record


def as_arcface_torch_reads(folder: Path) -> list[tuple[int, bytes]]:
    """The logic of MXFaceDataset: (label, encoded picture) of each index."""
    records = Records(folder)
    header, _ = records.unpack(records.read_idx(0))
    imgidx = np.array(range(1, int(header.label[0]))) if header.flag > 0 else np.array(list(records.keys))
    found = []
    for number in imgidx:
        header, picture = records.unpack(records.read_idx(int(number)))
        label = header.label
        if not isinstance(label, numbers.Number):
            label = label[0]
        found.append((int(label), picture))
    return found


# ---- ours


def with_magic(folder: Path) -> dict[str, bytes]:
    """Pictures of three people, some of which hold the magic number where it must be cut out."""
    inside = [b"", MAGIC, MAGIC + MAGIC, b"1234" + MAGIC + b"z", b"z" + MAGIC, MAGIC * 5]
    pictures = {f"{i // 2}_{i % 2}": with_chunk(plain_png(i), inside[i]) for i in range(6)}
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    base = {"decision": "kept"}
    write_shard(folder, 0, [(base | {"identity": k[0], "key": k}, data) for k, data in pictures.items()])
    return pictures


def test_arcface_torch_reads_it(tmp_path: Path) -> None:
    made, out = make_dataset(tmp_path / "made"), tmp_path / "out"
    assert export_main([str(made), "--to", "recordio", "--out", str(out)]) == 0
    expected = [(int(key[:5]), data) for key, data in kept_pictures().items()]
    assert as_arcface_torch_reads(out) == expected
    assert (out / "property").read_text().strip() == "6,16,16"


def test_the_records_of_people_follow_the_pictures(tmp_path: Path) -> None:
    made, out = make_dataset(tmp_path / "made"), tmp_path / "out"
    export_main([str(made), "--to", "recordio", "--out", str(out)])
    records = Records(out)
    head, rest = records.unpack(records.read_idx(0))
    assert (head.flag, list(head.label), rest) == (2, [16, 22], b"")
    labels = [label for label, _ in as_arcface_torch_reads(out)]
    for person in range(6):
        header, rest = records.unpack(records.read_idx(16 + person))
        start, end = map(int, header.label)
        assert (header.flag, header.id, rest) == (2, 16 + person, b"")
        assert [labels[number - 1] for number in range(start, end)] == [person] * (end - start)
        assert labels.count(person) == end - start
    assert records.keys == list(range(22))


def test_the_magic_number_inside_a_picture_is_cut_out_and_put_back(tmp_path: Path) -> None:
    pictures, out = with_magic(tmp_path / "made"), tmp_path / "out"
    assert sum(MAGIC in data for data in pictures.values()) == 5
    export_main([str(tmp_path / "made"), "--to", "recordio", "--out", str(out)])
    assert [data for _, data in as_arcface_torch_reads(out)] == list(pictures.values())
    records = Records(out)
    assert records.read_through() == [records.read_idx(number) for number in records.keys]
    aligned = [at for at in range(0, len(records.data), 4) if records.data[at : at + 4] == MAGIC]
    assert set(records.idx.values()) < set(aligned)  # a part begins at each, and at nothing else:
    for at in aligned:
        flag, length = divmod(struct.unpack_from("<I", records.data, at + 4)[0], 1 << 29)
        assert flag < 4
        assert at + 8 + length + -length % 4 in [*aligned, len(records.data)]
    assert [p.read_bytes() for p in open_labelled(out).pictures] == list(pictures.values())


@pytest.mark.parametrize("kind", BY_MXNET)
def test_what_mxnet_wrote_is_read(tmp_path: Path, kind: str) -> None:
    data = zlib.decompress(base64.b85decode(BY_MXNET[kind]))
    (tmp_path / "train.rec").write_bytes(data)
    without = open_labelled(tmp_path)
    assert without.people() == {"0": [0, 1], "1": [2], "2": [3, 4]}
    assert [picture.open().getpixel((0, 0)) for picture in without.pictures] == [(i, 9, 9) for i in range(5)]
    assert [MAGIC in picture.read_bytes() for picture in without.pictures] == [False, True, True, True, False]
    starts = {
        "number": (0, 40, 152, 284, 428, 564, 676, 716, 756),
        "array": (0, 40, 160, 300, 452, 596, 716, 756, 796),
    }
    lines = [f"{number}\t{start}\n" for number, start in enumerate(starts[kind])]
    (tmp_path / "train.idx").write_text("".join(lines))
    assert open_labelled(tmp_path / "train.rec").pictures == without.pictures
    assert as_arcface_torch_reads(tmp_path) == [
        (int(p.identity), p.read_bytes()) for p in without.pictures
    ]  # the test's own reader agrees with mxnet's writer too


@pytest.mark.parametrize("kind", BY_MXNET)
def test_the_same_records_give_the_same_bytes_as_mxnets(tmp_path: Path, kind: str) -> None:
    data = zlib.decompress(base64.b85decode(BY_MXNET[kind]))
    (tmp_path / "train.rec").write_bytes(data)
    (tmp_path / "train.idx").write_text("0\t0\n")
    records = Records(tmp_path).read_through()
    assert b"".join(map(packed_record, records)) == data
    header, picture = Records.unpack(records[1])
    labels = (header.label,) if header.flag == 0 else tuple(map(float, header.label))
    assert packed_labels(labels, 1, picture) == records[1]


def test_any_bytes_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [MAGIC, b"\0\0\0\0", b"abcd", b"x"]
    for _ in range(300):
        payload = b"".join(words[i] for i in rng.integers(0, 4, rng.integers(0, 12)))
        (tmp_path / "train.rec").write_bytes(packed_record(packed_labels((5,), 1, payload)))
        (picture,) = read_recordio(tmp_path / "train.rec")
        assert picture.read_bytes() == payload
        (tmp_path / "train.idx").write_text("0\t0\n")
        assert as_arcface_torch_reads(tmp_path) == [(5, payload)]
        (tmp_path / "train.idx").unlink()


def test_a_record_beyond_the_formats_bound_is_refused() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return 1 << 29

    with pytest.raises(ConfigError, match=f"a record holds at most {(1 << 29) - 1} bytes, got {1 << 29}"):
        packed_record(Long())


def test_damage_is_told(tmp_path: Path) -> None:
    whole = zlib.decompress(base64.b85decode(BY_MXNET["number"]))
    rec, idx = tmp_path / "train.rec", tmp_path / "train.idx"
    starts = (0, 40, 152, 284, 428, 564, 676, 716, 756)
    lines = [f"{number}\t{start}" for number, start in enumerate(starts)]

    def message(data: bytes, index: list[str] | None) -> str:
        rec.write_bytes(data)
        idx.unlink(missing_ok=True)
        if index is not None:
            idx.write_text("\n".join(index))
        with pytest.raises(ImageError) as caught:
            [picture.read_bytes() for picture in read_recordio(rec)]
        return str(caught.value)

    assert "is cut short: the record at byte 564 has 101 bytes" in message(whole[:650], lines)
    assert "is damaged: no record begins at byte 41" in message(whole, [lines[0], "1\t41", *lines[2:]])
    assert "record 0 says that pictures end at 6" in message(whole, lines[:5])
    assert "each line must be a number and the place of its record" in message(whole, ["0 zero"])
    assert "numbers are negative, or come twice" in message(whole, ["0\t0", "0\t40"])
    assert "numbers are negative, or come twice" in message(whole, ["0\t-1"])
    assert "no record begins at byte 0" in message(b"not records at all", None)
    assert "a record of 3 bytes has no header" in message(packed_record(b"abc"), None)
    many = struct.pack("<IfQQ", 5000, 0, 0, 0) + b"x" * 24
    assert "a record of 48 bytes has 5000 labels" in message(packed_record(many), None)
    endless = struct.pack("<II", 0xCED7230A, 1 << 29)
    assert "no record begins at byte 8" in message(endless, None)


def test_labels_that_are_no_class_numbers_are_refused(tmp_path: Path) -> None:
    for label, shown in ((0.5, "0.5"), (-1.0, "-1"), (float("nan"), "nan"), (float("inf"), "inf")):
        (tmp_path / "x.rec").write_bytes(packed_record(packed_labels((label,), 0, plain_png(1))))
        with pytest.raises(
            ConfigError, match=f"the record 0 has the label {shown}, which is no class number"
        ):
            read_recordio(tmp_path / "x.rec")


def test_pictures_of_two_sizes_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    rows = [({"identity": "a", "key": f"a_{i}", "decision": "kept"}, plain_png(i, 8 + i)) for i in range(2)]
    write_shard(folder, 0, rows)
    with pytest.raises(ConfigError, match=r"a_1.png has 9 x 9 pixels after others of 8 x 8; --align 112"):
        export_main([str(folder), "--to", "recordio", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_webp_is_refused_since_mxnet_cannot_decode_it(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "made", kind="webp")
    with pytest.raises(
        ConfigError, match=r"recordio holds jpg, png and the picture 00000_000.webp is webp; export to"
    ):
        export_main([str(made), "--to", "recordio", "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]
