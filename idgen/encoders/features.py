"""Feature networks for distances between sets of pictures: recognisers, ONNX files, folders of transformers.

Shapes: B pictures, D features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image

from idgen.encoders.arcface import OnnxFaceEncoder, load_encoder, mini_encoder
from idgen.encoders.onnx_torch import read_onnx
from idgen.encoders.sight import Eye, Sight, crops_of
from idgen.errors import ConfigError, ModelNotFoundError, WeightsError
from idgen.faces.onnx_session import open_session
from idgen.runs import file_sha256

# Mean and standard deviation of the pixels in [0, 1] that a network wants.
NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # DINOv2 and most torch networks
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # Inception as used for FID
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
USUAL_SIZE_PX = 224  # where the file does not say
LAST_LAYERS = ("Gemm", "MatMul")


def load_features(spec: str, *, normalise: str = "imagenet") -> Eye:
    """A feature network by name.

    Args:
        spec: ``mini``, the layer before the last of the embedded recogniser; ``recognizer:SPEC``, that of any
            recogniser; an ONNX file that reads whole pictures; or a folder of transformers, such as DINOv2 or
            CLIP.
        normalise: what an ONNX file of pictures wants: imagenet, half, clip or unit.

    Raises:
        ModelNotFoundError: if there is no such file.
        ConfigError: if it is none of these, or ``normalise`` is not known.
        WeightsError: if it is damaged, or gives no features.
    """
    if spec == "mini":
        return recogniser_features(mini_encoder())
    if spec.startswith("recognizer:"):
        return recogniser_features(load_encoder(spec.removeprefix("recognizer:")))
    path = Path(spec).expanduser()
    if path.suffix == ".onnx":
        return picture_features(path, normalise=normalise)
    if (path / "config.json").is_file():
        return folder_features(path)
    if not path.exists():
        raise ModelNotFoundError(
            f"no such feature network: {spec} (mini, recognizer:SPEC, an ONNX, a folder)"
        )
    raise ConfigError(f"{spec} is neither an ONNX file nor a folder of transformers (no config.json)")


def recogniser_features(encoder: OnnxFaceEncoder) -> Eye:
    """What a face recogniser sees before its last linear layer.

    Where a file looks at the mirror image too, stacked in the batch, the mean of both is taken.

    Raises:
        WeightsError: if the file has no linear layer.
    """
    model = read_onnx(encoder.path)
    layers = [node for node in model.graph.node if node.op_type in LAST_LAYERS]
    if not layers:
        raise WeightsError(f"{encoder.path} has no linear layer, before which features could be read")
    name = layers[-1].input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_session(encoder.path, content=model.SerializeToString())
    pixels = session.get_inputs()[0].name

    def see(sights: Sequence[Sight]) -> np.ndarray:
        rows = [encoder.crop.pixel_values(crop[None]).numpy() for crop in crops_of(sights)]
        found = [np.asarray(session.run([name], {pixels: row})[0]) for row in rows]  # one by one: any batch
        return np.stack([value.reshape(-1, value.shape[-1]).mean(axis=0) for value in found])

    black = np.zeros((1, 3, encoder.crop.size_px, encoder.crop.size_px), np.float32)
    dim = np.asarray(session.run([name], {pixels: black})[0]).shape[-1]
    return Eye(id=f"{encoder.name}-penultimate@{encoder.sha256[:12]}", dim=dim, see=see)


def square(image: Image.Image, size_px: int) -> Image.Image:
    """The middle of a picture, its shorter side brought to ``size_px``."""
    scale = size_px / min(image.size)
    width, height = (max(size_px, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size_px) // 2, (height - size_px) // 2
    return resized.crop((left, top, left + size_px, top + size_px))


def picture_features(path: Path, *, normalise: str = "imagenet") -> Eye:
    """Features of whole pictures by an ONNX file: (n, 3, S, S) RGB -> (n, D).

    Raises:
        ModelNotFoundError: if there is no such file.
        ConfigError: if ``normalise`` is not known.
        WeightsError: if it reads no pictures, or gives more than one vector of each.
    """
    if normalise not in NORMALISATIONS:
        raise ConfigError(f"pictures are normalised by {', '.join(NORMALISATIONS)}; got {normalise!r}")
    mean, std = (np.array(values, np.float32)[:, None, None] for values in NORMALISATIONS[normalise])
    session = open_session(path)
    pixels = session.get_inputs()[0]
    if len(pixels.shape) != 4 or (isinstance(pixels.shape[1], int) and pixels.shape[1] != 3):
        raise WeightsError(f"{path} reads no pictures (n, 3, S, S): its input is {pixels.shape}")
    size_px = pixels.shape[2] if isinstance(pixels.shape[2], int) else USUAL_SIZE_PX

    def run(image: Image.Image) -> np.ndarray:
        values = np.asarray(square(image.convert("RGB"), size_px), np.float32).transpose(2, 0, 1) / 255
        found = np.asarray(session.run(None, {pixels.name: ((values - mean) / std)[None]})[0])
        if found.size != max(found.shape):
            raise WeightsError(f"{path} gives {found.shape} for one picture, not one vector of features")
        return found.reshape(-1).astype(np.float32)

    dim = len(run(Image.new("RGB", (size_px, size_px))))

    def see(sights: Sequence[Sight]) -> np.ndarray:
        return np.stack([run(sight.image) for sight in sights])

    name = f"{path.stem}-{normalise}@{file_sha256(path)[:12]}"
    return Eye(id=name.replace("@", "_", name.count("@") - 1), dim=dim, see=see, needs_face=False)


def folder_features(folder: Path) -> Eye:
    """Features of whole pictures by a folder of transformers: the pooled output, or CLIP's image features.

    Raises:
        WeightsError: if transformers cannot open it, or it gives no such features.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"transformers cannot open {folder}: {str(error).splitlines()[0]}") from None

    def see(sights: Sequence[Sight]) -> np.ndarray:
        values = processor(images=[sight.image for sight in sights], return_tensors="pt")
        with torch.no_grad():
            found = (
                model.get_image_features(**values)
                if hasattr(model, "get_image_features")
                else model(**values)
            )
        pooled = found if isinstance(found, torch.Tensor) else getattr(found, "pooler_output", None)
        if pooled is None:
            raise WeightsError(f"{folder} holds a {type(model).__name__}, which pools no features")
        return pooled.flatten(1).float().numpy()

    dim = see([Sight(image=Image.new("RGB", (64, 64)))]).shape[1]
    return Eye(id=f"{folder.resolve().name}@{folder_digest(folder)}", dim=dim, see=see, needs_face=False)


def folder_digest(folder: Path) -> str:
    """Twelve digits of the hash of a folder's weights.

    Raises:
        WeightsError: if it holds none.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not files:
        raise WeightsError(f"{folder} holds no weights (*.safetensors)")
    return file_sha256(files[0])[:12]
