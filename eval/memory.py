"""How much memory pictures need, by base model and precision: computed, without weights or a GPU.

    idgen evaluate memory
    idgen evaluate memory --model stable-diffusion-v1-5/stable-diffusion-v1-5 --size 768 --batch-size 4

Networks are built from their configurations on torch's meta device, where tensors have shapes and no
numbers. Weights are counted exactly. Activations are an estimate: the most that one call of the UNet, or of
the decoder, holds at once, with attention as torch's kernels compute it, without its matrix, and without what
the identity's few tokens add. What the libraries of a GPU take for themselves comes on top.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from idgen import mini
from idgen.adapters.checkpoint import read_face_adapter
from idgen.adapters.install import IDAdapter
from idgen.config import Parser, read_size
from idgen.errors import ConfigError
from idgen.opening import model_folder
from idgen.recognition.networks import build_backbone

GIB = 2**30
PRECISIONS = {"float32": torch.float32, "float16": torch.float16}
FACE_DIM = 512  # of insightface's vectors
LORA_RANK = 128  # of the LoRA in the published FaceID files
TEXT_TOKENS = 77

# The published configurations: files config.json of stable-diffusion-v1-5/stable-diffusion-v1-5,
# stabilityai/stable-diffusion-2-1 and stabilityai/stable-diffusion-xl-base-1.0. What is not said is the
# default of the class, which is that of SD 1.x.
_AUTOENCODER = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip
_UNET_1 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_UNET_2 = {
    "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}  # fmt: skip
_UNET_XL = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
_TEXT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_TEXT_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
_TEXT_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
           "projection_dim": 1280}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The networks of a base model with an identity adapter, on the meta device.

    Attributes:
        unet: of SD 1.x, 2.x or XL kind.
        vae: its autoencoder.
        texts: one text encoder, or two.
        adapter: FaceID, fitting the UNet.
        upcasts: whether the autoencoder computes in float32 whatever the precision is.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    texts: tuple[nn.Module, ...]
    adapter: IDAdapter
    upcasts: bool = False


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Numbers of weights of the parts, and bytes of a call at one precision."""

    weights: Mapping[str, int]
    weight_bytes: int
    unet_call: int
    decoder_call: int

    @property
    def total(self) -> int:
        """The most that is needed at once."""
        return self.weight_bytes + max(self.unet_call, self.decoder_call)


class _Peak(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, and remembers the most."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights, self.alive, self.most = weights, 0, 0
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operation makes
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._watch(value.untyped_storage())
        return made

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.weights or key in self._watched:
            return

        def gone(_reference: object) -> None:
            del self._watched[key]
            self.alive -= size

        self._watched[key] = weakref.ref(storage, gone)
        self.alive += size
        self.most = max(self.most, self.alive)


@contextmanager
def attention_without_matrix() -> Iterator[None]:
    """Attention as kernels compute it that go through keys in blocks: the meta device has none."""

    def attend(query: Tensor, _key: Tensor, value: Tensor, *_rest: Any, **_settings: Any) -> Tensor:  # noqa: ANN401
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    with patch.object(F, "scaled_dot_product_attention", attend):
        yield


def peak_bytes(module: nn.Module, call: Callable[[], object]) -> int:
    """The most bytes that ``call`` holds at once beside the weights of ``module``, without gradients."""
    weights = {weight.untyped_storage()._cdata for weight in module.state_dict(keep_vars=True).values()}
    with torch.no_grad(), attention_without_matrix(), _Peak(weights) as peak:
        call()
    return peak.most


def _text_encoder(config: Mapping[str, Any], *, projects: bool = False) -> nn.Module:
    return (CLIPTextModelWithProjection if projects else CLIPTextModel)(CLIPTextConfig(**config))


def _published(unet: Mapping[str, Any], *texts: nn.Module, lora_rank: int, upcasts: bool = False) -> Parts:
    network = UNet2DConditionModel(**unet)
    adapter = IDAdapter.for_unet(network, id_dim=FACE_DIM, lora_rank=lora_rank)
    vae = AutoencoderKL(**_AUTOENCODER)  # pyright: ignore[reportArgumentType]
    return Parts(unet=network, vae=vae, texts=texts, adapter=adapter, upcasts=upcasts)


def _config(kind: type[ConfigMixin], folder: Path) -> dict[str, Any]:
    found = kind.load_config(folder)
    assert isinstance(found, dict)
    return found


def of_folder(folder: Path) -> Parts:
    """The parts of a diffusers folder; with mini's adapter, or one like the published ones."""
    unet = UNet2DConditionModel.from_config(_config(UNet2DConditionModel, folder / "unet"))
    config = _config(AutoencoderKL, folder / "vae")
    texts = [
        _text_encoder(CLIPTextConfig.from_pretrained(folder / name).to_dict(), projects=name.endswith("_2"))
        for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()
    ]  # fmt: skip
    assert isinstance(unet, UNet2DConditionModel)
    if folder == mini.BASE:
        with torch.device("cpu"):
            adapter = read_face_adapter(mini.ADAPTER).adapter.to("meta")
    else:
        adapter = IDAdapter.for_unet(unet, id_dim=FACE_DIM, lora_rank=LORA_RANK)
    return Parts(
        unet=unet, vae=AutoencoderKL.from_config(config), texts=tuple(texts),  # pyright: ignore[reportArgumentType]
        adapter=adapter, upcasts=bool(config.get("force_upcast", True)) and len(texts) > 1,
    )  # fmt: skip


BASES: dict[str, Callable[[], Parts]] = {
    "mini": lambda: of_folder(mini.BASE),
    "SD 1.5": lambda: _published(_UNET_1, _text_encoder(_TEXT_L), lora_rank=LORA_RANK),
    "SD 2.1": lambda: _published(_UNET_2, _text_encoder(_TEXT_H), lora_rank=0),
    "SDXL": lambda: _published(
        _UNET_XL,
        _text_encoder(_TEXT_L),
        _text_encoder(_TEXT_G, projects=True),
        lora_rank=LORA_RANK,
        upcasts=True,
    ),
}


def needs(parts: Parts, precision: torch.dtype, size: tuple[int, int], batch_size: int) -> Needs:
    """What pictures need that are made with guidance: two rows of the UNet for each.

    Args:
        parts: of the model.
        precision: of its weights.
        size: width and height in pixels.
        batch_size: pictures that are made at once.
    """
    named = {"UNet": parts.unet, "autoencoder": parts.vae, "adapter": parts.adapter,
             "text encoders": nn.ModuleList(parts.texts)}  # fmt: skip
    for module in named.values():
        nn.Module.to(module, precision)  # diffusers' own would remind of a setting of from_pretrained
    weight_bytes = sum(w.nbytes for m in named.values() for w in m.state_dict().values())
    unet_call = peak_bytes(parts.unet, lambda: _denoise(parts, precision, size, batch_size))
    decoding = torch.float32 if parts.upcasts else precision
    nn.Module.to(parts.vae, decoding)
    cast = sum(w.nbytes for w in parts.vae.state_dict().values()) if decoding != precision else 0
    width, height = (side // _shrinking(parts) for side in size)
    latents = torch.empty(batch_size, parts.vae.config["latent_channels"], height, width, dtype=decoding)
    return Needs(
        weights={name: sum(w.numel() for w in module.parameters()) for name, module in named.items()},
        weight_bytes=weight_bytes,
        unet_call=unet_call,
        decoder_call=peak_bytes(parts.vae, lambda: parts.vae.decode(latents)) + cast // 2,  # pyright: ignore[reportArgumentType]
    )


def _shrinking(parts: Parts) -> int:
    """Pixels of the picture for one of the latents, along a side."""
    return 2 ** (len(parts.vae.config["block_out_channels"]) - 1)


def _denoise(parts: Parts, precision: torch.dtype, size: tuple[int, int], batch_size: int) -> Tensor:
    config, rows = parts.unet.config, 2 * batch_size
    width, height = (side // _shrinking(parts) for side in size)
    settings: dict[str, Any] = {}
    if config["addition_embed_type"] == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        settings["added_cond_kwargs"] = {
            "text_embeds": torch.empty(rows, pooled, dtype=precision),
            "time_ids": torch.empty(rows, 6, dtype=precision),
        }  # fmt: skip
    return parts.unet(
        torch.empty(rows, config["in_channels"], height, width, dtype=precision), torch.empty(rows),
        encoder_hidden_states=torch.empty(rows, TEXT_TOKENS, config["cross_attention_dim"], dtype=precision),
        return_dict=False, **settings,
    )[0]  # fmt: skip


def table_of(models: Sequence[str], size: tuple[int, int] | None, batch_size: int) -> list[str]:
    """Lines of a table in Markdown: bases by precision."""
    lines = [
        "| base | pictures | precision | weights | a call of the UNet | the decoder | together |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in models:
        with torch.device("meta"):
            parts = BASES[name]() if name in BASES else of_folder(model_folder(name))
            side = parts.unet.config["sample_size"] * _shrinking(parts)
            pixels = size or (side, side)
            for said, precision in PRECISIONS.items():
                found = needs(parts, precision, pixels, batch_size)
                cells = map(_gib, (found.weight_bytes, found.unet_call, found.decoder_call, found.total))
                shown = f"{batch_size} of {pixels[0]} x {pixels[1]}"
                lines.append(f"| {name} | {shown} | {said} | {' | '.join(cells)} |")
    return lines


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def recogniser_bytes() -> int:
    """Weights of insightface's largest recogniser, an IResNet-50; it runs beside the model, on the CPU."""
    with torch.device("meta"):
        return sum(4 * weight.numel() for weight in build_backbone("iresnet50", dim=FACE_DIM).parameters())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help=f"{', '.join(BASES)}, or a model as in `idgen generate`; several times (those four)",
    )
    parser.add_argument("--size", metavar="WxH", help="pixels (what the model was trained for)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures made at once (1)")
    options = parser.parse_args(argv)
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, got {options.batch_size}")
    print(
        "\n".join(
            table_of(
                options.model or list(BASES),
                read_size(options.size) if options.size else None,
                options.batch_size,
            )
        )
    )
    more = _gib(recogniser_bytes())
    print(f"\nComputed, not measured. A recogniser such as buffalo_l's takes {more} more, on the CPU.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
