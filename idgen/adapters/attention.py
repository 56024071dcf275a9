"""Decoupled cross-attention, one layer: the text branch stays as it is, an identity branch is added.

``out = W_out (Attn(q, K_text, V_text) + s Attn(q, K_id, V_id))`` (IP-Adapter, Ye et al. 2023,
https://arxiv.org/abs/2308.06721, eq. 5), where ``s`` is the strength of a row. The well-known
implementations replace the attention processor of each layer; here nothing is replaced. A hook on ``to_q``
reads the query, a hook before ``to_out`` adds the identity branch, hence the processors, LoRAs and weights
of the user go on working as they are, and taking the hooks off leaves no trace.

Since the tokens of a picture do not change while it is denoised, ``K_id`` and ``s V_id`` are computed once
a call and not at every step. Scaling ``V`` is scaling the branch, and a row of strength 0 adds exactly 0.

Shapes: B rows, L positions and C width of the layer, H heads, M identity tokens of a row (references x N).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from idgen.errors import ConfigError, WeightsError

LORA_TARGETS = ("q", "k", "v", "out")


class LowRank(nn.Module):
    """``x -> up(down(x))``, the weights of one LoRA without its frozen layer; ``up`` starts at zero."""

    def __init__(self, in_dim: int, out_dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_dim, rank, bias=False)
        self.up = nn.Linear(rank, out_dim, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, row_scale: Tensor) -> Tensor:
        """Change to a layer's output (B, L, out), times ``row_scale`` (B,); exactly 0 where that is 0."""
        return self.up(self.down(x) * row_scale.to(x.dtype)[:, None, None])


class LayerWeights(nn.Module):
    """What an adapter holds for one attention layer, under the names of published files.

    Args:
        in_dim: width of the layer's own features.
        kv_dim: width of what the layer looks at: the text width C_text, or ``in_dim`` in self-attention.
        inner_dim: width of query, key and value.
        cross: whether it is a cross-attention layer and gets ``to_k_ip``, ``to_v_ip``.
        lora_rank: rank of the LoRA of query, key, value and output; 0 for none.
    """

    def __init__(self, in_dim: int, kv_dim: int, inner_dim: int, *, cross: bool, lora_rank: int = 0) -> None:
        super().__init__()
        if cross:
            self.to_k_ip = nn.Linear(kv_dim, inner_dim, bias=False)
            self.to_v_ip = nn.Linear(kv_dim, inner_dim, bias=False)
        if lora_rank:
            self.to_q_lora = LowRank(in_dim, inner_dim, lora_rank)
            self.to_k_lora = LowRank(kv_dim, inner_dim, lora_rank)
            self.to_v_lora = LowRank(kv_dim, inner_dim, lora_rank)
            self.to_out_lora = LowRank(inner_dim, in_dim, lora_rank)

    @property
    def is_cross(self) -> bool:
        """Whether the layer looks at identity tokens."""
        return hasattr(self, "to_k_ip")

    def loras(self) -> Iterator[tuple[str, LowRank]]:
        """The LoRAs of the layer by target (``q``, ``k``, ``v``, ``out``), if there are any."""
        for target in LORA_TARGETS:
            lora = getattr(self, f"to_{target}_lora", None)
            if lora is not None:
                yield target, lora


class TokenBranch(ABC):
    """What the tokens of the rows say in one attention layer of one UNet, added to what the text says.

    Kinds of adapters differ in where keys and values come from and in what asks them.
    """

    def __init__(self, name: str, attention: Attention) -> None:
        self.name = name
        self._attention = attention
        self._mask: Tensor | None = None
        self._key: Tensor | None = None
        self._value: Tensor | None = None
        self._active: tuple[Tensor, Tensor] | None = None  # keys and s V, zero in rows that are off
        self._query: Tensor | None = None  # (B, H, L, C/H), from where it is made to where it is used
        self._lora_scale: Tensor | None = None

    @abstractmethod
    def attach(self) -> list[RemovableHandle]:
        """Hook the layers as they are now, with whatever LoRA the user put around them."""

    @abstractmethod
    def _keys_and_values(self, id_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens (B, M, C_text), each (B, M, C)."""

    def set_tokens(self, id_tokens: Tensor, mask: Tensor | None) -> None:
        """Compute keys and values of the tokens (B, M, C_text).

        ``mask`` (B, M) is False where a row has no token.
        """
        self._mask = None if mask is None else mask[:, None, None, :]
        key, value = self._keys_and_values(id_tokens)
        self._key, self._value = self._heads(key), self._heads(value)

    def set_strength(self, id_scale: Tensor, lora_scale: Tensor) -> None:
        """Set the strength of the identity branch and of the LoRA, if any, each (B,) and per row."""
        self._lora_scale = lora_scale
        if self._key is not None and self._value is not None:
            scale = id_scale.to(self._value)[:, None, None, None]
            # where, not only a product: a row that is off stays off even if its identity is not finite
            is_off = scale == 0
            self._active = torch.where(is_off, 0, self._key), torch.where(is_off, 0, self._value * scale)

    def clear(self) -> None:
        """Forget the rows."""
        self._mask = self._key = self._value = self._active = self._query = self._lora_scale = None

    def _projection(self, target: str) -> nn.Module:
        if target == "out":
            return self._attention.to_out[0]  # pyright: ignore[reportOptionalSubscript]
        return getattr(self._attention, f"to_{target}")

    def _heads(self, x: Tensor) -> Tensor:
        """(B, M, C) -> (B, H, M, C/H)."""
        return x.unflatten(-1, (self._attention.heads, -1)).transpose(1, 2)

    def _add_identity(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Pre-hook of ``to_out``: what the query found is added to its input."""
        text, *rest = args
        if self._query is None:
            kind = type(self._attention.processor).__name__
            raise WeightsError(
                f"the attention processor {kind} of {self.name} does not call to_q: no identity can be added"
            )
        query, self._query = self._query, None
        assert self._active is not None
        key, value = (x.to(query.dtype) for x in self._active)
        self._check_rows(len(query), len(key))
        identity = F.scaled_dot_product_attention(query, key, value, attn_mask=self._mask)
        return (text + identity.transpose(1, 2).flatten(2), *rest)

    def _check_rows(self, got: int, expected: int) -> None:
        if got != expected:
            raise ConfigError(
                f"the UNet was called with {got} rows, but {expected} rows were given an identity; "
                "pass one identity a row, guidance included"
            )


class LayerBranch(TokenBranch):
    """The face-vector branch of one attention layer: it shares the text's query, and may have a LoRA."""

    def __init__(self, name: str, attention: Attention, weights: LayerWeights) -> None:
        super().__init__(name, attention)
        self._weights = weights

    def set_tokens(self, id_tokens: Tensor, mask: Tensor | None) -> None:
        """As of any branch; a self-attention layer, which has a LoRA at most, sees no tokens."""
        if self._weights.is_cross:
            super().set_tokens(id_tokens, mask)

    def attach(self) -> list[RemovableHandle]:
        """Hook the query, the output and whatever has a LoRA."""
        handles = []
        for target, lora in self._weights.loras():
            self._check_not_fused()
            handles.append(self._projection(target).register_forward_hook(self._add_lora(lora)))
        if self._weights.is_cross:
            handles.append(self._projection("q").register_forward_hook(self._read_query))
            handles.append(self._projection("out").register_forward_pre_hook(self._add_identity))
        return handles

    def _keys_and_values(self, id_tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self._weights.to_k_ip(id_tokens), self._weights.to_v_ip(id_tokens)

    def _check_not_fused(self) -> None:
        if getattr(self._attention, "fused_projections", False):
            raise WeightsError(
                f"{self.name} has fused projections, out of reach of a LoRA; call unfuse_qkv_projections()"
            )

    def _add_lora(self, lora: LowRank) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            assert self._lora_scale is not None
            self._check_rows(len(output), len(self._lora_scale))
            return output + lora(args[0], self._lora_scale)

        return hook

    def _read_query(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        query = self._heads(output)
        self._query = query if self._attention.norm_q is None else self._attention.norm_q(query)
