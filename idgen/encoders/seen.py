"""A set of pictures with its people numbered, and what was seen in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from idgen.data.pictures import PictureSet, read_pictures
from idgen.encoders.base import FaceEncoder
from idgen.encoders.gallery import Gallery, embed_pictures
from idgen.encoders.sight import Eye
from idgen.faces.detect import Detector


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Pictures, whom they show, and what encoders and eyes say of them.

    Attributes:
        pictures: N of them.
        names: of the P people, in the order of their numbers.
        person: (N,) number of the person of each.
        gallery: what was seen.
    """

    pictures: PictureSet
    names: tuple[str, ...]
    person: np.ndarray
    gallery: Gallery


def look(
    path: Path,
    detector: Detector,
    encoders: Sequence[FaceEncoder],
    *,
    eyes: Sequence[Eye] = (),
    store: Path | None = None,
    aligned: bool = False,
    label: str = "looking",
) -> Seen:
    """Read pictures, with or without people, and look at them.

    The arguments are those of `read_pictures` (flat folders allowed) and of `embed_pictures`, and so is
    what is raised.
    """
    pictures = read_pictures(path, flat=True)
    number = {name: i for i, name in enumerate(pictures.people())}
    gallery = embed_pictures(
        pictures.pictures, detector, encoders, eyes=eyes, store=store, aligned=aligned, label=label
    )
    person = np.array([number[picture.identity] for picture in pictures.pictures])
    return Seen(pictures=pictures, names=tuple(number), person=person, gallery=gallery)
