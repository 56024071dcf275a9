"""Detectors against their reference implementations, the files they refuse, and mini against its bars."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from skimage.data import astronaut

from idgen.data.images import FaceTable
from idgen.errors import ModelNotFoundError, UnknownNameError, WeightsError
from idgen.faces.boxes import iou, letterbox, non_maximum_suppression
from idgen.faces.detect import Detector, Face, detectors, load_detector
from idgen.faces.insightface_detector import InsightfaceDetector, find_pack
from idgen.faces.onnx_session import open_session, threads_each
from idgen.faces.scrfd import ScrfdDetector, anchor_centres, decode
from idgen.faces.scrfd_net import DetectorNet, ScrfdOutputs
from idgen.faces.yunet import YunetDetector
from idgen.mini import FACES

ROOT = Path(__file__).parent.parent
MINI = FACES / "det_mini.onnx"


@pytest.fixture(scope="module")
def train_program() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "train" / "detector.py"))


def random_boxes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 100, (count, 2)), rng.uniform(10, 60, (count, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32), rng.random(count).astype(
        np.float32
    )


def test_iou_equals_counting_pixels() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 20], [30, 30, 40, 40]], np.float32)
    grid = np.zeros((3, 50, 50), bool)
    for plane, (x1, y1, x2, y2) in zip(grid, boxes.astype(int), strict=True):
        plane[y1:y2, x1:x2] = True
    expected = [[(a & b).sum() / (a | b).sum() for b in grid] for a in grid]
    np.testing.assert_allclose(iou(boxes, boxes), expected, atol=1e-6)


def test_suppression_equals_insightface() -> None:
    from insightface.model_zoo.scrfd import SCRFD

    boxes, scores = random_boxes(200)
    reference = SCRFD.__new__(SCRFD)  # `nms` needs nothing of the network
    reference.nms_thresh = 0.4
    theirs = reference.nms(np.hstack([boxes, scores[:, None]]))
    assert non_maximum_suppression(boxes, scores, overlap=0.4).tolist() == [int(i) for i in theirs]


def test_suppression_of_nothing() -> None:
    assert (
        len(non_maximum_suppression(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), overlap=0.4)) == 0
    )


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (100, 100), (37, 1000), (1500, 7)])
def test_letterbox_keeps_the_aspect_and_gives_the_factor(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    canvas, scale = letterbox(image, 320)
    rows, columns = np.flatnonzero(canvas.any(axis=(1, 2))), np.flatnonzero(canvas.any(axis=(0, 2)))
    assert canvas.shape == (320, 320, 3)
    assert max(rows[-1], columns[-1]) == 319
    assert abs(rows[-1] + 1 - shape[0] * scale) <= 1
    assert abs(columns[-1] + 1 - shape[1] * scale) <= 1


def test_decoding_equals_a_loop() -> None:
    centres = anchor_centres(64, 96, 16)
    assert centres.shape == (4 * 6 * 2, 2)
    assert centres[:6].tolist() == [[0, 0], [0, 0], [16, 0], [16, 0], [32, 0], [32, 0]]
    rng = np.random.default_rng(0)
    distances, offsets = rng.normal(0, 9, (len(centres), 4)), rng.normal(0, 9, (len(centres), 10))
    boxes, landmarks = decode(centres, distances, offsets)
    for i, (x, y) in enumerate(centres):
        left, top, right, bottom = distances[i]
        np.testing.assert_allclose(boxes[i], [x - left, y - top, x + right, y + bottom])
        expected = [[x + offsets[i, 2 * k], y + offsets[i, 2 * k + 1]] for k in range(5)]
        np.testing.assert_allclose(landmarks[i], expected)


@pytest.fixture(scope="module")
def random_scrfd(tmp_path_factory: pytest.TempPathFactory, train_program: dict[str, Any]) -> Path:
    """An untrained network of our own, which says "face" with a probability of about 1 % everywhere."""
    torch.manual_seed(0)
    net = DetectorNet(16, 16)
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("pack") / "det_random.onnx"
    train_program["export"](net, path)
    return path


def test_export_equals_the_network_at_another_size(random_scrfd: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    net = DetectorNet(16, 16)
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        pixel_values = torch.randn(1, 3, 96, 160)
        expected = ScrfdOutputs(net).eval()(pixel_values)
    session = onnxruntime.InferenceSession(str(random_scrfd), providers=["CPUExecutionProvider"])
    for ours, theirs in zip(session.run(None, {"pixel_values": pixel_values.numpy()}), expected, strict=True):
        # weights are stored in halves: 11 bits
        np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), atol=5e-3, rtol=5e-3)


def test_scrfd_equals_insightface(random_scrfd: Path) -> None:
    from insightface.model_zoo import get_model

    image = np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8)
    # at its own size, so that nothing is resampled, and without a plain margin, where all scores are equal
    probe = ScrfdDetector(random_scrfd, sizes_px=(320,), score=0.0)
    scores = [face.score for face in probe.detect(image)]
    score = float(np.quantile(scores, 0.5))
    ours = ScrfdDetector(random_scrfd, sizes_px=(320,), score=score).detect(image)
    reference: Any = get_model(str(random_scrfd), providers=["CPUExecutionProvider"])
    reference.prepare(-1, input_size=(320, 320), det_thresh=score, nms_thresh=0.4)
    boxes, landmarks = reference.detect(np.ascontiguousarray(image[..., ::-1]))
    assert len(ours) == len(boxes) > 5
    order = np.argsort(boxes[:, 0])  # equal scores may come in any order
    ours = sorted(ours, key=lambda face: face.box[0])
    for face, box, points in zip(ours, boxes[order], landmarks[order], strict=True):
        np.testing.assert_allclose(face.box, box[:4], atol=1e-2)
        np.testing.assert_allclose(face.landmarks, points, atol=1e-2)
        assert face.score == pytest.approx(box[4], abs=1e-5)


def test_several_sizes_are_merged_best_first(random_scrfd: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 320, 3), dtype=np.uint8)
    faces = ScrfdDetector(random_scrfd, sizes_px=(128, 320), score=0.0).detect(image)
    scores = [face.score for face in faces]
    assert scores == sorted(scores, reverse=True)
    boxes = np.stack([face.box for face in faces])
    overlaps = iou(boxes, boxes, border=1.0) - np.eye(len(boxes))
    assert overlaps.max() <= 0.4


def test_a_face_moves_with_its_picture() -> None:
    face = Face(box=np.array([1, 2, 5, 8], np.float32), landmarks=np.ones((5, 2), np.float32), score=0.5)
    moved = face.moved(scale=2, shift=(10, -1))
    assert moved.box.tolist() == [12, 3, 20, 15]
    assert moved.landmarks.tolist() == [[12, 1]] * 5
    assert face.size_px == 4


# --- files -------------------------------------------------------------------------------------------------


def test_unknown_detector_shows_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'yunet'"):
        detectors.build("yunett")


@pytest.mark.parametrize("name", ["scrfd", "yunet"])
def test_missing_and_broken_files_are_refused(tmp_path: Path, name: str, random_scrfd: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        detectors.build(name, path=tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not an onnx file")
    with pytest.raises(WeightsError, match=r"broken\.onnx is not an ONNX file"):
        detectors.build(name, path=tmp_path / "broken.onnx")


def test_threads_are_those_that_are_given_else_as_the_environment_says(
    random_scrfd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(given: int | None) -> int:
        return open_session(random_scrfd, num_threads=given).get_session_options().intra_op_num_threads

    for said, expected in (("1", 1), ("3", 3), ("many", 0), (None, 0)):  # 0: every core
        if said is None:
            monkeypatch.delenv("OMP_NUM_THREADS")
        else:
            monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert threads(None) == expected
        assert threads(2) == 2


def test_sessions_opened_in_a_block_have_as_many_threads_as_it_says(
    random_scrfd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(given: int | None = None) -> int:
        return open_session(random_scrfd, num_threads=given).get_session_options().intra_op_num_threads

    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with threads_each(1):
        with threads_each(2):
            assert (threads(), threads(3)) == (2, 3)
        assert threads() == 1
    assert threads() == 4


def recognition_onnx(path: Path) -> None:
    """A recogniser by its shapes: one picture of 112 pixels in, one vector out."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMean", ["input"], ["embedding"], axes=[2, 3], keepdims=0)],
        "mean", [value("input", 1, [1, 3, 112, 112])], [value("embedding", 1, [1, 3])],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))


def test_a_network_of_another_kind_is_refused(tmp_path: Path, random_scrfd: Path) -> None:
    recognition_onnx(tmp_path / "rec.onnx")
    with pytest.raises(WeightsError, match="has 1 outputs; a SCRFD detector with landmarks has 9"):
        detectors.build("scrfd", path=tmp_path / "rec.onnx")
    with pytest.raises(WeightsError, match="is not a YuNet file: it has no output cls_8"):
        detectors.build("yunet", path=random_scrfd)


def test_insightface_pack_on_disk(tmp_path: Path, random_scrfd: Path) -> None:
    nested = tmp_path / "somepack" / "somepack"  # as antelopev2 unpacks itself
    nested.mkdir(parents=True)
    (nested / "det.onnx").write_bytes(random_scrfd.read_bytes())
    recognition_onnx(nested / "rec.onnx")
    assert find_pack(tmp_path / "somepack") == nested
    detector = InsightfaceDetector(tmp_path / "somepack", score=0.0)
    assert isinstance(detector, Detector)
    faces = detector.detect(np.zeros((64, 64, 3), np.uint8))
    assert faces
    assert faces[0].landmarks.shape == (5, 2)


def test_insightface_pack_that_cannot_work_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no insightface pack 'no_such_pack'.*buffalo_l"):
        detectors.build("insightface", path="no_such_pack")
    with pytest.raises(ModelNotFoundError, match=r"unpack https://.*/antelopev2\.zip into .*antelopev2"):
        load_detector("antelopev2")  # a pack that is known but not here: where it is had
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match="no insightface pack"):
        detectors.build("insightface", path=tmp_path / "empty")
    (tmp_path / "rec").mkdir()
    recognition_onnx(tmp_path / "rec" / "rec.onnx")
    with pytest.raises(WeightsError, match=r"holds no detector \(only rec\.onnx\)"):
        detectors.build("insightface", path=tmp_path / "rec")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "det.onnx").write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="Is the download complete"):
        detectors.build("insightface", path=tmp_path / "part")


# --- real weights ------------------------------------------------------------------------------------------


def test_yunet_equals_opencv(weights_folder: Path) -> None:
    image = np.pad(astronaut(), ((0, 128), (0, 128), (0, 0)))  # 640 x 640, so that nothing is resampled
    ours = YunetDetector(weights_folder / "yunet.onnx").detect(image)
    net: Any = cv2.dnn.readNetFromONNX(str(weights_folder / "yunet.onnx"))
    net.setInput(cv2.dnn.blobFromImage(image[..., ::-1].copy()))
    names = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)]
    outputs = dict(zip(names, net.forward(names), strict=True))
    best: tuple[float, Any] = (0.0, None)
    for stride in (8, 16, 32):
        cls, obj, box, kps = (outputs[f"{kind}_{stride}"][0] for kind in ("cls", "obj", "bbox", "kps"))
        for i in range(len(cls)):
            score = float(np.sqrt(cls[i, 0] * obj[i, 0]))
            column, row = i % (640 // stride), i // (640 // stride)
            if score > best[0]:
                middle = np.array([column + box[i, 0], row + box[i, 1]]) * stride
                size = np.exp(box[i, 2:]) * stride
                points = (kps[i].reshape(5, 2) + np.array([column, row])) * stride
                best = (score, (np.concatenate([middle - size / 2, middle + size / 2]), points))
    assert len(ours) == 1
    assert ours[0].score == pytest.approx(best[0], abs=1e-4)
    np.testing.assert_allclose(ours[0].box, best[1][0], atol=0.01)
    np.testing.assert_allclose(ours[0].landmarks, best[1][1], atol=0.01)


def test_mini_finds_the_astronaut() -> None:
    faces = detectors.build("mini").detect(astronaut())
    assert len(faces) == 1
    # the box by YuNet, of which the landmarks lie inside; eyes above nose above mouth
    assert iou(faces[0].box[None], np.array([[181.3, 53.8, 273.8, 178.1]], np.float32))[0, 0] > 0.6
    expected = [[205.1, 96.9], [247.5, 102.8], [222.4, 126.6], [201.0, 141.0], [239.0, 146.4]]
    error = np.linalg.norm(faces[0].landmarks - np.array(expected), axis=1).mean()
    assert error / 42.8 < 0.1  # the distance of the eyes


def test_mini_says_what_it_is() -> None:
    detector = detectors.build("mini")
    assert isinstance(detector, Detector)
    assert detector.name == "mini"
    assert "research" in detector.licence
    assert MINI.stat().st_size <= 2_000_000
    assert MINI.with_suffix(".md").exists()


def test_mini_sees_no_face_in_plain_pictures() -> None:
    detector = detectors.build("mini")
    rng = np.random.default_rng(0)
    for image in (np.zeros((64, 64, 3)), np.full((300, 200, 3), 255), rng.integers(0, 256, (400, 400, 3))):
        assert detector.detect(image.astype(np.uint8)) == []


@pytest.fixture(scope="module")
def measured(faces_test: FaceTable, weights_folder: Path) -> Any:
    """A twenty-fifth of the scenes that `eval/detector.py` measures."""
    measure: Callable[..., Any] = runpy.run_path(str(ROOT / "eval" / "detector.py"))["measure"]
    return measure(detectors.build("mini"), faces_test, weights_folder / "yunet.onnx", num_scenes=40)


def test_mini_finds_real_faces_and_little_else(measured: Any) -> None:
    assert measured.found >= 0.93  # the bar of 98 % less two standard errors of 40 scenes
    assert measured.false_faces <= 1
    assert measured.astronaut_iou >= 0.5
    assert measured.landmark_error < 0.06  # share of the distance of the eyes
