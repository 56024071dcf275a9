"""A W+ encoder of the published build with its widths turned down, and the files that circulate."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idgen.stylegan.generator import StyleGenerator
from idgen.stylegan.inversion import Encoder4Editing, GradualStyleEncoder, PyramidEncoder
from idgen.stylegan.model import WPlusModel

STYLE_DIM = 8
PUBLISHED_NAMES = {"e4e": "Encoder4Editing", "psp": "GradualStyleEncoder"}


def tiny_generator(size_px: int = 32) -> StyleGenerator:
    return StyleGenerator(size_px, STYLE_DIM, {4: 8, 8: 6, 16: 4, 32: 4}, num_mapping_layers=2)


def tiny_encoder(kind: str = "e4e", num_layers: int = 8) -> PyramidEncoder:
    """Its codes are of about unit length, and its normalisations are not those of a fresh network."""
    encoder = {"e4e": Encoder4Editing, "psp": GradualStyleEncoder}[kind](num_layers, STYLE_DIM, width=4)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
    return encoder.eval()


@cache
def tiny_model(kind: str = "e4e") -> WPlusModel:
    """The same one for all: nobody may change it."""
    torch.manual_seed(3)
    generator = tiny_generator()
    latent_avg = generator.map_styles(torch.randn(64, STYLE_DIM)).mean(dim=0).detach()
    return WPlusModel(tiny_encoder(kind), generator, generator.expand_styles(latent_avg[None])[0])


def published(kind: str = "e4e", **changes: Any) -> dict[str, Any]:
    """What the authors' programs save: `state_dict`, `latent_avg`, and their options as plain data."""
    state: dict[str, Tensor] = tiny_model(kind).state_dict()
    latent_avg = state.pop("latent_avg")
    options = {
        "encoder_type": PUBLISHED_NAMES[kind], "stylegan_size": 32, "start_from_latent_avg": True, "lr": 1e-4,
        "device": "cuda:0", "progressive_steps": [0, 2000], "checkpoint_path": None,
    }  # fmt: skip
    return {"state_dict": state, "latent_avg": latent_avg, "opts": options} | changes


def save_published(path: Path, kind: str = "e4e", **changes: Any) -> Path:
    torch.save(published(kind, **changes), path)
    return path
