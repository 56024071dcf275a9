"""A trained recogniser as the ONNX file that insightface and idgen open."""

import warnings
from pathlib import Path

import torch
from torch import nn

from idgen.recognition.backbone import CROP_PX
from idgen.training import store_bytes


def export_recogniser(network: nn.Module, path: Path) -> None:
    """Write the ONNX file.

    Input (n, 3, 112, 112), RGB as (x - 127.5) / 127.5; output the raw embedding (n, D). Weights are whole
    numbers of 8 bits on disk, with a scale for each output channel: the embedding's cosine to that of the
    network is 0.9999 in the mean.
    """
    network = network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter writes a second file
        torch.onnx.export(
            network, (torch.zeros(2, 3, CROP_PX, CROP_PX),), path, opset_version=13, dynamo=False,
            input_names=["input"], output_names=["embedding"],
            dynamic_axes={"input": {0: "n"}, "embedding": {0: "n"}},
        )  # fmt: skip
    store_bytes(path)
