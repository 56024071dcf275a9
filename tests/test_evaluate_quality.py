"""`idgen evaluate quality`: from pictures to a report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet
import pytest
import skimage.data
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from idgen.cli import main as idgen
from idgen.encoders.clip import ClipModel
from idgen.encoders.features import load_features
from idgen.encoders.sight import Sight
from idgen.metrics.diversity import manifold, vendi_score
from idgen.metrics.frechet import frechet_distance, gaussian
from idgen.metrics.prompt import clip_scores


def network(path: Path, shape: list[int | str], op: str, weights: np.ndarray, *, last: bool = False) -> Path:
    """An ONNX file: the mean of each channel, times the weights."""
    axes = [1, 2] if last else [2, 3]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["p"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["p", "w"], ["y0"]),
        helper.make_node(op, ["y0"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "drawn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weights.shape[1]])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Portraits in many colours, with prompts; networks that look at the colours."""
    root = tmp_path_factory.mktemp("world")
    whole = Image.fromarray(skimage.data.astronaut())
    rng = np.random.default_rng(0)
    prompts = ["a person, smiling", "a person, not smiling", "a person, looking to the left", "a person"]
    for name, brightness in (("made", 0.6), ("real", 1.0)):
        rows: list[dict[str, Any]] = []
        (root / name).mkdir()
        for number in range(12):
            colour = brightness * rng.uniform(0.5, 1.0, 3)
            pixels = np.asarray(whole.crop((150, 20, 310, 180)).resize((128, 128))) * colour
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
            rows.append(
                {"identity": f"p{number // 2}", "path": f"{number}.png", "prompt": prompts[number % 4]}
            )
        pa.parquet.write_table(pa.Table.from_pylist(rows), root / name / "manifest.parquet")
    features = rng.normal(size=(3, 4))
    network(root / "colours.onnx", ["n", 3, 32, 32], "Identity", features)
    happy = np.zeros((1, 7))
    happy[0, 3] = 1e3
    network(root / "glad.onnx", ["n", 64, 64, 1], "Softmax", np.abs(happy), last=True)  # grey > middle: glad
    turned = np.zeros((3, 3))
    turned[:, 0] = -30
    network(root / "turned.onnx", ["n", 3, 64, 64], "Identity", turned)  # dark: to the left
    network(root / "good.onnx", ["n", 3, 112, 112], "Identity", np.full((3, 1), 1.0))
    return root


def quality(world: Path, out: Path, *words: str) -> dict[str, Any]:
    given = [str(world / "made"), "--aligned", "--reference-aligned", "--out", str(out)]
    assert idgen(["evaluate", "quality", *given, *words]) == 0
    return json.loads((out / "report.json").read_text())


def test_distances_are_those_of_the_features(world: Path, tmp_path: Path) -> None:
    words = [
        "--reference",
        str(world / "real"),
        "--features",
        str(world / "colours.onnx"),
        "--features",
        "mini",
    ]
    report = quality(world, tmp_path, *words, "--made-by", "somebody@0123456789ab")
    eye = load_features(str(world / "colours.onnx"))
    made, real = (
        eye.see([Sight(image=Image.open(world / kind / f"{i}.png")) for i in range(12)])
        for kind in ("made", "real")
    )
    measures = {name: entry["value"] for name, entry in report["measures"].items()}
    assert measures["colours-imagenet/FID"] == pytest.approx(
        frechet_distance(gaussian(made), gaussian(real)), rel=1e-6
    )
    assert measures["colours-imagenet/recall"] == manifold(made, real).recall
    assert measures["colours-imagenet/Vendi score"] == pytest.approx(vendi_score(made))
    assert measures["mini-penultimate/pictures of each set"] == 12
    assert any("512 features" in warning for warning in report["warnings"])
    assert not any("Every feature network" in warning for warning in report["warnings"])


def test_sets_of_unlike_size_are_compared_at_a_common_one(world: Path, tmp_path: Path) -> None:
    words = ["--reference", str(world / "real"), "--features", str(world / "colours.onnx"), "--at-most", "7"]
    measures = quality(world, tmp_path, *words)["measures"]
    assert measures["colours-imagenet/pictures of each set"]["value"] == 7


def test_fewer_pictures_than_neighbours_say_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--aligned", "--reference", str(world / "real"), "--at-most", "5", "--out", str(tmp_path)]
    assert idgen(["evaluate", "quality", str(world / "made"), *words]) == 2
    assert "--at-most must be at least 6" in capsys.readouterr().err


def test_related_networks_are_marked(world: Path, tmp_path: Path) -> None:
    words = ["--reference", str(world / "real"), "--made-by", "mini@371ffa94143d"]
    report = quality(world, tmp_path, *words)
    assert any("Every feature network here" in warning for warning in report["warnings"])
    assert report["tables"][0]["columns"] == ["measure", "mini-penultimate (related)"]


def test_prompts_are_checked_by_the_networks_given(world: Path, tmp_path: Path) -> None:
    """Both networks look at the light alone: dark pictures are turned to the left and do not smile."""
    words = ["--emotion", "glad.onnx", "--headpose", "turned.onnx", "--face-quality", "good.onnx"]
    words = [str(world / word) if word.endswith(".onnx") else word for word in words]
    report = quality(world, tmp_path, *words)
    measures = {name: entry["value"] for name, entry in report["measures"].items()}
    light = np.array([np.asarray(Image.open(world / "made" / f"{i}.png")).mean() / 255 for i in range(12)])
    assert (light < 0.5).all()
    assert measures["smile where asked"] == 0
    assert measures["no smile where asked"] == 1
    assert measures["turn to the side asked, by head-pose net"] == 1
    assert measures["face quality"] < 0
    assert measures["sharpness"] > 1
    assert report["per_identity"]["smile where asked"] == {
        f"p{i}": 0.0 if i % 2 == 0 else None for i in range(6)
    }  # only every other person was asked to


def test_clip_scores_stand_beside_the_faces(world: Path, tmp_path: Path, tiny_clip: Path) -> None:
    report = quality(world, tmp_path, "--clip", str(tiny_clip))
    clip = ClipModel(tiny_clip)
    prompts = ["a person, smiling", "a person, not smiling", "a person, looking to the left", "a person"]
    pictures = clip.embed_pictures(
        [Image.open(world / "made" / f"{i}.png").convert("RGB") for i in range(12)]
    )
    expected = clip_scores(pictures, clip.embed_texts([prompts[i % 4] for i in range(12)]))
    each = report["per_identity"]["CLIP score"]
    assert each["p0"] == pytest.approx(expected[:2].mean(), abs=1e-3)
    assert report["measures"]["CLIP score"]["value"] == pytest.approx(expected.mean(), abs=1e-3)


def test_without_anything_else_the_faces_are_described(world: Path, tmp_path: Path) -> None:
    assert idgen(["evaluate", "quality", str(world / "real"), "--out", str(tmp_path)]) == 0
    measures = json.loads((tmp_path / "report.json").read_text())["measures"]
    assert measures["face found"]["value"] > 0.9
    assert measures["turn (|yaw| by landmarks), degrees"]["value"] < 30
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--features", "mini"], "give them with --reference"),
        (["--reference", "nothing"], "no such folder"),
        (["--emotion", "nothing.onnx"], "no such file"),
        (["--clip", "nothing"], "no CLIP at nothing"),
    ],
)
def test_wrong_input(
    words: list[str], said: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "quality", str(world / "made"), "--aligned", "--out", str(tmp_path), *words]
    assert idgen(command) == 2
    assert said in capsys.readouterr().err


def test_too_few_pictures(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "few").mkdir()
    for i in range(3):
        Image.open(world / "real" / f"{i}.png").save(tmp_path / "few" / f"{i}.png")
    command = ["evaluate", "quality", str(world / "made"), "--reference", str(tmp_path / "few")]
    flags = ["--aligned", "--reference-aligned", "--out", str(tmp_path / "r")]
    assert idgen([*command, *flags]) == 2
    assert "12 pictures and 3 photos; 6 at least" in capsys.readouterr().err
