"""LoRA on a UNet by peft, and its files: for plain diffusers, and with the names of kohya's scripts.

LoRA: ``W' = W + (alpha / r) B A`` with ``A (r, in)`` and ``B (out, r)`` trained, ``B = 0`` at the start
(Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from idgen.errors import ConfigError, ModelNotFoundError, WeightsError
from idgen.storage import sorted_header, write_bytes

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"  # what load_lora_weights looks for in a folder
KOHYA_NAME = "kohya.safetensors"
ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Where LoRA goes, and how large it is; ID-Booth's by default.

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / r.
        targets: ends of the names of linear or convolution layers.
    """

    rank: int = 4
    alpha: float = 4.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ConfigError(
                f"rank must be at least 1 and alpha greater than 0, got {self.rank} and {self.alpha}"
            )


def add_lora(unet: UNet2DConditionModel, settings: LoraSettings, *, seed: int) -> dict[str, nn.Parameter]:
    """Put LoRA on a UNet whose own weights are frozen; the weights that train, by name, in float32.

    Raises:
        ConfigError: if no layer of the UNet has a target's name.
    """
    from peft import LoraConfig

    names = [name for name, _ in unet.named_modules()]
    missing = [t for t in settings.targets if not any(n == t or n.endswith(f".{t}") for n in names)]
    if missing:
        raise ConfigError(
            f"no layer of the UNet is called {', '.join(missing)}; layers that LoRA can go on end in "
            f"{', '.join(sorted({n.split('.', 2)[-1] for n in _linear_ends(unet)}))}"
        )
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(
                r=settings.rank, lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
 init_lora_weights="gaussian",
                target_modules=list(settings.targets),
            ),
            adapter_name=ADAPTER,
        )  # fmt: skip
    trained = {name: value for name, value in unet.named_parameters() if value.requires_grad}
    for value in trained.values():
        value.data = value.data.float()
    return trained


def _linear_ends(unet: UNet2DConditionModel) -> set[str]:
    """The last part of the names of linear layers, with the number before it where that is one."""
    ends = set()
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear):
            *_, parent, last = name.split(".")
            ends.add(f"{parent}.{last}" if last.isdecimal() else last)
    return ends


def write_lora(
    unet: UNet2DConditionModel,
    settings: LoraSettings,
    folder: Path,
    *,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write both files into ``folder``, each whole or not at all.

    Args:
        unet: with LoRA on it.
        settings: that it was made with.
        folder: must exist.
        weights: other values for the weights that train, such as their moving average.

    Raises:
        StorageError: if that is not possible.
    """
    from peft.utils import get_peft_model_state_dict

    state = {**unet.state_dict(), **(weights or {})}
    raw = get_peft_model_state_dict(unet, state_dict=state, adapter_name=ADAPTER)
    raw = {key: value.detach().float().cpu().contiguous() for key, value in raw.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": _metadata(unet)}
    weights_file = save(_prefixed(convert_state_dict_to_diffusers(raw)), metadata)
    write_bytes(folder / WEIGHTS_NAME, sorted_header(weights_file))  # equal weights, equal files
    kohya = convert_state_dict_to_kohya(_prefixed(raw))
    scaled = {key: torch.tensor(settings.alpha) if key.endswith(".alpha") else value
              for key, value in kohya.items()}  # fmt: skip
    write_bytes(folder / KOHYA_NAME, save(scaled, {"format": "pt"}))


def load_lora(unet: UNet2DConditionModel, path: Path) -> None:
    """Put the weights of a file that `write_lora` wrote into the LoRA that is on ``unet``, to train on.

    Args:
        unet: with LoRA on it.
        path: the file, or the folder of a run.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it is damaged, or of another rank or other layers.
    """
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    file = path / WEIGHTS_NAME if path.is_dir() else path
    if not file.is_file():
        raise ModelNotFoundError(f"no LoRA to begin with: there is no file {file}")
    try:
        stored = load_file(file)
    except SafetensorError as error:
        raise WeightsError(f"{file} is damaged: {error}") from None
    own = {key.removeprefix("unet."): value for key, value in stored.items()}
    found = convert_unet_state_dict_to_peft(own)
    wanted = {
        key: value.shape for key, value in get_peft_model_state_dict(unet, adapter_name=ADAPTER).items()
    }
    if wanted != {key: value.shape for key, value in found.items()}:
        raise WeightsError(
            f"{file} holds {len(found)} tensors of a LoRA that do not fit the {len(wanted)} of this one: "
            "take the rank and the targets (lora.rank, lora.targets) and the model that it was trained with"
        )
    set_peft_model_state_dict(unet, found, adapter_name=ADAPTER)


def _prefixed(state: dict[str, Any]) -> dict[str, Tensor]:
    return {f"unet.{key}": value for key, value in state.items()}


def _metadata(unet: UNet2DConditionModel) -> str:
    """The settings of peft as diffusers keeps them in a file: without them alpha would be guessed."""
    import json

    config = unet.peft_config[ADAPTER].to_dict()
    plain = {f"unet.{key}": sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    return json.dumps(plain, indent=2, sort_keys=True)
