"""The backbones by name, and their weights in files.

Shapes: D embedding width.
"""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from idgen.errors import ConfigError, WeightsError
from idgen.recognition.backbone import SmallResNet
from idgen.recognition.iresnet import BLOCKS, IResNet
from idgen.recognition.mobilefacenet import MobileFaceNet
from idgen.recognition.squeeze import SqueezeNet112
from idgen.registry import Registry
from idgen.storage import sorted_header, write_bytes
from idgen.weights import read_tensors

Numbers = tuple[int, ...]

backbones: Registry[nn.Module] = Registry("backbone")
"""Each takes dim, and widths, blocks and dropout where these are to be others than its own."""


@backbones.register("squeezenet")
def _squeezenet(
    *, dim: int, widths: Numbers = (64, 128, 256, 384), blocks: Numbers = (2, 3, 3, 2), dropout: float = 0.2
) -> nn.Module:
    if len(blocks) != len(widths) or len(widths) < 1:
        raise ConfigError(f"widths and blocks name the same stages, got {widths} and {blocks}")
    return SqueezeNet112(widths, blocks, dim, dropout)


@backbones.register("small_resnet")
def _small_resnet(
    *,
    dim: int,
    widths: Numbers = (32, 64, 128, 256),
    blocks: Numbers = (2, 2, 2),
    dropout: float | None = None,
) -> nn.Module:
    _has_no_dropout("small_resnet", dropout)
    if len(widths) != 4 or len(blocks) != 3:
        raise ConfigError(
            f"small_resnet has 4 widths (the stem's first) and 3 numbers of blocks, got {widths} and {blocks}"
        )
    return SmallResNet(widths, blocks, 2 * widths[-1], dim)


@backbones.register("mobilefacenet")
def _mobilefacenet(
    *, dim: int, widths: Numbers = (64, 128), blocks: Numbers = (4, 6, 2), dropout: float | None = None
) -> nn.Module:
    _has_no_dropout("mobilefacenet", dropout)
    if len(widths) != 2 or len(blocks) != 3:
        raise ConfigError(
            f"mobilefacenet has 2 widths and 3 numbers of blocks, got {list(widths)} and {list(blocks)}"
        )
    return MobileFaceNet(dim, widths=widths, blocks=blocks)


def _iresnet(name: str, dim: int, widths: Numbers, blocks: Numbers, dropout: float) -> nn.Module:
    if len(widths) != 5 or len(blocks) != 4:
        raise ConfigError(
            f"{name} has 5 widths (the stem's first) and 4 numbers of blocks, got {list(widths)} and "
            f"{list(blocks)}"
        )
    return IResNet(blocks, dim, widths=widths, dropout=dropout)


def _register_iresnet(name: str) -> None:
    @backbones.register(name)
    def build(
        *, dim: int, widths: Numbers = (64, 64, 128, 256, 512), blocks: Numbers = BLOCKS[name],
        dropout: float = 0.0,
    ) -> nn.Module:  # fmt: skip
        return _iresnet(name, dim, widths, blocks, dropout)


for _name in BLOCKS:
    _register_iresnet(_name)


def _has_no_dropout(name: str, dropout: float | None) -> None:
    if dropout is not None:
        raise ConfigError(f"the backbone {name} has no dropout, got {dropout}; leave it out")


def build_backbone(
    name: str,
    *,
    dim: int,
    widths: Numbers | None = None,
    blocks: Numbers | None = None,
    dropout: float | None = None,
) -> nn.Module:
    """A network from pixel values (B, 3, 112, 112) in [-1, 1] to raw embeddings (B, D), with random weights.

    Args:
        name: one of `backbones`.
        dim: D.
        widths: channels, where they are to be others than the network's own.
        blocks: numbers of blocks, likewise.
        dropout: share of the last features that is dropped in training, likewise.

    Raises:
        UnknownNameError: for another name; the nearest one is shown.
        ConfigError: for numbers that do not fit the network.
    """
    if widths is not None and any(width < 1 or width % 32 for width in widths):
        # torch 2.13 damages memory in the backward pass of channels_last layers of 4 or 8 channels
        raise ConfigError(f"widths must be multiples of 32, got {widths}")
    if blocks is not None and any(count < 1 for count in blocks):
        raise ConfigError(f"each stage has a block at least, got {blocks}")
    if dropout is not None and not 0 <= dropout < 1:
        raise ConfigError(f"dropout must be in [0, 1), got {dropout}")
    given = {"widths": widths, "blocks": blocks, "dropout": dropout}
    return backbones.build(name, dim=dim, **{key: value for key, value in given.items() if value is not None})


def write_backbone(network: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """The weights as safetensors with these words beside them; equal weights give equal bytes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_bytes(path, sorted_header(save(tensors, metadata)))


def read_backbone(network: nn.Module, path: Path) -> None:
    """Put the weights of a file into ``network``: safetensors, or a ``.pt`` as arcface_torch saves it.

    Raises:
        WeightsError: if it is an ONNX file, cannot be read, or is for another network.
    """
    if path.suffix == ".onnx":
        raise WeightsError(
            f"{path} is a finished graph, which cannot be trained; give weights (.safetensors or .pt)"
        )
    if not path.is_file():
        raise WeightsError(f"no such file: {path}")
    found, _ = read_tensors(path)
    wanted = network.state_dict()
    wrong = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    extra = [name for name in found if name not in wanted]
    if wrong or extra:
        raise WeightsError(
            f"{path} is for another network: {len(wrong)} of {len(wanted)} weights are missing or of another "
            f"shape ({', '.join(wrong[:3]) or 'none'}), {len(extra)} are not known "
            f"({', '.join(extra[:3]) or 'none'})"
        )
    with torch.no_grad():
        network.load_state_dict(found)
