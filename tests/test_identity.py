import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from idgen.data.images import FaceTable
from idgen.errors import ConfigError, EncoderMismatchError, IdentityError, StorageError
from idgen.identity import Feature, Identity, find_outliers, fuse, similarity

MINI = "mini@0123456789ab"
OTHER = "arcface@fedcba987654"


def unit(rng: np.random.Generator, width: int = 16) -> np.ndarray:
    vector = rng.normal(size=width)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def near(rng: np.random.Generator, centre: np.ndarray, noise: float) -> np.ndarray:
    vector = centre + noise * unit(rng, len(centre))
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---- features


@pytest.mark.parametrize("name", ["mini", "mini@", "mini@0123", "mini@0123456789AB", "a b@0123456789ab", ""])
def test_an_encoder_without_its_hash_is_refused(name: str) -> None:
    with pytest.raises(IdentityError, match=r"first 12 hex digits"):
        Identity.from_vector([1.0, 0.0], name)


@pytest.mark.parametrize("length", [0.0, 0.99, 1.01, 20.0])
def test_a_vector_that_is_not_of_unit_length_is_refused_with_its_length(length: float) -> None:
    with pytest.raises(IdentityError, match=rf"unit length \(within 0\.001\), got length {length:g}"):
        Identity.from_vector([length, 0.0], MINI)


def test_half_precision_is_precise_enough(rng: np.random.Generator) -> None:
    Identity.from_vector(unit(rng, 512).astype(np.float16), MINI)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(IdentityError, match="1 values that are not finite"):
        Identity.from_vector([bad, 0.0], MINI)
    with pytest.raises(IdentityError, match="norm"):
        Identity.from_vector([1.0, 0.0], MINI, norm=bad)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("face_vector", (1, 4)), ("image_tokens", (4,)), ("wplus", (2, 3, 4)), ("image_tokens", (0, 4))],
)
def test_the_shape_must_fit_the_kind(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(IdentityError, match="dimension"):
        Feature(MINI, kind, np.ones(shape))


def test_a_feature_keeps_a_copy_that_nobody_can_change(rng: np.random.Generator) -> None:
    mine = unit(rng)
    kept = Feature(MINI, "face_vector", mine).value
    mine[:] = 0
    assert np.linalg.norm(kept) == pytest.approx(1)
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 2


# ---- identities


def test_an_identity_knows_which_of_its_features_is_asked_for(rng: np.random.Generator) -> None:
    mini, other = Feature(MINI, "face_vector", unit(rng)), Feature(OTHER, "face_vector", unit(rng, 32))
    tokens = Feature(OTHER, "image_tokens", np.ones((4, 8)))
    assert Identity((mini, tokens)).face_vector is mini
    both = Identity((mini, other, tokens))
    assert both.feature("face_vector", OTHER) is other
    assert both.feature("image_tokens") is tokens
    with pytest.raises(EncoderMismatchError, match=f"{MINI}, {OTHER}; say which"):
        _ = both.face_vector
    with pytest.raises(EncoderMismatchError, match=rf"made by {OTHER}, but {MINI} is wanted"):
        both.feature("image_tokens", MINI)
    with pytest.raises(IdentityError, match=r"has no wplus \(it has: face_vector, image_tokens\)"):
        both.feature("wplus")


def test_an_identity_holds_something_and_nothing_twice(rng: np.random.Generator) -> None:
    with pytest.raises(IdentityError, match="at least one"):
        Identity(())
    with pytest.raises(IdentityError, match=f"two features face_vector of {MINI}"):
        Identity((Feature(MINI, "face_vector", unit(rng)), Feature(MINI, "face_vector", unit(rng))))


def test_similarity_is_the_cosine(rng: np.random.Generator) -> None:
    a, b = unit(rng), unit(rng)
    expected = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    assert similarity(Identity.from_vector(a, MINI), Identity.from_vector(b, MINI)) == pytest.approx(
        expected, abs=1e-6
    )
    assert similarity(Identity.from_vector(a, MINI), Identity.from_vector(a, MINI)) == pytest.approx(
        1, abs=1e-6
    )
    assert similarity(Identity.from_vector(a, MINI), Identity.from_vector(-a, MINI)) == pytest.approx(
        -1, abs=1e-6
    )


def test_similarity_of_different_encoders_is_an_error_that_names_both(rng: np.random.Generator) -> None:
    mini, other = Identity.from_vector(unit(rng), MINI), Identity.from_vector(unit(rng), OTHER)
    with pytest.raises(EncoderMismatchError, match=f"{MINI} and {OTHER}"):
        similarity(mini, other)


def test_similarity_uses_the_encoder_that_both_share(rng: np.random.Generator) -> None:
    a, b = unit(rng), unit(rng)
    both = Identity((Feature(MINI, "face_vector", a), Feature(OTHER, "face_vector", b)))
    assert similarity(both, Identity.from_vector(b, OTHER)) == pytest.approx(1)
    with pytest.raises(EncoderMismatchError, match="say which encoder"):
        similarity(both, both)
    assert similarity(both, both, encoder=MINI) == pytest.approx(1)


def test_similarity_of_one_encoder_with_two_widths_is_an_error(rng: np.random.Generator) -> None:
    with pytest.raises(EncoderMismatchError, match="different widths"):
        similarity(Identity.from_vector(unit(rng, 8), MINI), Identity.from_vector(unit(rng, 16), MINI))


# ---- the file


def test_a_saved_identity_comes_back_bit_for_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    features = (
        Feature(MINI, "face_vector", unit(rng), norm=21.5),
        Feature(OTHER, "image_tokens", rng.normal(size=(4, 8))),
        Feature(OTHER, "something_new", rng.normal(size=(2, 3, 4))),
    )
    Identity(features).save(tmp_path / "who.safetensors")
    back = Identity.load(tmp_path / "who.safetensors")
    for before, after in zip(features, back.features, strict=True):
        assert (before.encoder, before.kind, before.norm) == (after.encoder, after.kind, after.norm)
        np.testing.assert_array_equal(before.value, after.value)
    assert [p.name for p in tmp_path.iterdir()] == ["who.safetensors"]
    with safe_open(tmp_path / "who.safetensors", framework="np") as file:
        assert file.metadata()["idgen_identity"] == "1"


def _with_metadata(path: Path, metadata: dict[str, str] | None) -> Path:
    save_file({"feature_0": np.eye(1, 8, dtype=np.float32)[0]}, path, metadata)
    return path


FEATURES = json.dumps([{"tensor": "feature_0", "encoder": MINI, "kind": "face_vector", "norm": None}])


def test_a_newer_file_asks_for_a_newer_idgen(tmp_path: Path) -> None:
    path = _with_metadata(tmp_path / "new.safetensors", {"idgen_identity": "2", "features": FEATURES})
    with pytest.raises(
        IdentityError, match=r"new\.safetensors: .*newer idgen \(format 2, this one reads up to 1\)"
    ):
        Identity.load(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not an identity"),
        ({"format": "pt"}, "not an identity"),
        ({"idgen_identity": "one", "features": FEATURES}, "not a number"),
        ({"idgen_identity": "1"}, "damaged"),
        ({"idgen_identity": "1", "features": "[{"}, "damaged"),
        ({"idgen_identity": "1", "features": "[3]"}, "damaged"),
        ({"idgen_identity": "1", "features": FEATURES.replace("feature_0", "feature_9")}, "feature_9"),
        ({"idgen_identity": "1", "features": FEATURES.replace(MINI, "mini")}, "first 12 hex digits"),
        ({"idgen_identity": "1", "features": "[]"}, "at least one feature"),
    ],
)
def test_a_file_that_is_no_identity_says_so(
    tmp_path: Path, metadata: dict[str, str] | None, message: str
) -> None:
    path = _with_metadata(tmp_path / "odd.safetensors", metadata)
    with pytest.raises(IdentityError, match=message) as caught:
        Identity.load(path)
    assert "odd.safetensors" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\xff" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(IdentityError, match="not an identity"):
        Identity.load(tmp_path / "x")


def test_a_truncated_identity_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "who.safetensors"
    Identity.from_vector(unit(rng), MINI).save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(IdentityError, match="not an identity"):
        Identity.load(path)


def test_a_missing_file_and_a_missing_folder(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(IdentityError, match="no such file"):
        Identity.load(tmp_path / "nobody.safetensors")
    with pytest.raises(StorageError, match="cannot write into"):
        Identity.from_vector(unit(rng), MINI).save(tmp_path / "nowhere" / "who.safetensors")


# ---- fusing


def test_the_mean_is_the_direction_of_the_sum(rng: np.random.Generator) -> None:
    vectors = [unit(rng) for _ in range(3)]
    weights = [1.0, 2.0, 0.5]
    photos = [Identity.from_vector(v, MINI, norm=n) for v, n in zip(vectors, [10.0, 20.0, 30.0], strict=True)]
    plain, weighted = np.zeros(16), np.zeros(16)
    for vector, weight in zip(vectors, weights, strict=True):
        plain += vector
        weighted += weight * vector
    fused = fuse(photos)
    np.testing.assert_allclose(fused.identity.face_vector.value, plain / np.linalg.norm(plain), atol=1e-6)
    assert fused.identity.face_vector.norm == pytest.approx(20)
    by_weight = fuse(photos, weights=weights).identity.face_vector
    np.testing.assert_allclose(by_weight.value, weighted / np.linalg.norm(weighted), atol=1e-6)
    assert by_weight.norm == pytest.approx((10 + 40 + 15) / 3.5)


def test_the_report_gives_each_photo_its_mean_similarity_to_the_others(rng: np.random.Generator) -> None:
    vectors = [unit(rng) for _ in range(4)]
    report = fuse([Identity.from_vector(v, MINI) for v in vectors]).report
    for i, row in enumerate(report):
        others = [float(vectors[i] @ v) for j, v in enumerate(vectors) if j != i]
        assert row.index == i
        assert row.similarity == pytest.approx(sum(others) / 3, abs=1e-6)
        assert row.kept


def test_robust_leaves_the_stranger_out_and_says_who(rng: np.random.Generator) -> None:
    person = unit(rng, 128)
    photos = [Identity.from_vector(near(rng, person, 0.8), MINI) for _ in range(4)]
    mixed = [*photos[:2], Identity.from_vector(unit(rng, 128), MINI), *photos[2:]]
    robust, mean = fuse(mixed, method="robust"), fuse(mixed)
    assert [r.kept for r in robust.report] == [True, True, False, True, True]
    assert [r.is_outlier for r in mean.report] == [False, False, True, False, False]
    assert all(r.kept for r in mean.report)
    np.testing.assert_array_equal(robust.identity.face_vector.value, fuse(photos).identity.face_vector.value)


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_robust_always_keeps_a_majority(count: int, rng: np.random.Generator) -> None:
    for _ in range(50):
        kept = [
            r.kept
            for r in fuse(
                [Identity.from_vector(unit(rng), MINI) for _ in range(count)], method="robust"
            ).report
        ]
        assert 2 * sum(kept) > count


def test_robust_does_not_depend_on_the_order(rng: np.random.Generator) -> None:
    person = unit(rng, 64)
    vectors = np.stack([*(near(rng, person, 0.7) for _ in range(5)), unit(rng, 64), unit(rng, 64)])
    order = rng.permutation(len(vectors))
    np.testing.assert_array_equal(find_outliers(vectors)[order], find_outliers(vectors[order]))


def test_a_single_photo_is_itself(rng: np.random.Generator) -> None:
    photo = Identity.from_vector(unit(rng), MINI, norm=3.0)
    fused = fuse([photo], method="robust")
    np.testing.assert_allclose(fused.identity.face_vector.value, photo.face_vector.value, atol=1e-7)
    assert fused.report[0].similarity == 1


def test_photos_of_different_encoders_cannot_be_fused(rng: np.random.Generator) -> None:
    photos = [Identity.from_vector(unit(rng), MINI), Identity.from_vector(unit(rng), OTHER)]
    with pytest.raises(EncoderMismatchError, match=rf"(?s){MINI}.*number 2 holds.*{OTHER}"):
        fuse(photos)


def test_what_cannot_be_fused(rng: np.random.Generator) -> None:
    one = Identity.from_vector(unit(rng), MINI)
    with pytest.raises(IdentityError, match="nothing to fuse"):
        fuse([])
    with pytest.raises(IdentityError, match="opposite directions"):
        fuse([one, Identity.from_vector(-one.face_vector.value, MINI)])
    with pytest.raises(ConfigError, match="mean or robust, got 'median'"):
        fuse([one], method="median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1 photos, 2 weights"):
        fuse([one], weights=[1, 2])
    for weights in ([0.0], [-1.0], [math.nan]):
        with pytest.raises(ConfigError, match="not negative and not all 0"):
            fuse([one], weights=weights)


def test_every_kind_is_fused(rng: np.random.Generator) -> None:
    def photo() -> Identity:
        features = [Feature(MINI, "face_vector", unit(rng)), Feature(OTHER, "face_vector", unit(rng))]
        return Identity((*features, Feature(OTHER, "image_tokens", rng.normal(size=(2, 3)))))

    a, b = photo(), photo()
    fused = fuse([a, b]).identity
    tokens = (a.feature("image_tokens").value + b.feature("image_tokens").value) / 2
    np.testing.assert_allclose(fused.feature("image_tokens").value, tokens, atol=1e-6)
    assert np.linalg.norm(fused.feature("face_vector", OTHER).value) == pytest.approx(1, abs=1e-6)


def test_strangers_are_found_among_real_photos(faces_test: FaceTable, weights_folder: Path) -> None:
    """One stranger among four photos: at least 90 % are found, at most 2 % of the right photos leave."""
    from idgen.encoders.arcface import load_encoder

    people = [rows[:4] for rows in faces_test.people().values() if len(rows) >= 4][:50]
    encoder = load_encoder(str(weights_folder / "teacher_recognizer.onnx"))
    unit = encoder.encode(faces_test.crops(np.concatenate(people))).unit.numpy().reshape(len(people), 4, -1)
    found = wrong = 0
    for person, stranger in zip(unit, np.roll(unit, 1, axis=0), strict=True):
        outliers = find_outliers(np.stack([*person[:3], stranger[0]]).astype(np.float64))
        found += outliers[3]
        wrong += outliers[:3].sum()
    assert found >= 0.9 * len(people)
    assert wrong <= 0.02 * 3 * len(people)


def test_a_transposed_array_is_saved_as_it_reads(tmp_path: Path) -> None:
    """safetensors writes memory as it lies: a view would come back with its numbers in another order."""
    tokens = np.arange(12, dtype=np.float32).reshape(3, 4).T
    Identity((Feature("tiny@0123456789ab", "image_tokens", tokens),)).save(tmp_path / "who.safetensors")
    assert np.array_equal(Identity.load(tmp_path / "who.safetensors").feature("image_tokens").value, tokens)
