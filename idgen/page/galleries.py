"""Photos of real people whom new ones keep away from: read once, held in memory alone.

Shapes: M photos with a face, D width of a face vector.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from idgen.encoders.base import FaceEncoder
from idgen.encoders.gallery import embed_pictures
from idgen.errors import FaceNotFoundError
from idgen.faces.detect import Detector
from idgen.opening import Kit
from idgen.synth.export.reading import open_labelled


def real_people(
    paths: Sequence[Path], detector: Detector, encoders: Sequence[FaceEncoder]
) -> list[dict[str, np.ndarray]]:
    """The faces of galleries on this disk: for each, encoder id -> (M, D) of unit length.

    Raises:
        FaceNotFoundError: if a gallery shows no face at all.
        IdgenError: if one cannot be read.
    """
    found = []
    for path in paths:
        pictures = open_labelled(path).pictures
        gallery = embed_pictures(pictures, detector, encoders, label=f"looking at {path.name}")
        if not gallery.found.any():
            raise FaceNotFoundError(f"no face found in the {len(pictures)} pictures of the gallery {path}")
        found.append({name: vectors[gallery.found] for name, vectors in gallery.vectors.items()})
    return found


class Galleries:
    """Galleries on this disk, as the encoders of whichever model is chosen see them.

    Args:
        paths: of the galleries, in any format that `open_labelled` knows.
    """

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        self.paths = tuple(paths)
        self._seen: dict[tuple[str, ...], list[dict[str, np.ndarray]]] = {}
        self._lock = threading.Lock()

    def seen_by(self, kit: Kit) -> list[dict[str, np.ndarray]]:
        """For each gallery encoder id -> (M, D), by all encoders of a kit; looked at the first time.

        Raises:
            IdgenError: as `real_people`.
        """
        key = tuple(encoder.id for encoder in kit.encoders)
        with self._lock:
            if key not in self._seen:
                self._seen[key] = real_people(self.paths, kit.detector, kit.encoders)
            return self._seen[key]

    def vectors(self, kit: Kit) -> list[np.ndarray]:
        """For each gallery (M, D) by the encoder that conditions."""
        return [gallery[kit.encoder.id] for gallery in self.seen_by(kit)]
