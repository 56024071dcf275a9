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

from idgen.data.pictures import Picture
from idgen.encoders.base import FaceEncoder
from idgen.encoders.gallery import embed_pictures
from idgen.faces.detect import Detector
from idgen.metrics.consistency import Eye, measure_likeness
from idgen.pipeline import IDPipeline, IDPipelineXL
from idgen.report.sheet import Tile, contact_sheet
from idgen.storage import replacing


@dataclass(frozen=True, kw_only=True)
class Sitter:
    """Whom the samples should show, and who judges.

    Attributes:
        detector: finds the faces.
        encoders: the first trains with the model, the second has no part in it.
        references: unit face vector (D,) of the person by each: the mean over the photos.
        photo: to show beside the samples.
    """

    detector: Detector
    encoders: Sequence[FaceEncoder]
    references: Sequence[np.ndarray]
    photo: Image.Image | None = None

    @classmethod
    def of(
        cls, photos: Sequence[Picture], detector: Detector, encoders: Sequence[FaceEncoder],
        *, aligned: bool, shown: Image.Image | None,
    ) -> Self:  # fmt: skip
        """The person on these photos, as each encoder sees them."""
        gallery = embed_pictures(photos, detector, encoders, aligned=aligned, label="looking for the judge")
        means = [gallery.vectors[encoder.id][gallery.found].mean(axis=0) for encoder in encoders]
        return cls(
            detector=detector, encoders=encoders, photo=shown,
            references=[mean / np.linalg.norm(mean) for mean in means],
        )  # fmt: skip


@torch.no_grad()
def draw_samples(
    pipe: IDPipeline | IDPipelineXL,
    sitter: Sitter,
    prompts: Sequence[str],
    *,
    seed: int,
    path: Path,
    title: str,
) -> dict[str, float]:
    """Draw one picture a prompt, write the sheet, say how alike they are.

    Returns:
        Mean cosine to the person by each encoder, as ``similarity/<name>``; 0 where no face was found, and
        ``face_found``, their share.
    """
    images = [pipe(prompt, seed=seed + i).images[0] for i, prompt in enumerate(prompts)]
    eyes = {
        encoder.id: Eye(encode=lambda crops, e=encoder: e.encode(crops).unit, reference=vector)
        for encoder, vector in zip(sitter.encoders, sitter.references, strict=True)
    }
    likeness = [measure_likeness(image, sitter.detector, eyes) for image in images]
    tiles = [
        Tile(image=image, title=prompt, is_bad=not seen.face_found,
             lines=_lines(seen.similarity, sitter) if seen.face_found else ("no face found",))
        for image, prompt, seen in zip(images, prompts, likeness, strict=True)
    ]  # fmt: skip
    roles = ("which trains with the model (related)", "which only measures")
    notes = [
        f"{encoder.name}: cosine to the photos by {encoder.id}, {role}"
        for encoder, role in zip(sitter.encoders, roles, strict=False)
    ]
    who = None if sitter.photo is None else Tile(image=sitter.photo, title="a photo")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        contact_sheet(tiles, reference=who, title=title, notes=notes).save(file, "PNG")
    means = {f"similarity/{e.name}": float(np.mean([seen.similarity[e.id] for seen in likeness]))
             for e in sitter.encoders}  # fmt: skip
    return {**means, "face_found": float(np.mean([seen.face_found for seen in likeness]))}


def _lines(similarity: dict[str, float], sitter: Sitter) -> tuple[str, ...]:
    return tuple(f"{encoder.name} {similarity[encoder.id]:.2f}" for encoder in sitter.encoders)
