"""OnnxModule against onnxruntime on the block structures of the recognisers people have, and on ours."""

import functools
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from idgen.encoders.arcface import load_encoder
from idgen.encoders.base import CropSpec
from idgen.encoders.onnx_torch import OnnxModule, crop_spec, read_onnx, torch_encoder
from idgen.errors import ModelNotFoundError, WeightsError


class IBasicBlock(nn.Module):
    """The block of IResNet: BN, conv, BN, PReLU, strided conv, BN, and a shortcut."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(num_in), nn.Conv2d(num_in, num_out, 3, 1, 1, bias=False), nn.BatchNorm2d(num_out),
            nn.PReLU(num_out), nn.Conv2d(num_out, num_out, 3, stride, 1, bias=False), nn.BatchNorm2d(num_out),
        )  # fmt: skip
        self.downsample = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.downsample(x)


class IResNet(nn.Module):
    """IResNet with the depths of the 50-layer network (or of the 100-layer one) and narrow layers."""

    def __init__(
        self, depths: tuple[int, ...] = (3, 4, 14, 3), widths: tuple[int, ...] = (4, 4, 8, 8, 8)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        ]  # fmt: skip
        for num_in, num_out, depth in zip(widths[:-1], widths[1:], depths, strict=True):
            layers += [IBasicBlock(num_in, num_out, 2)]
            layers += [IBasicBlock(num_out, num_out, 1) for _ in range(depth - 1)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(widths[-1]))
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(widths[-1] * 7 * 7, 16)
        self.features = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(self.fc(self.dropout(torch.flatten(self.layers(x), 1))))


class DepthWise(nn.Module):
    """The bottleneck of MobileFaceNet."""

    def __init__(self, num_in: int, num_out: int, stride: int, groups: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.body = nn.Sequential(
            nn.Conv2d(num_in, groups, 1, bias=False), nn.BatchNorm2d(groups), nn.PReLU(groups),
            nn.Conv2d(groups, groups, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(groups),
            nn.PReLU(groups), nn.Conv2d(groups, num_out, 1, bias=False), nn.BatchNorm2d(num_out),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileFaceNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.PReLU(8),
            DepthWise(8, 8, 2, 16, residual=False), DepthWise(8, 8, 1, 16, residual=True),
            DepthWise(8, 16, 2, 16, residual=False), DepthWise(16, 16, 1, 16, residual=True),
            DepthWise(16, 16, 2, 32, residual=False),
            nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.PReLU(32),
            nn.Conv2d(32, 32, 7, groups=32, bias=False), nn.BatchNorm2d(32),
        )  # fmt: skip
        self.linear = nn.Linear(32, 16, bias=False)
        self.bn = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.bn(self.linear(x.view(x.shape[0], -1)))


class BlockOfEach(nn.Module):
    """A block of either network between what they begin and end with."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8), IBasicBlock(8, 8, 2),
            DepthWise(8, 8, 2, 16, residual=False), DepthWise(8, 8, 1, 16, residual=True),
        )  # fmt: skip
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(8 * 7 * 7, 16)
        self.features = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(self.fc(self.dropout(torch.flatten(self.body(x), 1))))


def trained(network: nn.Module) -> nn.Module:
    """Random statistics and slopes, as a training would leave them; fresh ones would hide a mistake."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(layer.running_mean, 0, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.1)
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, 0.0, 0.5)
    return network.eval()


def export(network: nn.Module, path: Path, exporter: str) -> Path:
    example = torch.randn(2, 3, 112, 112)
    names = {"input_names": ["input"], "output_names": ["embedding"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about themselves
        if exporter == "torchscript":
            axes = {"input": {0: "n"}, "embedding": {0: "n"}}
            torch.onnx.export(
                network, (example,), path, opset_version=13, dynamo=False, dynamic_axes=axes, **names
            )
        else:
            shapes = {"x": {0: torch.export.Dim("n")}}
            torch.onnx.export(
                network,
                (example,),
                path,
                opset_version=18,
                dynamo=True,
                dynamic_shapes=shapes,
                verbose=False,
                **names,
            )
    return path


def by_onnxruntime(path: Path, pixel_values: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: pixel_values.numpy()})[0])


def save_graph(
    path: Path, nodes: list, constants: dict[str, np.ndarray], shape: tuple = ("n", 3, 112, 112)
) -> Path:
    """An ONNX file of these nodes, from `x` to `y`."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "graph", [value("x", 1, shape)], [value("y", 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 10  # what onnxruntime 1.20 reads; onnx writes a newer one than onnxruntime knows
    onnx.save(model, path)
    return path


node = onnx.helper.make_node


# The dynamo exporter takes half a second a block: for it one of each kind.
NETWORKS = {"IResNet": IResNet, "MobileFaceNet": MobileFaceNet, "a block of each": BlockOfEach}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[nn.Module, Path]]:
    """Networks and their files, each exported once."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def make(network: str, exporter: str) -> tuple[nn.Module, Path]:
        torch.manual_seed(0)
        original = trained(NETWORKS[network]())
        return original, export(original, folder / f"{network} by {exporter}.onnx", exporter)

    return make


@pytest.mark.parametrize(
    ("network", "exporter"),
    [("IResNet", "torchscript"), ("MobileFaceNet", "torchscript"), ("a block of each", "dynamo")],
)
def test_equals_onnxruntime_and_the_network_it_came_from(
    exported: Callable[[str, str], tuple[nn.Module, Path]], network: str, exporter: str
) -> None:
    original, path = exported(network, exporter)
    module = OnnxModule(path)
    for batch in (1, 3):  # neither is the size of the example
        pixel_values = torch.rand(batch, 3, 112, 112) * 2 - 1
        output = module(pixel_values)
        torch.testing.assert_close(output, by_onnxruntime(path, pixel_values), atol=1e-5, rtol=0)
        torch.testing.assert_close(output, original(pixel_values), atol=1e-5, rtol=0)


def test_the_depths_of_the_100_layer_network(tmp_path: Path) -> None:
    original = trained(IResNet(depths=(3, 13, 30, 3)))
    path = export(original, tmp_path / "net.onnx", "torchscript")
    pixel_values = torch.rand(1, 3, 112, 112) * 2 - 1
    torch.testing.assert_close(
        OnnxModule(path)(pixel_values), by_onnxruntime(path, pixel_values), atol=1e-5, rtol=0
    )


def assert_gradient_is_right(module: nn.Module, pixel_values: Tensor) -> None:
    """Slopes along random directions, by autograd and by central differences in float64."""
    module = module.double()
    pixel_values = pixel_values.double().requires_grad_()
    weights = torch.randn_like(module(pixel_values))
    (gradient,) = torch.autograd.grad((module(pixel_values) * weights).sum(), pixel_values)
    assert gradient.abs().sum() > 0
    for _ in range(3):
        direction = torch.randn_like(pixel_values)
        step = 1e-9 * direction  # a network of ReLUs bends at every scale above
        with torch.no_grad():
            ahead, behind = ((module(pixel_values + s) * weights).sum() for s in (step, -step))
        expected = (gradient * direction).sum()
        torch.testing.assert_close((ahead - behind) / 2e-9, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["IResNet", "MobileFaceNet"])
def test_gradients_to_the_pixels_equal_finite_differences(
    exported: Callable[[str, str], tuple[nn.Module, Path]], network: str
) -> None:
    _, path = exported(network, "torchscript")
    module = OnnxModule(path)
    pixel_values = torch.rand(1, 3, 112, 112) * 2 - 1
    assert_gradient_is_right(module, pixel_values)


@pytest.mark.parametrize("name", ["teacher_recognizer", "second_recognizer"])
def test_recognisers_with_normalisation_inside(weights_folder: Path, name: str) -> None:
    path = weights_folder / f"{name}.onnx"
    assert crop_spec(read_onnx(path)) == CropSpec(mean=0.0, std=1.0)
    crops = torch.rand(2, 3, 112, 112)
    encoder = torch_encoder(path)
    torch.testing.assert_close(encoder(crops), by_onnxruntime(path, crops * 255), atol=1e-5, rtol=0)
    assert_gradient_is_right(encoder, crops[:1])


def test_weights_are_frozen_and_move_with_the_module(
    exported: Callable[[str, str], tuple[nn.Module, Path]],
) -> None:
    _, path = exported("a block of each", "dynamo")
    module = OnnxModule(path)
    assert not list(module.parameters())
    floats = [b for b in module.buffers() if b.is_floating_point()]
    assert sum(b.numel() for b in floats) > 5000
    output = module.to(torch.float64)(torch.rand(1, 3, 112, 112, dtype=torch.float64))
    assert output.dtype == torch.float64


def test_half_precision_weights_behind_a_cast_follow_the_module_to_double(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float16)
    nodes = [node("Cast", ["half"], ["w"], to=onnx.TensorProto.FLOAT), node("Conv", ["x", "w"], ["y"])]
    module = OnnxModule(save_graph(tmp_path / "half.onnx", nodes, {"half": weight}))
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x, torch.from_numpy(weight).double())
    torch.testing.assert_close(module.double()(x), expected, atol=1e-12, rtol=0)


def axes(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


SMALL_GRAPHS = {
    "pooling, both kinds": (
        [
            node("MaxPool", ["x"], ["a"], kernel_shape=[2, 2], strides=[2, 2]),
            node("AveragePool", ["a"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("GlobalAveragePool", ["b"], ["y"]),
        ],
        {},
    ),
    "a slope for each place, not for each channel": (
        [node("PRelu", ["x", "slope"], ["y"])],
        {"slope": np.linspace(0, 1, 8, dtype=np.float32)},
    ),
    "arithmetic of shapes": (
        [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "zero"], ["n"], axis=0),
            node("Unsqueeze", ["n", "first"], ["n1"]),
            node("Concat", ["n1", "rest"], ["to"], axis=0),
            node("Reshape", ["x", "to"], ["y"]),
        ],
        {"zero": np.array(0), "first": axes(0), "rest": axes(-1)},
    ),
    "reduction, clipping and expansion": (
        [
            node("Flatten", ["x"], ["f"]),
            node("ReduceL2", ["f", "one"], ["r"]),
            node("Clip", ["r", "low"], ["c"]),
            node("Shape", ["f"], ["s"]),
            node("Expand", ["c", "s"], ["e"]),
            node("Div", ["f", "e"], ["y"]),
        ],
        {"one": axes(1), "low": np.array(1e-12, dtype=np.float32)},
    ),
    "slices and transposition": (
        [node("Slice", ["x", "from", "to", "on"], ["s"]), node("Transpose", ["s"], ["y"], perm=[0, 2, 3, 1])],
        {"from": axes(-4, 1), "to": axes(2**62, 3), "on": axes(3, 1)},
    ),
    "a mirrored copy beside the picture": (
        [
            node("Slice", ["x", "last", "before", "across", "back"], ["m"]),
            node("Concat", ["x", "m"], ["y"], axis=0),
        ],
        {"last": axes(-1), "before": axes(-(2**62)), "across": axes(3), "back": axes(-1)},
    ),
    "means, sums and powers": (
        [
            node("ReduceMean", ["x", "places"], ["m"], keepdims=0),
            node("ReduceSum", ["m", "one"], ["s"]),
            node("Pow", ["s", "two"], ["p"]),
            node("Sqrt", ["p"], ["q"]),
            node("LpNormalization", ["m"], ["l"], axis=1),
            node("Sub", ["q", "l"], ["y"]),
        ],
        {"places": axes(2, 3), "one": axes(1), "two": np.array(2.0, dtype=np.float32)},
    ),
    "weights in whole numbers, a scale for each output": (
        [node("DequantizeLinear", ["q", "s"], ["w"], axis=0), node("Conv", ["x", "w"], ["y"])],
        {
            "q": np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
            "s": np.array([0.01, 0.02, 0.03, 0.04], dtype=np.float32),
        },
    ),
    "weights in whole numbers with zero points": (
        [
            node("DequantizeLinear", ["q", "s", "z"], ["w"]),
            node("DequantizeLinear", ["q", "one", "z1"], ["v"]),
            node("Add", ["w", "v"], ["k"]),
            node("Conv", ["x", "k"], ["y"]),
        ],
        {
            "q": np.random.default_rng(0).integers(0, 256, (4, 3, 3, 3)).astype(np.uint8),
            "s": np.array([0.01, 0.02, 0.03], dtype=np.float32),
            "z": np.array([128, 100, 90], dtype=np.uint8),
            "one": np.array(0.005, dtype=np.float32),
            "z1": np.array(7, dtype=np.uint8),
        },
    ),
    "windows that reach over the edge": (
        [
            node("MaxPool", ["x"], ["m"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
            node("AveragePool", ["x"], ["a"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
            node(
                "AveragePool",
                ["x"],
                ["b"],
                kernel_shape=[3, 3],
                strides=[2, 2],
                ceil_mode=1,
                count_include_pad=1,
                pads=[1, 1, 1, 1],
            ),
            node("Add", ["m", "a"], ["c"]),
            node("Flatten", ["b"], ["e"]),
            node("Flatten", ["c"], ["d"]),
            node("Concat", ["d", "e"], ["y"], axis=1),
        ],
        {},
    ),
    "a 0 in Reshape copies a size": ([node("Reshape", ["x", "to"], ["y"])], {"to": axes(0, -1)}),
    "Gemm with factors": (
        [
            node("Reshape", ["x", "to"], ["f"]),
            node("Gemm", ["f", "w", "b"], ["y"], alpha=0.5, beta=2.0, transB=1),
        ],
        {
            "to": axes(2, 192),
            "w": np.random.default_rng(0).normal(size=(5, 192)).astype(np.float32),
            "b": np.arange(5, dtype=np.float32),
        },
    ),
}


@pytest.mark.parametrize("name", SMALL_GRAPHS)
def test_small_graphs_equal_onnxruntime(tmp_path: Path, name: str) -> None:
    nodes, constants = SMALL_GRAPHS[name]
    path = save_graph(tmp_path / "graph.onnx", nodes, constants, shape=("n", 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(OnnxModule(path)(x), by_onnxruntime(path, x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["mini", "judge"])
def test_the_embedded_ones_have_a_torch_form(name: str) -> None:
    encoder = load_encoder(name)
    crops = torch.rand(2, 3, encoder.crop.size_px, encoder.crop.size_px)
    torch.testing.assert_close(encoder.torch_encoder()(crops), encoder.encode(crops).unit, atol=1e-5, rtol=0)


def test_an_unknown_operator_is_refused_by_name_and_node(tmp_path: Path) -> None:
    nodes = [node("Erf", ["x"], ["y"], name="head/erf")]
    with pytest.raises(WeightsError, match=r"operator 'Erf' \(node 'head/erf'\) is not supported"):
        OnnxModule(save_graph(tmp_path / "erf.onnx", nodes, {}))


def test_an_operator_of_another_domain_is_refused(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["y"], name="odd", domain="com.example")]
    with pytest.raises(WeightsError, match=r"'Relu' of 'com.example' \(node 'odd'\)"):
        OnnxModule(save_graph(tmp_path / "odd.onnx", nodes, {}))


def test_an_unsupported_setting_is_refused_with_its_value(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["y"], name="c", auto_pad="SAME_UPPER")]
    module = OnnxModule(save_graph(tmp_path / "same.onnx", nodes, {"w": np.zeros((4, 3, 3, 3), np.float32)}))
    with pytest.raises(WeightsError, match=r"Conv \(node 'c'\): auto_pad=b'SAME_UPPER' is not supported"):
        module(torch.rand(1, 3, 8, 8))


def test_a_shape_that_does_not_fit_names_the_node(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"], name="dense")]
    module = OnnxModule(save_graph(tmp_path / "dense.onnx", nodes, {"w": np.zeros((5, 4), np.float32)}))
    with pytest.raises(WeightsError, match=r"MatMul \(node 'dense'\)"):
        module(torch.rand(1, 3, 8, 8))


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        OnnxModule(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("this is not a model")
    with pytest.raises(WeightsError, match="not an ONNX model"):
        OnnxModule(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match="not an ONNX model"):
        OnnxModule(tmp_path / "empty.onnx")


def test_the_second_file_of_a_model_is_missed(
    exported: Callable[[str, str], tuple[nn.Module, Path]], tmp_path: Path
) -> None:
    _, path = exported("a block of each", "dynamo")
    assert path.with_name(f"{path.name}.data").is_file()
    shutil.copy(path, tmp_path)
    with pytest.raises(WeightsError, match="second file"):
        OnnxModule(tmp_path / path.name)


@pytest.mark.parametrize(
    ("constant", "expected"),
    [(127.5, CropSpec(mean=0.0, std=1.0)), (0.5, CropSpec(mean=0.0, std=255.0)), (None, CropSpec())],
)
def test_the_crop_is_read_from_the_first_arithmetic(
    tmp_path: Path, constant: float | None, expected: CropSpec
) -> None:
    nodes = [node("Relu", ["x"], ["y"])]
    constants = {}
    if constant is not None:
        nodes = [node("Sub", ["x", "mean"], ["a"]), node("Relu", ["a"], ["y"])]
        constants = {"mean": np.array(constant, dtype=np.float32)}
    assert crop_spec(read_onnx(save_graph(tmp_path / "net.onnx", nodes, constants))) == expected


def test_a_crop_that_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    nodes = [node("Sub", ["x", "mean"], ["y"])]
    path = save_graph(tmp_path / "net.onnx", nodes, {"mean": np.array(3.0, dtype=np.float32)})
    with pytest.raises(WeightsError, match="subtracts 3 from its pixels"):
        crop_spec(read_onnx(path))


def test_a_network_for_other_pictures_is_no_recogniser(tmp_path: Path) -> None:
    path = save_graph(tmp_path / "net.onnx", [node("Relu", ["x"], ["y"])], {}, shape=("n", 3, 96, 96))
    with pytest.raises(WeightsError, match=r"input must be \(n, 3, 112, 112\), got \[\['n', 3, 96, 96\]\]"):
        crop_spec(read_onnx(path))
