"""Labelled pictures that a recogniser is trained on: read, aligned, and chosen among.

Shapes: N pictures.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from idgen.data.images import ARCFACE_MARGIN, FaceTable, split_names, split_people
from idgen.data.pictures import Picture, PictureSet, read_pictures
from idgen.encoders.gallery import embed_pictures
from idgen.errors import ConfigError, FaceNotFoundError, RunFolderError
from idgen.faces.detect import load_detector
from idgen.faces.photo import crop_at
from idgen.faces.scrfd import shown_px, suited_to
from idgen.storage import write_json

Reader = Callable[[Path], PictureSet]
CROP_PX = 112
PORTRAIT_PX = CROP_PX + 2 * ARCFACE_MARGIN
MIRRORED = np.pad(np.arange(CROP_PX), ARCFACE_MARGIN, mode="reflect")  # rows of a crop that make a portrait


def read_labelled(path: Path, reader: Reader = read_pictures) -> Sequence[Picture]:
    """The labelled pictures of a dataset; opened only when they are looked at.

    Args:
        path: of the dataset.
        reader: of its format; folders of people and Parquet files if not given.

    Raises:
        ImageError: if there is nothing, or no picture in it.
        ConfigError: if a picture does not say whom it shows.
    """
    pictures = reader(path).pictures
    nameless = sum(not picture.identity for picture in pictures)
    if nameless:
        raise ConfigError(f"{nameless} of {len(pictures)} pictures of {path} do not say whom they show")
    return pictures


def read_sources(paths: Sequence[Path], reader: Reader = read_pictures) -> list[Picture]:
    """The pictures of one or several datasets; equal names in two of them are two people.

    Args:
        paths: of the datasets.
        reader: as in `read_labelled`.

    Raises:
        ImageError: as `read_labelled`.
        ConfigError: as `read_labelled`; for no path, one that is named twice, or fewer than two people.
    """
    if not paths:
        raise ConfigError("data names no dataset")
    twice = [path for path, times in Counter(path.resolve() for path in paths).items() if times > 1]
    if twice:
        raise ConfigError(f"data names {twice[0]} twice; each of its people would count as two")
    joined: list[Picture] = []
    for number, path in enumerate(paths):
        pictures = read_labelled(path, reader)
        if len(paths) > 1:
            pictures = [
                replace(p, identity=f"{number}/{p.identity}", name=f"{number}/{p.name}") for p in pictures
            ]
        joined += pictures
    num_people = len({picture.identity for picture in joined})
    if num_people < 2:
        raise ConfigError(f"{', '.join(map(str, paths))} shows one person; two are needed to compare")
    return joined


def labelled_faces(
    pictures: Sequence[Picture], *, detector: str = "mini", store: Path | None = None, realign: bool = False
) -> tuple[FaceTable, list[str]]:
    """Aligned portraits in memory, and the names of pictures that show no face and are left out.

    Squares of 128 pixels count as aligned, with 8 pixels around the ArcFace crop, and so do crops of 112,
    whose border is mirrored. In all others the largest face is looked for; small pictures are shown enlarged.

    Args:
        pictures: with their identities.
        detector: as in `load_detector`; opened only where it is needed.
        store: folder that keeps what the detector found; the next call reads it there.
        realign: look for the face in squares of 112 and 128 pixels too.

    Raises:
        ImageError: if a picture cannot be read.
        FaceNotFoundError: if none of them shows a face.
    """
    from tqdm import tqdm

    images = np.zeros((len(pictures), PORTRAIT_PX, PORTRAIT_PX, 3), np.uint8)
    found, sides_px = np.zeros(len(pictures), bool), dict[int, int]()
    for row, picture in enumerate(tqdm(pictures, desc="reading", unit="picture", disable=None)):
        image = picture.open()
        portrait = None if realign else _portrait(image)
        if portrait is not None:
            images[row], found[row] = portrait, True
        else:
            sides_px[row] = max(image.size)
    others = np.flatnonzero(~found).tolist()
    for row, landmarks in _landmarks(pictures, others, sides_px, detector, store):
        crop, _ = crop_at(pictures[row].open(), landmarks, CROP_PX, margin_px=ARCFACE_MARGIN)
        images[row] = (crop * 255).round().byte().permute(1, 2, 0).numpy()
        found[row] = True
    if not found.any():
        raise FaceNotFoundError(
            f"no face was found in any of {len(pictures)} pictures; crops of faces that are aligned already "
            "have 112 x 112 pixels, or 128 x 128 with 8 around the crop"
        )
    table = FaceTable(
        images=images if found.all() else images[found],
        files=tuple(p.name for p, is_there in zip(pictures, found, strict=True) if is_there),
        identities=tuple(p.identity for p, is_there in zip(pictures, found, strict=True) if is_there),
        labels={},
    )
    return table, [pictures[row].name for row in np.flatnonzero(~found).tolist()]


def _landmarks(
    pictures: Sequence[Picture],
    rows: Sequence[int],
    sides_px: Mapping[int, int],
    detector: str,
    store: Path | None,
) -> Iterator[tuple[int, np.ndarray]]:
    """(5, 2) of the largest face of these rows, where there is one; small pictures are shown enlarged."""
    if not rows:
        return
    eye = load_detector(detector)
    alike: dict[int, list[int]] = {}  # rows that it is shown in a square of one size
    for row in rows:
        alike.setdefault(shown_px(sides_px[row]), []).append(row)
    for px, some in sorted(alike.items()):
        found = embed_pictures(
            [pictures[row] for row in some],
            suited_to(eye, max(sides_px[row] for row in some)),
            [],
            store=store and store / f"{px} px",
            label="looking for faces",
        )
        for row, is_found, landmarks in zip(some, found.found, found.landmarks, strict=True):
            if is_found:
                yield row, landmarks


def split_sources(table: FaceTable, num_sources: int) -> tuple[FaceTable, FaceTable]:
    """`split_people` of each dataset by itself: the people set aside are those of a run on it alone.

    Args:
        table: of the pictures of `read_sources`.
        num_sources: number of the datasets.
    """
    if num_sources == 1:
        return split_people(table)
    source = np.array([int(name.partition("/")[0]) for name in table.identities])
    parts = [table.subset(np.flatnonzero(source == number).tolist()) for number in range(num_sources)]
    held = {name for part in parts for name in split_people(part)[1].identities}
    is_held = np.array([name in held for name in table.identities])
    return table.subset(np.flatnonzero(~is_held).tolist()), table.subset(np.flatnonzero(is_held).tolist())


def is_aligned(image: Image.Image) -> bool:
    """Whether a picture has the size of an aligned one."""
    return image.size in ((CROP_PX, CROP_PX), (PORTRAIT_PX, PORTRAIT_PX))


def _portrait(image: Image.Image) -> np.ndarray | None:
    """(128, 128, 3) of an aligned picture; None where it is not of an aligned size."""
    if not is_aligned(image):
        return None
    pixels = np.asarray(image)
    return pixels if image.width == PORTRAIT_PX else pixels[MIRRORED][:, MIRRORED]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of the training pictures are used, and under whose name.

    Attributes:
        pictures_like: numbers of pictures that people of another dataset have, falling: `like_histogram`;
            nothing for all pictures.
        leave_out_singles: whether people with one picture are left out, here and in ``pictures_like``.
        shuffle_identities: whether the names are permuted among the pictures, a control: they teach nothing.
        seed: of what is drawn.
    """

    pictures_like: Sequence[int] = ()
    leave_out_singles: bool = False
    shuffle_identities: bool = False
    seed: int = 0


def choose(table: FaceTable, choice: Choice) -> FaceTable:
    """The pictures to train on: without singles, then cut to the histogram, then with permuted names.

    Raises:
        ConfigError: if fewer than two people are left.
    """
    counts = choice.pictures_like
    if choice.leave_out_singles:
        counts = [count for count in counts if count > 1]
        rows = [row for rows in table.people().values() if len(rows) > 1 for row in rows]
        table = table.subset(sorted(rows))
    if choice.pictures_like:
        table = like_histogram(table, counts, choice.seed)
    if choice.shuffle_identities:
        order = np.random.default_rng([choice.seed, 1]).permutation(len(table))
        table = replace(table, identities=tuple(table.identities[row] for row in order))
    num_people = len(set(table.identities))
    if num_people < 2:
        raise ConfigError(f"people left to train on: {num_people}; two are needed to compare")
    return table


def like_histogram(table: FaceTable, counts: Sequence[int], seed: int) -> FaceTable:
    """As many pictures of each person as another dataset has, so far as both have them.

    People of both stand in the order of their numbers of pictures. Of the dataset with more people as many
    are taken as the other one has, at even distances from the first to the last, so that the shape of its
    histogram stays. The i-th person keeps the smaller of the two i-th numbers: cut to each other, the two
    datasets have one histogram.

    Args:
        table: whose people are cut down.
        counts: pictures of each person of the other dataset, falling.
        seed: of the pictures that are kept.
    """
    people = sorted(table.people().items(), key=lambda item: (-len(item[1]), item[0]))
    num_people = min(len(people), len(counts))
    kept: list[int] = []
    for number, (own, other) in enumerate(
        zip(_spread(len(people), num_people), _spread(len(counts), num_people), strict=True)
    ):
        rows = people[own][1]
        drawn = np.random.default_rng([seed, 2, number]).permutation(len(rows))[: counts[other]]
        kept += [rows[i] for i in drawn]
    return table.subset(sorted(kept))


def _spread(num: int, chosen: int) -> list[int]:
    """As many of the first ``num`` numbers, at even distances, the first and the last of them included."""
    return np.linspace(0, num - 1, chosen).round().astype(int).tolist() if chosen else []


def histogram_of(path: Path, reader: Reader = read_pictures) -> list[int]:
    """How many pictures each training person of a dataset has, falling; the tenth set aside does not count.

    Args:
        path: of the dataset.
        reader: as in `read_labelled`.

    Raises:
        ImageError: as `read_labelled`.
        ConfigError: as `read_labelled`.
    """
    counts: dict[str, int] = {}
    for picture in read_labelled(path, reader):
        counts[picture.identity] = counts.get(picture.identity, 0) + 1
    _, training = split_names(list(counts))
    return sorted((counts[name] for name in training), reverse=True)


def keep_data(path: Path, said: Mapping[str, Any], tables: Sequence[FaceTable]) -> None:
    """Write down what a run is trained on, and refuse to go on with anything else.

    Args:
        path: the JSON file in the folder of the run.
        said: numbers and names for a reader.
        tables: whose pictures and names are the data; their sha256 is written too.

    Raises:
        RunFolderError: if the run was begun with other pictures or names.
        StorageError: if it cannot be written.
    """
    digest = hashlib.sha256()
    for table in tables:
        digest.update(json.dumps([table.files, table.identities]).encode())
        digest.update(table.images.data)
    now = {**said, "sha256": digest.hexdigest()}
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
        same = before.get("sha256") == now["sha256"]
    except (OSError, ValueError, AttributeError):
        raise RunFolderError(
            f"{path} cannot be read, so nobody knows the data; choose another --out"
        ) from None
    if not same:
        keys = [key for key in now if before.get(key) != now[key] and key != "names_without_face"]
        what = "; ".join(f"{key}: {before.get(key)} there, {now[key]} now" for key in keys[:2])
        raise RunFolderError(
            f"{path.parent} was begun with other pictures ({what}); choose another --out, or give the data "
            "of that run to go on with it"
        )
    write_json(path, now)
