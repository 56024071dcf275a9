"""Backbones by name, their files, and the ONNX that insightface opens."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from insightface.model_zoo import get_model
from torch import nn

from idgen.encoders.arcface import onnx_encoder
from idgen.errors import ConfigError, UnknownNameError, WeightsError
from idgen.recognition.export import Stored, export_recogniser, export_similarity
from idgen.recognition.networks import backbones, build_backbone, read_backbone, write_backbone
from idgen.recognition.squeeze import mirrored_mean

TINY = {
    "squeezenet": {"widths": (32, 64), "blocks": (1, 1)},
    "small_resnet": {"widths": (32, 32, 32, 32), "blocks": (1, 1, 1)},
    "mobilefacenet": {"widths": (32, 32), "blocks": (1, 1, 1)},
    "iresnet18": {"widths": (32, 32, 32, 32, 32), "blocks": (1, 1, 1, 1)},
}


def blocks(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 3, 112, 112) uint8: coarse colours, so that networks see a difference."""
    colours = torch.randint(256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(colours.float(), size=112).byte()


def tiny(name: str, dim: int = 8) -> nn.Module:
    """A small network of that kind whose norms fit what it sees."""
    torch.manual_seed(0)
    network = build_backbone(name, dim=dim, **TINY[name])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network((blocks(16) - 127.5) / 127.5)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "dim", "settings", "millions"),
    [
        ("mobilefacenet", 128, {}, 1.00),  # 0.99 M in the paper, without the last norm and some PReLU
        ("mobilefacenet", 512, {"widths": (128, 256)}, 2.06),  # insightface's mbf
        ("iresnet18", 512, {}, 24.03),
        ("iresnet34", 512, {}, 34.14),
        ("iresnet50", 512, {}, 43.59),
        ("iresnet100", 512, {}, 65.16),
    ],
)
def test_networks_are_as_large_as_the_published_ones(
    name: str, dim: int, settings: dict[str, tuple[int, ...]], millions: float
) -> None:
    with torch.device("meta"):
        network = build_backbone(name, dim=dim, **settings)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_iresnet_names_its_weights_as_arcface_torch_does() -> None:
    with torch.device("meta"):
        names = build_backbone("iresnet50", dim=512).state_dict()
    # the order of torch.save too: first, some from the middle, last
    assert list(names)[:7] == [
        "conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var",
        "bn1.num_batches_tracked", "prelu.weight",
    ]  # fmt: skip
    assert [n for n in names if n.startswith("layer3.0") and n.endswith("weight")] == [
        f"layer3.0.{part}.weight"
        for part in ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3", "downsample.0", "downsample.1")
    ]
    assert [n for n in names if n.endswith("weight")][-3:] == ["bn2.weight", "fc.weight", "features.weight"]
    assert len(names) == 475
    assert names["fc.weight"].shape == (512, 512 * 7 * 7)
    assert len({n.split(".")[1] for n in names if n.startswith("layer3")}) == 14


def test_the_first_convolution_of_a_block_does_not_stride() -> None:
    """And the last scale is fixed at 1, as ArcFace has it."""
    network = tiny("iresnet18")
    assert network.get_submodule("layer1.0.conv1").stride == (1, 1)
    assert network.get_submodule("layer1.0.conv2").stride == (2, 2)
    scale = network.get_parameter("features.weight")
    assert not scale.requires_grad
    assert (scale == 1).all()


@pytest.mark.parametrize("name", TINY)
def test_every_weight_that_trains_gets_a_gradient(name: str) -> None:
    network = tiny(name).train()
    network(torch.randn(4, 3, 112, 112)).square().sum().backward()
    for key, weight in network.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, key


class MirroredForTest(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return mirrored_mean(self.network, pixel_values)


@pytest.mark.parametrize(
    ("name", "is_mirrored", "stored"),
    [*((name, is_mirrored, "float32") for name in TINY for is_mirrored in (False, True)),
     ("mobilefacenet", True, "float16"), ("iresnet18", False, "int8")],
)  # fmt: skip
def test_insightface_opens_the_file_and_says_the_same(
    tmp_path: Path, name: str, is_mirrored: bool, stored: Stored
) -> None:
    network = MirroredForTest(tiny(name)).eval() if is_mirrored else tiny(name)
    export_recogniser(network, tmp_path / "r.onnx", stored)
    model = get_model(str(tmp_path / "r.onnx"), providers=["CPUExecutionProvider"])
    assert type(model).__name__ == "ArcFaceONNX"
    assert model.taskname == "recognition"
    rgb = blocks(3, seed=1)
    with torch.no_grad():
        meant = network((rgb - 127.5) / 127.5)
    assert meant.std(dim=0).mean() > 0.1
    said = model.get_feat([np.ascontiguousarray(face.permute(1, 2, 0).numpy()[..., ::-1]) for face in rgb])
    largest = float(meant.abs().max())
    np.testing.assert_allclose(
        said, meant, atol={"float32": 1e-3, "float16": 0.01 * largest, "int8": 0.1 * largest}[stored]
    )
    unit = onnx_encoder(tmp_path / "r.onnx").encode(rgb / 255).unit
    own = torch.nn.functional.normalize(torch.from_numpy(said))  # insightface rounds the input elsewhere
    torch.testing.assert_close(unit, own, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("stored", "least"), [("float32", 0.999999), ("float16", 0.99999), ("int8", 0.995)])
def test_small_files_cost_a_little_which_is_measured(tmp_path: Path, stored: Stored, least: float) -> None:
    network, pixel_values = tiny("iresnet18"), (blocks(10, seed=2) - 127.5) / 127.5
    export_recogniser(network, tmp_path / "r.onnx", stored)
    lowest, mean = export_similarity(tmp_path / "r.onnx", network, pixel_values)
    assert least <= lowest <= mean <= 1 + 1e-6
    size = sum(w.numel() for w in network.parameters()) * {"float32": 4, "float16": 2, "int8": 1}[stored]
    assert (tmp_path / "r.onnx").stat().st_size == pytest.approx(size, rel=0.35)
    onnx.checker.check_model(onnx.load(tmp_path / "r.onnx"))
    assert [p.name for p in tmp_path.iterdir()] == ["r.onnx"]


def test_weights_come_back_from_both_kinds_of_file(tmp_path: Path) -> None:
    network = tiny("mobilefacenet")
    torch.save(network.state_dict(), tmp_path / "model.pt")  # as arcface_torch does
    write_backbone(network, tmp_path / "model.safetensors", {"backbone": "mobilefacenet", "dim": "8"})
    for name in ("model.pt", "model.safetensors"):
        other = build_backbone("mobilefacenet", dim=8, **TINY["mobilefacenet"]).eval()
        read_backbone(other, tmp_path / name)
        pixel_values = torch.randn(2, 3, 112, 112)
        with torch.no_grad():
            assert torch.equal(other(pixel_values), network(pixel_values))
    write_backbone(network, tmp_path / "again.safetensors", {"dim": "8", "backbone": "mobilefacenet"})
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    write_backbone(tiny("mobilefacenet"), tmp_path / "m.safetensors", {"dim": "8"})
    with pytest.raises(WeightsError, match=r"is for another network: \d+ of \d+ weights are missing .*conv1"):
        read_backbone(tiny("iresnet18"), tmp_path / "m.safetensors")
    wider = build_backbone("mobilefacenet", dim=16, **TINY["mobilefacenet"])
    with pytest.raises(
        WeightsError, match=r"5 of \d+ weights are missing or of another shape .*0 are not known"
    ):
        read_backbone(wider, tmp_path / "m.safetensors")
    export_recogniser(tiny("squeezenet"), tmp_path / "r.onnx")
    with pytest.raises(WeightsError, match=r"r.onnx is a finished graph, which cannot be trained"):
        read_backbone(wider, tmp_path / "r.onnx")
    with pytest.raises(WeightsError, match="no such file"):
        read_backbone(wider, tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("iresnet5", {}, "no backbone called 'iresnet5'; did you mean 'iresnet50'?"),
        ("squeezenet", {"widths": (24, 64)}, "widths must be multiples of 32, got (24, 64)"),
        ("squeezenet", {"blocks": (1,)}, "widths and blocks name the same stages"),
        ("iresnet50", {"blocks": (1, 0, 1, 1)}, "each stage has a block at least, got (1, 0, 1, 1)"),
        (
            "iresnet50",
            {"widths": (32, 32)},
            "iresnet50 has 5 widths (the stem's first) and 4 numbers of blocks",
        ),
        ("small_resnet", {"blocks": (1,)}, "small_resnet has 4 widths (the stem's first) and 3 numbers"),
        ("mobilefacenet", {"widths": (32,)}, "mobilefacenet has 2 widths and 3 numbers of blocks, got [32]"),
        (
            "mobilefacenet",
            {"dropout": 0.1},
            "the backbone mobilefacenet has no dropout, got 0.1; leave it out",
        ),
        ("iresnet18", {"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError)) as caught, torch.device("meta"):
        build_backbone(name, dim=8, **settings)  # pyright: ignore[reportArgumentType]
    assert str(caught.value).startswith(message)


def test_all_backbones_are_known() -> None:
    assert set(backbones) == {*TINY, "iresnet34", "iresnet50", "iresnet100"}
