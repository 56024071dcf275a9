"""The preference model: one number for a face crop, higher for what looks more like a good photograph.

Shapes: B batch, C channels. Crops are (B, 3, 112, 112), RGB in [0, 1], in the ArcFace pose.
"""

import json
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, silu, softplus
from torch.nn.utils.fusion import fuse_conv_bn_eval

from idgen.errors import ConfigError, ImageError, ModelNotFoundError, WeightsError
from idgen.mini import ROOT
from idgen.storage import sorted_header, write_bytes

CROP_PX = 112
NUM_STAGES = 4  # each halves the side: 56, 28, 14 and 7 places
DETAIL_PX = 4  # side of the squares in which detail is averaged: 28 x 28 of them
DETAIL_FLOOR = 0.002  # of a difference in [0, 1]: twice the noise that rounding to 8 bits leaves
FORMAT = "1"
EMBEDDED = ROOT / "preference" / "preference.safetensors"


def preference_loss(better: Tensor, worse: Tensor) -> Tensor:
    """What a pair says of two scores, one value a pair: ``-log sigmoid(s(better) - s(worse))``.

    The model of Bradley and Terry (1952, https://doi.org/10.2307/2334029), as reward models are fitted; here
    the better one is a photograph and the worse one its distorted copy, the structure and sharpness part of
    ID-Aligner's aesthetic reward (Chen et al. 2024, https://arxiv.org/abs/2404.15449).
    """
    return softplus(worse - better)


def _layer(num_in: int, num_out: int, size: int, stride: int, *, normalise: bool) -> nn.Sequential:
    """A convolution that keeps the raster but for its stride, and its normalisation while it learns."""
    conv = nn.Conv2d(num_in, num_out, size, stride, (size - stride + 1) // 2, bias=not normalise)
    return nn.Sequential(conv, nn.BatchNorm2d(num_out) if normalise else nn.Identity())


class Residual(nn.Module):
    """Two convolutions of 3 x 3 that are added to what came in."""

    def __init__(self, width: int, *, normalise: bool) -> None:
        super().__init__()
        self.first = _layer(width, width, 3, 1, normalise=normalise)
        self.second = _layer(width, width, 3, 1, normalise=normalise)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return silu(maps + self.second(silu(self.first(maps))))


def _difference_filters() -> Tensor:
    """Differences of order 1, 2 and 4 along rows and columns, and of order 2 along both: (7, 1, 5, 5)."""
    lines = torch.tensor([[0.0, 0, -1, 1, 0], [0, 1, -2, 1, 0], [1, -4, 6, -4, 1]])
    lines = lines / lines.norm(dim=1, keepdim=True)
    middle = torch.tensor([0.0, 0, 1, 0, 0])
    pairs = [(middle, line) for line in lines] + [(line, middle) for line in lines] + [(lines[1], lines[1])]
    return torch.stack([torch.outer(column, row) for column, row in pairs])[:, None]


def detail(crops: Tensor) -> Tensor:
    """How much there is of coarse to fine detail in every square: (B, 7, 28, 28), logarithms from 0.

    Their ratios tell soft, natural and sharpened apart at any contrast, and an enlarged picture from a soft
    one: bilinear enlargement leaves kinks.
    """
    light = pad(crops.mean(dim=1, keepdim=True), (2,) * 4, mode="reflect").contiguous()
    energy = torch.conv2d(light, _difference_filters().to(crops)).square() + DETAIL_FLOOR**2
    return (avg_pool2d(energy.sqrt(), DETAIL_PX) / DETAIL_FLOOR).log()


class PreferenceModel(nn.Module):
    """A face crop -> its score: ``s(x) = -sum_k softplus(f_k(x))`` over the kinds of fault.

    Other than the preference models of whole pictures (ImageReward, PickScore) it reads no prompt and is
    small enough for one core. What it knows beforehand: detail is measured, not learned; every place sees
    its mirror place, because faces are alike on both sides; the last map is weighed place by place, because
    structure is where things are; and each kind of fault has a number of its own, because some, such as too
    soft and too sharp, pull in opposite directions.

    Args:
        widths: channels of the four stages.
        num_blocks: residual blocks after the third, where a place is 8 pixels.
        faults: names of the kinds of fault.
        reference_score: mean score of photographs of people it never saw; a reward is
            ``-softplus(reference_score - s(x))``.
        normalise: with batch normalisation, for training; `folded` takes it out.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        num_blocks: int,
        faults: tuple[str, ...],
        *,
        reference_score: float = 0.0,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != NUM_STAGES or num_blocks < 0 or not faults:
            raise ConfigError(
                f"a preference model has {NUM_STAGES} widths, 0 or more blocks and at least one kind of "
                f"fault, got {widths}, {num_blocks} and {faults}"
            )
        self.widths, self.num_blocks, self.fault_names = tuple(widths), num_blocks, tuple(faults)
        self.reference_score = reference_score
        num_detail = len(_difference_filters())
        first, second, third, last = widths
        self.near = nn.Sequential(
            _layer(3, first, 5, 2, normalise=normalise), nn.SiLU(),
            _layer(first, second, 3, 2, normalise=normalise), nn.SiLU(),
        )  # fmt: skip
        self.parts = _layer(second + num_detail, third, 3, 2, normalise=normalise)
        self.blocks = nn.Sequential(*(Residual(third, normalise=normalise) for _ in range(num_blocks)))
        self.whole = _layer(2 * third, last, 3, 2, normalise=normalise)
        self.places = nn.Conv2d(last, last, CROP_PX // 2**NUM_STAGES, groups=last)
        self.last = nn.Linear(last, len(faults))

    def faults(self, crops: Tensor) -> Tensor:
        """How much of each kind of fault there is: (B, kinds), higher is worse.

        Raises:
            ImageError: if the crops have another shape.
        """
        if crops.shape[1:] != (3, CROP_PX, CROP_PX):
            raise ImageError(
                f"the preference model reads crops (B, 3, {CROP_PX}, {CROP_PX}), got {tuple(crops.shape)}; "
                "enlarge smaller ones bilinearly"
            )
        near = torch.cat([self.near(2 * crops - 1), detail(crops)], dim=1)
        parts = self.blocks(silu(self.parts(near)))
        whole = silu(self.whole(torch.cat([parts, parts.flip(-1)], dim=1)))
        return self.last(silu(self.places(whole)).flatten(1))

    def forward(self, crops: Tensor) -> Tensor:
        """The scores (B,), higher is better."""
        return score_of(self.faults(crops))


def score_of(faults: Tensor) -> Tensor:
    """Faults (..., kinds) -> scores (...): a fault that is not there cannot make up for one that is."""
    return -softplus(faults).sum(dim=-1)


def folded(model: PreferenceModel, reference_score: float = 0.0) -> PreferenceModel:
    """A trained model without normalisation: the same scores as in evaluation, nothing left to switch."""
    plain = PreferenceModel(
        model.widths, model.num_blocks, model.fault_names, reference_score=reference_score
    )
    state = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and any(isinstance(part, nn.BatchNorm2d) for part in module):
            conv, norm = cast(nn.Conv2d, module[0]).eval(), cast(nn.BatchNorm2d, module[1]).eval()
            whole = fuse_conv_bn_eval(conv, norm)
            state |= {f"{name}.0.{key}": value for key, value in whole.state_dict().items()}
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    return plain.eval().requires_grad_(False)


def write_preference(path: Path, model: PreferenceModel) -> None:
    """Write a folded model: weights in halves, its settings in the metadata; equal weights, equal files."""
    state = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
    metadata = {
        "format": "pt",
        "idgen_preference": FORMAT,
        "widths": json.dumps(model.widths),
        "num_blocks": str(model.num_blocks),
        "faults": json.dumps(model.fault_names),
        "reference_score": f"{model.reference_score:.4f}",
    }
    write_bytes(path, sorted_header(save(state, metadata)))


def load_preference(path: Path | None = None) -> PreferenceModel:
    """The preference model of a file, frozen, on the CPU and in float32.

    Args:
        path: of the safetensors file; the embedded one where None.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if it is damaged, or is no preference model.
    """
    path = path or EMBEDDED
    if not path.is_file():
        raise ModelNotFoundError(
            f"no such preference model: {path} (`idgen train preference` makes one; none given: the embedded)"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or is not a safetensors file: {error}") from None
    if metadata.get("idgen_preference") != FORMAT:
        raise WeightsError(
            f"{path} is no preference model of format {FORMAT}: its metadata says idgen_preference = "
            f"{metadata.get('idgen_preference')!r}"
        )
    try:
        model = PreferenceModel(
            tuple(json.loads(metadata["widths"])),
            int(metadata["num_blocks"]),
            tuple(json.loads(metadata["faults"])),
            reference_score=float(metadata["reference_score"]),
        )
        model.load_state_dict(state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path}: its weights or settings do not fit together: {error}") from None
    return model.eval().requires_grad_(False)
