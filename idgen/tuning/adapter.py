"""Batches that train an identity adapter, and the UNet with the adapter on it as one module.

Shapes: B rows, D width of a face vector, C channels, h and w of the latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from idgen.adapters.install import IDAdapter
from idgen.adapters.wplus import WPlusAdapter
from idgen.data.sampler import PersonSampler
from idgen.diffusion.prediction import NoiseSchedule
from idgen.errors import ConfigError
from idgen.training import step_generator
from idgen.tuning.corpus import Batch, Corpus, fill_batch


@dataclass(frozen=True, kw_only=True)
class DropConfig:
    """What a row is trained without, so that guidance has something to compare with.

    The published programs leave out each with 5 % (IP-Adapter, Ye et al. 2023,
    https://arxiv.org/abs/2308.06721); a left-out identity is the zero vector, a left-out text the empty one.

    Attributes:
        text: probability of leaving out the prompt alone.
        identity: of leaving out the identity alone.
        both: of leaving out both.
        other_photo: of conditioning on another photo of the person, where there is one: an adapter that only
            sees the picture itself learns to copy its pose and light.
    """

    text: float = 0.05
    identity: float = 0.05
    both: float = 0.05
    other_photo: float = 0.5

    def __post_init__(self) -> None:
        shares = (self.text, self.identity, self.both, self.other_photo)
        if not all(0 <= share <= 1 for share in shares) or sum(shares[:3]) > 1:
            raise ConfigError(
                "drop.text, identity, both and other_photo must be in [0, 1], the first three at most 1 "
                f"together, got {', '.join(f'{share:g}' for share in shares)}"
            )


@dataclass(frozen=True, kw_only=True)
class AdapterBatch(Batch):
    """A batch with who conditions each row.

    Attributes:
        source: (B,) row of the corpus whose vector conditions.
        has_text: (B,) whether the prompt is there.
        has_identity: (B,) whether the identity is there.
        wording: (B,) which of the picture's captions is meant.
    """

    source: Tensor
    has_text: Tensor
    has_identity: Tensor
    wording: Tensor


def plan_adapter_batch(
    corpus: Corpus,
    schedule: NoiseSchedule,
    sampler: PersonSampler,
    drop: DropConfig,
    *,
    wordings: int,
    step: int,
    seed: int,
) -> AdapterBatch:
    """Global batch ``step``, a function of (seed, step) alone."""
    rng = np.random.default_rng([seed, step, 2])
    rows = sampler.rows(step)
    plain = fill_batch(corpus, schedule, torch.from_numpy(rows), step_generator(seed, step))
    bounds = np.cumsum([drop.both, drop.text, drop.identity])
    case = np.searchsorted(bounds, rng.random(len(rows)), side="right")  # 0 both, 1 text, 2 identity, 3 none
    is_other = rng.random(len(rows)) < drop.other_photo
    source = [sampler.another(int(r), rng) if o else int(r) for r, o in zip(rows, is_other, strict=True)]
    return AdapterBatch(
        **vars(plain),
        source=torch.tensor(source),
        has_text=torch.from_numpy(~np.isin(case, (0, 1))),
        has_identity=torch.from_numpy(~np.isin(case, (0, 2))),
        wording=torch.from_numpy(rng.integers(wordings, size=len(rows))),
    )


def conditions_of(corpus: Corpus, batch: AdapterBatch) -> dict[str, Tensor]:
    """What the UNet is told of each row, zero where the identity is left out.

    The face vector, ``id_embedding`` (B, D); or W+ codes, ``codes`` (B, L, W), where the corpus has them.
    """
    if corpus.codes is not None:
        return {"codes": corpus.codes[batch.source] * batch.has_identity[:, None, None]}
    return {"id_embedding": corpus.id_embedding[batch.source] * batch.has_identity[:, None]}


class AdaptedUnet(nn.Module):
    """A UNet and the adapter that is installed on it; its own weights are frozen, the adapter's train."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        adapter: IDAdapter | WPlusAdapter,
        *,
        train_projection: bool = True,
    ) -> None:
        super().__init__()
        unet.requires_grad_(False)
        adapter.requires_grad_(True).float()
        if isinstance(adapter, WPlusAdapter):
            adapter.w_proj.requires_grad_(train_projection)
        self.unet, self.adapter = unet, adapter

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights that train, by the names of the adapter's file."""
        return {name: value for name, value in self.adapter.named_parameters() if value.requires_grad}

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        id_embedding: Tensor | None = None,
        codes: Tensor | None = None,
        id_scale: Tensor | float = 1.0,
        **settings: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - what the UNet returns
        """The UNet's answer with these people at this strength; without vectors or codes those of zeros."""
        adapter = self.adapter
        if isinstance(adapter, WPlusAdapter):
            shape = (len(sample), adapter.num_layers, adapter.style_dim)
            adapter.condition(sample.new_zeros(shape) if codes is None else codes, id_scale)
        else:
            shape = (len(sample), adapter.id_dim)
            adapter.condition(sample.new_zeros(shape) if id_embedding is None else id_embedding, id_scale)
        return self.unet(sample, timestep, **settings)


def averaged(adapter: IDAdapter | WPlusAdapter, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's state with these weights in the place of its own."""
    return {**adapter.state_dict(), **weights}
