"""Small W+ adapters, their files, and people with codes, for the tests of the adapter and the pipelines."""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from idgen.adapters.card import AdapterCard
from idgen.adapters.checkpoint import write_adapter
from idgen.adapters.wplus import WPlusAdapter
from idgen.identity import Feature, Identity

NUM_LAYERS, STYLE_DIM = 6, 8  # of a code; hence groups of 1, 1, 2 and 2 layers
ENCODER = "tiny_e4e@0123456789ab"


def random_wplus(unet: UNet2DConditionModel, *, seed: int = 0, **settings: int) -> WPlusAdapter:
    """An adapter with no weight at zero, so that whatever it should change it changes."""
    adapter = WPlusAdapter.for_unet(unet, **{"num_layers": NUM_LAYERS, "style_dim": STYLE_DIM, **settings})
    generator = torch.Generator().manual_seed(1000 + seed)
    for weight in adapter.parameters():
        size = 0.5 if weight.ndim > 1 else 1.0  # about as large as the base's
        weight.data = torch.randn(weight.shape, generator=generator) * size
    return adapter.requires_grad_(False)


def wplus_card(**changes: Any) -> AdapterCard:
    """What the file of such an adapter says of itself."""
    said: dict[str, Any] = {
        "base_model": "tiny", "encoder": ENCODER, "num_tokens": 4, "licence": "research-only",
        "feature": "wplus", "style_dim": STYLE_DIM,
    }  # fmt: skip
    return AdapterCard(**{**said, **changes})


def write_wplus(path: Path, unet: UNet2DConditionModel, *, seed: int = 0) -> Path:
    """The file of such an adapter for a UNet."""
    write_adapter(path, random_wplus(unet, seed=seed), wplus_card())
    return path


def code(i: int, *, encoder: str = ENCODER, num_layers: int = NUM_LAYERS) -> Feature:
    """The W+ code of person number i."""
    value = torch.randn(num_layers, STYLE_DIM, generator=torch.Generator().manual_seed(200 + i))
    return Feature(encoder, "wplus", value.numpy())


def with_code(i: int, identity: Identity | None = None) -> Identity:
    """Person number i with a W+ code, and with the other features of an identity."""
    return Identity((code(i), *(identity.features if identity else ())))
