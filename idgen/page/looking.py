"""The photos that somebody gives: which face was found in each, and what is doubtful, in plain words.

Shapes: N photos, D width of a face vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from idgen.blocklist import Blocklist
from idgen.encoders.base import FaceEncoder
from idgen.encoders.thresholds import threshold_at
from idgen.errors import (
    AmbiguousFaceError,
    ConfigError,
    EncoderMismatchError,
    FaceNotFoundError,
    IdgenError,
    ImageError,
    RefusedPersonError,
)
from idgen.faces.detect import Detector, Face
from idgen.faces.photo import choose_face, face_crop, find_faces
from idgen.faces.pose import pose_from_landmarks
from idgen.identity import Identity, PhotoReport, fuse
from idgen.metrics.consistency import Eye
from idgen.opening import Kit
from idgen.pixels import load_image
from idgen.reference import embed_crop

MAX_PHOTOS = 12
MAX_PIXELS = 50_000_000  # of one photo: up to 1 GB while one is opened
DEEP = ("I", "F", "I;16", "I;16B", "I;16L")  # levels of more than 8 bits, which take four times as much
MAX_DEEP_PIXELS = MAX_PIXELS // 4
# A JPEG may be refined over and over, 36 bytes a time: 25 MB of that keep a machine busy for hours. libtiff
# refuses more than 100 scans for this reason (TIFFJPEG, "max_allowed_scan_number"); cameras make about 10.
MAX_SCANS = 100
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "HEIF")  # none that runs a program
SIGHT_PX = 1600  # longer side of what a detector is shown
WHO = {"the only one": "only", "the largest": "largest", "the left one": "left", "the right one": "right"}
SAME_PERSON = "1e-3"  # false match rate: from there on two photos pass for one person
SMALL_PX = 48
# Of 120 faces of photographs 1 % lie below 0.19; blurred by 2 of 112 pixels the median is 0.06, by 3 0.05.
BLURRED = 0.06
DARK, BRIGHT = 45, 215  # mean level of 255; 98 % of those faces lie between 71 and 161
ASIDE_DEGREES = 45
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: Rec. ITU-R BT.601


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """What was seen in one photo.

    Attributes:
        name: of the photo, for people.
        image: RGB, at most `SIGHT_PX` wide and high.
        faces: all that were found.
        chosen: the one that is meant; None where that is not clear.
        crop: of it, (3, 112, 112) in [0, 1].
        doubts: sentences.
        problem: why the photo cannot be used; None where it can.
        kept: whether it counts; of several photos those that look like somebody else do not.
    """

    name: str
    image: Image.Image | None = None
    faces: tuple[Face, ...] = ()
    chosen: Face | None = None
    crop: Tensor | None = None
    doubts: tuple[str, ...] = ()
    problem: IdgenError | None = None
    kept: bool = True


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody as the photos show them.

    Attributes:
        identities: encoder id -> identity with one face vector; the first encoder conditions.
        sights: of the photos.
    """

    identities: dict[str, Identity]
    sights: tuple[Sight, ...]

    @property
    def identity(self) -> Identity:
        """What conditions."""
        return next(iter(self.identities.values()))


def look_at_photos(paths: Sequence[Path], detector: Detector, *, who: str = "the only one") -> list[Sight]:
    """Find the face in each photo; what is wrong with one is kept beside it.

    Args:
        paths: of the photos.
        detector: finds faces.
        who: of several faces, one of `WHO`.

    Raises:
        ImageError: if there are none, or too many.
        ConfigError: for another word in ``who``.
    """
    if not paths:
        raise ImageError("there is no photo yet: add at least one of the person")
    if len(paths) > MAX_PHOTOS:
        raise ImageError(f"that is {len(paths)} photos; at most {MAX_PHOTOS} of a person are looked at")
    if who not in WHO:
        raise ConfigError(f"who is meant must be one of {', '.join(WHO)}; got {who!r}")
    names = [photo_name(number, path, len(paths)) for number, path in enumerate(paths, 1)]
    return [_look(path, name, detector, WHO[who]) for path, name in zip(paths, names, strict=True)]


def photo_name(number: int, path: Path, count: int) -> str:
    """What a photo is called: by its number and the file's own name, cut where that is long."""
    file = path.name if len(path.name) <= 32 else f"{path.name[:20]}…{path.name[-10:]}"
    return f"photo {number} ({file})" if count > 1 else f"the photo ({file})"


def open_photo(path: Path, name: str) -> Image.Image:
    """A photo, scaled down to `SIGHT_PX`.

    Raises:
        ImageError: if it is no picture of a usual format, or has too many pixels; names no path.
    """
    try:
        load_image_head(path, name)
        image = load_image(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), name)) from None
    image.thumbnail((SIGHT_PX, SIGHT_PX), Image.Resampling.BOX, reducing_gap=None)
    return image


def load_image_head(path: Path, name: str) -> None:
    """Refuse what a stranger may not have opened, before any pixel is.

    Raises:
        ImageError: if it is gone, for another format than `FORMATS`, or if it would take too much to open.
    """
    try:
        with Image.open(path) as opened:
            kind, mode, (width, height) = opened.format, opened.mode, opened.size
    except FileNotFoundError:
        raise ImageError(f"no such file: {name}. Uploads are deleted after an hour: add it again") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return  # HEIC, or what `load_image` explains better
    if kind not in FORMATS:
        raise ImageError(f"{name} is {kind}; give a JPEG, PNG, WebP or HEIC picture")
    limit = MAX_DEEP_PIXELS if mode in DEEP else MAX_PIXELS
    if width * height > limit:
        deep = " with more than 8 bits a level" if mode in DEEP else ""
        raise ImageError(
            f"{name} has {width} x {height} pixels{deep}; at most {limit / 1e6:.0f} megapixels are opened "
            "here. Scale it down first"
        )
    if kind in ("JPEG", "MPO") and path.read_bytes().count(b"\xff\xda") > MAX_SCANS:
        raise ImageError(f"{name} is a JPEG of more than {MAX_SCANS} scans; save it anew, as a usual JPEG")


def _look(path: Path, name: str, detector: Detector, which: str) -> Sight:
    try:
        image = open_photo(path, name)
    except ImageError as error:
        return Sight(name=name, problem=error)
    try:
        photo = find_faces(image, detector)
    except FaceNotFoundError:
        words = f"no face was found in {name}. Use a sharper photo that shows the face from the front"
        return Sight(name=name, image=image, problem=FaceNotFoundError(words))
    faces = tuple(photo.faces)
    try:
        chosen = choose_face(photo, which, source=name)
    except AmbiguousFaceError:
        words = f"{name} shows {len(faces)} faces. Say who is meant, or cut the others off"
        return Sight(name=name, image=image, faces=faces, problem=AmbiguousFaceError(words))
    except FaceNotFoundError as error:
        return Sight(name=name, image=image, faces=faces, problem=error)
    crop = face_crop(photo.image, chosen)
    doubts = doubts_about(chosen, crop, len(faces))
    return Sight(name=name, image=image, faces=faces, chosen=chosen, crop=crop, doubts=doubts)


def doubts_about(face: Face, crop: Tensor, num_faces: int) -> tuple[str, ...]:
    """What may spoil the likeness, a sentence each."""
    luma = 255 * torch.einsum("chw,c->hw", crop, torch.tensor(LUMA)).numpy()
    light, yaw = float(luma.mean()), float(pose_from_landmarks(face.landmarks[None])[0, 0])
    said = []
    if num_faces > 1:
        said.append(f"it shows {num_faces} people; the one in the frame is taken")
    if face.size_px < SMALL_PX:
        said.append(f"the face is only {face.size_px:.0f} pixels wide; a larger one keeps more of the person")
    elif sharpness(luma) < BLURRED:
        said.append("the face is blurred; a sharper photo keeps more of the person")
    if light < DARK:
        said.append("the face is very dark")
    elif light > BRIGHT:
        said.append("the face is very bright")
    if abs(yaw) > ASIDE_DEGREES:
        said.append("the head is turned far aside; a photo from the front helps")
    return tuple(said)


def sharpness(luma: np.ndarray) -> float:
    """Standard deviation of the Laplacian over that of the levels, of a crop (112, 112): 0 for no detail."""
    sides = luma[1:-1, :-2] + luma[1:-1, 2:] + luma[:-2, 1:-1] + luma[2:, 1:-1]
    return float((sides - 4 * luma[1:-1, 1:-1]).std() / max(float(luma.std()), 1.0))


def person_in(sights: Sequence[Sight], encoders: Sequence[FaceEncoder]) -> Person:
    """One person from the photos that can be used; those of somebody else are left out, as by `fuse`.

    Raises:
        IdgenError: the first photo's problem, where a photo has one.
    """
    for sight in sights:
        if sight.problem is not None:
            raise sight.problem
    crops = [sight.crop for sight in sights if sight.crop is not None]
    seen = [[embed_crop(crop, encoder) for crop in crops] for encoder in encoders]
    fused = fuse(seen[0], method="robust")
    kept = [photo.index for photo in fused.report if photo.kept]
    identities = {encoders[0].id: fused.identity}
    for encoder, of_encoder in zip(encoders[1:], seen[1:], strict=True):
        identities[encoder.id] = fuse([of_encoder[i] for i in kept]).identity
    limit = known_threshold(encoders[0])
    looked = [_compared(sight, photo, limit) for sight, photo in zip(sights, fused.report, strict=True)]
    return Person(identities=identities, sights=tuple(looked))


def _compared(sight: Sight, photo: PhotoReport, limit: float | None) -> Sight:
    alike = f"likeness to the others {photo.similarity:.2f}"
    if not photo.kept:
        hurts = f"it looks like somebody else ({alike}) and is left out"
        return replace(sight, kept=False, doubts=(*sight.doubts, hurts))
    if limit is not None and photo.similarity < limit:
        doubt = f"it hardly resembles the other photos ({alike}): is it the same person?"
        return replace(sight, doubts=(*sight.doubts, doubt))
    return sight


def known_threshold(encoder: FaceEncoder) -> float | None:
    """The cosine from which on an encoder takes two faces for one person; None where nobody measured it."""
    try:
        return threshold_at(encoder, SAME_PERSON)
    except ConfigError:
        return None


def eyes_for(identities: dict[str, Identity], encoders: Sequence[FaceEncoder]) -> dict[str, Eye]:
    """What measures pictures of a person: encoder id -> encoder, and the person as it sees them."""

    def look_with(encoder: FaceEncoder) -> Eye:
        person = identities[encoder.id].face_vector.value
        return Eye(encode=lambda crops: encoder.encode(crops).unit, reference=person)

    return {encoder.id: look_with(encoder) for encoder in encoders if encoder.id in identities}


def check_refusals(identities: dict[str, Identity], kit: Kit) -> None:
    """Refuse somebody who is on the list of people who refused; says nothing of who is on it.

    Raises:
        RefusedPersonError: if it is somebody on the list, or somebody very alike.
        IdgenError: if somebody on the list cannot be compared.
    """
    refused = Blocklist.load()
    for encoder in kit.encoders:
        if encoder.id not in identities:
            continue
        try:
            refused.check(identities[encoder.id], encoder=encoder, allow_unchecked=encoder is kit.judge)
        except RefusedPersonError:
            raise RefusedPersonError(
                "this is somebody who refused to be shown, or somebody very alike; no picture is made"
            ) from None
        except EncoderMismatchError:
            raise EncoderMismatchError(
                f"nothing can be made: people who refused cannot be compared by {encoder.id} yet. "
                "Whoever runs this page sees with `idgen blocklist show` what is missing"
            ) from None
