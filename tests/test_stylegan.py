"""StyleGAN against the formulas written as loops, and its keys and shapes against the published ones."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, leaky_relu

from idgen.errors import ConfigError
from idgen.stylegan.generator import StyleGenerator, num_style_layers, published_channels
from idgen.stylegan.operations import (
    EqualConv2d,
    EqualLinear,
    low_pass,
    modulated_conv2d,
    upfirdn2d,
)


def tiny_generator(size_px: int = 16, style_dim: int = 6) -> StyleGenerator:
    """Noise is switched on: in a fresh generator its strength is 0."""
    torch.manual_seed(5)
    generator = StyleGenerator(size_px, style_dim, {4: 8, 8: 6, 16: 4, 32: 4}, num_mapping_layers=2)
    for name, parameter in generator.named_parameters():
        if name.endswith(("noise.weight", "bias")):
            torch.nn.init.normal_(parameter)
    return generator


# the operations --------------------------------------------------------------------------------------------


def slow_upfirdn(image: Tensor, kernel: Tensor, up: int, down: int, padding: tuple[int, int]) -> Tensor:
    """One plane (H, W): zeros put in, zeros put around, the kernel turned around and laid on."""
    before, after = padding
    height, width = image.shape
    sparse = torch.zeros(height * up, width * up, dtype=image.dtype)
    sparse[::up, ::up] = image
    around = torch.zeros(height * up + before + after, width * up + before + after, dtype=image.dtype)
    for y in range(height * up):
        for x in range(width * up):
            if 0 <= y + before < around.shape[0] and 0 <= x + before < around.shape[1]:
                around[y + before, x + before] = sparse[y, x]
    side = kernel.shape[0]
    turned = kernel.flip(0, 1)
    rows = range(0, around.shape[0] - side + 1, down)
    columns = range(0, around.shape[1] - side + 1, down)
    return torch.stack(
        [torch.stack([(around[y : y + side, x : x + side] * turned).sum() for x in columns]) for y in rows]
    )


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1), (1, 4), (-1, 2), (3, -2)])
def test_resampling_is_zeros_in_convolution_and_every_nth(
    up: int, down: int, padding: tuple[int, int]
) -> None:
    image, kernel = torch.randn(2, 3, 5, 7).double(), torch.randn(3, 3).double()
    expected = torch.stack(
        [torch.stack([slow_upfirdn(plane, kernel, up, down, padding) for plane in row]) for row in image]
    )
    torch.testing.assert_close(upfirdn2d(image, kernel, up=up, down=down, padding=padding), expected)


def test_the_filter_keeps_flat_areas_flat() -> None:
    torch.testing.assert_close(low_pass() * 64, torch.outer(*[torch.tensor([1.0, 3, 3, 1])] * 2))
    flat = torch.full((1, 2, 8, 8), 0.7)
    doubled = upfirdn2d(flat, low_pass(4.0), up=2, padding=(2, 1))
    halved = upfirdn2d(flat, low_pass(), down=2, padding=(1, 1))
    assert (doubled.shape[-1], halved.shape[-1]) == (16, 4)
    torch.testing.assert_close(doubled[..., 2:-2, 2:-2], torch.full((1, 2, 12, 12), 0.7))
    torch.testing.assert_close(halved[..., 1:-1, 1:-1], torch.full((1, 2, 2, 2), 0.7))


def kernel_of_row(weight: Tensor, style: Tensor, *, demodulate: bool) -> Tensor:
    """Eq. 1 and 3 of StyleGAN2 for one row: (O, I, K, K), (I,) -> (O, I, K, K)."""
    kernel = torch.zeros_like(weight)
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            kernel[o, i] = style[i] * weight[o, i]
        if demodulate:
            kernel[o] /= math.sqrt(sum(float(w) ** 2 for w in kernel[o].flatten()) + 1e-8)
    return kernel


def slow_modulated(
    maps: Tensor, weight: Tensor, styles: Tensor, *, demodulate: bool, blur: Tensor | None
) -> Tensor:
    """Each row with a kernel of its own; to double the size, each pixel is stamped, then the blur follows."""
    rows = []
    for row, style in zip(maps, styles, strict=True):
        kernel = kernel_of_row(weight, style, demodulate=demodulate)
        if blur is None:
            rows.append(conv2d(row[None], kernel, padding=weight.shape[-1] // 2)[0])
            continue
        _, height, width = row.shape
        stamped = torch.zeros(weight.shape[0], 2 * height + 1, 2 * width + 1, dtype=maps.dtype)
        for y in range(height):
            for x in range(width):
                stamp = (kernel * row[None, :, y, x, None, None]).sum(dim=1)
                stamped[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3] += stamp
        rows.append(torch.stack([slow_upfirdn(plane, blur, 1, 1, (1, 1)) for plane in stamped]))
    return torch.stack(rows)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("side", "doubles"), [(3, False), (1, False), (3, True)])
def test_scaling_maps_equals_a_kernel_for_each_row(side: int, doubles: bool, demodulate: bool) -> None:
    maps, weight = torch.randn(2, 4, 3, 5).double(), torch.randn(3, 4, side, side).double()
    styles, blur = torch.randn(2, 4).double(), low_pass(4.0).double() if doubles else None
    expected = slow_modulated(maps, weight, styles, demodulate=demodulate, blur=blur)
    got = modulated_conv2d(maps, weight, styles, demodulate=demodulate, blur=blur)
    torch.testing.assert_close(got, expected)


def test_demodulation_keeps_the_variance_whatever_the_style() -> None:
    maps, weight = torch.randn(4, 64, 16, 16), torch.randn(32, 64, 3, 3)
    out = modulated_conv2d(maps, weight, torch.rand(4, 64) * 100)
    assert out[..., 1:-1, 1:-1].var().item() == pytest.approx(1, abs=0.1)


def test_gradients_of_the_operations_equal_finite_differences_twice() -> None:
    """Twice: the penalties with which StyleGAN2 is trained are gradients themselves."""
    image, kernel = torch.randn(1, 1, 3, 3).double(), torch.randn(3, 3).double()
    maps, weight = torch.randn(2, 2, 2, 3).double(), torch.randn(2, 2, 3, 3).double()
    styles = torch.randn(2, 2).double()
    for tensor in (image, kernel, maps, weight, styles):
        tensor.requires_grad_()

    def resampled(image: Tensor, kernel: Tensor) -> Tensor:
        return upfirdn2d(image, kernel, up=2, down=3, padding=(2, 1))

    def doubled(maps: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
        return modulated_conv2d(maps, weight, styles, blur=low_pass(4.0).double())

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(resampled, (image, kernel))
        assert check(modulated_conv2d, (maps, weight, styles))
        assert check(doubled, (maps, weight, styles))


def test_equalised_layers_scale_their_weights_when_used() -> None:
    values, maps = torch.randn(3, 16), torch.randn(2, 4, 5, 5)
    layer = EqualLinear(16, 8, bias_init=2.0, lr_multiplier=0.5, is_activated=True)
    plain = values @ layer.weight.T * 0.5 / 4 + 1.0
    torch.testing.assert_close(layer(values), leaky_relu(plain, 0.2) * math.sqrt(2))
    assert layer.weight.std().item() == pytest.approx(2, rel=0.2)  # so that it is used with variance 1 / C
    torch.testing.assert_close(EqualLinear(16, 8, lr_multiplier=0.01)(values).std(), torch.tensor(1.0),
                               rtol=0.4, atol=0)  # fmt: skip
    conv = EqualConv2d(4, 2, 3, stride=2, padding=1)
    torch.testing.assert_close(conv(maps), conv2d(maps, conv.weight / 6, stride=2, padding=1))


# the generator ---------------------------------------------------------------------------------------------


def slow_generator(state: Mapping[str, Tensor], codes: Tensor, noises: list[Tensor]) -> Tensor:
    """Figure 2 (c) and 7 (b) of StyleGAN2 read off the keys, with a kernel for each row."""

    def modulated(at: str, maps: Tensor, code: Tensor, *, demodulate: bool = True) -> Tensor:
        weight = state[f"{at}.weight"][0]
        styles = code @ state[f"{at}.modulation.weight"].T / math.sqrt(code.shape[1])
        styles = styles + state[f"{at}.modulation.bias"]
        scale = 1 / math.sqrt(weight[0].numel())
        blur = state.get(f"{at}.blur.kernel")
        return slow_modulated(maps, weight * scale, styles, demodulate=demodulate, blur=blur)

    def styled(at: str, maps: Tensor, layer: int) -> Tensor:
        maps = modulated(f"{at}.conv", maps, codes[:, code_of[layer]])
        maps = maps + state[f"{at}.noise.weight"] * noises[layer]
        maps = maps + state[f"{at}.activate.bias"][None, :, None, None]
        return torch.where(maps > 0, maps, 0.2 * maps) * math.sqrt(2)

    code_of = list(range(len(noises)))  # a convolution reads the code of its own number
    maps = styled("conv1", state["input.input"].repeat(len(codes), 1, 1, 1), 0)
    picture = modulated("to_rgb1.conv", maps, codes[:, 1], demodulate=False) + state["to_rgb1.bias"]
    for level in range(len(noises) // 2):
        maps = styled(f"convs.{2 * level}", maps, 2 * level + 1)
        maps = styled(f"convs.{2 * level + 1}", maps, 2 * level + 2)
        kernel = state[f"to_rgbs.{level}.upsample.kernel"]
        larger = [[slow_upfirdn(plane, kernel, 2, 1, (2, 1)) for plane in row] for row in picture]
        added = modulated(f"to_rgbs.{level}.conv", maps, codes[:, 2 * level + 3], demodulate=False)
        picture = torch.stack([torch.stack(row) for row in larger]) + added + state[f"to_rgbs.{level}.bias"]
    return picture


def test_pictures_equal_the_paper_read_step_by_step() -> None:
    generator = tiny_generator().double()
    codes = torch.randn(2, generator.num_layers, 6).double()
    state = generator.state_dict()
    noises = [state[f"noises.noise_{i}"] for i in range(5)]
    torch.testing.assert_close(generator(codes), slow_generator(state, codes, noises))


def test_the_mapping_equals_the_formula_and_is_blind_to_length() -> None:
    generator = tiny_generator()
    z = torch.randn(3, 6)
    values = z / z.square().mean(dim=1, keepdim=True).sqrt()
    for layer in (1, 2):
        weight, bias = generator.state_dict()[f"style.{layer}.weight"], generator.style[layer].bias
        values = leaky_relu(values @ weight.T * 0.01 / math.sqrt(6) + 0.01 * bias, 0.2) * math.sqrt(2)
    torch.testing.assert_close(generator.map_styles(z), values)
    torch.testing.assert_close(generator.map_styles(z * 7), values)


def test_truncation_goes_towards_the_average() -> None:
    generator = tiny_generator()
    z, average = torch.randn(3, 6), torch.randn(6)
    full = generator.map_styles(z)
    half = generator.map_styles(z, truncation=0.5, latent_avg=average)
    torch.testing.assert_close(half, (full + average) / 2)
    with pytest.raises(ConfigError, match=r"latent_avg of shape \(6,\), got none"):
        generator.map_styles(z, truncation=0.5)
    with pytest.raises(ConfigError, match=r"of shape \(6,\), got \(6, 6\)"):
        generator.map_styles(z, truncation=0.5, latent_avg=torch.zeros(6, 6))


def test_one_code_for_all_layers_is_a_code_in_w() -> None:
    generator = tiny_generator()
    codes = generator.expand_styles(torch.randn(2, 6))
    assert codes.shape == (2, 6, 6)
    assert bool((codes == codes[:, :1]).all())


def test_the_same_code_gives_the_same_picture_and_noise_is_drawn_on_request() -> None:
    generator = tiny_generator()
    codes = torch.randn(1, 6, 6).repeat(2, 1, 1)
    fixed = generator(codes)
    assert torch.equal(fixed, generator(codes))
    torch.testing.assert_close(fixed[0], fixed[1])
    drawn = [generator(codes, noise=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    for other in (drawn[2], fixed, drawn[0].flip(0)):  # another seed, none, another row
        assert (drawn[0] - other).abs().mean() > 0.1


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = tiny_generator()
    codes = torch.randn(3, 6, 6)
    alone = torch.cat([generator(codes[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(generator(codes), alone, atol=1e-5, rtol=1e-5)


def test_every_code_has_its_layers() -> None:
    """The last code is read by the last ToRGB alone: scaling its layer to nothing takes its effect away."""
    generator = tiny_generator()
    codes = torch.randn(1, 6, 6)
    picture = generator(codes)
    for layer in range(6):
        other = codes.clone()
        other[:, layer] += 1
        assert (generator(other) - picture).abs().max() > 1e-3, layer
    with torch.no_grad():
        generator.to_rgbs[-1].conv.weight.zero_()
    other = codes.clone()
    other[:, 5] += 1
    assert torch.equal(generator(other), generator(codes))


def test_gradients_reach_codes_and_every_weight() -> None:
    generator = tiny_generator()
    z = torch.randn(2, 6, requires_grad=True)
    generator(generator.expand_styles(generator.map_styles(z))).square().mean().backward()
    tensors = {"z": z, **dict(generator.named_parameters())}
    assert not [name for name, tensor in tensors.items() if tensor.grad is None or not tensor.grad.any()]


def test_gradients_of_codes_equal_finite_differences() -> None:
    torch.manual_seed(1)
    generator = StyleGenerator(8, 3, {4: 2, 8: 2}, num_mapping_layers=1).double()
    codes = torch.randn(1, 4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(generator, (codes,))


def test_wrong_sizes_and_shapes_are_refused() -> None:
    for size_px in (4, 48, 0):
        with pytest.raises(ConfigError, match=f"power of two from 8 on, got {size_px}"):
            num_style_layers(size_px)
    with pytest.raises(ConfigError, match="must name the width at 16 pixels; it has 4, 8"):
        StyleGenerator(32, 8, {4: 8, 8: 8})
    with pytest.raises(ValueError, match=r"\(B, 6, 6\), got \(2, 6\)"):
        tiny_generator()(torch.randn(2, 6))
    with pytest.raises(ValueError, match=r"\(B, 6, 6\), got \(2, 18, 6\)"):
        tiny_generator()(torch.randn(2, 18, 6))


# the published shapes --------------------------------------------------------------------------------------


def published_generator_shapes() -> dict[str, tuple[int, ...]]:
    """Keys of the 1024-pixel FFHQ generator, config F, from table and figures of the papers."""
    width = {2: 512, 3: 512, 4: 512, 5: 512, 6: 512, 7: 256, 8: 128, 9: 64, 10: 32}  # by log2 of the size
    shapes: dict[str, tuple[int, ...]] = {"input.input": (1, 512, 4, 4)}

    def modulated(at: str, inputs: int, outputs: int, side: int) -> None:
        shapes[f"{at}.weight"] = (1, outputs, inputs, side, side)
        shapes[f"{at}.modulation.weight"], shapes[f"{at}.modulation.bias"] = (inputs, 512), (inputs,)

    def styled(at: str, inputs: int, outputs: int) -> None:
        modulated(f"{at}.conv", inputs, outputs, 3)
        shapes[f"{at}.noise.weight"], shapes[f"{at}.activate.bias"] = (1,), (outputs,)

    def rgb(at: str, inputs: int) -> None:
        modulated(f"{at}.conv", inputs, 3, 1)
        shapes[f"{at}.bias"] = (1, 3, 1, 1)

    for layer in range(1, 9):
        shapes[f"style.{layer}.weight"], shapes[f"style.{layer}.bias"] = (512, 512), (512,)
    styled("conv1", 512, 512)
    rgb("to_rgb1", 512)
    shapes["noises.noise_0"] = (1, 1, 4, 4)
    for level, log_size in enumerate(range(3, 11)):
        styled(f"convs.{2 * level}", width[log_size - 1], width[log_size])
        shapes[f"convs.{2 * level}.conv.blur.kernel"] = (4, 4)
        styled(f"convs.{2 * level + 1}", width[log_size], width[log_size])
        rgb(f"to_rgbs.{level}", width[log_size])
        shapes[f"to_rgbs.{level}.upsample.kernel"] = (4, 4)
        for number in (2 * level + 1, 2 * level + 2):
            shapes[f"noises.noise_{number}"] = (1, 1, 2**log_size, 2**log_size)
    return shapes


def test_the_published_generator_fits_key_by_key() -> None:
    with torch.device("meta"):
        generator = StyleGenerator(1024, channels=published_channels(2))
    shapes = {key: tuple(tensor.shape) for key, tensor in generator.state_dict().items()}
    assert shapes == published_generator_shapes()
    assert len(shapes) == 171
    assert shapes["convs.8.conv.weight"] == (1, 256, 512, 3, 3)  # 64 -> 128 pixels
    assert shapes["convs.15.conv.weight"] == (1, 32, 32, 3, 3)
    assert shapes["to_rgbs.7.conv.modulation.weight"] == (32, 512)
    assert generator.num_layers == 18
    assert sum(p.numel() for p in generator.parameters()) == 30_370_060  # mapping 2.10 M, synthesis 28.27 M
    assert sum(p.numel() for p in generator.style.parameters()) == 8 * (512 * 512 + 512)


def test_the_small_configuration_halves_the_fine_levels() -> None:
    assert [published_channels(1)[size] for size in (32, 64, 128, 1024)] == [512, 256, 128, 16]
    with torch.device("meta"):
        generator = StyleGenerator(256, channels=published_channels(1))
    assert tuple(generator.state_dict()["convs.11.conv.weight"].shape) == (1, 64, 64, 3, 3)
    assert (generator.num_layers, list(generator.channels)[-1]) == (14, 256)
