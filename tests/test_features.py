"""Feature networks and classifiers: each file as the library that owns its format reads it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from transformers import CLIPImageProcessor as ImageProcessor
from transformers import CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from idgen.data.images import FaceTable
from idgen.encoders.arcface import mini_encoder
from idgen.encoders.classifiers import pose_eye, quality_eye, sharpness_eye, smile_eye
from idgen.encoders.clip import ClipModel
from idgen.encoders.features import NORMALISATIONS, load_features, square
from idgen.encoders.sight import Sight
from idgen.errors import ConfigError, ModelNotFoundError, WeightsError
from idgen.pixels import to_tensor


def sights(num: int = 3) -> list[Sight]:
    whole = Image.fromarray(skimage.data.astronaut())
    seen = []
    for i in range(num):
        portrait = to_tensor(whole.crop((150 + 5 * i, 20, 310 + 5 * i, 180)).resize((128, 128)))
        seen.append(
            Sight(
                image=whole.crop((0, 0, 400 - 50 * i, 300)), crop=portrait[:, 8:120, 8:120], portrait=portrait
            )
        )
    return seen


def save_network(path: Path, shape: list[int | str], outputs: list[int]) -> Path:
    """An ONNX file: the mean of each channel, then one linear layer for each output."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
    weights, declared = [], []
    for i, width in enumerate(outputs):
        values = rng.normal(size=(int(shape[1]), width)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("MatMul", ["f", f"w{i}"], [f"y{i}"]))
        declared.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["n", width]))
    pixels = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "drawn", [pixels], declared, weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


# --- feature networks -------------------------------------------------------------------------------------


def test_features_of_mini_are_what_its_last_layer_reads() -> None:
    """The linear layer of the file, applied to the features, gives the raw vectors of the encoder."""
    encoder = mini_encoder()
    eye = load_features("mini")
    found = eye.see(sights())
    graph = onnx.load(encoder.path).graph
    last = [node for node in graph.node if node.op_type == "Gemm"][-1]
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    name, bias = last.input[1], stored[last.input[2]]
    weight = stored[f"{name}_bytes"] * stored[f"{name}_scale"][:, None]
    raw = encoder.encode(torch.stack([s.crop for s in sights() if s.crop is not None])).raw.numpy()
    np.testing.assert_allclose(found @ weight.T + bias, raw, atol=1e-4)
    assert eye.dim == found.shape[1] == 512
    assert eye.needs_face
    assert eye.id.endswith(encoder.id.partition("@")[2])


@pytest.mark.parametrize("normalise", list(NORMALISATIONS))
def test_onnx_of_whole_pictures(tmp_path: Path, normalise: str) -> None:
    path = save_network(tmp_path / "net.onnx", ["n", 3, 32, 32], [6])
    eye = load_features(str(path), normalise=normalise)
    assert (eye.dim, eye.needs_face) == (6, False)
    mean, std = NORMALISATIONS[normalise]
    middle = np.asarray(square(sights(1)[0].image, 32), np.float32) / 255
    pixels = ((middle - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": pixels})
    np.testing.assert_allclose(eye.see(sights(1)), expected, atol=1e-5)


def test_the_middle_of_a_picture() -> None:
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste((0, 0, 255), (100, 0, 200, 100))
    assert square(wide, 50).getpixel((25, 25)) == (0, 0, 255)
    assert {square(image, 50).size for image in (wide, wide.rotate(90, expand=True))} == {(50, 50)}


def test_dinov2_is_that_of_transformers(tmp_path: Path) -> None:
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    size = {"height": 28, "width": 28}
    processor = ImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    processor.save_pretrained(tmp_path)
    eye = load_features(str(tmp_path))
    with torch.no_grad():
        pixels = processor(images=[s.image for s in sights()], return_tensors="pt")
        expected = model(**pixels).pooler_output
    np.testing.assert_allclose(eye.see(sights()), expected.numpy(), atol=1e-5)
    assert not eye.needs_face


def test_clip_is_that_of_transformers(tiny_clip: Path, tiny_tokenizer: CLIPTokenizer) -> None:
    ours = ClipModel(tiny_clip)
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    texts = ["a man", "a woman smiling", "abc"]
    pixels = ImageProcessor.from_pretrained(tiny_clip)(
        images=[s.image for s in sights()], return_tensors="pt"
    )
    with torch.no_grad():
        words = tiny_tokenizer(texts, padding=True, return_tensors="pt")
        expected = model(**words, pixel_values=pixels["pixel_values"])
    pictures, found = ours.eye.see(sights()), ours.embed_texts(texts)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (pictures, found)]
    np.testing.assert_allclose(unit[0], expected.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(unit[1], expected.text_embeds.numpy(), atol=1e-5)
    features = load_features(str(tiny_clip))  # the same folder as a feature network
    np.testing.assert_allclose(features.see(sights()), pictures, atol=1e-5)


def test_a_text_too_long_for_clip_is_cut(tiny_clip: Path) -> None:
    assert ClipModel(tiny_clip).embed_texts(["a man " * 50]).shape == (1, 12)


def test_feature_networks_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such feature network"):
        load_features("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_features(str(tmp_path / "empty"))
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="transformers cannot open"):
        load_features(str(tmp_path / "empty"))
    with pytest.raises(ModelNotFoundError):
        ClipModel(tmp_path)
    path = save_network(tmp_path / "net.onnx", ["n", 3, 32, 32], [6])
    with pytest.raises(ConfigError, match="imagenet, half, clip, unit"):
        load_features(str(path), normalise="images")
    grey = save_network(tmp_path / "grey.onnx", ["n", 1, 32, 32], [6])
    with pytest.raises(WeightsError, match="reads no pictures"):
        load_features(str(grey))


# --- what networks say of a face --------------------------------------------------------------------------


def test_cr_fiqa_and_edifiqa(tmp_path: Path) -> None:
    """CR-FIQA gives a vector and a number, eDifFIQA a number; both read RGB in -1 to 1."""
    for name, outputs, at in (("crfiqa", [8, 1], 1), ("ediffiqa", [1], 0)):
        path = save_network(tmp_path / f"{name}.onnx", ["n", 3, 112, 112], outputs)
        eye = quality_eye(path)
        session = onnxruntime.InferenceSession(path)
        crops = [s.crop for s in sights() if s.crop is not None]
        expected = [session.run(None, {"x": (c.numpy()[None] * 2 - 1)})[at][0, 0] for c in crops]
        np.testing.assert_allclose(eye.see(sights())[:, 0], expected, atol=1e-5)
        assert eye.name == f"quality:{name}"


def test_networks_of_another_layout_are_refused(tmp_path: Path) -> None:
    two = save_network(tmp_path / "two.onnx", ["n", 3, 112, 112], [1, 1])
    with pytest.raises(WeightsError, match="not one number of quality"):
        quality_eye(two).see(sights())
    with pytest.raises(WeightsError, match="is no net of expressions"):
        smile_eye(two)
    with pytest.raises(WeightsError, match="is no net of head poses"):
        pose_eye(two)
    many = save_network(tmp_path / "many.onnx", ["n", 3, 64, 64], [5])
    with pytest.raises(WeightsError, match="gives 5 numbers"):
        pose_eye(many).see(sights())
    with pytest.raises(ModelNotFoundError):
        quality_eye(tmp_path / "none.onnx")


def test_sharpness_falls_with_blur() -> None:
    sharp = sights(1)[0]
    assert sharp.crop is not None
    blurred = Sight(image=sharp.image, crop=torch.nn.functional.avg_pool2d(sharp.crop, 5, 1, 2))
    values = sharpness_eye().see([sharp, blurred])[:, 0]
    assert values[0] > 4 * values[1] > 0


def test_smile_and_pose_agree_with_the_labels(faces_test: FaceTable, weights_folder: Path) -> None:
    """The labels of the faces come from the same networks, cut by others: high agreement, not equality."""
    rows = list(range(0, len(faces_test), 12))
    portraits = torch.from_numpy(faces_test.images[rows]).permute(0, 3, 1, 2).float() / 255
    blank = Image.new("RGB", (1, 1))
    seen = [Sight(image=blank, crop=p[:, 8:120, 8:120], portrait=p) for p in portraits]
    happy = smile_eye(weights_folder / "emotion.onnx").see(seen)[:, 0]
    pose = pose_eye(weights_folder / "headpose.onnx").see(seen)
    assert np.corrcoef(happy, faces_test.labels["p_happy"][rows])[0, 1] > 0.9
    for column, name in enumerate(("yaw", "pitch", "roll")):
        assert np.abs(pose[:, column] - faces_test.labels[name][rows]).mean() < 3, name
