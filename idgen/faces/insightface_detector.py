"""The detector of an insightface pack, with its files checked before insightface looks at them."""

from pathlib import Path
from typing import Any

import numpy as np

from idgen.errors import ModelNotFoundError, WeightsError
from idgen.faces.detect import Face
from idgen.pixels import rgb_to_bgr

PACKS = Path("~/.insightface/models")
KNOWN_PACKS = ("antelopev2", "buffalo_l", "buffalo_m", "buffalo_s", "buffalo_sc")
PACK_URL = "https://github.com/deepinsight/insightface/releases/download/model-zoo"
MANIFEST = "manifest.json"
MIN_OUTPUTS = 5  # insightface takes an ONNX with this many outputs for a detector


def find_pack(pack: str | Path) -> Path | None:
    """The folder of a pack on this disk, or None.

    Args:
        pack: a folder, or the name of one in `~/.insightface/models`. Some archives hold the folder once more
            inside (`antelopev2/antelopev2`); the inner one is found.
    """
    for folder in (Path(pack).expanduser(), PACKS.expanduser() / pack):
        for candidate in (folder, folder / folder.name):
            if candidate.is_dir() and (any(candidate.glob("*.onnx")) or (candidate / MANIFEST).is_file()):
                return candidate
    return None


def missing_pack(pack: str | Path) -> ModelNotFoundError:
    """The error for a pack that is not on this disk; of those that insightface publishes it says where."""
    if str(pack) in KNOWN_PACKS:
        return ModelNotFoundError(
            f"the insightface pack {str(pack)!r} is not on this disk; unpack {PACK_URL}/{pack}.zip into "
            f"{PACKS.expanduser() / pack} (its licence: non-commercial research only)"
        )
    tried = [str(Path(pack).expanduser()), str(PACKS.expanduser() / pack)]
    return ModelNotFoundError(
        f"no insightface pack {str(pack)!r} on this disk (looked for ONNX files in {' and '.join(tried)}). "
        f"Published ones: {', '.join(KNOWN_PACKS)}"
    )


def _check_holds_detector(folder: Path) -> None:
    """Refuse a folder on which insightface would fail with an AssertionError that has no text."""
    import onnx

    if (folder / MANIFEST).is_file():
        return  # signed packs declare what they hold, and insightface checks them with messages of its own
    files = sorted(folder.glob("*.onnx"))
    for file in files:
        try:
            outputs = onnx.load(str(file), load_external_data=False).graph.output
        except Exception as error:  # protobuf's DecodeError is private to its implementation
            raise WeightsError(f"{file} is not an ONNX file: {error}. Is the download complete?") from None
        if len(outputs) >= MIN_OUTPUTS:
            return
    names = ", ".join(file.name for file in files)
    raise WeightsError(f"{folder} holds no detector (only {names}); a pack has one such as det_10g.onnx")


def _face_analysis() -> Any:  # noqa: ANN401 - insightface has no types
    try:
        from insightface.app import FaceAnalysis
    except ImportError:
        raise ModelNotFoundError("insightface is not installed: `pip install 'idgen[insightface]'`") from None
    return FaceAnalysis


class InsightfaceDetector:
    """``insightface.app.FaceAnalysis`` with its detector alone, at its default sizes."""

    licence = "insightface packs: non-commercial research only"

    def __init__(self, pack: str | Path, *, download: bool = False, score: float = 0.5) -> None:
        """Open a pack.

        Args:
            pack: a folder with ONNX files, or the name of a pack in `~/.insightface/models`.
            download: let insightface fetch a named pack that is missing. Nothing is fetched otherwise.
            score: faces below are dropped, in [0, 1].

        Raises:
            ModelNotFoundError: if the pack, or insightface, is missing.
            WeightsError: if the folder holds no detector or a broken file.
        """
        face_analysis = _face_analysis()
        folder = find_pack(pack)
        if folder is None and not download:
            raise missing_pack(pack)
        if folder is None:
            folder = _fetch(str(pack))
        _check_holds_detector(folder)
        self.name = f"insightface {folder.name}"
        self._app = face_analysis(
            name=str(folder), allowed_modules=["detection"], providers=["CPUExecutionProvider"]
        )
        self._app.prepare(ctx_id=-1, det_thresh=score)

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces of a picture (H, W, 3) uint8 RGB, best first."""
        boxes, landmarks = self._app.det_model.detect(rgb_to_bgr(image))
        if landmarks is None:
            raise WeightsError(
                f"{self.name} finds no landmarks, which aligning a face needs; choose another pack"
            )
        return [
            Face(box=box[:4].astype(np.float32), landmarks=points.astype(np.float32), score=float(box[4]))
            for box, points in zip(boxes, landmarks, strict=True)
        ]


def _fetch(name: str) -> Path:
    from insightface.utils.storage import ensure_available

    try:
        ensure_available("models", name, root=str(PACKS.expanduser().parent))
    except Exception as error:  # whatever the network does
        raise ModelNotFoundError(f"the insightface pack {name!r} could not be downloaded: {error}") from None
    folder = find_pack(name)
    if folder is None:
        raise ModelNotFoundError(
            f"the download of {name!r} holds no ONNX files; remove {PACKS / name} and try again"
        )
    return folder
