"""What a command names, opened: the model, its adapter, the encoder this was trained on, detector, device."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from diffusers.utils.peft_utils import set_weights_and_activate_adapters
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

from idgen import mini
from idgen.adapters.checkpoint import AdapterFile, read_face_adapter
from idgen.encoders.arcface import load_encoder
from idgen.encoders.base import FaceEncoder
from idgen.errors import ConfigError, EncoderMismatchError, ModelNotFoundError, WeightsError
from idgen.faces.detect import Detector, load_detector
from idgen.identity import Identity
from idgen.pipeline import ADAPTER_FOLDER, IDPipeline, IDPipelineXL, open_pipeline
from idgen.reference import SAVED

PRECISIONS = ("auto", "float32", "float16", "bfloat16")

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def model_folder(model: str) -> Path:
    """Where a model lies: mini, a folder, or the Hub's cache, into which it is fetched if need be.

    Raises:
        ModelNotFoundError: if it is none of these, or is not in the cache and cannot be fetched.
    """
    folder = mini.BASE if model == "mini" else Path(model).expanduser()
    if not folder.exists() and _HUB_ID.fullmatch(model):
        folder = _fetch(model)
    if not (folder / DiffusionPipeline.config_name).is_file():
        if model == "mini":
            raise ModelNotFoundError(f"the embedded model is missing from {folder}; install idgen again")
        raise ModelNotFoundError(
            f"no model {model!r}: {folder} is no folder in the layout of diffusers (with model_index.json); "
            "known are mini, such folders, and models of the Hugging Face hub as OWNER/NAME"
        )
    return folder


def _fetch(model: str) -> Path:
    try:
        return Path(DiffusionPipeline.download(model))
    except OSError:  # also what huggingface_hub raises for a model that does not exist
        raise ModelNotFoundError(
            f"the model {model} is not on this disk, and the Hugging Face hub cannot be reached or has no "
            f"such model; where there is a network, `hf download {model}` gets it"
        ) from None


def hide_loading_bars() -> None:
    """Keep diffusers and transformers from drawing progress bars while they load; for programs."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What sees faces, and the adapter that injects them.

    Attributes:
        detector: finds faces in photos and in generated pictures.
        encoder: describes the person, for the adapter.
        judge: measures similarity only, never conditions; None where it cannot measure.
        adapter: as read from its file; it is on no model yet.
    """

    detector: Detector
    encoder: FaceEncoder
    judge: FaceEncoder | None
    adapter: AdapterFile

    @property
    def encoders(self) -> list[FaceEncoder]:
        """The encoder that conditions, then the one that only measures."""
        return [self.encoder] if self.judge is None else [self.encoder, self.judge]


def open_kit(
    folder: Path,
    *,
    adapter: Path | None = None,
    encoder: str | None = None,
    judge: str | None = None,
    detector: str = "mini",
    faces: Sequence[Path] = (),
) -> Kit:
    """Detector, adapter and encoders that go with a model.

    Args:
        folder: of the model.
        adapter: IP-Adapter FaceID file; if not given, the one that came with the model.
        encoder: as in `load_encoder`; if not given, the one that the adapter's card names.
        judge: as in `load_encoder`, another one than the encoder; if not given, the embedded one, or none
            where a saved identity among ``faces`` holds no vector of it.
        detector: as in `load_detector`.
        faces: who is meant: photos, or identities that `idgen embed` saved.

    Raises:
        ConfigError: if the model brings no adapter, or judge and encoder are the same.
        ModelNotFoundError: if one of them is not on this disk.
        WeightsError: if a file is damaged, holds code or something else.
        EncoderMismatchError: if the adapter was trained on another encoder; both are named.
    """
    path = adapter or _own_adapter(folder)
    if encoder is None:
        file = read_face_adapter(path)
        eye = _encoder_of(file)
    else:
        eye = load_encoder(encoder)
        file = read_face_adapter(path, encoder=eye.id)
    if not file.reads(eye.id):
        raise EncoderMismatchError(f"{path.name} reads face vectors of {file.card.encoder}, not of {eye.id}")
    other = load_encoder(judge or "judge")
    if judge is None and (other.sha256 == eye.sha256 or not _all_know(faces, other.id)):
        other = None
    elif other.sha256 == eye.sha256:
        raise ConfigError(f"the judge must be another encoder than {eye.id}, which conditions the pictures")
    return Kit(detector=load_detector(detector), encoder=eye, judge=other, adapter=file)


def _all_know(faces: Sequence[Path], encoder_id: str) -> bool:
    """Whether every saved identity among these files holds a vector of the encoder; photos always can."""
    saved = [Identity.load(path) for path in faces if path.suffix == SAVED]
    return all(any(feature.encoder == encoder_id for feature in identity.features) for identity in saved)


def _own_adapter(folder: Path) -> Path:
    if folder == mini.BASE:
        return mini.ADAPTER
    if (folder / ADAPTER_FOLDER).is_dir():
        return folder / ADAPTER_FOLDER
    raise ConfigError(
        f"no adapter: {folder.name} knows no faces without an IP-Adapter FaceID file (--adapter FILE)"
    )


def _encoder_of(file: AdapterFile) -> FaceEncoder:
    """The encoder that an adapter's card names, if it is mini or an insightface pack on this disk."""
    try:
        return load_encoder(file.card.encoder.partition("@")[0])
    except ModelNotFoundError:
        raise ModelNotFoundError(
            f"{file.path.name} reads face vectors of {file.card.encoder}, which is not on this disk under "
            "that name; give its file (--encoder FILE.onnx)"
        ) from None


def open_model(
    folder: Path, adapter: AdapterFile, *, device: str = "auto", precision: str = "auto"
) -> IDPipeline | IDPipelineXL:
    """The model with the adapter on it, on its device.

    Args:
        folder: of a model in the layout of diffusers; its kind (SD 1.x, 2.x or XL) is read from it.
        adapter: must fit the model.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: of the weights; ``auto`` is float16 on CUDA but for mini, else float32.

    Raises:
        ConfigError: if this machine has no such device, or the model is of another kind.
        WeightsError: if the adapter is for another base; both widths are named.
        ModelNotFoundError: if the model is incomplete.
    """
    device = choose_device(device)
    if precision == "auto":  # half the memory; mini is small, and CPUs compute float32 best
        precision = "float16" if device.startswith("cuda") and folder != mini.BASE else "float32"
    with warnings.catch_warnings():
        # The new name `dtype` is unknown to older releases; other warnings are about the model's own files.
        warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
        pipe = open_pipeline(folder, torch_dtype=getattr(torch, precision))
    pipe.load_adapter(adapter)
    return pipe.to(device)


def find_lora(path: Path) -> Path:
    """The file of a LoRA: itself, or the one that `idgen train lora` leaves in its folder.

    Raises:
        ModelNotFoundError: if there is none.
        WeightsError: if it is no safetensors file.
    """
    file = path / LORA_WEIGHT_NAME_SAFE if path.is_dir() else path
    if not file.is_file():
        raise ModelNotFoundError(f"no LoRA: there is no file {file}")
    if file.suffix != ".safetensors":
        raise WeightsError(
            f"{file.name} is no safetensors file; other formats can hold code, and no LoRA is read from them"
        )
    return file


def put_lora(pipe: IDPipeline | IDPipelineXL, path: Path, scale: float = 1.0) -> None:
    """Put a LoRA on a model that may have an adapter already.

    Args:
        pipe: the model.
        path: as in `find_lora`; with the names of diffusers, peft or kohya.
        scale: what its update of the weights is multiplied by.

    Raises:
        ModelNotFoundError: if there is none.
        WeightsError: if the file is damaged, holds no LoRA, or one for another base.
    """
    file = find_lora(path)
    try:
        stored = load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is damaged: {error}") from None
    if not any("lora" in name for name in stored):
        raise WeightsError(f"{file} holds no LoRA; adapters are given with --adapter")
    if not all(value.isfinite().all() for value in stored.values()):
        raise WeightsError(f"{file} holds numbers that are not finite; it is damaged")
    other = f"{file} is a LoRA for another base than this {type(pipe.unet).__name__}"
    try:
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="lora")
    except (
        ValueError,
        RuntimeError,
        KeyError,
    ) as error:  # what diffusers and peft raise for names and shapes
        raise WeightsError(f"{other}: {str(error).strip()[:200]}") from None
    parts = [part for part, names in pipe.get_list_adapters().items() if "lora" in names]
    if not parts:
        raise WeightsError(f"{other}: no layer of it is named there")
    for (
        part
    ) in parts:  # pipe.set_adapters cannot count the layers of a UNet with another number in each block
        set_weights_and_activate_adapters(getattr(pipe, part), ["lora"], [scale])


def choose_device(asked: str) -> str:
    """The device asked for, if this machine has it; for ``auto`` the fastest kind.

    Raises:
        ConfigError: if it is unknown, or not there.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, is_there in has.items() if is_there)
    name, _, number = asked.partition(":")
    if name not in has or (number and not (name == "cuda" and number.isdecimal())):
        raise ConfigError(f"--device must be auto, cpu, cuda, cuda:N or mps, got {asked!r}")
    if not has[name] or (name == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"--device {asked}: this machine, or this build of torch, has none (see `idgen doctor`)"
        )
    return asked
