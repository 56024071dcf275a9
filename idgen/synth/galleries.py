"""Photos of real people that new ones keep away from: embedded once, kept only while a dataset is made."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from idgen.encoders.base import FaceEncoder
from idgen.encoders.gallery import embed_pictures
from idgen.errors import ConfigError, FaceNotFoundError
from idgen.faces.detect import Detector
from idgen.runs import file_sha256
from idgen.storage import replacing
from idgen.synth.curate import CurationRules
from idgen.synth.export.reading import open_labelled
from idgen.synth.separation import RealPeople
from idgen.synth.wording import number_of

REAL_PEOPLE = "real_people"  # in the folder of a dataset, until it is finished


def fingerprint(path: Path) -> str:
    """What stands for a gallery in the record of a command: of a folder, the names and sizes of its files.

    Raises:
        ConfigError: if there is nothing.
    """
    if path.is_file():
        return file_sha256(path)[:16]
    if not path.is_dir():
        raise ConfigError(f"no such gallery: {path}")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(path).as_posix()} {file.stat().st_size}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def embed_galleries(
    paths: Sequence[Path],
    dataset: Path,
    detector: Detector,
    encoders: Sequence[FaceEncoder],
    *,
    aligned: bool,
) -> dict[str, dict[str, np.ndarray]]:
    """The faces of each gallery by each encoder; those that are in the dataset's folder are read there.

    Args:
        paths: photos of any format that `open_labelled` knows.
        dataset: folder of the dataset, where the vectors are kept until `forget_galleries`.
        detector: finds the faces.
        encoders: that will look at the made pictures.
        aligned: the photos are aligned already.

    Returns:
        "gallery 1", ... (names of files may name people) -> encoder id -> (M, D) float32 of unit length, of
        the photos with a face.

    Raises:
        FaceNotFoundError: if a gallery shows no face at all.
        ConfigError: if it is of no known format.
        ImageError: if a photo cannot be read.
    """
    named = {f"gallery {number}": path for number, path in enumerate(paths, 1)}
    return {
        name: _embedded(path, dataset / REAL_PEOPLE / f"{name}.npz", detector, encoders, aligned=aligned)
        for name, path in named.items()
    }


def _embedded(
    path: Path, kept: Path, detector: Detector, encoders: Sequence[FaceEncoder], *, aligned: bool
) -> dict[str, np.ndarray]:
    if kept.exists():
        with np.load(kept) as arrays:
            return dict(arrays)
    pictures = open_labelled(path).pictures
    gallery = embed_pictures(
        pictures,
        detector,
        encoders,
        store=kept.with_suffix(""),
        aligned=aligned,
        label=f"looking at {path.name}",
    )
    if not gallery.found.any():
        raise FaceNotFoundError(
            f"no face found in {number_of(len(pictures), 'picture')} of the gallery {path}; crops of faces "
            "need --galleries-aligned"
        )
    vectors = {name: values[gallery.found] for name, values in gallery.vectors.items()}
    with replacing(kept) as file:
        np.savez(file, **vectors)  # pyright: ignore[reportArgumentType] - names are data here
    shutil.rmtree(kept.with_suffix(""))
    return vectors


def kept_away(
    dataset: Path, rules: CurationRules, encoders: Sequence[FaceEncoder]
) -> dict[str, list[RealPeople]]:
    """Encoder id -> the galleries in the dataset's folder, for a curator."""
    found: dict[str, list[RealPeople]] = {}
    for file in sorted((dataset / REAL_PEOPLE).glob("*.npz")):
        with np.load(file) as arrays:
            for encoder in encoders:
                name = f"{file.stem} by {encoder.id}"
                gallery = rules.real_people(name, arrays[encoder.id], encoder)
                if gallery is not None:
                    found.setdefault(encoder.id, []).append(gallery)
    return found


def forget_galleries(dataset: Path) -> None:
    """Remove the vectors of real people from a dataset that is finished: they are no part of it."""
    shutil.rmtree(dataset / REAL_PEOPLE, ignore_errors=True)
