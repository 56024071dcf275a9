"""Lists of pairs: the three layouts, and pickles that are not what they say."""

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from idgen.data.pairs import read_pairs
from idgen.errors import ConfigError, IdgenError, ImageError, WeightsError


def encoded(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (112, 112, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def lfw(tmp_path: Path) -> Path:
    root = tmp_path / "lfw"
    for person, count in (("Ann_Lee", 3), ("Bo", 2), ("Cy", 2)):
        (root / person).mkdir(parents=True)
        for number in range(1, count + 1):
            (root / person / f"{person}_{number:04d}.jpg").write_bytes(encoded(number))
    (tmp_path / "pairs.txt").write_text(
        "2\t2\nAnn_Lee\t1\t3\nBo\t1\t2\nAnn_Lee\t2\tBo\t1\nBo\t2\tCy\t1\n"
        "Cy\t1\t2\nAnn_Lee\t2\t3\nCy\t2\tBo\t2\nAnn_Lee\t1\tCy\t1\n"
    )
    return root


def named(path: Path, pictures: Path | None = None) -> list[tuple[str, str, bool, int]]:
    pairs = read_pairs(path, pictures)
    rows = zip(pairs.first, pairs.second, pairs.same, pairs.fold, strict=True)
    return [(pairs.pictures[a].name, pairs.pictures[b].name, bool(s), int(f)) for a, b, s, f in rows]


def test_lfw(lfw: Path, tmp_path: Path) -> None:
    rows = named(tmp_path / "pairs.txt", lfw)
    assert rows[0] == ("Ann_Lee/Ann_Lee_0001", "Ann_Lee/Ann_Lee_0003", True, 0)
    assert rows[3] == ("Bo/Bo_0002", "Cy/Cy_0001", False, 0)
    assert [row[2] for row in rows] == [True, True, False, False] * 2
    assert [row[3] for row in rows] == [0] * 4 + [1] * 4
    pairs = read_pairs(tmp_path / "pairs.txt", lfw)
    assert len(pairs.pictures) == 7  # each once
    assert pairs.pictures[0].open().size == (112, 112)


def test_lfw_without_folds_and_with_spaces(lfw: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.txt").write_text("1\nBo 1 2\nBo 1 Cy 2\n")
    assert named(tmp_path / "dev.txt", lfw) == [
        ("Bo/Bo_0001", "Bo/Bo_0002", True, 0),
        ("Bo/Bo_0001", "Cy/Cy_0002", False, 0),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no head of numbers"),
        ("hello\nBo 1 2\n", "no head of numbers"),
        ("1 1\nBo 1 2\n", "announces 2 pairs and holds 1"),
        ("1\nBo 1 2\nBo 1 Cy Cy 2\n", "line 3 of .* has 5 words"),
        ("1\nBo 1 2\nBo 1 Cy 9\n", "'Cy/Cy_0009', which is not there"),
        ("1\nBo 1 two\nBo 1 Cy 2\n", "line 2 of .* 'two'"),
    ],
)
def test_lfw_that_cannot_be_read(lfw: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_pairs(tmp_path / "bad.txt", lfw)


def test_csv_with_a_folder_and_with_a_table(lfw: Path, tmp_path: Path) -> None:
    listed = tmp_path / "pairs.csv"
    listed.write_text("fold,file_a,file_b,same\n3,a.jpg,b.jpg,1\n4,a.jpg,c.jpg,0\n")
    (tmp_path / "all").mkdir()
    for number, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        (tmp_path / "all" / name).write_bytes(encoded(number))
    expected = [("a.jpg", "b.jpg", True, 3), ("a.jpg", "c.jpg", False, 4)]
    assert named(listed, tmp_path / "all") == expected
    columns = {
        "identity": ["x"] * 3,
        "file": ["a.jpg", "b.jpg", "c.jpg"],
        "image": [encoded(i) for i in range(3)],
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "all.parquet")
    assert named(listed, tmp_path / "all.parquet") == expected


def test_csv_that_is_not_in_utf_8(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes("file_a,file_b,same\nä.jpg,b.jpg,1\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"bad\.csv is no CSV in UTF-8"):
        read_pairs(tmp_path / "bad.csv", tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file_a,same\nx,1\n", "lacks the columns file_b"),
        ("file_a,file_b,same\na.jpg,a.jpg,maybe\n", "line 2 of .*same must be 0 or 1, got 'maybe'"),
        ("file_a,file_b,same,fold\na.jpg,a.jpg,1,x\n", "line 2 of .*fold must be a whole number, got 'x'"),
        ("file_a,file_b,same\n", "holds no pairs"),
        ("file_a,file_b,same\na.jpg,z.jpg,1\n", "'a.jpg', which is not there"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_pairs(tmp_path / "bad.csv", tmp_path)


def test_missing_list_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_pairs(tmp_path / "nothing.txt", tmp_path)
    (tmp_path / "pairs.txt").write_text("1\nBo 1 2\nBo 1 Cy 2\n")
    with pytest.raises(ConfigError, match="--pictures"):
        read_pairs(tmp_path / "pairs.txt")


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ["bytes", "array", "numpy truth"])
def test_bin(tmp_path: Path, protocol: int, kind: str) -> None:
    pictures: list[object] = [encoded(i) for i in range(4)]
    same: list[object] = [True, False]
    if kind == "array":
        pictures = [np.frombuffer(item, np.uint8) for item in pictures if isinstance(item, bytes)]
    if kind == "numpy truth":
        same = [np.bool_(True), np.bool_(False)]
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((pictures, same), protocol=protocol))
    pairs = read_pairs(tmp_path / "lfw.bin")
    assert pairs.same.tolist() == [True, False]
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.fold.tolist()) == ([0, 2], [1, 3], [-1, -1])
    assert pairs.pictures[3].read_bytes() == encoded(3)
    assert pairs.pictures[3].open().size == (112, 112)


def test_bin_of_python_2(tmp_path: Path) -> None:
    """As the published files are: protocol 2 of Python 2, whose strings are bytes."""
    text = encoded(0)
    strings = b"".join(b"T" + len(text).to_bytes(4, "little") + text for _ in range(2))  # BINSTRING
    (tmp_path / "old.bin").write_bytes(b"\x80\x02](" + strings + b"e](\x88e\x86.")
    assert read_pairs(tmp_path / "old.bin").pictures[1].read_bytes() == text


class Attack:
    """Unpickled freely, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.path, "owned"))


def test_malicious_bin_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(([encoded(0), Attack(mark)], [True])))
    with pytest.raises(WeightsError, match="which is not data"):
        read_pairs(tmp_path / "evil.bin")
    assert not mark.exists()
    pickle.loads((tmp_path / "evil.bin").read_bytes())  # the payload is a real one
    assert mark.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a pickle", pickle.dumps(3), pickle.dumps(([b"x"] * 3, [True])), pickle.dumps(([], [])),
     pickle.dumps((["text", "text"], [True])), pickle.dumps(([b"a", b"b"], [True]))[:-3]],
)  # fmt: skip
def test_bin_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.bin").write_bytes(content)
    with pytest.raises(IdgenError, match=r"bad\.bin"):
        read_pairs(tmp_path / "bad.bin")
