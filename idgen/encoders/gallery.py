"""Face vectors of many pictures: each looked at once, what is done is kept, an interrupted run goes on.

Shapes: N pictures, D width of a face vector.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad

from idgen.data.pictures import Picture, batches
from idgen.encoders.base import FaceEncoder
from idgen.encoders.sight import Eye, Sight, crops_of
from idgen.errors import FaceNotFoundError, ImageError
from idgen.faces.detect import Detector
from idgen.faces.photo import choose_face, face_crop, find_faces
from idgen.pixels import to_tensor
from idgen.storage import replacing

PIECE = 64  # pictures that are kept at once
PORTRAIT_PX, CROP_PX = 128, 112  # an aligned portrait, and the ArcFace crop in its middle
MARGIN_PX = (PORTRAIT_PX - CROP_PX) // 2
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """What was seen in a set of pictures.

    Attributes:
        vectors: encoder id -> (N, D) float32 of unit length; zero where no face was found.
        found: (N,) whether a face large enough to compare was found.
        landmarks: (N, 5, 2) float32 in pixels of the picture; NaN where nobody looked or nothing was found.
        face_px: (N,) float32, shorter side of the face's box; NaN likewise.
        seen: id of an eye -> (N, D) float32, what it said; NaN where it needs a face and none was found.
    """

    vectors: dict[str, np.ndarray]
    found: np.ndarray
    landmarks: np.ndarray
    face_px: np.ndarray
    seen: dict[str, np.ndarray] = field(default_factory=dict)

    def subset(self, rows: np.ndarray) -> "Gallery":
        """The gallery of these pictures, in this order."""
        return Gallery(
            vectors={name: vectors[rows] for name, vectors in self.vectors.items()},
            found=self.found[rows],
            landmarks=self.landmarks[rows],
            face_px=self.face_px[rows],
            seen={name: values[rows] for name, values in self.seen.items()},
        )


def embed_pictures(
    pictures: Sequence[Picture],
    detector: Detector,
    encoders: Sequence[FaceEncoder],
    *,
    eyes: Sequence[Eye] = (),
    store: Path | None = None,
    aligned: bool = False,
    label: str = "looking",
    advance: Callable[[int], object] | None = None,
) -> Gallery:
    """Find the largest face of each picture and embed it by every encoder.

    Args:
        pictures: any number, also none.
        detector: finds the faces; not asked where ``aligned``.
        encoders: any number; each gets the crop of the face.
        eyes: whatever else looks at the pictures.
        store: folder that keeps each piece of 64 pictures once it is done; the next call with equal pictures,
            detector and encoders reads it there.
        aligned: the pictures are aligned already: 112 pixels, or 128 with 8 pixels around the crop.
        label: what the progress bar says.
        advance: told the number of pictures that were looked at, again and again; there is no bar then.

    Raises:
        ImageError: if a picture cannot be read, or is not of an aligned size.
    """
    from tqdm import tqdm

    is_silent = True if advance is not None else None  # None: a bar on a terminal alone
    with tqdm(total=len(pictures), desc=label, unit="picture", disable=is_silent) as bar:
        looking = _Looking(
            detector=detector, encoders=encoders, eyes=eyes, aligned=aligned, advance=advance or bar.update
        )
        kept: list[Arrays] = [looking.nothing(0)]
        kept += [_piece(piece, looking, store) for _, piece in batches(tuple(pictures), PIECE)]
    joined = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
    return Gallery(
        vectors={encoder.id: joined[encoder.id] for encoder in encoders},
        found=joined["found"],
        landmarks=joined["landmarks"],
        face_px=joined["face_px"],
        seen={eye.id: joined[eye.id] for eye in eyes},
    )


@dataclass(frozen=True, kw_only=True)
class _Looking:
    """Who looks, and how."""

    detector: Detector
    encoders: Sequence[FaceEncoder]
    eyes: Sequence[Eye]
    aligned: bool
    advance: Callable[[int], object]

    def nothing(self, num: int) -> Arrays:
        """What is known of pictures that nobody has looked at."""
        return {
            "found": np.zeros(num, bool),
            "landmarks": np.full((num, 5, 2), np.nan, np.float32),
            "face_px": np.full(num, np.nan, np.float32),
            **{encoder.id: np.zeros((num, encoder.dim), np.float32) for encoder in self.encoders},
            **{eye.id: np.full((num, eye.dim), np.nan, np.float32) for eye in self.eyes},
        }

    def key(self) -> str:
        """What the numbers depend on, besides the pictures."""
        return "\n".join(
            [*(e.id for e in (*self.encoders, *self.eyes)), self.detector.name, str(self.aligned)]
        )


def _piece(pictures: tuple[Picture, ...], looking: _Looking, store: Path | None) -> Arrays:
    if store is None:
        return _look(pictures, looking)
    key = hashlib.sha256(looking.key().encode())
    for picture in pictures:
        key.update(hashlib.sha256(picture.read_bytes()).digest())
    path = store / f"{key.hexdigest()[:24]}.npz"
    if path.exists():
        looking.advance(len(pictures))
        with np.load(path) as file:
            return dict(file)
    arrays = _look(pictures, looking)
    store.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] - names are data here
    return arrays


def _look(pictures: tuple[Picture, ...], looking: _Looking) -> Arrays:
    arrays = looking.nothing(len(pictures))
    sights = [_sight(picture, row, looking, arrays) for row, picture in enumerate(pictures)]
    found = arrays["found"]
    crops = crops_of(sights)
    for encoder in looking.encoders if crops else ():
        with torch.no_grad():
            arrays[encoder.id][found] = encoder.encode(torch.stack(crops)).unit.cpu().numpy()
    for eye in looking.eyes:
        shown = [sight for sight in sights if sight.crop is not None or not eye.needs_face]
        if shown:
            arrays[eye.id][found if eye.needs_face else slice(None)] = eye.see(shown)
    return arrays


def _sight(picture: Picture, row: int, looking: _Looking, arrays: Arrays) -> Sight:
    """Open a picture and find its face; what was found of it goes into ``arrays``."""
    image = picture.open()
    looking.advance(1)
    kept = image if looking.eyes else Image.new("RGB", (1, 1))  # large pictures are not held for nothing
    if looking.aligned:
        arrays["found"][row] = True
        return _aligned_sight(picture.name, image)
    try:
        photo = find_faces(image, looking.detector)
        face = choose_face(photo, "largest", source=picture.name)  # never the most alike: that flatters
    except FaceNotFoundError:
        return Sight(image=kept)  # found stays false: counted by whoever reads the gallery
    arrays["found"][row], arrays["landmarks"][row] = True, face.landmarks
    arrays["face_px"][row] = face.size_px
    portrait = face_crop(photo.image, face, margin_px=MARGIN_PX) if looking.eyes else None
    return Sight(image=kept, crop=face_crop(photo.image, face), portrait=portrait)


def _aligned_sight(name: str, image: Image.Image) -> Sight:
    """Crop and portrait of a picture that is aligned already; what a crop of 112 pixels lacks is mirrored."""
    if image.size not in ((PORTRAIT_PX, PORTRAIT_PX), (CROP_PX, CROP_PX)):
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels; aligned pictures have 112 x 112, or "
            "128 x 128 with 8 pixels around the crop. Without --aligned the face is looked for"
        )
    pixels = to_tensor(image)
    if image.width == CROP_PX:
        return Sight(image=image, crop=pixels, portrait=pad(pixels, (MARGIN_PX,) * 4, mode="reflect"))
    inner = slice(MARGIN_PX, MARGIN_PX + CROP_PX)
    return Sight(image=image, crop=pixels[:, inner, inner], portrait=pixels)
