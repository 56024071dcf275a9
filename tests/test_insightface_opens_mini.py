"""FaceAnalysis of insightface opens mini's folder: the same faces and embeddings as by idgen's own path."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from insightface.app import FaceAnalysis
from PIL import Image
from skimage.data import astronaut

from idgen.encoders.arcface import load_encoder
from idgen.faces.boxes import iou
from idgen.faces.detect import Face, detectors
from idgen.faces.photo import face_crop
from idgen.mini import FACES


@pytest.fixture(scope="module")
def app() -> Any:
    return FaceAnalysis(name=str(FACES), providers=["CPUExecutionProvider"])


def scene(size_px: int) -> np.ndarray:
    """Two astronauts, one of them smaller, on a square so that no side is padded."""
    picture = Image.new("RGB", (size_px, size_px), (70, 90, 60))
    portrait = Image.fromarray(astronaut())
    half = size_px * 3 // 5
    picture.paste(portrait.resize((half, half)), (0, 0))
    rest = size_px - half
    picture.paste(portrait.resize((rest, rest)), (half, half))
    return np.array(picture)


def matched(ours: list[Face], theirs: list[Any]) -> list[tuple[Face, Any]]:
    """Pairs of faces that cover each other."""
    assert len(ours) == len(theirs)
    overlaps = iou(np.stack([face.box for face in ours]), np.stack([face.bbox for face in theirs]))
    assert sorted(overlaps.argmax(axis=1)) == list(range(len(theirs)))
    return [(face, theirs[int(i)]) for face, i in zip(ours, overlaps.argmax(axis=1), strict=True)]


def test_models_are_routed(app: Any) -> None:
    assert set(app.models) == {"detection", "recognition"}
    assert Path(app.models["detection"].model_file).name == "det_mini.onnx"
    assert Path(app.models["recognition"].model_file).name == "rec_mini.onnx"
    assert app.models["recognition"].input_size == (112, 112)
    assert (app.models["recognition"].input_mean, app.models["recognition"].input_std) == (127.5, 127.5)


def test_same_faces_and_embeddings_where_nothing_is_resampled(app: Any) -> None:
    """At 640 pixels both see the same numbers; what is left is OpenCV's rounding in the warp."""
    app.prepare(ctx_id=-1, det_thresh=0.5, det_size=(640, 640))
    image = scene(640)
    encoder = load_encoder("mini")
    pairs = matched(detectors.build("mini").detect(image), app.get(np.ascontiguousarray(image[..., ::-1])))
    assert len(pairs) == 2
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours.box, theirs.bbox, atol=0.01)
        np.testing.assert_allclose(ours.landmarks, theirs.kps, atol=0.01)
        assert ours.score == pytest.approx(theirs.det_score, abs=1e-4)
        vectors = encoder.encode(face_crop(Image.fromarray(image), ours)[None])
        cosine = float(vectors.unit[0] @ torch.from_numpy(theirs.normed_embedding))
        assert cosine > 0.995
        assert float(vectors.norm[0]) == pytest.approx(float(np.linalg.norm(theirs.embedding)), rel=0.03)


@pytest.mark.parametrize("det_size", [None, (640, 640)])
def test_same_people_on_a_photo_that_is_scaled(app: Any, det_size: tuple[int, int] | None) -> None:
    """Insightface samples where idgen smooths, and looks at two sizes by default: nearly the same places."""
    app.prepare(ctx_id=-1, det_thresh=0.5, det_size=det_size)
    image = astronaut()
    encoder = load_encoder("mini")
    pairs = matched(detectors.build("mini").detect(image), app.get(np.ascontiguousarray(image[..., ::-1])))
    for ours, theirs in pairs:
        assert iou(ours.box[None], theirs.bbox[None])[0, 0] > 0.8
        vector = encoder.encode(face_crop(Image.fromarray(image), ours)[None]).unit[0]
        assert float(vector @ torch.from_numpy(theirs.normed_embedding)) > 0.9
