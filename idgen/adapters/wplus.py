"""The W+ adapter: the code of a StyleGAN conditions a UNet (Li et al. 2023, https://arxiv.org/abs/2311.17461).

A code w, one style vector for each layer of the generator, becomes a few tokens. In every cross-attention
layer a *residual cross-attention* looks at them, whose query is made from what the text attention found::

    out = W_out (T + s softmax(q(T) k(w)^T / sqrt(d)) v(w)),    T = Attn(q, K_text, V_text)

It goes onto a UNet as `idgen.adapters.install.IDAdapter` does, alone or beside it::

    adapter = WPlusAdapter.for_unet(unet, num_layers=18, style_dim=512)
    install_adapter(unet, adapter)
    adapter.condition(codes, id_scale)  # (B, L, C); (B,) or a float: before each call
    noise_pred = unet(latents, timesteps, encoder_hidden_states=text).sample
    adapter.clear()
    remove_adapter(unet, WPlusAdapter.feature_kind)

A face vector on the same UNet adds its branch to the same T: neither query sees the other identity. The
unconditional code of guidance is the zero code, as published.

Shapes: B rows, L layers of the generator and C width of a style vector: a code is (L, C), (18, 512) for faces
of 1024 pixels; N tokens, W text width, D width of an attention layer, P positions, H heads, d = D / H.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from idgen.adapters.attention import TokenBranch
from idgen.adapters.install import UnetAdapter
from idgen.adapters.layers import attention_layers, is_cross, layer_widths
from idgen.errors import ConfigError

STYLE_DIM = 512  # C of the published codes
PUBLISHED_GROUPS = (4, 4, 4, 6)  # of the 18 layers of StyleGAN2 at 1024 pixels


def default_groups(num_layers: int) -> tuple[int, ...]:
    """How many layers of a code each of four tokens takes: the published 4, 4, 4, 6 of 18.

    Others are split as evenly as can be, the larger groups last, where the finest layers are.

    Raises:
        ConfigError: if there are fewer than four layers.
    """
    if num_layers == sum(PUBLISHED_GROUPS):
        return PUBLISHED_GROUPS
    num_groups = len(PUBLISHED_GROUPS)
    if num_layers < num_groups:
        raise ConfigError(
            f"a W+ code for {num_groups} tokens needs at least as many layers, got {num_layers}"
        )
    size, rest = divmod(num_layers, num_groups)
    return tuple(size + (group >= num_groups - rest) for group in range(num_groups))


class WPlusProjection(nn.Module):
    """The projector of the W+ adapter: a group of layers is one token, made by a linear map without bias.

    ``tokens = LayerNorm([P_0 w_{0:4}, P_1 w_{4:8}, P_2 w_{8:12}, P_3 w_{12:18}])``, the layers of a group
    laid end to end. The parameters are named as in published files (``proj_0`` to ``proj_3``, ``norm``).

    Args:
        layer_groups: layers of each group, in order; they add up to L.
        style_dim: C.
        cross_dim: W; 768 for SD 1.x.

    Raises:
        ConfigError: if there is no group, or one is empty.
    """

    def __init__(self, layer_groups: Sequence[int], style_dim: int, cross_dim: int) -> None:
        super().__init__()
        if not layer_groups or min(layer_groups) < 1 or style_dim < 1:
            raise ConfigError(
                "a W+ projection needs groups of at least one layer, and styles of at least one number, "
                f"got groups {tuple(layer_groups)} and width {style_dim}"
            )
        self.layer_groups, self.style_dim, self.cross_dim = tuple(layer_groups), style_dim, cross_dim
        for token, size in enumerate(self.layer_groups):
            self.add_module(f"proj_{token}", nn.Linear(size * style_dim, cross_dim, bias=False))
        self.norm = nn.LayerNorm(cross_dim)

    @property
    def num_layers(self) -> int:
        """L."""
        return sum(self.layer_groups)

    @property
    def num_tokens(self) -> int:
        """N, one a group."""
        return len(self.layer_groups)

    def forward(self, codes: Tensor) -> Tensor:
        """Project codes (B, L, C) to tokens (B, N, W)."""
        groups = codes.split(self.layer_groups, dim=1)
        tokens = [self.get_submodule(f"proj_{i}")(group.flatten(1)) for i, group in enumerate(groups)]
        return self.norm(torch.stack(tokens, dim=1))


class WPlusLayer(nn.Module):
    """What a W+ adapter holds for one cross-attention layer, under the names of published files.

    Args:
        kv_dim: W.
        inner_dim: D.
    """

    def __init__(self, kv_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.to_k_wplus = nn.Linear(kv_dim, inner_dim, bias=False)
        self.to_v_wplus = nn.Linear(kv_dim, inner_dim, bias=False)
        self.to_q_wplus = nn.Linear(inner_dim, inner_dim, bias=False)


class WPlusBranch(TokenBranch):
    """The residual cross-attention of one layer: its query is made from what the text attention found."""

    def __init__(self, name: str, attention: Attention, weights: WPlusLayer) -> None:
        super().__init__(name, attention)
        self._weights = weights

    def attach(self) -> list[RemovableHandle]:
        """Hook the output twice: to read it before anybody adds to it, and to add to it."""
        to_out = self._projection("out")
        # First in the row, so that it sees the text alone, even where a face vector's branch came before.
        return [
            to_out.register_forward_pre_hook(self._read_text, prepend=True),
            to_out.register_forward_pre_hook(self._add_identity),
        ]

    def _keys_and_values(self, id_tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self._weights.to_k_wplus(id_tokens), self._weights.to_v_wplus(id_tokens)

    def _read_text(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        text: Tensor = args[0]
        to_q = self._weights.to_q_wplus
        self._query = self._heads(to_q(text.to(to_q.weight.dtype)).to(text.dtype))


class WPlusAdapter(UnetAdapter):
    """Projection and per-layer weights; ``state_dict()`` has the keys of a published W+ adapter.

    Build one with ``for_unet`` (new, for training) or ``checkpoint.read_adapter`` (from a file).
    """

    feature_kind: ClassVar[str] = "wplus"
    branch_kind: ClassVar[Callable[..., TokenBranch]] = WPlusBranch

    def __init__(self, w_proj: WPlusProjection, layers: Mapping[int, WPlusLayer]) -> None:
        super().__init__()
        self.w_proj = w_proj
        self.wplus_adapter = nn.ModuleDict({str(k): layer for k, layer in sorted(layers.items())})

    @classmethod
    def for_unet(
        cls, unet: UNet2DConditionModel, *, num_layers: int = 18, style_dim: int = STYLE_DIM
    ) -> Self:
        """A new adapter that fits ``unet``; queries, keys and values begin as copies of the text's.

        So do the published ones. The new query is made from T, which is smaller than the normalised features
        that ``to_q`` was trained on, so that attention begins nearly even and nothing explodes: on ``mini``
        with random codes its entropy is at least 98 % of the largest possible, and the branch, 1.2 to 1.9
        times as long as T, moves the UNet's answer by 8 %.

        Args:
            unet: of SD 1.x, 2.x or SDXL kind.
            num_layers: L.
            style_dim: C.

        Raises:
            ConfigError: if the code has fewer than four layers.
        """
        layers, cross_dim = {}, 0
        for position, name, attention in attention_layers(unet):
            if is_cross(name):
                _, cross_dim, inner_dim = layer_widths(attention)
                layer = layers[position] = WPlusLayer(cross_dim, inner_dim)
                for target in "kvq":
                    begin = attention.get_parameter(f"to_{target}.weight")
                    layer.get_parameter(f"to_{target}_wplus.weight").data.copy_(begin)
        return cls(WPlusProjection(default_groups(num_layers), style_dim, cross_dim), layers)

    @property
    def layers(self) -> nn.ModuleDict:
        """Its weights for each cross-attention layer, by position (as text)."""
        return self.wplus_adapter

    @property
    def num_layers(self) -> int:
        """L, layers of a code."""
        return self.w_proj.num_layers

    @property
    def style_dim(self) -> int:
        """C, width of a style vector."""
        return self.w_proj.style_dim

    @property
    def num_tokens(self) -> int:
        """N, tokens a code."""
        return self.w_proj.num_tokens

    def condition(
        self,
        codes: Tensor,
        id_scale: Tensor | float = 1.0,
        *,
        layer_scale: Mapping[str, float] | None = None,
    ) -> None:
        """Give each row of the next calls of the UNet its code, until ``clear`` or another ``condition``.

        Args:
            codes: (B, L, C); a row of zeros is unconditional.
            id_scale: strength, (B,) or one for all rows; a row of 0 is the base model.
            layer_scale: factor on ``id_scale`` by layer name (as in ``attention_layers``); 1 if not named.

        Raises:
            WeightsError: if the adapter is not installed.
            ConfigError: if the shapes do not fit.
        """
        installation = self._require_installation()
        if codes.ndim != 3 or codes.shape[1:] != (self.num_layers, self.style_dim):
            raise ConfigError(
                f"codes must be (B, {self.num_layers}, {self.style_dim}), got {tuple(codes.shape)}"
            )
        tokens = self.w_proj(codes.to(self.w_proj.norm.weight))
        installation.set_tokens(tokens, None, 1.0, dict(layer_scale or {}))
        self.set_strength(id_scale)
