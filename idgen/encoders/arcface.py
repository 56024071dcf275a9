"""Face recognisers in ONNX as encoders: mini's own, insightface's packs, and any ArcFace-like file.

Shapes: B batch, D embedding width.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from torch import Tensor

from idgen import mini
from idgen.config import nearest
from idgen.encoders.base import (
    INSIGHTFACE_PACK,
    RESEARCH_ONLY,
    UNKNOWN_LICENCE,
    CropSpec,
    FaceVectors,
    encoders,
)
from idgen.encoders.onnx_torch import TorchEncoder, crop_spec, read_onnx, torch_encoder
from idgen.errors import ModelNotFoundError, WeightsError
from idgen.faces.insightface_detector import KNOWN_PACKS, PACKS, find_pack, missing_pack
from idgen.faces.onnx_session import open_session

MAX_BATCH = 64  # faces at once: an IResNet-100 holds about 20 MB of maps for each


class OnnxFaceEncoder:
    """A recogniser run by onnxruntime, the reference for its torch form.

    Args:
        path: the ONNX file.
        name: what an Identity calls it; the file's stem where it is not given.
        licence: what the weights may be used for.
        crop: what the network wants, where the file does not show it.
        num_threads: of onnxruntime; None as in `open_session`.

    Raises:
        ModelNotFoundError: if the file is missing.
        WeightsError: if it is not an ONNX file, or not a face recogniser.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        licence: str = UNKNOWN_LICENCE,
        crop: CropSpec | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        model = read_onnx(self.path, weights=False)
        try:
            self.crop = crop or crop_spec(model)
        except WeightsError as error:
            raise WeightsError(f"{self.path}: {error}") from None
        self.name = (name or self.path.stem).replace("@", "_")
        self.licence = licence
        self.sha256 = _sha256(self.path, model)
        self._session = open_session(self.path, num_threads=num_threads)
        self._input = self._session.get_inputs()[0]
        self.dim = self._measure_dim()

    @property
    def id(self) -> str:
        """``name@`` and the first twelve digits of the hash."""
        return f"{self.name}@{self.sha256[:12]}"

    def encode(self, crops: Tensor) -> FaceVectors:
        """Vectors of aligned crops.

        Args:
            crops: (B, 3, size, size) RGB in [0, 1]; B may be 0.

        Returns:
            Unit vectors (B, D) and their raw lengths (B,), float32 on the device of ``crops``.

        Raises:
            ValueError: if the crops have another shape, or are not in [0, 1].
        """
        self.crop.check(crops, self.name)
        pixel_values = self.crop.pixel_values(crops.detach().float().cpu()).numpy()
        raw = torch.from_numpy(self._run(pixel_values)).to(crops.device)
        norm = torch.linalg.vector_norm(raw, dim=1)
        return FaceVectors(unit=raw / norm.clamp_min(1e-12)[:, None], norm=norm)

    def torch_encoder(self) -> TorchEncoder:
        """The twin through which gradients flow to the pixels; equal to ``encode`` within 1e-5."""
        return torch_encoder(self.path, self.crop)

    def _run(self, pixel_values: np.ndarray) -> np.ndarray:
        """Raw vectors (B, D), in batches of a size that the file allows."""
        declared = self._input.shape[0]
        step = declared if isinstance(declared, int) else MAX_BATCH
        parts = [np.zeros((0, getattr(self, "dim", 0)), dtype=np.float32)]
        for start in range(0, len(pixel_values), step):
            part = pixel_values[start : start + step]
            missing = step - len(part) if isinstance(declared, int) else 0
            padded = np.pad(part, [(0, missing), (0, 0), (0, 0), (0, 0)])
            output = np.asarray(self._session.run(None, {self._input.name: padded})[0], dtype=np.float32)
            parts.append(output.reshape(len(padded), -1)[: len(part)])
        return np.concatenate(parts[1:] or parts)

    def _measure_dim(self) -> int:
        """D, by one run: files often do not declare it."""
        outputs = self._session.get_outputs()
        if len(outputs) != 1:
            raise WeightsError(
                f"{self.path} is not a face recogniser: it has {len(outputs)} outputs, not one"
            )
        black = np.zeros((1, 3, self.crop.size_px, self.crop.size_px), dtype=np.float32)
        try:
            return self._run(black).shape[1]
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise WeightsError(
                f"{self.path} does not run on a face crop: {str(error).splitlines()[0]}"
            ) from None


def _sha256(path: Path, model: onnx.ModelProto) -> str:
    """Hash of the file, followed by the files it keeps weights in, if any: other weights, other encoder."""
    tensors = [t for t in model.graph.initializer if uses_external_data(t)]
    files = [path, *(path.parent / name for name in sorted({ExternalDataInfo(t).location for t in tensors}))]
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            raise WeightsError(f"{path} keeps its weights in {file.name}, which is not beside it")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def find_recogniser(folder: Path) -> Path:
    """The one file of a folder that reads face crops and gives vectors.

    Raises:
        ModelNotFoundError: if the folder holds none; what it holds is listed.
        WeightsError: if it holds several.
    """
    files = sorted(folder.glob("*.onnx"))
    found = [file for file in files if _is_recogniser(file)]
    if not found:
        names = ", ".join(file.name for file in files) or "no ONNX file at all"
        raise ModelNotFoundError(
            f"{folder} holds no face recogniser ({names}); a pack has one such as w600k_r50.onnx"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise WeightsError(f"{folder} holds several face recognisers ({names}): give the path of one of them")
    return found[0]


def _is_recogniser(path: Path) -> bool:
    model = read_onnx(path, weights=False)
    try:
        crop_spec(model)
    except WeightsError:
        return False
    axes = model.graph.output[0].type.tensor_type.shape.dim
    return len(model.graph.output) == 1 and len(axes) == 2


def mini_encoder() -> OnnxFaceEncoder:
    """The embedded recogniser."""
    return OnnxFaceEncoder(mini.FACES / "rec_mini.onnx", name="mini", licence=RESEARCH_ONLY)


def judge_encoder() -> OnnxFaceEncoder:
    """The embedded second eye: learned from the names of people alone, it has never conditioned anything."""
    return OnnxFaceEncoder(mini.JUDGE, name="judge", licence=RESEARCH_ONLY)


def insightface_encoder(pack: str | Path) -> OnnxFaceEncoder:
    """The recogniser of an insightface pack on this disk; nothing is downloaded.

    Args:
        pack: a folder, or the name of one in ``~/.insightface/models``, also nested as ``antelopev2`` is.

    Raises:
        ModelNotFoundError: if there is no such pack, or it holds no recogniser.
        WeightsError: if a file of it is damaged.
    """
    folder = find_pack(pack)
    if folder is None:
        raise _no_such_encoder(str(pack))
    return OnnxFaceEncoder(find_recogniser(folder), name=folder.name, licence=INSIGHTFACE_PACK)


def onnx_encoder(path: str | Path, crop: CropSpec | None = None) -> OnnxFaceEncoder:
    """Any ArcFace-like ONNX file."""
    path = Path(path).expanduser()
    in_packs = PACKS.expanduser() in path.resolve().parents
    return OnnxFaceEncoder(path, crop=crop, licence=INSIGHTFACE_PACK if in_packs else UNKNOWN_LICENCE)


encoders.register("mini")(mini_encoder)
encoders.register("judge")(judge_encoder)
encoders.register("insightface")(insightface_encoder)
encoders.register("onnx")(onnx_encoder)


def load_encoder(spec: str) -> OnnxFaceEncoder:
    """The encoder a user means.

    Args:
        spec: "mini", "judge" (the embedded second eye), the path of an ONNX file, a folder that holds one
            recogniser, or the name of an
            insightface pack in ``~/.insightface/models``.

    Raises:
        ModelNotFoundError: if there is no such thing on this disk; the message says how to get a pack.
        WeightsError: if what is there is no face recogniser.
    """
    path = Path(spec).expanduser()
    if spec == "mini" or path.resolve() in (mini.FACES, mini.FACES / "rec_mini.onnx"):
        return mini_encoder()
    if spec == "judge" or path.resolve() in (mini.JUDGE.parent, mini.JUDGE):
        return judge_encoder()
    if path.is_file() or path.suffix == ".onnx":
        return onnx_encoder(path)
    in_packs = PACKS.expanduser() in path.resolve().parents
    if path.is_dir() and not in_packs:
        folder = find_pack(path) or path
        return OnnxFaceEncoder(find_recogniser(folder), name=folder.name)
    return insightface_encoder(spec)


def load_encoders(specs: Iterable[str]) -> list[OnnxFaceEncoder]:
    """The two embedded ones, mini and its judge, and those named; as `told_apart`.

    Raises:
        ModelNotFoundError: as `load_encoder`.
        WeightsError: as `load_encoder`.
    """
    return told_apart(map(load_encoder, ("mini", "judge", *specs)))


def told_apart(encoders: Iterable[OnnxFaceEncoder]) -> list[OnnxFaceEncoder]:
    """Each once, under different names: equal ones are led by the folders in which the files differ.

    So ``runs/a/best.onnx`` and ``runs/b/best.onnx`` become ``a-best`` and ``b-best``.
    """
    once = list({encoder.id: encoder for encoder in encoders}.values())
    for name, times in Counter(encoder.name for encoder in once).items():
        if times > 1:
            alike = [encoder for encoder in once if encoder.name == name]
            for encoder, longer in zip(alike, _short_names([e.path for e in alike]), strict=True):
                encoder.name = longer
    return once


def _short_names(paths: list[Path]) -> list[str]:
    """The shortest ends of different paths that are all different."""
    places = [path.resolve().with_suffix("") for path in paths]
    parts = [place.relative_to(place.anchor).parts for place in places]
    names: list[str] = []
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _no_such_encoder(spec: str) -> ModelNotFoundError:
    """What a name that leads nowhere may have meant, and how to get it."""
    root = PACKS.expanduser()
    there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if spec in KNOWN_PACKS:
        return missing_pack(spec)
    near = nearest(spec, ["mini", "judge", *there, *KNOWN_PACKS])
    return ModelNotFoundError(
        f"no encoder {spec!r}{near} It is neither 'mini' nor 'judge', no file, no folder, no pack in {root} "
        f"(there: {', '.join(there) or 'none'})"
    )
