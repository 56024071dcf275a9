"""Files of StyleGAN codes: e4e, pSp and generators as they are published, and idgen's own safetensors.

Sizes and widths are read off the tensors; nothing missing, surplus or of another shape is let pass.

Shapes: L layers of the generator, C width of a code.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from idgen.errors import ModelNotFoundError, WeightsError
from idgen.storage import sorted_header, write_bytes
from idgen.stylegan.building import (
    EmptyEncoder,
    and_more,
    check_tensors,
    empty_compact,
    empty_e4e,
    empty_generator,
    empty_psp,
    fill,
)
from idgen.stylegan.generator import StyleGenerator
from idgen.stylegan.inversion import INPUT_PX
from idgen.stylegan.layouts import FORMAT, Contents, listed, read_contents
from idgen.stylegan.model import WPlusModel, check_mean_code
from idgen.stylegan.principal import LatentWPlusModel, empty_principal, open_vae

# How an encoder of each kind is built, empty, from its tensors (keys without "encoder.") and the settings of
# its card. It is called on torch's meta device: an encoder must hold no tensor outside of its state dict.
ENCODER_KINDS: dict[str, EmptyEncoder] = {"e4e": empty_e4e, "psp": empty_psp, "compact": empty_compact}
PRINCIPAL = "principal"  # encoder and generator of latents: `idgen.stylegan.principal`
# What the published encoders read; the fields are those of `idgen.encoders.base.CropSpec`.
PUBLISHED_CROP = {"size_px": INPUT_PX, "template": "ffhq", "mean": 127.5, "std": 127.5}


@dataclass(frozen=True, kw_only=True)
class WPlusCard:
    """What a file says of itself beside its weights.

    Attributes:
        kind: of the encoder, a key of `ENCODER_KINDS`, or `PRINCIPAL`.
        crop: what the encoder reads, as the settings of a `CropSpec`.
        licence: what the weights may be used for, in words; None where nobody says.
        settings: what the encoder's kind needs besides the tensors to be built again, as plain data.

    Raises:
        WeightsError: if there is no such kind, or the crop has no size.
    """

    kind: str
    crop: Mapping[str, Any] = field(default_factory=lambda: dict(PUBLISHED_CROP))
    licence: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in (known := (*ENCODER_KINDS, PRINCIPAL)):
            raise WeightsError(
                f"{self.kind!r} is no kind of W+ encoder that idgen knows (it knows {', '.join(known)})"
            )
        size_px = self.crop.get("size_px")
        if not isinstance(size_px, int) or size_px < 1:
            raise WeightsError(f"the crop of a W+ encoder must have a size_px from 1 on, got {size_px!r}")


@dataclass(frozen=True)
class WPlusFile:
    """An encoder with its generator as they were read: on the CPU, frozen, in float32."""

    path: Path
    model: WPlusModel
    card: WPlusCard
    sha256: str


@dataclass(frozen=True)
class GeneratorFile:
    """A generator as it was read; the mean code (L, C) is None where the file has none."""

    path: Path
    generator: StyleGenerator
    latent_avg: Tensor | None
    sha256: str


def write_wplus(
    path: str | Path, model: WPlusModel, card: WPlusCard, *, dtype: torch.dtype | None = None
) -> str:
    """Write an encoder with its generator as one safetensors; equal weights give equal files.

    Args:
        path: ends in ``.safetensors``; the file is whole or not there.
        model: on any device.
        card: goes into the metadata.
        dtype: of the written numbers; as they are where None. float16 halves the file.

    Returns:
        The sha256 of the written file.

    Raises:
        WeightsError: if the suffix is another, or a number is too large for ``dtype``.
        StorageError: if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"W+ encoders are written as .safetensors, got {path.name}")
    state = {
        key: t.detach().to("cpu", dtype if t.is_floating_point() else None, copy=True).contiguous()
        for key, t in model.weights().items()
    }
    for key, tensor in state.items():
        if not tensor.isfinite().all():
            raise WeightsError(
                f"{key} is not finite in {tensor.dtype}; write torch.bfloat16 or torch.float32"
            )
    said = {
        "format": "pt",
        "idgen_wplus": FORMAT,
        "encoder_kind": card.kind,
        "crop": json.dumps(dict(card.crop), sort_keys=True),
        "settings": json.dumps(dict(card.settings), sort_keys=True),
    }
    data = sorted_header(save(state, said if card.licence is None else {**said, "licence": card.licence}))
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_wplus(path: str | Path, *, kind: str | None = None) -> WPlusFile:
    """Read an encoder with its generator: idgen's file, or an e4e or pSp checkpoint.

    Args:
        path: a ``.safetensors``, or a pickle without code in it.
        kind: ``e4e`` or ``psp``, for a file that does not say; their tensors have the same names.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it is damaged, holds code, lacks its encoder, its generator, its mean code or a
            tensor, has one too many, or if nobody says of which kind the encoder is.
    """
    path = _existing(path)
    contents = read_contents(path)
    try:
        _check_parts(contents)
        said_kind = contents.said.get("kind")
        card = WPlusCard(**{**contents.said, "kind": _kind(said_kind, kind)})
        return WPlusFile(path, _build(contents, card), card, _sha256(path))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def read_generator(path: str | Path) -> GeneratorFile:
    """Read a generator alone: of a rosinality checkpoint, or of any file that `read_wplus` reads.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it is damaged, holds code, or holds no whole generator.
    """
    path = _existing(path)
    contents = read_contents(path)
    try:
        generator = _generator(contents)
        latent_avg = contents.state.get("latent_avg")
        if latent_avg is not None:
            latent_avg = _mean_code(latent_avg, generator)
            check_mean_code(latent_avg, generator)
        return GeneratorFile(path, generator, latent_avg, _sha256(path))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.is_file():
        return path
    raise ModelNotFoundError(
        f"no such file: {path}. W+ encoders are files on this disk: the e4e or pSp checkpoint of its authors "
        "(e4e_ffhq_encode.pt, psp_ffhq_encode.pt), or what idgen has written; nothing is downloaded"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_parts(contents: Contents) -> None:
    """Both halves are there, and nothing beside them."""
    encoder, decoder = contents.below("encoder."), contents.below("decoder.")
    if not encoder and not decoder:
        raise WeightsError(f"it has neither encoder.* nor decoder.*, but {listed(contents.state)}")
    if not encoder:
        raise WeightsError(
            "it holds a generator and no encoder: it can make faces (`read_generator`), but it cannot read "
            "photos; give the e4e or pSp checkpoint that was trained for this generator"
        )
    if not decoder:
        raise WeightsError(
            "it holds an encoder without its generator, and codes mean something to that one alone; give a "
            "checkpoint with decoder.* in it"
        )
    surplus = [k for k in contents.state if not k.startswith(("encoder.", "decoder.")) and k != "latent_avg"]
    if surplus:
        shape = tuple(contents.state[surplus[0]].shape)
        raise WeightsError(f"{surplus[0]} {shape} has no place{and_more(surplus)}")


def _kind(said: str | None, asked: str | None) -> str:
    if said is not None and asked is not None and said != asked:
        raise WeightsError(f"its encoder is {said}, not {asked}; leave the kind out")
    kind = said or asked
    if kind is None:
        raise WeightsError(
            "it does not say of which kind its encoder is, and the tensors of e4e and pSp look alike; say it "
            "with kind='e4e' or kind='psp'"
        )
    return kind


def _build(contents: Contents, card: WPlusCard) -> WPlusModel:
    if card.kind == PRINCIPAL:
        return _build_principal(contents, card)
    generator = _generator(contents)
    state = contents.below("encoder.")
    with torch.device("meta"):
        encoder = ENCODER_KINDS[card.kind](state, card.settings)
    check_tensors(encoder, state, "encoder.")
    if "latent_avg" in contents.state:
        latent_avg = _mean_code(contents.state["latent_avg"], generator)
    elif contents.is_relative:
        raise WeightsError("it lacks latent_avg, the mean code that those of its encoder are added to")
    else:
        latent_avg = torch.zeros(generator.num_layers, generator.style_dim)
    return WPlusModel(fill(encoder, state), generator, latent_avg)


def _build_principal(contents: Contents, card: WPlusCard) -> LatentWPlusModel:
    with torch.device("meta"):
        encoder, decoder = empty_principal(card.settings)
    for part, at in ((encoder, "encoder."), (decoder, "decoder.")):
        check_tensors(part, contents.below(at), at)
    vae = open_vae(str(card.settings.get("model")), sha256=card.settings.get("vae_sha256"))
    latent_avg = contents.state.get("latent_avg", torch.zeros(encoder.num_layers, encoder.style_dim))
    return LatentWPlusModel(
        fill(encoder, contents.below("encoder.")),
        fill(decoder, contents.below("decoder.")),
        latent_avg.float(),
        vae,
    )


def _generator(contents: Contents) -> StyleGenerator:
    if contents.said.get("kind") == PRINCIPAL:
        raise WeightsError(
            "its generator makes latents of a diffusion model, and shows nothing without its encoder"
        )
    state = contents.below("decoder.")
    empty = empty_generator(state)
    check_tensors(empty, state, "decoder.")
    return fill(empty, state)


def _mean_code(latent_avg: Tensor, generator: StyleGenerator) -> Tensor:
    """One mean code for each layer, (L, C); a file may have the same one for all, as (C,) or (1, C)."""
    style_dim = (generator.style_dim,)
    if tuple(latent_avg.shape) in {style_dim, (1, *style_dim)}:
        latent_avg = latent_avg.reshape(style_dim).repeat(generator.num_layers, 1)
    return latent_avg.float()
