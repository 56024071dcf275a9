"""Identity tokens beside the prompt, others in each stage of the denoising: their file, and their use.

A person is S sets of n learned vectors in the text encoder's space. They stand behind the text states of a
row, and each cross-attention layer makes keys and values of them as of any word. Which set it is depends on
the noise::

    stage = floor(t S / T)    # 0 holds the last steps of a denoising, S - 1 the first

so that one stage can learn the layout of a face and another one its details: the per-stage tokens of SeFi-IDE
(Li et al. 2024, https://arxiv.org/abs/2402.00631; five stages). Theirs learn the features that keys and those
that values are made of apart, and replace a word of the prompt; these are one vector for both, and come in
addition.

Shapes: B rows, L text tokens, W text width, S stages, n tokens of a stage, P pictures, T timesteps.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from idgen.adapters.layers import BASE_MODELS
from idgen.errors import ConfigError, ModelNotFoundError, WeightsError
from idgen.storage import sorted_header, write_bytes

STAGE_TOKENS_NAME = "stage_tokens.safetensors"  # what load_stage_tokens looks for in a folder
FORMAT = "1"  # of the file

_ARGUMENTS = ("sample", "timestep", "encoder_hidden_states")  # of a UNet, in this order


class StageTokens(nn.Module):
    """The identity tokens of one person: ``tokens`` (S, n, W), of which a row sees those of its stage.

    Args:
        tokens: (S, n, W) to begin with, see `idgen.tuning.stages.start_tokens`.
        num_timesteps: T of the model.

    Raises:
        ConfigError: if there is no token, or a stage would have no timestep.
    """

    def __init__(self, tokens: Tensor, num_timesteps: int) -> None:
        super().__init__()
        if tokens.ndim != 3 or not tokens.numel():
            raise ConfigError(f"tokens must be (stages, tokens, text width), got {tuple(tokens.shape)}")
        if num_timesteps < len(tokens):
            raise ConfigError(
                f"stages must be at most the {num_timesteps} timesteps of the model, got {len(tokens)}"
            )
        self.tokens = nn.Parameter(tokens.detach().float().clone())
        self.num_timesteps = num_timesteps

    @property
    def num_stages(self) -> int:
        """S."""
        return self.tokens.shape[0]

    @property
    def num_tokens(self) -> int:
        """n, tokens of a stage."""
        return self.tokens.shape[1]

    @property
    def cross_dim(self) -> int:
        """W, text width of the model it was made for."""
        return self.tokens.shape[2]

    def stage(self, timesteps: Tensor) -> Tensor:
        """``floor(t S / T)`` of each timestep in [0, T), which need not be whole; int64."""
        stage = timesteps * self.num_stages // self.num_timesteps
        return stage.long().clamp(0, self.num_stages - 1)  # some samplers begin at T itself

    def forward(self, hidden: Tensor, timesteps: Tensor) -> Tensor:
        """The text states with the tokens of each row's stage behind them.

        Args:
            hidden: (B, L, W).
            timesteps: (B,), or one for all rows.

        Returns:
            (B, L + n, W) in the precision of ``hidden``; gradients flow to the tokens.

        Raises:
            WeightsError: if the text is of another width.
        """
        if hidden.shape[-1] != self.cross_dim:
            raise WeightsError(_other_width(self.cross_dim, hidden.shape[-1]))
        stage = self.stage(timesteps).to(hidden.device).reshape(-1).expand(len(hidden))
        return torch.cat([hidden, self.tokens.to(hidden)[stage]], dim=1)

    def mask(self, hidden: Tensor, has_tokens: Tensor) -> Tensor:
        """(B, L + n), 1 where a row looks: at all of its text, and at the tokens if it has them.

        What a UNet takes as ``encoder_attention_mask``: a score less by 10000, hence attention of exactly 0.

        Args:
            hidden: (B, L, W) the text states alone.
            has_tokens: (B,) whether each row has them.
        """
        text = hidden.new_ones(hidden.shape[:2])
        own = has_tokens.to(hidden)[:, None].expand(-1, self.num_tokens)
        return torch.cat([text, own], dim=1)

    def check_fit(self, cross_dim: int, num_timesteps: int) -> None:
        """Compare with a model.

        Args:
            cross_dim: its text width.
            num_timesteps: its T.

        Raises:
            WeightsError: if it has another text width or another number of timesteps.
        """
        if cross_dim != self.cross_dim:
            raise WeightsError(_other_width(self.cross_dim, cross_dim))
        if num_timesteps != self.num_timesteps:
            raise WeightsError(
                f"the stage tokens were learned over {self.num_timesteps} timesteps, this model has "
                f"{num_timesteps}: its stages would be others; train them on this model"
            )


def _other_width(own: int, found: int) -> str:
    return (
        f"the stage tokens have width {own} ({BASE_MODELS.get(own, 'another base model')}), the text of this "
        f"model {found} ({BASE_MODELS.get(found, 'another base model')}); take those that were trained on it"
    )


def write_stage_tokens(path: str | Path, tokens: StageTokens) -> str:
    """Write the tokens to ``path``, a ``.safetensors``; equal tokens are equal files.

    Returns:
        The sha256 of the written file.

    Raises:
        WeightsError: if the suffix is another.
        StorageError: if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"stage tokens are written as .safetensors, got {path.name}")
    said = {
        "format": "pt",
        "idgen_stage_tokens": FORMAT,
        "stages": str(tokens.num_stages),
        "tokens": str(tokens.num_tokens),
        "num_timesteps": str(tokens.num_timesteps),
    }
    data = sorted_header(save({"tokens": tokens.tokens.detach().float().cpu().contiguous()}, said))
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_stage_tokens(path: str | Path) -> StageTokens:
    """Read what `write_stage_tokens` wrote, on the CPU and without gradients.

    Args:
        path: the file, or the folder that it lies in under its usual name.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it is damaged, holds something else, or is of a later format.
    """
    path = Path(path)
    path = path / STAGE_TOKENS_NAME if path.is_dir() else path
    if not path.exists():
        raise ModelNotFoundError(f"no such file of stage tokens: {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            said = file.metadata() or {}
            _check_format(path, said)
            tokens: Tensor = file.get_tensor("tokens")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or is not a safetensors file: {error}") from None
    try:
        stages, each, num_timesteps = (int(said[name]) for name in ("stages", "tokens", "num_timesteps"))
    except (KeyError, ValueError):
        raise WeightsError(f"{path} does not say its stages, tokens and num_timesteps: {said}") from None
    if tokens.ndim != 3 or tokens.shape[:2] != (stages, each) or not tokens.isfinite().all():
        raise WeightsError(
            f"{path} says {stages} stages of {each} tokens, but holds {tuple(tokens.shape)} or numbers that "
            "are not finite; it is damaged"
        )
    return StageTokens(tokens, num_timesteps).requires_grad_(False)


def _check_format(path: Path, said: dict[str, str]) -> None:
    version = said.get("idgen_stage_tokens")
    if version is None:
        raise WeightsError(
            f"{path.name} holds no stage tokens; an adapter is loaded with load_adapter, a LoRA with "
            "load_lora_weights"
        )
    if version != FORMAT:
        raise WeightsError(f"{path} is of format {version!r}, this idgen reads {FORMAT!r}; update idgen")


@contextmanager
def staged(unet: UNet2DConditionModel, tokens: StageTokens | None, num_pictures: int) -> Iterator[None]:
    """Give each call of ``unet`` inside the block the tokens of its timestep; none after it.

    The negative rows of guidance, which diffusers puts first, do not see them. A hook that adds rows
    (`idgen.adapters.guidance`) must be registered after this one, and adds rows with tokens: they are text.

    Args:
        unet: as the pipelines of diffusers call it.
        tokens: that fit it; nothing happens where None.
        num_pictures: P; the UNet is called with P rows, or 2 P with guidance.

    Raises:
        ConfigError: if it is called with any other number of rows.
    """
    if tokens is None:
        yield
        return

    def hook(
        _unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        hidden: Tensor = given["encoder_hidden_states"]
        if len(hidden) not in (num_pictures, 2 * num_pictures):
            raise ConfigError(
                f"the UNet was called with {len(hidden)} rows for {num_pictures} pictures with stage tokens"
            )
        given["encoder_hidden_states"] = tokens(hidden, torch.as_tensor(given["timestep"]))
        if len(hidden) > num_pictures:
            is_positive = torch.arange(len(hidden), device=hidden.device) >= num_pictures
            given["encoder_attention_mask"] = tokens.mask(hidden, is_positive)
        return (), given

    handle = unet.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
