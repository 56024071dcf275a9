"""Lists of pairs for face verification: the layout of LFW, CSV, and the `.bin` files of insightface."""

import csv
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from idgen.data.pictures import Picture, read_pictures
from idgen.errors import ConfigError, ImageError, MeasureError, WeightsError
from idgen.metrics.verification import contiguous_folds

# All that a pickle of pictures and booleans needs; numpy wrote under both of its module names.
ALLOWED = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
SAME = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, kw_only=True)
class PairList:
    """Pairs of pictures, said to show one person or two.

    Attributes:
        pictures: each once.
        first: (P,) number of the first picture of each pair.
        second: (P,) of the second one.
        same: (P,) whether they show one person.
        fold: (P,) number of the fold; -1 where the file has none.
    """

    pictures: tuple[Picture, ...]
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    fold: np.ndarray


def read_pairs(path: str | Path, pictures: str | Path | None = None) -> PairList:
    """A list of pairs.

    Args:
        path: ``pairs.txt`` as LFW has it; a CSV with the columns file_a, file_b, same and, where there are
            folds, fold; or a ``.bin`` of insightface, which holds its pictures.
        pictures: where the pictures lie, for the first two: for LFW the folder with a folder a person, for a
            CSV a folder, or a Parquet table with the column ``file``.

    Raises:
        ImageError: if a file is missing.
        ConfigError: if the list cannot be read, or names a picture that is not there.
        WeightsError: if a ``.bin`` holds anything but pictures and truth values, such as code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ImageError(f"no such file: {path}")
    if path.suffix == ".bin":
        return _read_bin(path)
    if pictures is None:
        raise ConfigError(f"{path} names pictures; say where they lie with --pictures")
    source = Path(pictures).expanduser()
    if path.suffix == ".csv":
        return _read_csv(path, source)
    return _read_lfw(path, source)


def _collect(rows: Iterable[tuple[str, str, bool, int]], known: dict[str, Picture], path: Path) -> PairList:
    """Pairs of names as numbers of pictures."""
    number: dict[str, int] = {}
    first, second, same, fold = [], [], [], []
    for a, b, is_same, group in rows:
        for name, column in ((a, first), (b, second)):
            if name not in known:
                raise ConfigError(f"{path} names the picture {name!r}, which is not there")
            column.append(number.setdefault(name, len(number)))
        same.append(is_same)
        fold.append(group)
    if not same:
        raise ConfigError(f"{path} holds no pairs")
    return PairList(
        pictures=tuple(known[name] for name in number),
        first=np.array(first),
        second=np.array(second),
        same=np.array(same),
        fold=np.array(fold),
    )


def _read_csv(path: Path, source: Path) -> PairList:
    try:
        rows = _csv_rows(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no CSV in UTF-8: {error}") from None
    if source.suffix == ".parquet":
        known = {picture.name: picture for picture in read_pictures(source).pictures}
    else:
        names = {name for a, b, *_ in rows for name in (a, b)}
        files = {name: source / name for name in names}
        known = {name: Picture(identity="", name=name, path=f) for name, f in files.items() if f.is_file()}
    return _collect(rows, known, path)


def _csv_rows(path: Path) -> list[tuple[str, str, bool, int]]:
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"file_a", "file_b", "same"} - set(reader.fieldnames or ())
        if missing:
            raise ConfigError(f"{path} lacks the columns {', '.join(sorted(missing))}")
        for line, row in enumerate(reader, 2):
            said = str(row["same"]).strip().lower()
            if said not in SAME:
                raise ConfigError(f"line {line} of {path}: same must be 0 or 1, got {row['same']!r}")
            group = str(row.get("fold") or "-1").strip()
            if not group.lstrip("-").isdecimal():
                raise ConfigError(f"line {line} of {path}: fold must be a whole number, got {group!r}")
            rows.append((row["file_a"], row["file_b"], SAME[said], int(group)))
    return rows


def _read_lfw(path: Path, root: Path) -> PairList:
    """``<folds> <pairs>`` at the head; then, a fold after the other, first pairs of one person, then of two.

    A pair of one person is ``name n m``, one of two ``name n other m``. Huang et al. 2007, view 2.
    """
    lines = [line.split("\t") if "\t" in line else line.split() for line in path.read_text().splitlines()]
    lines = [line for line in lines if line]
    try:
        head = [int(word) for word in lines[0]]
        num_folds, half = head if len(head) == 2 else (1, head[0])
    except (ValueError, IndexError):
        raise ConfigError(f"{path} is not a list of pairs as LFW has it: no head of numbers") from None
    body = lines[1:]
    if len(body) != 2 * num_folds * half:
        raise ConfigError(f"{path} announces {2 * num_folds * half} pairs and holds {len(body)}")
    rows = []
    for number, words in enumerate(body):
        if len(words) not in (3, 4):
            raise ConfigError(f"line {number + 2} of {path} has {len(words)} words, not 3 or 4")
        for word in (words[1], words[-1]):
            if not word.isdecimal():
                raise ConfigError(f"line {number + 2} of {path}: a picture has a number, got {word!r}")
        a, b = (words[0], words[1]), (words[-2] if len(words) == 4 else words[0], words[-1])
        rows.append((_lfw_name(*a), _lfw_name(*b), len(words) == 3, number // (2 * half)))
    known = {}
    for name in {name for a, b, *_ in rows for name in (a, b)}:
        found = next((root / f"{name}{suffix}" for suffix in (".jpg", ".png", ".webp")
                      if (root / f"{name}{suffix}").is_file()), None)  # fmt: skip
        if found:
            known[name] = Picture(identity=name.partition("/")[0], name=name, path=found)
    return _collect(rows, known, path)


def _lfw_name(person: str, number: str) -> str:
    return f"{person}/{person}_{int(number):04d}"


class _OnlyData(pickle.Unpickler):
    """A pickle may name no function but those that rebuild bytes and arrays."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - whatever pickle asks for
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is not data")
        return super().find_class(module, name)


def _read_bin(path: Path) -> PairList:
    try:
        with path.open("rb") as file:
            encoded, same = _OnlyData(file, encoding="bytes").load()
        data = [_picture_bytes(item) for item in encoded]
        truth = np.array([bool(value) for value in same])
    except (pickle.UnpicklingError, ValueError, TypeError, EOFError, AttributeError, IndexError,
            ImportError) as error:  # fmt: skip
        raise WeightsError(f"{path} is not a list of pairs that can be read safely: {error}") from None
    if len(data) != 2 * len(truth) or not len(truth):
        raise WeightsError(
            f"{path} holds {len(data)} pictures for {len(truth)} pairs; it should be twice as many"
        )
    pictures = tuple(Picture(identity="", name=str(i), data=item) for i, item in enumerate(data))
    numbers = np.arange(len(data))
    folds = np.full(len(truth), -1)
    return PairList(pictures=pictures, first=numbers[0::2], second=numbers[1::2], same=truth, fold=folds)


def _picture_bytes(item: object) -> bytes:
    """An encoded picture: bytes, or an array of them."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim == 1:
        return item.tobytes()
    raise ValueError(f"a picture is bytes, not {type(item).__name__}")


def folds_of(pairs: PairList, num_folds: int = 10) -> np.ndarray:
    """The folds (P,) of a list; ten of neighbouring pairs where it has none.

    Raises:
        MeasureError: if the list is too short, of one kind of pairs, or has a fold for some pairs only.
    """
    same = pairs.same
    if same.all() or not same.any():
        kind = "one person" if same.all() else "two people"
        raise MeasureError(f"all {len(same)} pairs are of {kind}; a threshold needs pairs of both kinds")
    without = int((pairs.fold < 0).sum())
    if without == len(same):
        return contiguous_folds(len(same), min(num_folds, len(same)))
    if without:
        raise MeasureError(f"{without} of {len(same)} pairs name no fold; all or none must")
    if len(np.unique(pairs.fold)) < 2:
        raise MeasureError(
            "all pairs are of one fold; the threshold comes from the others, so two are needed"
        )
    return pairs.fold
