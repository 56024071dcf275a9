import numpy as np
import pytest
import torch
from generating import astronaut, write_recognizer
from PIL import Image

from idgen.encoders.arcface import OnnxFaceEncoder, load_encoder
from idgen.faces.detect import Detector, load_detector
from idgen.faces.photo import choose_face, face_crop, find_faces
from idgen.metrics.consistency import Eye, find_crop, measure_likeness
from idgen.reference import embed_crop


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector("mini")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> OnnxFaceEncoder:
    path = tmp_path_factory.mktemp("encoder") / "some.onnx"
    write_recognizer(path, 64, seed=3)
    return load_encoder(str(path))


def eye(encoder: OnnxFaceEncoder, reference: np.ndarray) -> Eye:
    return Eye(encode=lambda crops: encoder.encode(crops).unit, reference=reference)


def vector_of(photo: Image.Image, detector: Detector, encoder: OnnxFaceEncoder) -> np.ndarray:
    crop = find_crop(photo, detector)
    assert crop is not None
    return embed_crop(crop, encoder).face_vector.value


def test_a_picture_of_the_reference_itself_has_similarity_one(
    detector: Detector, encoder: OnnxFaceEncoder
) -> None:
    reference = vector_of(astronaut(), detector, encoder)
    found = measure_likeness(
        astronaut(), detector, {"same": eye(encoder, reference), "opposite": eye(encoder, -reference)}
    )
    assert found.face_found
    assert found.similarity == pytest.approx({"same": 1.0, "opposite": -1.0}, abs=1e-5)


def test_a_picture_without_a_face_counts_as_zero(detector: Detector, encoder: OnnxFaceEncoder) -> None:
    reference = np.eye(64, dtype=np.float32)[0]
    found = measure_likeness(Image.new("RGB", (128, 128), "grey"), detector, {"a": eye(encoder, reference)})
    assert not found.face_found
    assert found.similarity == {"a": 0.0}


def test_of_several_faces_the_largest_is_compared_not_the_most_alike(
    detector: Detector, encoder: OnnxFaceEncoder
) -> None:
    small, large = astronaut().resize((300, 300)), astronaut().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    both = Image.new("RGB", (812, 512))
    both.paste(large, (0, 0))
    both.paste(small, (512, 100))
    of_small = face_crop(both, choose_face(find_faces(both, detector), "right", source="both"))
    of_large = face_crop(both, choose_face(find_faces(both, detector), "left", source="both"))
    flattering = embed_crop(of_small, encoder).face_vector.value
    honest = embed_crop(of_large, encoder).face_vector.value @ flattering
    found = measure_likeness(both, detector, {"a": eye(encoder, flattering)})
    assert found.similarity["a"] == pytest.approx(honest, abs=1e-5)
    assert found.similarity["a"] < 0.999


def test_the_value_is_the_cosine_that_numpy_gives(detector: Detector, encoder: OnnxFaceEncoder) -> None:
    reference = torch.nn.functional.normalize(torch.randn(64), dim=0).numpy()
    vector = vector_of(astronaut(), detector, encoder).astype(np.float64)
    found = measure_likeness(astronaut(), detector, {"a": eye(encoder, reference)})
    assert found.similarity["a"] == pytest.approx(float(vector @ reference), abs=1e-6)
