"""A trained recogniser as the ONNX file that insightface and idgen open.

Shapes: N crops, D embedding width.
"""

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from idgen.faces.onnx_session import open_session
from idgen.recognition.backbone import CROP_PX
from idgen.storage import replacing
from idgen.training import store_bytes, store_halves

Stored = Literal["float32", "float16", "int8"]


def export_recogniser(network: nn.Module, path: Path, stored: Stored = "int8") -> None:
    """Write the ONNX file, whole or not at all.

    Input (n, 3, 112, 112), RGB as (x - 127.5) / 127.5; output the raw embedding (n, D). What is computed is
    float32; ``stored`` is how large weights lie on the disk: as they are, in halves, or as whole numbers of 8
    bits with a scale for each output channel. `export_similarity` measures what that costs.

    Raises:
        StorageError: if the file cannot be written.
    """
    network = network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    temporary = path.with_name(f".{path.name}.tmp")
    example = torch.zeros(2, 3, CROP_PX, CROP_PX, device=next(network.parameters()).device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter writes a second file
            torch.onnx.export(
                network, (example,), temporary, opset_version=13, dynamo=False,
                input_names=["input"], output_names=["embedding"],
                dynamic_axes={"input": {0: "n"}, "embedding": {0: "n"}},
            )  # fmt: skip
        if stored != "float32":
            {"float16": store_halves, "int8": store_bytes}[stored](temporary)
        with replacing(path) as file:
            file.write(temporary.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)


@torch.no_grad()
def export_similarity(path: Path, network: nn.Module, pixel_values: Tensor) -> tuple[float, float]:
    """Least and mean cosine of the embeddings of an ONNX file to those of the network it came from.

    Args:
        path: the file.
        network: (N, 3, 112, 112) -> (N, D).
        pixel_values: (N, 3, 112, 112) in [-1, 1].
    """
    session = open_session(path, num_threads=torch.get_num_threads())
    name = session.get_inputs()[0].name
    said = [np.asarray(session.run(None, {name: part.numpy()})[0]) for part in pixel_values.split(32)]
    device = next(network.parameters()).device
    meant = torch.cat([network(part.to(device)).float().cpu() for part in pixel_values.split(32)])
    cosine = cosine_similarity(torch.from_numpy(np.concatenate(said)), meant)
    return float(cosine.min()), float(cosine.mean())
