"""An edit of the prompt must move the face in the direction in which it moves it without the identity.

Shapes: B rows of a batch, R of them, P places and C width of an attention layer, h and w of the latents.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from idgen.adapters.layers import attention_layers, is_cross
from idgen.diffusion.denoiser import Denoiser
from idgen.errors import ConfigError
from idgen.objectives.region import mask_of_layer
from idgen.objectives.terms import Step, Term, TermConfig, Values, spread

TOO_SHORT = 1e-6  # length of a change below which its direction is that of rounding

# Said after a caption. The first ones are words of `data.captions`, which the mini model was trained on.
EDITS = (
    "smiling", "laughing", "serious", "with a serious face",
    "looking to the left", "looking to the right", "looking straight ahead",
    "in dim light", "in bright light",
    "white background", "on a blue background", "in front of a red wall",
    "angry", "sad", "surprised", "with closed eyes", "with an open mouth",
    "wearing glasses", "wearing sunglasses", "wearing a hat", "wearing a red scarf", "wearing earrings",
    "with a beard", "with freckles", "with red lipstick",
    "with long hair", "with short hair", "with curly hair", "with blond hair", "with grey hair",
    "as a young adult", "as an old person", "as a pencil drawing", "as an oil painting",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EditingConfig(TermConfig):
    """An edit of the prompt must work as without the identity (MasterWeaver's weight and timesteps).

    Attributes:
        layers: part of the UNet whose cross-attention is compared, such as "up_blocks.1".
        edits: phrases that are said after a caption.
    """

    weight: float = 0.02
    timesteps: tuple[float, ...] = (0.1, 0.35)
    layers: str = "up_blocks.1"
    edits: tuple[str, ...] = EDITS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers.strip():
            raise ConfigError(f"layers must name a part of the UNet such as up_blocks.1, got {self.layers!r}")
        if not self.edits or not all(edit.strip() for edit in self.edits):
            raise ConfigError(
                f"edits must be phrases to say after a caption, one at least, got {list(self.edits)}"
            )
        if len(set(self.edits)) < len(self.edits):
            twice = next(edit for edit in self.edits if self.edits.count(edit) > 1)
            raise ConfigError(f"edits must differ, got {twice!r} {self.edits.count(twice)} times")


def edit_captions(captions: Sequence[str], edits: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Each caption with an edit at its end: "{caption}, {edit}".

    One a caption and not all of them, since every text is encoded and kept.

    Args:
        captions: details stand between ", ", as `idgen.data.captions.caption` writes them; may be empty.
        edits: to choose from; one that a caption already says would change nothing, and is not taken while
            there are others.
        rng: decides.
    """
    edited = []
    for caption in captions:
        said = caption.split(", ")
        new = [edit for edit in edits if edit not in said] or edits
        chosen = new[int(rng.integers(len(new)))]
        edited.append(f"{caption}, {chosen}" if caption else chosen)
    return edited


def text_layers(unet: nn.Module, layers: str) -> list[Attention]:
    """The cross-attention layers of a part of a UNet.

    Args:
        unet: it, or what wraps it: an adapter's module, several processes.
        layers: beginning of their names up to a full stop, such as "up_blocks.1".

    Raises:
        ConfigError: if there are none; the parts that have some are named.
    """
    inner = next((m for m in unet.modules() if isinstance(m, UNet2DConditionModel)), None)
    if inner is None:
        raise ConfigError(
            f"editing reads the attention of a UNet of Stable Diffusion, {type(unet).__name__} holds none"
        )
    cross = {name: attention for _, name, attention in attention_layers(inner) if is_cross(name)}
    found = [attention for name, attention in cross.items() if f"{name}.".startswith(f"{layers}.")]
    if not found:
        parts = sorted({name.partition(".attentions.")[0] for name in cross})
        raise ConfigError(
            f"no layer of this UNet looks at the text in {layers}; editing.layers can be {', '.join(parts)}"
        )
    return found


@contextmanager
def text_attention(unet: nn.Module, layers: str) -> Iterator[list[Tensor]]:
    """Record what the text attention of these layers says while a UNet runs, in the order of the calls.

    ``Attn(q, K_text, V_text)`` of each, (B, P, C), with gradients where the UNet has them: before the
    identity branch is added, and before ``to_out``. The query is that of a UNet with the identity: from the
    second cross-attention on it knows who it is.

    Args:
        unet: as in `text_layers`.
        layers: as in `text_layers`.

    Yields:
        The list that each call of a layer adds to.

    Raises:
        ConfigError: as in `text_layers`.
    """
    recorded: list[Tensor] = []

    def record(_module: nn.Module, args: tuple[Any, ...]) -> None:
        recorded.append(args[0])

    # First in the row, so that it sees the text alone: the adapter's hook behind it adds the identity.
    handles = [
        attention.to_out[0].register_forward_pre_hook(record, prepend=True)  # pyright: ignore[reportOptionalSubscript]
        for attention in text_layers(unet, layers)
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def attention_reader(
    denoiser: Denoiser,
    noisy: Tensor,
    timesteps: Tensor,
    plain_rows: Tensor,
    edited_rows: Tensor,
    conditions: Mapping[str, Tensor],
    layers: str,
) -> Callable[[Tensor, bool, bool], list[Tensor]]:
    """The ``attend`` of a `Step`: runs the UNet again and reads its text attention.

    Args:
        denoiser: whose UNet has an adapter, as `idgen.tuning.adapter.AdaptedUnet`.
        noisy: (B, ...) what the model saw.
        timesteps: (B,).
        plain_rows: (B,) rows of the denoiser's texts: the captions.
        edited_rows: (B,) the same captions with an edit.
        conditions: what the model is told of each row beside the text, each (B, ...).
        layers: as in `text_layers`.
    """

    def attend(rows: Tensor, edited: bool, with_identity: bool) -> list[Tensor]:
        texts = edited_rows if edited else plain_rows
        told = {name: value[rows] for name, value in conditions.items()}
        if not with_identity:
            told["id_scale"] = torch.zeros(len(rows))
        gradients = with_identity and torch.is_grad_enabled()
        with torch.set_grad_enabled(gradients), text_attention(denoiser.unet, layers) as recorded:
            denoiser(noisy[rows], timesteps[rows], texts[rows.to(texts.device)], **told)
        return recorded

    return attend


def editing_loss(
    model_plain: Sequence[Tensor],
    model_edited: Sequence[Tensor],
    base_plain: Sequence[Tensor],
    base_edited: Sequence[Tensor],
    mask: Tensor,
) -> Tensor:
    """``sum_l [sum_p M_p (1 - cos(D_model,p, sg D_base,p)) / sum_p M_p]`` over layers l and their places p.

    ``D`` is the text attention under the edited prompt minus that under the plain one: the editing-direction
    term of MasterWeaver (Wei et al. 2024, https://arxiv.org/abs/2405.05806). Its program counts places
    outside of the mask as 1 each, which shifts the value and not the gradient; here they do not count. A
    place that an edit leaves alone in the base model has no direction and counts 0.

    Args:
        model_plain: (B, P, C) of each layer with the identity, as `text_attention` records it; gradients flow
            through these.
        model_edited: the same under the edited prompt, with gradients.
        base_plain: without the identity; its gradient is stopped.
        base_edited: without the identity under the edited prompt; its gradient is stopped.
        mask: (B, h, w) M, see `face_mask`; its mean over each place of a layer counts.

    Returns:
        (B,) float32 in [0, 2 x layers]; 0 where a row's mask is.

    Raises:
        ConfigError: if the layers of the four differ, or have places that no halving of the mask has.
    """
    branches = (model_plain, model_edited, base_plain, base_edited)
    shapes = [[tuple(layer.shape) for layer in branch] for branch in branches]
    if any(other != shapes[0] for other in shapes):
        raise ConfigError(f"plain and edited, model and base must have equal layers, got {shapes}")
    loss = torch.zeros(len(mask), device=mask.device)
    for plain, edited, still, moved in zip(*branches, strict=True):
        direction = edited.float() - plain.float()
        wanted = (moved.float() - still.float()).detach()
        weight = mask_of_layer(mask, direction.shape[1])
        total = weight.sum(dim=1)
        apart = (weight * _apart(direction, wanted)).sum(dim=1)
        loss = loss + apart / torch.where(total > 0, total, 1.0)
    return loss


def _apart(direction: Tensor, wanted: Tensor) -> Tensor:
    """(B, P) ``1 - cos``; 1 and without gradient where only ``wanted`` moves, 0 where it does not."""
    moves = wanted.norm(dim=-1) > TOO_SHORT
    both = moves & (direction.norm(dim=-1) > TOO_SHORT)
    # where inside, too: the gradient of a division by nearly nothing would not be finite
    direction = torch.where(both[..., None], direction, 1.0)
    wanted = torch.where(both[..., None], wanted, 1.0)
    cosine = (direction * wanted).sum(dim=-1) / (direction.norm(dim=-1) * wanted.norm(dim=-1))
    return torch.where(both, 1 - cosine, moves.float())


def editing(config: EditingConfig) -> Term:
    """Directions of an edit with and without the identity, of rows with both it and a face.

    Rows whose timestep is out of range cost nothing. (MasterWeaver's program draws other timesteps for this
    term, so that all rows are in range, and computes it in every second step.)
    """

    def on_rows(step: Step) -> Values:
        if step.attend is None:
            raise ConfigError(
                "editing compares what the text does with and without the identity: it trains an adapter"
            )
        rows = step.face_rows
        counts = config.weight_of_rows(step.schedule, step.timesteps[rows]) > 0
        rows = rows[counts & (step.face_mask[rows].amax(dim=(1, 2)) > 0)]
        if not len(rows):
            return spread(step, rows, step.model_output.new_zeros(0))
        base_plain, base_edited = (step.attend(rows, edited, False) for edited in (False, True))
        model_plain, model_edited = (step.attend(rows, edited, True) for edited in (False, True))
        mask = step.face_mask[rows]
        return spread(step, rows, editing_loss(model_plain, model_edited, base_plain, base_edited, mask))

    return on_rows
