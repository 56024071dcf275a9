"""What a model draws while it trains: a sheet of samples, and how alike they are.

Shapes: D width of a face vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image

from idgen.blocklist import Blocklist
from idgen.data.pictures import Picture
from idgen.encoders.base import FaceEncoder
from idgen.encoders.gallery import embed_pictures
from idgen.errors import RefusedPersonError
from idgen.faces.detect import Detector
from idgen.identity import Identity
from idgen.metrics.consistency import Eye, Likeness, measure_likeness
from idgen.metrics.diversity import picture_diversity
from idgen.pipeline import IDPipeline, IDPipelineXL
from idgen.pixels import to_tensor
from idgen.report.sheet import Tile, contact_sheet
from idgen.storage import replacing


@dataclass(frozen=True, kw_only=True)
class Sitter:
    """One sample: what is asked for, and whom it should show.

    Attributes:
        prompt: what is asked for.
        references: unit face vector (D,) of the person by each judge.
        identity: that conditions the picture; None where the model itself knows the person.
    """

    prompt: str
    references: Sequence[np.ndarray]
    identity: Identity | None = None


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Who finds the faces and compares them.

    Attributes:
        detector: finds the faces.
        encoders: the first trains with the model, the second, where there is one, has no part in it.
    """

    detector: Detector
    encoders: Sequence[FaceEncoder]

    @classmethod
    def of(cls, detector: Detector, encoder: FaceEncoder, judge: FaceEncoder) -> Self:
        """The judge only counts where it is another network than the encoder."""
        others = [judge] if judge.sha256 != encoder.sha256 else []
        return cls(detector=detector, encoders=[encoder, *others])

    def mean_vectors(self, photos: Sequence[Picture], *, aligned: bool) -> list[np.ndarray] | None:
        """The person on these photos as each encoder sees them: (D,) of unit length; None without a face."""
        gallery = embed_pictures(
            photos, self.detector, self.encoders, aligned=aligned, label="looking for the judge"
        )
        if not gallery.found.any():
            return None
        means = [gallery.vectors[encoder.id][gallery.found].mean(axis=0) for encoder in self.encoders]
        return [mean / np.linalg.norm(mean) for mean in means]


def may_be_drawn(person: Identity, encoder: FaceEncoder) -> bool:
    """Whether somebody is not on the list of people who refused, as far as they can be compared."""
    try:
        Blocklist.load().check(person, encoder=encoder, allow_unchecked=True)
    except RefusedPersonError:
        return False
    return True


@torch.no_grad()
def draw_samples(
    pipe: IDPipeline | IDPipelineXL,
    sitters: Sequence[Sitter],
    judges: Judges,
    *,
    seed: int,
    path: Path,
    title: str,
    photo: Image.Image | None = None,
) -> dict[str, float]:
    """Draw one picture a sitter, write the sheet, say how alike they are.

    Args:
        pipe: with the weights as they are now.
        sitters: one a picture.
        judges: who compares.
        seed: of the first picture.
        path: of the sheet.
        title: of the sheet.
        photo: of the person, to stand beside the samples.

    Returns:
        Mean cosine to the person by each encoder, as ``similarity/<name>``, 0 where no face was found;
        ``face_found``, their share; ``diversity``, see `picture_diversity`.
    """
    seen: list[Likeness] = []
    tiles, images = [], []
    for i, sitter in enumerate(sitters):
        image = pipe(sitter.prompt, identity=sitter.identity, seed=seed + i, blocklist=Blocklist()).images[0]
        images.append(to_tensor(image))
        eyes = {
            encoder.id: Eye(encode=lambda crops, e=encoder: e.encode(crops).unit, reference=vector)
            for encoder, vector in zip(judges.encoders, sitter.references, strict=True)
        }
        seen.append(measure_likeness(image, judges.detector, eyes))
        tiles.append(_tile(image, sitter, seen[-1], judges))
    roles = ("which trains with the model (related)", "which only measures")
    notes = [
        f"{encoder.name}: cosine to the person by {encoder.id}, {role}"
        for encoder, role in zip(judges.encoders, roles, strict=False)
    ]
    who = None if photo is None else Tile(image=photo, title="a photo")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        contact_sheet(tiles, reference=who, title=title, notes=notes).save(file, "PNG")
    means = {
        f"similarity/{encoder.name}": float(np.mean([likeness.similarity[encoder.id] for likeness in seen]))
        for encoder in judges.encoders
    }
    found = float(np.mean([likeness.face_found for likeness in seen]))
    return {**means, "face_found": found, "diversity": picture_diversity(torch.stack(images))}


def _tile(image: Image.Image, sitter: Sitter, seen: Likeness, judges: Judges) -> Tile:
    if not seen.face_found:
        return Tile(image=image, title=sitter.prompt, lines=("no face found",), is_bad=True)
    lines = tuple(f"{encoder.name} {seen.similarity[encoder.id]:.2f}" for encoder in judges.encoders)
    return Tile(image=image, title=sitter.prompt, lines=lines)
