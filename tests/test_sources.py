"""Sources of new people: files by whoever wrote them, mixtures, ways between people, all by name."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file

from idgen.encoders.arcface import mini_encoder
from idgen.errors import ConfigError, EncoderMismatchError, IdentityError, UnknownNameError
from idgen.identity import Feature, Identity
from idgen.synth.gaussian import PeopleDistribution, fit_people
from idgen.synth.identities import separated_people
from idgen.synth.mises_fisher import MisesFisherMixture
from idgen.synth.sources import (
    GivenVectors,
    Interpolation,
    Mixture,
    Source,
    UniformSphere,
    load_source,
    slerp,
    sources,
)
from idgen.synth.vectors import read_vectors, unit_rows

ENCODER, OTHER = "test@0123456789ab", "other@0123456789ab"
DIM = 12


def drawn(num: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return UniformSphere(encoder=ENCODER, dim=dim).sample(num, np.random.default_rng(seed))


# ---- each source


def every_source() -> list[Source]:
    given = GivenVectors(encoder=ENCODER, vectors=drawn(30))
    vmf = MisesFisherMixture(
        encoder=ENCODER, means=drawn(2), concentrations=np.array([5.0, 50.0]), weights=np.array([0.4, 0.6])
    )
    uniform = UniformSphere(encoder=ENCODER, dim=DIM)
    return [
        fit_people(drawn(50), ENCODER), vmf, uniform, given, Mixture([vmf, uniform], [1, 3]),
        Interpolation(given), Interpolation(uniform),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(7))
def test_every_source_gives_unit_vectors_that_depend_on_the_seed_alone(number: int) -> None:
    source = every_source()[number]
    assert (source.encoder, source.dim) == (ENCODER, DIM)
    found = source.sample(200, np.random.default_rng([1, 2]))
    assert found.shape == (200, DIM)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.astype(float), axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(found, source.sample(200, np.random.default_rng([1, 2])))
    assert not np.array_equal(found, source.sample(200, np.random.default_rng([1, 3])))
    assert source.sample(0, np.random.default_rng(0)).shape == (0, DIM)
    assert len(separated_people(source, 5, max_cosine=0.95)) == 5


def test_the_gaussian_adds_up_without_rounding() -> None:
    """Any order of the sums gives the same bits: here one axis after the other, and backwards."""
    people = fit_people(drawn(400, dim=64), ENCODER)
    people = PeopleDistribution(
        encoder=ENCODER, mean=people.mean, factors=people.factors.astype(np.float16).astype(float)
    )
    normal = (
        np.rint(np.random.default_rng(3).standard_normal((50, people.factors.shape[1])) * 2.0**24) / 2.0**24
    )
    for axes in (range(64), reversed(range(64))):
        total = np.zeros((50, 64))
        for axis in axes:
            total += normal[:, axis : axis + 1] * people.factors[:, axis]
        total += people.mean
        expected = (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
        np.testing.assert_array_equal(people.sample(50, np.random.default_rng(3)), expected)


def test_no_direction_is_favoured_on_the_sphere() -> None:
    found = drawn(20_000).astype(float)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(np.cov(found, rowvar=False), np.eye(DIM) / DIM, atol=0.005)


def test_given_people_come_in_their_own_order_without_repeats() -> None:
    rows = drawn(700)
    given = GivenVectors(encoder=ENCODER, vectors=rows)
    np.testing.assert_array_equal(separated_people(given, 700, max_cosine=1.0), rows)
    twice = GivenVectors(encoder=ENCODER, vectors=np.concatenate([rows, rows]))
    with pytest.raises(ValueError, match=r"only 700 of 701 .* there are no more given people"):
        separated_people(twice, 701, max_cosine=1.0)
    known = {row.tobytes() for row in rows}
    assert all(row.tobytes() in known for row in given.sample(300, np.random.default_rng(0)))


def test_a_mixture_draws_from_its_parts_by_their_weights() -> None:
    ends = [GivenVectors(encoder=ENCODER, vectors=row[None]) for row in np.eye(3, DIM)]
    found = Mixture(ends, [2, 1, 7]).sample(20_000, np.random.default_rng(0))
    np.testing.assert_allclose(found.mean(axis=0)[:3], [0.2, 0.1, 0.7], atol=0.015)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1], "2 parts, 1 weights"), ([1, 0], "positive"), ([1, -1], "positive"), ([1, math.nan], "positive")],
)
def test_weights_that_cannot_be(weights: list[float], message: str) -> None:
    parts = [UniformSphere(encoder=ENCODER, dim=4), UniformSphere(encoder=ENCODER, dim=4)]
    with pytest.raises(ConfigError, match=message):
        Mixture(parts, weights)


def test_a_mixture_is_of_one_encoder() -> None:
    with pytest.raises(EncoderMismatchError, match=rf"{OTHER} \(4-d\) and {ENCODER} \(4-d\)"):
        Mixture([UniformSphere(encoder=name, dim=4) for name in (ENCODER, OTHER)], [1, 1])
    with pytest.raises(EncoderMismatchError, match=r"\(4-d\) and .* \(5-d\)"):
        Mixture([UniformSphere(encoder=ENCODER, dim=dim) for dim in (4, 5)], [1, 1])


# ---- between people


def test_the_way_between_two_people_is_a_great_circle_at_even_speed() -> None:
    a, b = np.eye(2, DIM)
    b = np.cos(1.2) * a + np.sin(1.2) * b
    way = np.linspace(0, 1, 9)
    found = slerp(np.tile(a, (9, 1)), np.tile(b, (9, 1)), way)
    expected = np.zeros((9, DIM))
    expected[:, 0], expected[:, 1] = np.cos(1.2 * way), np.sin(1.2 * way)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_the_ends_of_the_way_are_the_people_themselves_however_near() -> None:
    a = drawn(50)
    for b in (drawn(50, seed=1), a, a + np.float32(1e-6)):
        b = unit_rows(b, "b")
        np.testing.assert_allclose(slerp(a, b, np.zeros(50)), a, atol=1e-7)
        np.testing.assert_allclose(slerp(a, b, np.ones(50)), b, atol=1e-7)
        middle = a.astype(float) + b
        middle /= np.linalg.norm(middle, axis=1, keepdims=True)
        np.testing.assert_allclose(slerp(a, b, np.full(50, 0.5)), middle, atol=1e-7)


def test_opposite_people_have_no_way_between_them() -> None:
    a = np.eye(2, DIM)
    with pytest.raises(IdentityError, match="vectors 1 are opposite"):
        slerp(a, np.array([a[1], -a[1]]), np.full(2, 0.5))


def test_between_given_people_nobody_is_paired_with_himself() -> None:
    given = GivenVectors(encoder=ENCODER, vectors=np.eye(3, DIM))
    found = Interpolation(given, between=(0.5, 0.5)).sample(300, np.random.default_rng(0))
    np.testing.assert_allclose(np.sort(found, axis=1)[:, -2:], math.sqrt(0.5), atol=1e-6)
    assert len({tuple(np.flatnonzero(row > 0.1)) for row in found}) == 3  # every pair occurs
    alone = GivenVectors(encoder=ENCODER, vectors=np.eye(1, DIM))
    with pytest.raises(IdentityError, match="two of them at least, got one"):
        Interpolation(alone).sample(1, np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"0 <= least <= most <= 1, got \(0.5, 0.2\)"):
        Interpolation(given, between=(0.5, 0.2))


# ---- files


def write_every_kind(folder: Path, vectors: np.ndarray) -> list[Path]:
    np.save(folder / "a.npy", vectors)
    save_file({"vectors": vectors, "norms": np.ones((len(vectors), 1), np.float32)}, folder / "b.safetensors")
    save_file({"centres": vectors}, folder / "c.safetensors", {"encoder": ENCODER})
    lists = pa.array(vectors.tolist(), pa.list_(pa.float32()))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    names = pa.array([str(i) for i in range(len(vectors))])
    pa.parquet.write_table(pa.table({"name": names, "embedding": lists}), folder / "d.parquet")
    table = pa.table({"face_vector": fixed, "other": lists}).replace_schema_metadata({"encoder": ENCODER})
    pa.parquet.write_table(table, folder / "e.parquet")
    separated_people(
        GivenVectors(encoder=ENCODER, vectors=vectors), len(vectors), max_cosine=1.0, out=folder / "people"
    )
    return [*sorted(path for path in folder.iterdir() if path.is_file()), folder / "people"]


def test_vectors_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    vectors = drawn(9)
    paths = write_every_kind(tmp_path, vectors)
    assert len(paths) == 6
    for path in paths:
        found, encoder = read_vectors(path, encoder=ENCODER)
        np.testing.assert_array_equal(found, vectors)
        assert encoder == (ENCODER if path.stem in ("c", "e", "people") else None)
        source = load_source(f"file:{path}", encoder=ENCODER, dim=DIM)
        np.testing.assert_array_equal(separated_people(source, 9, max_cosine=1.0), vectors)
        if encoder is not None:
            with pytest.raises(EncoderMismatchError, match=rf"holds vectors of {ENCODER}, wanted .* {OTHER}"):
                read_vectors(path, encoder=OTHER)


def test_an_identity_is_a_file_of_one_person(tmp_path: Path) -> None:
    one, other = drawn(2)
    path = tmp_path / "who.safetensors"
    Identity((Feature(ENCODER, "face_vector", one), Feature(OTHER, "face_vector", other))).save(path)
    for encoder, vector in ((ENCODER, one), (OTHER, other)):
        source = load_source(f"file:{path}", encoder=encoder, dim=DIM)
        np.testing.assert_array_equal(source.sample(1, np.random.default_rng(0)), vector[None])
    with pytest.raises(EncoderMismatchError, match="third@0123456789ab is wanted"):
        load_source(f"file:{path}", encoder="third@0123456789ab", dim=DIM)


def test_half_precision_is_brought_to_unit_length_and_float32_left_alone() -> None:
    vectors = drawn(9)
    assert unit_rows(vectors, "x") is vectors
    found = unit_rows(vectors.astype(np.float16), "x")
    np.testing.assert_allclose(np.linalg.norm(found.astype(float), axis=1), 1, atol=1e-7)
    np.testing.assert_allclose(found, vectors, atol=1e-3)
    vectors[4] = 0
    np.testing.assert_array_equal(unit_rows(vectors, "x", drop_zeros=True), np.delete(vectors, 4, axis=0))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((2, 4), np.float32), "row 0 has length 0"),
        (np.array([[1, 0], [3, 4.0]]), "row 1 has length 5"),
        (np.array([[1, 0], [np.inf, 0]]), "row 1 has length inf"),
        (np.array([[1, 0], [np.nan, 0]]), "row 1 has length nan"),
        (np.eye(2, dtype=int), r"of floating point, got \(2, 2\) of int64"),
        (np.ones(4), r"vectors \(N, D\)"),
        (np.zeros((2, 0)), r"vectors \(N, D\)"),
        (np.zeros((0, 4)), "the file holds no row"),
    ],
)
def test_given_people_must_be_unit_vectors(vectors: np.ndarray, message: str) -> None:
    with pytest.raises(IdentityError, match=message):
        GivenVectors(encoder=ENCODER, vectors=vectors)


def test_files_that_hold_no_vectors(tmp_path: Path) -> None:
    save_file(
        {"a": np.eye(2, dtype=np.float32), "b": np.eye(3, dtype=np.float32)}, tmp_path / "two.safetensors"
    )
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "flat.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "code.npy", np.array([{}], dtype=object))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    ragged = pa.table({"face_vector": pa.array([[1.0], [1.0, 0.0]])})
    pa.parquet.write_table(ragged, tmp_path / "ragged.parquet")
    pa.parquet.write_table(ragged.slice(0, 0), tmp_path / "empty.parquet")
    pa.parquet.write_table(pa.table({"name": ["a"]}), tmp_path / "names.parquet")
    (tmp_path / "folder").mkdir()
    expected = {
        "two.safetensors": r"neither one tensor \(N, D\) nor one named 'vectors', but .*'b'",
        "flat.safetensors": r"neither one tensor",
        "cut.safetensors": "cannot read vectors from",
        "cut.npy": "cannot read vectors from",
        "code.npy": "cannot read vectors from .*Python objects",
        "cut.parquet": "is damaged or no Parquet table",
        "ragged.parquet": r"rows of face_vector must be of one width, got \[1, 2\]",
        "empty.parquet": "of one width, got no row",
        "names.parquet": r"neither a column of lists 'face_vector' .*\(columns: name\)",
        "folder": "cannot read vectors from .*people.json",
        "nothing.npy": "no such file",
    }
    for name, message in expected.items():
        with pytest.raises(IdentityError, match=message):
            read_vectors(tmp_path / name)
    (tmp_path / "who.txt").write_text("1 0")
    with pytest.raises(IdentityError, match=r"none of .safetensors, .npy, .parquet"):
        read_vectors(tmp_path / "who.txt")


# ---- by name


def test_sources_are_found_by_name(tmp_path: Path) -> None:
    assert set(sources) == {"pca", "vmf", "uniform", "file", "mixture", "interpolation"}
    mini = mini_encoder()
    assert load_source("pca", encoder=mini.id, dim=mini.dim).dim == 128
    fit_people(drawn(50), ENCODER).save(tmp_path / "pca.safetensors")
    vmf = every_source()[1]
    assert isinstance(vmf, MisesFisherMixture)
    vmf.save(tmp_path / "vmf.safetensors")
    np.save(tmp_path / "given.npy", drawn(5))
    for spec, kind in (
        (f"pca:{tmp_path}/pca.safetensors", PeopleDistribution),
        (f"vmf:{tmp_path}/vmf.safetensors", MisesFisherMixture),
        ("uniform", UniformSphere),
        (f"file:{tmp_path}/given.npy", GivenVectors),
        (f"interpolation:file:{tmp_path}/given.npy", Interpolation),
        (f"mixture:0.75*vmf:{tmp_path}/vmf.safetensors, .25*uniform", Mixture),
    ):
        source = load_source(spec, encoder=ENCODER, dim=DIM)
        assert isinstance(source, kind)
        assert source.sample(3, np.random.default_rng(0)).shape == (3, DIM)
    assert isinstance(source, Mixture)
    assert source.weights.tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("unifrom", UnknownNameError, "no source of identities called 'unifrom'; did you mean 'uniform'"),
        ("vmf", ConfigError, "the source vmf needs its file: vmf:FILE"),
        ("file", ConfigError, "the source file needs its file: file:FILE"),
        ("interpolation", ConfigError, "interpolation:SPEC"),
        ("uniform:3", ConfigError, "takes nothing, got uniform:3"),
        ("mixture", ConfigError, "WEIGHT.SPEC; there stands ''|there stands ''"),
        ("mixture:uniform", ConfigError, "there stands 'uniform'"),
        ("mixture:much*uniform", ConfigError, "there stands 'much.uniform'"),
        ("mixture:-1*uniform", ConfigError, "positive"),
        (
            "mixture:0.5*uniform,0.5*mixture:0.5*uniform,0.5*uniform",
            ConfigError,
            r"a mixture holds no other one, got mixture:0.5\*uniform,.*; give all its parts side by side",
        ),
        ("mixture:1*interpolation:mixture:1*uniform", ConfigError, "a mixture holds no other one"),
        ("pca:nobody.safetensors", IdentityError, "cannot read the distribution of people nobody"),
        ("vmf:nobody.safetensors", IdentityError, "cannot read the mixture of people nobody"),
        ("file:nobody.npy", IdentityError, "no such file: nobody.npy"),
        ("pca", EncoderMismatchError, r"'pca' gives vectors of mini@.* \(128-d\), wanted are those of test@"),
    ],
)
def test_names_that_lead_nowhere(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_source(spec, encoder=ENCODER, dim=DIM)
