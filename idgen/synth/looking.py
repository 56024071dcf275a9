"""One look at a finished picture: its face, who it is like, what can be measured of it.

Shapes: B pictures, P planned people, M real people, D width of a face vector, S side of a thumbnail.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from idgen.encoders.base import FaceEncoder
from idgen.errors import FaceNotFoundError
from idgen.faces.detect import Detector
from idgen.faces.photo import choose_face, face_crop, find_faces
from idgen.faces.scrfd import suited_to
from idgen.synth.duplicates import thumbnail
from idgen.synth.probes import PROBES, FoundFace
from idgen.synth.separation import RealPeople, doubt

BLOCK = 16384  # people that pictures are compared with at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What a picture shows; a function of the picture alone.

    Attributes:
        num_faces: that the detector found.
        vectors: encoder id -> (D,) float32 of unit length; empty without a usable face.
        measured: name of a probe -> number; empty likewise.
        nearest: the two planned people most alike: row and cosine, the nearest first; fewer where fewer
            are planned or no face is seen.
        real: name of a gallery -> highest cosine to anybody in it.
        thumbnail: (S, S) of the whole picture, for `idgen.synth.duplicates.resemblance`.
    """

    num_faces: int
    vectors: Mapping[str, np.ndarray]
    measured: Mapping[str, float]
    nearest: tuple[tuple[int, float], ...]
    real: Mapping[str, float]
    thumbnail: np.ndarray = field(repr=False)

    @property
    def has_face(self) -> bool:
        """Whether there is a face large enough to compare."""
        return bool(self.vectors)


@dataclass(frozen=True, kw_only=True)
class Onlooker:
    """Whoever looks at pictures.

    Attributes:
        detector: finds faces.
        encoder: conditioned the pictures; its vectors are compared with the planned people.
        judge: only measures, or None.
        people: (P, D) float32 of unit length, by ``encoder``; may be memory-mapped.
        real: encoder id -> galleries of real people by that encoder.
    """

    detector: Detector
    encoder: FaceEncoder
    judge: FaceEncoder | None
    people: np.ndarray
    real: Mapping[str, Sequence[RealPeople]] = field(default_factory=dict)

    def look(self, pictures: Sequence[Image.Image]) -> list[Seen]:
        """Look at pictures; together this is faster, and what is seen of each stays the same within 1e-6."""
        found = [self._face(picture) for picture in pictures]
        crops = [face.crop for _, face in found if face is not None]
        encoders = [self.encoder] if self.judge is None else [self.encoder, self.judge]
        vectors: dict[str, np.ndarray] = {}
        for encoder in encoders if crops else ():
            vectors[encoder.id] = encoder.encode(torch.stack(crops)).unit.cpu().numpy()
        nearest = two_nearest(vectors[self.encoder.id], self.people) if crops else []
        real = {
            gallery.name: highest_cosine(vectors[encoder_id], gallery.vectors)
            for encoder_id, galleries in self.real.items()
            for gallery in galleries
            if crops
        }
        seen, row = [], 0
        for picture, (num_faces, face) in zip(pictures, found, strict=True):
            if face is None:
                seen.append(_nobody(picture, num_faces))
                continue
            seen.append(
                Seen(
                    num_faces=num_faces,
                    vectors={name: values[row] for name, values in vectors.items()},
                    measured={name: probe(face) for name, probe in PROBES.items()},
                    nearest=nearest[row],
                    real={name: float(values[row]) for name, values in real.items()},
                    thumbnail=thumbnail(picture),
                )
            )
            row += 1
        return seen

    def similarity(self, seen: Seen, person: int) -> float:
        """Cosine of a picture with a face to one of the planned people."""
        return cosine(seen.vectors[self.encoder.id], self.people[person])

    def _face(self, picture: Image.Image) -> tuple[int, FoundFace | None]:
        """How many faces there are, and the largest one."""
        try:
            photo = find_faces(picture, suited_to(self.detector, max(picture.size)))
            face = choose_face(photo, "largest", source="the picture")
        except FaceNotFoundError:
            return 0, None
        return len(photo.faces), FoundFace(face=face, crop=face_crop(photo.image, face))


def _nobody(picture: Image.Image, num_faces: int) -> Seen:
    return Seen(
        num_faces=num_faces, vectors={}, measured={}, nearest=(), real={}, thumbnail=thumbnail(picture)
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two float32 vectors of unit length, added up without rounding."""
    return math.fsum(a.astype(np.float64) * b.astype(np.float64))


def two_nearest(
    vectors: np.ndarray, people: np.ndarray, *, block: int = BLOCK
) -> list[tuple[tuple[int, float], ...]]:
    """The two people most alike each face, exactly: of equally near ones those of the lower rows.

    Float32 finds all that may be among them (`idgen.synth.separation.doubt`), and these are compared again
    without rounding: neither the block nor the other faces change anything. All people are held once, as
    they are given; besides there are ``4 * B * block`` bytes of cosines, and as much again to order them.

    Args:
        vectors: (B, D) float32 of unit length.
        people: (P, D) likewise.
        block: people that are compared at once.

    Returns:
        For each face up to two pairs of row and cosine, the nearest first.
    """
    margin = 2 * doubt(people.shape[1])
    second = np.full(len(vectors), -np.inf, np.float32)
    first = second.copy()
    candidates: list[list[tuple[float, int]]] = [[] for _ in vectors]
    for start in range(0, len(people), block):
        cosines = vectors @ people[start : start + block].T
        wide = np.concatenate([cosines, first[:, None], second[:, None]], axis=1)
        second, first = np.partition(wide, -2, axis=1)[:, -2:].T
        for row, column in np.argwhere(cosines >= second[:, None] - margin):
            candidates[row].append((float(cosines[row, column]), start + int(column)))
    return [
        _best_two(vector, people, [at for value, at in found if value >= least - margin])
        for vector, found, least in zip(vectors, candidates, second, strict=True)
    ]


def _best_two(vector: np.ndarray, people: np.ndarray, rows: list[int]) -> tuple[tuple[int, float], ...]:
    ranked = sorted((-cosine(vector, people[row]), row) for row in rows)
    return tuple((row, -value) for value, row in ranked[:2])


def highest_cosine(vectors: np.ndarray, gallery: np.ndarray, *, block: int = BLOCK) -> np.ndarray:
    """(B,) the highest cosine of each face (B, D) to a gallery (M, D), as exact as `two_nearest`."""
    return np.array([near[0][1] for near in two_nearest(vectors, gallery, block=block)])
