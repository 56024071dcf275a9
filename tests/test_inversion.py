"""pSp and e4e read off the keys of their files, and their keys and shapes against the published ones."""

import math
from collections.abc import Mapping

import pytest
import torch
from tiny_wplus import tiny_encoder
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, interpolate

from idgen.stylegan.inversion import Encoder4Editing, GradualStyleEncoder

SMALL_PX = 64  # the encoders are made for 256, and give one code from less as well


def slow_heads(state: Mapping[str, Tensor], pixel_values: Tensor, num_layers: int) -> list[Tensor]:
    """The published forward pass, from the keys alone."""

    def normed(at: str, maps: Tensor) -> Tensor:
        mean, var = state[f"{at}.running_mean"], state[f"{at}.running_var"]
        return batch_norm(maps, mean, var, state[f"{at}.weight"], state[f"{at}.bias"])

    def prelu(at: str, maps: Tensor) -> Tensor:
        return torch.where(maps > 0, maps, maps * state[f"{at}.weight"][None, :, None, None])

    def unit(at: str, maps: Tensor, stride: int) -> Tensor:
        shortcut = maps[:, :, ::stride, ::stride]
        if f"{at}.shortcut_layer.0.weight" in state:
            shortcut = conv2d(shortcut, state[f"{at}.shortcut_layer.0.weight"])
            shortcut = normed(f"{at}.shortcut_layer.1", shortcut)
        maps = conv2d(normed(f"{at}.res_layer.0", maps), state[f"{at}.res_layer.1.weight"], padding=1)
        maps = prelu(f"{at}.res_layer.2", maps)
        maps = conv2d(maps, state[f"{at}.res_layer.3.weight"], padding=1, stride=stride)
        maps = normed(f"{at}.res_layer.4", maps)
        squeezed = maps.mean(dim=(2, 3)) @ state[f"{at}.res_layer.5.fc1.weight"][:, :, 0, 0].T
        excited = squeezed.clamp(min=0) @ state[f"{at}.res_layer.5.fc2.weight"][:, :, 0, 0].T
        return maps * excited.sigmoid()[:, :, None, None] + shortcut

    def head(at: str, maps: Tensor, depth: int) -> Tensor:
        for step in range(depth):
            maps = conv2d(maps, state[f"{at}.convs.{2 * step}.weight"], state[f"{at}.convs.{2 * step}.bias"],
                          stride=2, padding=1)  # fmt: skip
            maps = torch.where(maps > 0, maps, 0.01 * maps)
        code = maps[:, :, 0, 0]
        return code @ state[f"{at}.linear.weight"].T / math.sqrt(code.shape[1]) + state[f"{at}.linear.bias"]

    maps = conv2d(pixel_values, state["input_layer.0.weight"], padding=1)
    maps = prelu("input_layer.2", normed("input_layer.1", maps))
    kept = {}
    for number in range(24):
        maps = unit(f"body.{number}", maps, 2 if number in (0, 3, 7, 21) else 1)
        kept[number] = maps
    pyramid, levels = kept[23], []
    levels.append(pyramid)
    for name, number in (("latlayer1", 20), ("latlayer2", 6)):
        lateral = conv2d(kept[number], state[f"{name}.weight"], state[f"{name}.bias"])
        pyramid = interpolate(pyramid, scale_factor=2, mode="bilinear", align_corners=True) + lateral
        levels.append(pyramid)
    level_of = [0, 0, 0, 1, 1, 1, 1, *[2] * 11]
    return [head(f"styles.{k}", levels[level_of[k]], 4 + level_of[k]) for k in range(num_layers)]


@pytest.mark.parametrize("kind", ["e4e", "psp"])
def test_codes_equal_the_published_network_read_off_its_keys(kind: str) -> None:
    encoder = tiny_encoder(kind, num_layers=10).double()
    faces = torch.randn(2, 3, SMALL_PX, SMALL_PX).double()
    heads = slow_heads(encoder.state_dict(), faces, 10)
    added = kind == "e4e"  # there the first code is part of every other
    expected = [heads[0], *(heads[0] + head if added else head for head in heads[1:])]
    codes = encoder(faces)
    torch.testing.assert_close(codes, torch.stack(expected, dim=1))
    assert codes.std() > 0.05
    assert (codes[:, 1:] - codes[:, :1]).abs().mean() > 0.01


def test_a_face_does_not_depend_on_its_neighbours_and_gradients_reach_its_pixels() -> None:
    encoder = tiny_encoder()
    faces = torch.randn(2, 3, SMALL_PX, SMALL_PX, requires_grad=True)
    codes = encoder(faces)
    torch.testing.assert_close(codes[:1], encoder(faces[:1]), atol=1e-5, rtol=1e-4)
    codes[0].square().sum().backward()
    assert faces.grad is not None
    assert (faces.grad[0] != 0).float().mean() > 0.99
    assert not faces.grad[1].any()
    still = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    # the middle of a squeeze-and-excitation block is one number wide here, and half of them are below 0
    assert all(".res_layer.5.fc" in name for name in still)
    assert len(still) < 40


# the published shapes --------------------------------------------------------------------------------------


def published_encoder_shapes() -> dict[str, tuple[int, ...]]:
    """Keys of e4e and pSp for 1024 pixels, below ``encoder.``: an IR-SE50, 18 heads, two lateral layers."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(at: str, channels: int) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{at}.{name}"] = (channels,)
        shapes[f"{at}.num_batches_tracked"] = ()

    def biased(at: str, *weight: int) -> None:
        shapes[f"{at}.weight"], shapes[f"{at}.bias"] = weight, weight[:1]

    shapes["input_layer.0.weight"], shapes["input_layer.2.weight"] = (64, 3, 3, 3), (64,)
    norm("input_layer.1", 64)
    widths = [64] * 3 + [128] * 4 + [256] * 14 + [512] * 3
    for number, (before, width) in enumerate(zip([64, *widths], widths, strict=False)):
        at = f"body.{number}.res_layer"
        norm(f"{at}.0", before)
        shapes[f"{at}.1.weight"], shapes[f"{at}.2.weight"] = (width, before, 3, 3), (width,)
        shapes[f"{at}.3.weight"] = (width, width, 3, 3)
        norm(f"{at}.4", width)
        shapes[f"{at}.5.fc1.weight"] = (width // 16, width, 1, 1)
        shapes[f"{at}.5.fc2.weight"] = (width, width // 16, 1, 1)
        if before != width:
            shapes[f"body.{number}.shortcut_layer.0.weight"] = (width, before, 1, 1)
            norm(f"body.{number}.shortcut_layer.1", width)
    for layer in range(18):
        for step in range(4 if layer < 3 else 5 if layer < 7 else 6):
            biased(f"styles.{layer}.convs.{2 * step}", 512, 512, 3, 3)
        biased(f"styles.{layer}.linear", 512, 512)
    biased("latlayer1", 512, 256, 1, 1)
    biased("latlayer2", 512, 128, 1, 1)
    return shapes


@pytest.mark.parametrize("kind", [Encoder4Editing, GradualStyleEncoder])
def test_the_published_encoder_fits_key_by_key(kind: type[Encoder4Editing | GradualStyleEncoder]) -> None:
    with torch.device("meta"):
        encoder = kind(18)
    shapes = {key: tuple(tensor.shape) for key, tensor in encoder.state_dict().items()}
    assert shapes == published_encoder_shapes()
    assert len(shapes) == 621
    assert shapes["body.3.shortcut_layer.0.weight"] == (128, 64, 1, 1)
    assert shapes["body.23.res_layer.5.fc1.weight"] == (32, 512, 1, 1)
    assert shapes["styles.17.convs.10.weight"] == (512, 512, 3, 3)
    # 98 convolutions of 512 x 512 x 3 x 3 in the heads are 231 M of them
    assert sum(p.numel() for p in encoder.parameters()) == 267_136_704
    codes = encoder.eval()(torch.empty(1, 3, 256, 256, device="meta"))
    assert tuple(codes.shape) == (1, 18, 512)
