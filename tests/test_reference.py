from pathlib import Path

import numpy as np
import pytest
from generating import astronaut, write_recognizer
from PIL import Image

from idgen.encoders.arcface import OnnxFaceEncoder, load_encoder
from idgen.errors import EncoderMismatchError
from idgen.faces.detect import Detector, load_detector
from idgen.faces.photo import read_face
from idgen.identity import Identity, fuse
from idgen.reference import read_reference


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector("mini")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[OnnxFaceEncoder]:
    folder = tmp_path_factory.mktemp("encoders")
    for seed, dim in ((3, 64), (4, 32)):
        write_recognizer(folder / f"e{seed}.onnx", dim, seed=seed)
    return [load_encoder(str(folder / f"e{seed}.onnx")) for seed in (3, 4)]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        astronaut().point(lambda v, i=i: max(0, v - 25 * i)).save(path)
    return paths


def test_one_photo_is_seen_by_every_encoder(
    photos: list[Path], detector: Detector, encoders: list[OnnxFaceEncoder]
) -> None:
    crop = read_face(photos[0], detector)[0]
    reference = read_reference(photos[:1], detector, encoders)
    assert reference.crop is not None
    assert (reference.crop == crop).all()
    for encoder in encoders:
        expected = encoder.encode(crop[None])
        seen = reference.identities[encoder.id].face_vector
        np.testing.assert_allclose(seen.value, expected.unit[0].numpy(), atol=1e-6)
        assert seen.norm == pytest.approx(float(expected.norm[0]))


def test_photos_and_saved_identities_are_fused_and_outliers_left_out_for_all_encoders(
    photos: list[Path], detector: Detector, encoders: list[OnnxFaceEncoder], tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.safetensors"
    rng = np.random.default_rng(0)
    units = [v / np.linalg.norm(v) for v in (rng.standard_normal(64), rng.standard_normal(32))]
    ones = [Identity.from_vector(v, e.id).features[0] for v, e in zip(units, encoders, strict=True)]
    Identity(tuple(ones)).save(stranger)
    reference = read_reference([photos[0], stranger, *photos[1:]], detector, encoders)
    assert [p.kept for p in reference.report] == [True, False, True, True]
    only_photos = [read_reference([p], detector, encoders).identities for p in photos]
    for encoder in encoders:
        expected = fuse([seen[encoder.id] for seen in only_photos]).identity.face_vector.value
        np.testing.assert_allclose(reference.identities[encoder.id].face_vector.value, expected, atol=1e-6)


def test_a_saved_identity_alone_has_no_crop_to_show(
    detector: Detector, encoders: list[OnnxFaceEncoder], tmp_path: Path
) -> None:
    vector = np.eye(64, dtype=np.float32)[3]
    Identity.from_vector(vector, encoders[0].id, norm=2.5).save(tmp_path / "who.safetensors")
    reference = read_reference([tmp_path / "who.safetensors"], detector, encoders[:1])
    assert reference.crop is None
    assert (reference.identities[encoders[0].id].face_vector.value == vector).all()
    with pytest.raises(EncoderMismatchError, match=encoders[1].id):
        read_reference([tmp_path / "who.safetensors"], detector, encoders)


def test_the_face_that_is_meant_is_read(
    detector: Detector, encoders: list[OnnxFaceEncoder], tmp_path: Path
) -> None:
    both = Image.new("RGB", (1024, 512))
    both.paste(astronaut(), (0, 0))
    both.paste(astronaut().transpose(Image.Transpose.FLIP_LEFT_RIGHT), (512, 0))
    both.save(tmp_path / "both.png")
    for which in ("left", "right"):
        crop = read_face(tmp_path / "both.png", detector, which)[0]
        reference = read_reference([tmp_path / "both.png"], detector, encoders, which=which)
        assert reference.crop is not None
        assert (reference.crop == crop).all()
