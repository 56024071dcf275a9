"""Put an identity adapter on a UNet, condition it row by row, take it off without a trace.

In training and in generation alike::

    adapter = IDAdapter.for_unet(unet, id_dim=128, num_tokens=4)  # begins with copies of to_k, to_v
    install_adapter(unet, adapter)             # checks that every width fits
    adapter.condition(id_embedding, id_scale)  # (B, n, D); (B,) or a float: before each call
    noise_pred = unet(latents, timesteps, encoder_hidden_states=text).sample  # as ever, with gradients
    adapter.clear()                            # the next call is the base model again
    remove_adapter(unet)

A row of strength 0 is the base model; a row of zeros as embedding is the unconditional identity of
guidance. The keys and values of the identity are computed by ``condition``: with gradient checkpointing do
not call it again before ``backward``. The adapter is in no ``state_dict`` but its own: optimise
``adapter.parameters()`` beside those of the UNet. Its ``state_dict()`` has the keys of a published
IP-Adapter FaceID file. Copy a UNet (for a running average, say) before ``condition`` or after ``clear``,
else the copy keeps the hooks.

A UNet holds one adapter of each kind at a time, beside the one here that of `idgen.adapters.wplus`; none
knows of the other, and what both add is added up.

Shapes: B rows, n references of a person, D width of the face vector, N tokens a reference, C text width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from idgen.adapters.attention import LayerBranch, LayerWeights, TokenBranch
from idgen.adapters.layers import attention_layers, check_fit, is_cross, layer_widths
from idgen.adapters.projection import FaceIDProjection
from idgen.errors import ConfigError, WeightsError


class UnetAdapter(nn.Module, ABC):
    """What adapters of all kinds have in common: each is on one UNet at a time, and can be taken off.

    A kind brings its weights, its branches of the attention layers, and a ``condition``.
    """

    feature_kind: ClassVar[str]  # the kind of `idgen.identity.Feature` that it reads
    branch_kind: ClassVar[Callable[..., TokenBranch]]  # of (name, layer, weights of the layer)
    _installation: "_Installation | None" = None

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleDict:
        """Its weights for each attention layer, by position (as text)."""

    def set_strength(self, id_scale: Tensor | float) -> None:
        """Change the strength of the rows, (B,) or one for all, keeping their identity.

        Raises:
            ConfigError: if the number of rows differs.
        """
        self._require_installation().set_strength(id_scale)

    def clear(self) -> None:
        """Forget the rows: the UNet is the base model until the next ``condition``."""
        if self._installation is not None:
            self._installation.clear()

    def is_on(self, unet: nn.Module) -> bool:
        """Whether it is installed on ``unet``."""
        installed = _INSTALLED.get(unet, {}).get(self.feature_kind)
        return self._installation is not None and installed is self._installation

    def remove(self) -> None:
        """Take it off the UNet it is on, if any."""
        if self._installation is not None:
            self._installation.clear()
            for of_unet in _INSTALLED.values():
                if of_unet.get(self.feature_kind) is self._installation:
                    del of_unet[self.feature_kind]
            self._installation = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy (for a running average, say) is on no UNet; else copying would copy the UNet's layers too.
        return {**self.__dict__, "_installation": None}

    def _require_installation(self) -> "_Installation":
        if self._installation is None:
            raise WeightsError("the adapter is on no UNet; call install_adapter(unet, adapter) first")
        return self._installation


class IDAdapter(UnetAdapter):
    """Projection and per-layer weights; ``state_dict()`` has the keys of an IP-Adapter FaceID file.

    Build one with ``for_unet`` (new, for training) or ``checkpoint.read_adapter`` (from a file).
    """

    feature_kind: ClassVar[str] = "face_vector"
    branch_kind: ClassVar[Callable[..., TokenBranch]] = LayerBranch

    def __init__(self, image_proj: FaceIDProjection, layers: Mapping[int, LayerWeights]) -> None:
        super().__init__()
        self.image_proj = image_proj
        self.ip_adapter = nn.ModuleDict({str(k): layer for k, layer in sorted(layers.items())})

    @classmethod
    def for_unet(
        cls, unet: UNet2DConditionModel, *, id_dim: int, num_tokens: int = 4, lora_rank: int = 0
    ) -> Self:
        """A new adapter that fits ``unet``; keys and values begin as copies of the text's, as is the custom.

        Args:
            unet: of SD 1.x, 2.x or SDXL kind.
            id_dim: D, width of the encoder's face vector.
            num_tokens: N, tokens a reference.
            lora_rank: rank of a LoRA on every attention layer; 0 for none.
        """
        layers, cross_dim = {}, 0
        for position, name, attention in attention_layers(unet):
            cross = is_cross(name)
            if not cross and not lora_rank:
                continue
            widths = layer_widths(attention)
            layer = layers[position] = LayerWeights(*widths, cross=cross, lora_rank=lora_rank)
            if cross:
                cross_dim = widths[1]
                layer.to_k_ip.weight.data.copy_(attention.get_parameter("to_k.weight"))
                layer.to_v_ip.weight.data.copy_(attention.get_parameter("to_v.weight"))
        return cls(FaceIDProjection(id_dim, cross_dim, num_tokens), layers)

    @property
    def layers(self) -> nn.ModuleDict:
        """Its weights for each attention layer, by position (as text)."""
        return self.ip_adapter

    @property
    def id_dim(self) -> int:
        """D, width of the face vector."""
        return self.image_proj.id_dim

    @property
    def num_tokens(self) -> int:
        """N, tokens a reference."""
        return self.image_proj.num_tokens

    @property
    def cross_dim(self) -> int:
        """C, text width of the UNet it was made for."""
        return self.image_proj.cross_dim

    @property
    def has_lora(self) -> bool:
        """Whether it changes the attention layers by a LoRA as well."""
        return any(True for layer in self.ip_adapter.values() for _ in layer.loras())  # pyright: ignore

    def condition(
        self,
        id_embedding: Tensor,
        id_scale: Tensor | float = 1.0,
        *,
        mask: Tensor | None = None,
        lora_scale: float = 1.0,
        layer_scale: Mapping[str, float] | None = None,
    ) -> None:
        """Give each row of the next calls of the UNet its identity, until ``clear`` or another ``condition``.

        Args:
            id_embedding: (B, n, D), or (B, D) for one reference; a row of zeros is unconditional.
            id_scale: strength, (B,) or one for all rows; a row of 0 is the base model.
            mask: (B, n), False where a row has fewer references than n.
            lora_scale: strength of the LoRA part in rows of nonzero strength.
            layer_scale: factor on ``id_scale`` by layer name (as in ``attention_layers``); 1 if not named.

        Raises:
            WeightsError: if the adapter is not installed.
            ConfigError: if the shapes do not fit.
        """
        installation = self._require_installation()
        embedding = id_embedding[:, None] if id_embedding.ndim == 2 else id_embedding
        if embedding.ndim != 3 or embedding.shape[-1] != self.id_dim:
            raise ConfigError(f"id_embedding must be (B, n, {self.id_dim}), got {tuple(id_embedding.shape)}")
        tokens = self.image_proj(embedding.to(self.image_proj.norm.weight)).flatten(1, 2)
        token_mask = None if mask is None else mask.repeat_interleave(self.num_tokens, dim=1)
        installation.set_tokens(tokens, token_mask, lora_scale, dict(layer_scale or {}))
        self.set_strength(id_scale)


class _Installation:
    """The branches of one adapter on one UNet, and the hooks that are attached while rows are conditioned."""

    def __init__(self, adapter: UnetAdapter, branches: Sequence[TokenBranch]) -> None:
        self.adapter = adapter
        self._branches = branches
        self._handles: list[RemovableHandle] = []
        self._num_rows = 0
        self._lora_scale = 1.0
        self._layer_scale: dict[str, float] = {}

    def set_tokens(
        self, tokens: Tensor, mask: Tensor | None, lora_scale: float, layer_scale: dict[str, float]
    ) -> None:
        self._detach()
        self._num_rows, self._lora_scale, self._layer_scale = len(tokens), lora_scale, layer_scale
        for branch in self._branches:
            branch.set_tokens(tokens, mask)

    def set_strength(self, id_scale: Tensor | float) -> None:
        scale = torch.as_tensor(id_scale, dtype=torch.float32)
        scale = scale.expand(self._num_rows) if scale.ndim == 0 else scale
        if scale.shape != (self._num_rows,):
            raise ConfigError(
                f"id_scale must be one number or {self._num_rows} (one a row), got {tuple(scale.shape)}"
            )
        if not scale.any():  # the base model, at its own speed
            self._detach()
            return
        scale = scale.to(next(self.adapter.parameters()).device)
        lora_scale = torch.where(scale == 0, 0.0, self._lora_scale)
        for branch in self._branches:
            branch.set_strength(scale * self._layer_scale.get(branch.name, 1.0), lora_scale)
        if not self._handles:
            self._attach()

    def clear(self) -> None:
        self._detach()
        self._num_rows = 0
        for branch in self._branches:
            branch.clear()

    def _attach(self) -> None:
        for branch in self._branches:
            self._handles += branch.attach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


# By UNet, then by kind of feature; not on the UNet: no trace there.
_INSTALLED: WeakKeyDictionary[nn.Module, dict[str, _Installation]] = WeakKeyDictionary()


def install_adapter(unet: UNet2DConditionModel, adapter: UnetAdapter) -> None:
    """Bind ``adapter`` to ``unet``, in place of the one of its kind; nothing changes until ``condition``.

    Raises:
        WeightsError: if a layer is missing or has another width; both shapes are named.
    """
    check_fit(unet, adapter.state_dict())
    remove_adapter(unet, adapter.feature_kind)
    adapter.remove()
    branches = [
        type(adapter).branch_kind(name, attention, adapter.layers[str(position)])
        for position, name, attention in attention_layers(unet)
        if str(position) in adapter.layers
    ]
    installation = _Installation(adapter, branches)
    adapter._installation = installation
    _INSTALLED.setdefault(unet, {})[adapter.feature_kind] = installation


def remove_adapter(unet: nn.Module, feature_kind: str = IDAdapter.feature_kind) -> UnetAdapter | None:
    """Take the adapter of a kind off and return it, if there is one; the UNet is bit for bit what it was.

    Args:
        unet: with adapters or without.
        feature_kind: of features that it reads: "face_vector" or "wplus"; the other one stays as it is.
    """
    installation = _INSTALLED.get(unet, {}).get(feature_kind)
    if installation is None:
        return None
    installation.adapter.remove()
    return installation.adapter
