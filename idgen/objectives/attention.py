"""The face-wise attention loss: identity tokens look at the face, and not all over the picture.

Of SeFi-IDE (Li et al. 2024, https://arxiv.org/abs/2402.00631): a token that is fitted to whole pictures soon
draws attention everywhere, and then rules over the other words of a prompt. Theirs brings the attention of
each token close to what it is under a reference prompt about somebody known; here the face is where the
landmarks say it is, so that no reference is needed.

Shapes: B rows, R of them, H heads, P places and C width of a layer, L tokens of text and identity, n identity
tokens, which are the last ones, h and w of the latents.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from idgen.adapters.layers import attention_layers, is_cross
from idgen.errors import ConfigError, WeightsError
from idgen.objectives.region import mask_of_layer
from idgen.objectives.terms import Step, Term, TermConfig, Values, spread


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(TermConfig):
    """The attention of identity tokens should stay in the face."""

    weight: float = 0.01


@dataclass
class LayerRecord:
    """What one cross-attention layer was asked last.

    Attributes:
        heads: H.
        query: (B, P, C).
        key: (B, L, C).
    """

    heads: int
    query: Tensor | None = None
    key: Tensor | None = None


@dataclass(frozen=True)
class AttentionRecord:
    """Queries and keys of every cross-attention layer of a UNet, by its name, with their gradients."""

    layers: dict[str, LayerRecord] = field(default_factory=dict)

    def identity_maps(self, num_id_tokens: int) -> list[Tensor]:
        """(B, H, P) attention of the identity tokens in each layer, see `identity_attention`.

        Raises:
            WeightsError: if a layer did not make queries and keys of its own.
        """
        maps = []
        for name, layer in self.layers.items():
            if layer.query is None or layer.key is None:
                raise WeightsError(
                    f"{name} was not asked, or not through to_q and to_k: its attention cannot be read; run "
                    "the UNet while it is recorded, and call unfuse_qkv_projections() where they are fused"
                )
            maps.append(identity_attention(layer.query, layer.key, layer.heads, num_id_tokens))
        return maps


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[AttentionRecord]:
    """Record what each cross-attention layer is asked while a UNet runs; of several runs the last one counts.

    Keeps nothing that the backward pass would not keep anyway. Around the forward pass alone: a layer that
    gradient checkpointing runs again would be recorded again.

    Args:
        model: a UNet, or what wraps it: LoRA of peft, tokens, several processes.

    Raises:
        ConfigError: if there is no UNet in it.
    """
    unet = next((m for m in model.modules() if isinstance(m, UNet2DConditionModel)), None)
    if unet is None:
        raise ConfigError(
            f"the attention of a UNet of Stable Diffusion is read, {type(model).__name__} holds none"
        )
    record = AttentionRecord()
    with ExitStack() as hooks:
        for _, name, attention in attention_layers(unet):
            if is_cross(name):
                layer = record.layers[name] = LayerRecord(attention.heads)
                for part, projection in (("query", "to_q"), ("key", "to_k")):
                    module = attention.get_submodule(projection)
                    hooks.callback(module.register_forward_hook(_keep(layer, part)).remove)
        yield record


def _keep(layer: LayerRecord, part: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        setattr(layer, part, output)

    return hook


def identity_attention(query: Tensor, key: Tensor, heads: int, num_id_tokens: int) -> Tensor:
    """``A_p = sum_id softmax(q_p k^T / sqrt(d))``: how much each place looks at the identity tokens.

    The softmax goes over all L tokens, with ``d = C / H``. Rows from which the tokens are hidden by a mask
    get a number as well, which says nothing.

    Args:
        query: (B, P, C).
        key: (B, L, C), identity tokens last.
        heads: H.
        num_id_tokens: n.

    Returns:
        (B, H, P) float32 in (0, 1), with gradients.

    Raises:
        ConfigError: if there are not so many tokens.
    """
    if not 1 <= num_id_tokens <= key.shape[1]:
        raise ConfigError(f"num_id_tokens must be in [1, {key.shape[1]}], got {num_id_tokens}")

    def share(query: Tensor, key: Tensor) -> Tensor:
        q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
        probability = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).float().softmax(dim=-1)
        return probability[..., -num_id_tokens:].sum(dim=-1)

    # All probabilities of a large layer are 8 x 4096 x 77 floats a row (Stable Diffusion 1.5 at 512 pixels:
    # 10 MB, and as much for the scores). They are computed again in the backward pass, layer by layer, so
    # that only the sum stays.
    found = checkpoint(share, query, key, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(found, Tensor)
    return found


def face_attention_loss(maps: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """``mean_l mean_head (1 - sum_p M_p A_p / sum_p A_p)``: the share of the attention that misses the face.

    Args:
        maps: (B, H, P) A of each layer l; gradients flow through these.
        masks: (B, P) M of each, how much its places belong to the face, in [0, 1].

    Returns:
        (B,) float32 in [0, 1].

    Raises:
        ConfigError: if there is no layer, or a mask does not fit.
    """
    if not maps or [(len(a), a.shape[-1]) for a in maps] != [tuple(mask.shape) for mask in masks]:
        raise ConfigError(
            "each layer needs a mask of its rows and places: attention is "
            f"{[tuple(a.shape) for a in maps]}, masks are {[tuple(mask.shape) for mask in masks]}"
        )
    missed = []
    for attention, mask in zip(maps, masks, strict=True):
        total = attention.sum(dim=-1).clamp(min=torch.finfo(attention.dtype).tiny)  # all of it may underflow
        missed.append((1 - (attention * mask[:, None]).sum(dim=-1) / total).mean(dim=1))
    return torch.stack(missed).mean(dim=0)


def attention(_config: AttentionConfig) -> Term:
    """The attention of identity tokens outside of the face, of rows with an identity and a face."""

    def on_faces(step: Step) -> Values:
        if step.attention_maps is None:
            raise ConfigError(
                "the term attention reads what identity tokens look at: it trains stage tokens (stages)"
            )
        rows = step.face_rows[step.face_mask[step.face_rows].amax(dim=(1, 2)) > 0]
        if not len(rows):
            return spread(step, rows, step.model_output.new_zeros(0))
        maps = [layer[rows] for layer in step.attention_maps()]
        face = step.face_mask[rows]
        loss = face_attention_loss(maps, [mask_of_layer(face, layer.shape[-1]) for layer in maps])
        inside = float(1 - loss.detach().mean())
        return replace(spread(step, rows, loss), said={"inside": inside})

    return on_faces
