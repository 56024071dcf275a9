"""What an edit needs, opened together, and what it does to a person.

Shapes: L layers of the generator, C width of a code.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from idgen import mini
from idgen.adapters.checkpoint import AdapterFile, read_adapter
from idgen.adapters.wplus import WPlusAdapter
from idgen.editing.directions import Directions, Edit, parse_edits, read_directions
from idgen.encoders.base import FaceEncoder
from idgen.encoders.wplus import KIND, WPlusEncoder, load_wplus
from idgen.errors import ConfigError, EncoderMismatchError, IdentityError
from idgen.faces.detect import Detector
from idgen.faces.photo import read_face
from idgen.identity import Feature, Identity
from idgen.metrics.consistency import find_crop
from idgen.pixels import to_pil
from idgen.reference import SAVED


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What an edit leaves of the person, in the generator's own pictures.

    Attributes:
        edit: as it is written, "smile=+2".
        similarity: encoder id -> cosine of the edited face to the unedited one; 0 where no face is seen.
    """

    edit: str
    similarity: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Editor:
    """The encoder of codes, the adapter that reads them, and the edits asked for.

    Attributes:
        encoder: with its generator.
        adapter: as read from its file; it is on no model yet.
        directions: by name; none where nothing is to be edited.
        directions_sha256: of their file, or of files that hold none.
        edits: how far along which.
    """

    encoder: WPlusEncoder
    adapter: AdapterFile[WPlusAdapter]
    directions: Directions
    directions_sha256: str
    edits: tuple[Edit, ...]

    def read(self, paths: Sequence[Path], detector: Detector, *, which: str = "only") -> Feature:
        """The code of a person, as `read_code` reads it."""
        return read_code(self.encoder, paths, detector, which=which)

    def edited(self, code: Feature) -> Feature:
        """The code with all edits."""
        return self.directions.moved(code, self.edits) if self.edits else code

    def effects(self, code: Feature, detector: Detector, encoders: Sequence[FaceEncoder]) -> list[Effect]:
        """How alike the edited and the unedited person are: for each edit, and for all of several.

        Both are the generator's pictures, so that nothing but the edit lies between them.

        Args:
            code: unedited.
            detector: finds the face in these pictures.
            encoders: who compare.
        """
        together = [self.edits] if len(self.edits) > 1 else []
        before = self._seen(code, detector, encoders)
        found = []
        for edits in [*((edit,) for edit in self.edits), *together]:
            after = self._seen(self.directions.moved(code, edits), detector, encoders)
            similarity = {name: float(np.clip(after[name] @ before[name], -1, 1)) for name in before}
            found.append(Effect(edit=",".join(str(edit) for edit in edits), similarity=similarity))
        return found

    def _seen(
        self, code: Feature, detector: Detector, encoders: Sequence[FaceEncoder]
    ) -> dict[str, np.ndarray]:
        """Unit face vectors of the generator's picture, zero where no face is seen."""
        crop = find_crop(to_pil(self.encoder.decode(code)[0]), detector)
        if crop is None:
            return {encoder.id: np.zeros(encoder.dim, np.float32) for encoder in encoders}
        return {encoder.id: encoder.encode(crop[None]).unit[0].cpu().numpy() for encoder in encoders}


def read_code(
    encoder: WPlusEncoder, paths: Sequence[Path], detector: Detector, *, which: str = "only"
) -> Feature:
    """The code of a person: the mean over photos and saved identities.

    Args:
        encoder: of codes.
        paths: at least one; files that end in `.safetensors` are saved identities.
        detector: finds the faces.
        which: the face meant in photos that show several.

    Raises:
        ImageError: if a file is no picture that can be used.
        FaceError: if a photo shows no face, or several and ``which`` does not say which.
        IdentityError: if a saved identity cannot be used, or holds no code.
    """

    def value(path: Path) -> np.ndarray:
        if path.suffix == SAVED:
            identity = Identity.load(path)
            if not any(f.kind == KIND and f.encoder == encoder.id for f in identity.features):
                raise IdentityError(f"{path} holds no W+ code of {encoder.id}; give a photo in its place")
            return identity.feature(KIND, encoder.id).value
        _, face, photo = read_face(path, detector, which)
        return encoder.encode(encoder.cut(photo.image, face.landmarks)[None])[0].numpy()

    return Feature(encoder.id, KIND, np.mean([value(path) for path in paths], axis=0))


def open_editor(
    model: Path,
    *,
    edit: str | None = None,
    wplus: str | None = None,
    adapter: Path | None = None,
    directions: Path | None = None,
) -> Editor:
    """Open what is named, and what comes with mini where nothing is.

    Args:
        model: folder of the model that makes the pictures.
        edit: as for `parse_edits`; nothing is edited where None.
        wplus: encoder of codes, as for `load_wplus`.
        adapter: W+ adapter file.
        directions: file of directions.

    Raises:
        ConfigError: if another model than mini is to be edited with and a file is not named, an edit is
            written in another way, or its direction does not exist (the nearest name is shown).
        ModelNotFoundError: if a file is not there.
        WeightsError: if one is damaged, holds code, or is something else.
        EncoderMismatchError: if adapter, directions and encoder do not belong together.
    """
    edits = () if edit is None else parse_edits(edit)
    named = {"--wplus": wplus, "--wplus-adapter": adapter, "--directions": directions if edits else "none"}
    if model != mini.BASE and (missing := [option for option, value in named.items() if value is None]):
        raise ConfigError(
            f"{model.name} brings no W+ codes; name what reads and edits them ({', '.join(missing)})"
        )
    encoder = load_wplus(wplus or "mini")
    file = read_adapter(adapter or mini.WPLUS_ADAPTER, encoder=encoder.id if adapter else None)
    if not isinstance(file.adapter, WPlusAdapter):
        raise EncoderMismatchError(
            f"{file.path.name} reads face vectors, no W+ codes; give it with --adapter, and a W+ adapter here"
        )
    if not file.reads(encoder.id):
        raise EncoderMismatchError(
            f"{file.path.name} reads W+ codes of {file.card.encoder}, not of {encoder.id}"
        )
    path = directions or mini.DIRECTIONS
    found = read_directions(path) if edits else Directions(())
    found.shift(edits, num_layers=encoder.num_layers, style_dim=encoder.style_dim, encoder=encoder.id)
    return Editor(
        encoder=encoder, adapter=cast("AdapterFile[WPlusAdapter]", file), directions=found, edits=edits,
        directions_sha256=hashlib.sha256(path.read_bytes() if edits else b"").hexdigest(),
    )  # fmt: skip
