"""Photos or saved identities of one person, as one identity: what conditions and what measures.

Shapes: B photos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from idgen.encoders.base import FaceEncoder
from idgen.faces.detect import Detector
from idgen.faces.photo import read_face
from idgen.identity import Feature, Identity, PhotoReport, fuse
from idgen.metrics.consistency import Eye

SAVED = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A person, as seen by each encoder.

    Attributes:
        identities: encoder id -> identity with one face vector, by this encoder.
        report: what fusing saw in each photo, in the order given; decided by the first encoder.
        crop: aligned crop (3, 112, 112) in [0, 1] of the photo most like the others; None without photos.
    """

    identities: dict[str, Identity]
    report: tuple[PhotoReport, ...]
    crop: Tensor | None

    def eyes(self, encoders: Sequence[FaceEncoder]) -> dict[str, Eye]:
        """These encoders, by id, with the person as each of them sees it: what measures pictures."""

        def look_with(encoder: FaceEncoder) -> Eye:
            person = self.identities[encoder.id].face_vector.value
            return Eye(encode=lambda crops: encoder.encode(crops).unit, reference=person)

        return {encoder.id: look_with(encoder) for encoder in encoders}


def read_reference(
    paths: Sequence[Path],
    detector: Detector,
    encoders: Sequence[FaceEncoder],
    *,
    which: str = "only",
) -> Reference:
    """One person from photos, from identities that `idgen embed` saved, or from both.

    Photos that look like somebody else are left out (`idgen.identity.fuse`, robust). The first encoder says
    which; the others follow it, so that all describe the same photos.

    Args:
        paths: at least one; files that end in `.safetensors` are saved identities.
        detector: finds the faces.
        encoders: the first conditions, further ones measure.
        which: the face meant in photos that show several; see `idgen.faces.photo.choose_face`.

    Raises:
        ImageError: if a file is no picture that can be used.
        FaceError: if a photo shows no face, only small ones, or several and ``which`` does not say which.
        IdentityError: if a saved identity cannot be used.
        EncoderMismatchError: if a saved identity was not made by these encoders.
    """
    crops = [None if path.suffix == SAVED else read_face(path, detector, which)[0] for path in paths]
    seen = [[_see(path, crop, e) for path, crop in zip(paths, crops, strict=True)] for e in encoders]
    fused = fuse(seen[0], method="robust")
    kept = [photo.index for photo in fused.report if photo.kept]
    identities = {encoders[0].id: fused.identity}
    for encoder, of_encoder in zip(encoders[1:], seen[1:], strict=True):
        identities[encoder.id] = fuse([of_encoder[i] for i in kept]).identity
    return Reference(identities=identities, report=fused.report, crop=_most_typical(crops, fused.report))


def _see(path: Path, crop: Tensor | None, encoder: FaceEncoder) -> Identity:
    if crop is None:
        return Identity((Identity.load(path).feature("face_vector", encoder.id),))
    return embed_crop(crop, encoder)


def embed_crop(crop: Tensor, encoder: FaceEncoder) -> Identity:
    """The identity of one aligned face crop (3, 112, 112) in [0, 1]."""
    with torch.no_grad():
        vectors = encoder.encode(crop[None])
    value = vectors.unit[0].cpu().numpy()
    return Identity((Feature(encoder.id, "face_vector", value, float(vectors.norm[0])),))


def _most_typical(crops: Sequence[Tensor | None], report: Sequence[PhotoReport]) -> Tensor | None:
    shown = [(photo.similarity, crop) for photo, crop in zip(report, crops, strict=True) if crop is not None]
    return max(shown, key=lambda pair: pair[0])[1] if shown else None
