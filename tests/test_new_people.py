"""New identities: far apart, far from real people, the same for a seed."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import skimage.data
from PIL import Image

from idgen.blocklist import Blocklist
from idgen.cli import main as idgen
from idgen.data.images import load_faces
from idgen.encoders.arcface import mini_encoder
from idgen.encoders.card import read_encoder_card
from idgen.errors import (
    ConfigError,
    EncoderMismatchError,
    IdentityError,
    MeasureError,
    RefusedPersonError,
)
from idgen.identity import Identity
from idgen.mini import PEOPLE
from idgen.synth.gaussian import PeopleDistribution, fit_people, load_people
from idgen.synth.identities import memory_bytes, separated_people
from idgen.synth.sources import UniformSphere

DIM = 16


def real(num: int = 400, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(num, DIM)) * np.linspace(2, 0.2, DIM) + 0.5
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def people() -> PeopleDistribution:
    return fit_people(real(), "test@0123456789ab")


def test_the_distribution_is_that_of_the_people(people: PeopleDistribution) -> None:
    np.testing.assert_allclose(people.mean, real().mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(people.factors @ people.factors.T, np.cov(real(), rowvar=False), atol=1e-6)
    drawn = people.sample(20_000, np.random.default_rng(0)).astype(float)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    mean = drawn.mean(axis=0) / np.linalg.norm(drawn.mean(axis=0))
    assert mean @ (people.mean / np.linalg.norm(people.mean)) > 0.99


def test_it_comes_back_from_the_disk(people: PeopleDistribution, tmp_path: Path) -> None:
    people.save(tmp_path / "people.safetensors")
    back = load_people(tmp_path / "people.safetensors")
    assert back.encoder == people.encoder
    np.testing.assert_allclose(back.factors, people.factors, atol=1e-3)
    for text in (b"", b"no"):
        (tmp_path / "bad.safetensors").write_bytes(text)
        with pytest.raises(IdentityError, match="cannot read"):
            load_people(tmp_path / "bad.safetensors")
    with pytest.raises(IdentityError, match="cannot read"):
        load_people(tmp_path / "nothing.safetensors")


def test_everybody_keeps_the_distance(people: PeopleDistribution) -> None:
    gallery = real(50, seed=9)
    gallery[3] = 0  # a photo without a face
    told: list[int] = []
    found = separated_people(
        people, 60, max_cosine=0.7, gallery=gallery, max_gallery_cosine=0.9, advance=told.append
    )
    assert found.shape == (60, DIM)
    cosines = found.astype(float) @ found.T.astype(float)
    assert cosines[np.triu_indices(60, 1)].max() < 0.7
    assert (found.astype(float) @ gallery.T).max() < 0.9
    assert sum(told) == 60
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_greedily_as_a_loop_would(people: PeopleDistribution) -> None:
    found = separated_people(people, 30, max_cosine=0.6, seed=4)
    expected: list[np.ndarray] = []
    for chunk in range(100):
        for vector in people.sample(256, np.random.default_rng([4, chunk])).astype(float):
            if all(vector @ other < 0.6 for other in expected):
                expected.append(vector)
        if len(expected) >= 30:
            break
    np.testing.assert_allclose(found, np.array(expected[:30]), atol=1e-6)


def test_a_larger_number_begins_with_the_smaller(people: PeopleDistribution) -> None:
    few = separated_people(people, 5, max_cosine=0.6, seed=1)
    many = separated_people(people, 20, max_cosine=0.6, seed=1)
    np.testing.assert_array_equal(few, many[:5])
    assert not np.array_equal(few, separated_people(people, 5, max_cosine=0.6, seed=2))


@pytest.mark.parametrize("block", [1, 37, 100_000])
def test_the_size_of_blocks_changes_nobody(people: PeopleDistribution, block: int) -> None:
    given = {"max_cosine": 0.8, "gallery": [real(50, seed=9), real(20, seed=8)], "max_gallery_cosine": 0.95}
    expected = separated_people(people, 150, **given)
    np.testing.assert_array_equal(separated_people(people, 150, **given, block=block), expected)


def test_in_512_dimensions_every_pair_is_below_the_limit_without_rounding() -> None:
    """At 0.09 a third of the candidates is refused, and thousands of pairs lie just below the limit."""
    source = UniformSphere(encoder="test@0123456789ab", dim=512)
    gallery = source.sample(40, np.random.default_rng(9))
    found = separated_people(
        source, 120, max_cosine=0.09, gallery=gallery, max_gallery_cosine=0.11, least_accepted=0
    )
    for others, limit, first in ((found, 0.09, 1), (gallery, 0.11, None)):
        products = np.einsum("nd,md->nmd", found.astype(float), others.astype(float))  # exact: 48 bits
        rows = np.triu_indices(len(found), first) if first else np.nonzero(np.ones((120, 40)))
        dots = [math.fsum(products[pair]) for pair in zip(*rows, strict=True)]
        assert max(dots) < limit
        lengths = [np.sqrt([math.fsum(v * v) for v in x.astype(float)]) for x in (found, others)]
        cosines = np.array(dots) / (lengths[0][rows[0]] * lengths[1][rows[1]])
        assert limit - 0.001 < cosines.max() < limit


def test_without_a_limit_for_the_gallery_the_card_says_it() -> None:
    people, encoder = load_people(PEOPLE), mini_encoder()
    card = read_encoder_card(encoder)
    assert card is not None
    gallery = people.sample(3000, np.random.default_rng(5))
    found = separated_people(people, 100, max_cosine=0.9, gallery=gallery)
    limit = card.thresholds["1e-4"]
    assert limit - 0.02 < (found @ gallery.T).max() < limit
    strangers = PeopleDistribution(encoder="other@0123456789ab", mean=people.mean, factors=people.factors)
    with pytest.raises(ConfigError, match=r"threshold of other@0123456789ab is not known.*give the cosine"):
        separated_people(strangers, 10, max_cosine=0.9, gallery=gallery)
    assert len(separated_people(strangers, 10, max_cosine=0.9)) == 10  # without a gallery none is needed


def test_nobody_like_a_person_who_refused_is_found() -> None:
    people, encoder = load_people(PEOPLE), mini_encoder()
    plain = separated_people(people, 60, max_cosine=0.6)
    listed = Blocklist()
    for vector in plain[[3, 20]]:
        listed.add(Identity.from_vector(vector, encoder.id))
    found = separated_people(people, 60, max_cosine=0.6, blocklist=listed)
    assert (found @ plain[[3, 20]].T).max() < listed.threshold(encoder.id)
    for vector in found:
        listed.check(Identity.from_vector(vector, encoder.id))  # refuses nobody of them
    with pytest.raises(RefusedPersonError):
        listed.check(Identity.from_vector(plain[3], encoder.id))
    np.testing.assert_array_equal(separated_people(people, 60, max_cosine=0.6, blocklist=Blocklist()), plain)
    listed.add(Identity.from_vector(np.eye(1, 8)[0], "other@0123456789ab"), "Ann")
    with pytest.raises(EncoderMismatchError, match="not checked against people who refused: 'Ann'"):
        separated_people(people, 60, max_cosine=0.6, blocklist=listed)


def test_the_memory_is_said_beforehand() -> None:
    source = UniformSphere(encoder="test@0123456789ab", dim=256)
    gallery = source.sample(4000, np.random.default_rng(3)).astype(np.float16)
    separated_people(source, 10, max_cosine=0.5)  # what is imported once
    tracemalloc.start()
    separated_people(source, 9000, max_cosine=0.5, gallery=gallery, max_gallery_cosine=0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = memory_bytes(9000, 256, num_real=4000)
    assert said / 2 < peak <= said
    assert memory_bytes(300_000, 512) < 0.64e9


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"max_cosine": 1.1}, ConfigError, r"max_cosine must be in \(-1, 1\], got 1.1"),
        ({"max_cosine": math.nan}, ConfigError, "max_cosine must be in"),
        ({"max_gallery_cosine": -1.0}, ConfigError, "max_gallery_cosine must be in"),
        ({"num": -1}, ConfigError, "num must be at least 0, got -1"),
        ({"seed": -1}, ConfigError, "seed must be at least 0, got -1"),
        ({"block": 0}, ConfigError, "block must be at least 1, got 0"),
        ({"least_accepted": 2}, ConfigError, "least_accepted is a share"),
        ({"gallery": 2 * np.eye(3, DIM)}, IdentityError, "gallery 1: row 0 has length 2"),
        ({"gallery": [np.eye(3, DIM), np.ones(4)]}, IdentityError, r"gallery 2 must be vectors \(N, D\)"),
        ({"gallery": np.eye(3, 8)}, ConfigError, "gallery 1 is 8-d, new people are 16-d"),
    ],
)
def test_settings_that_cannot_be(
    people: PeopleDistribution, wrong: dict[str, object], error: type[Exception], message: str
) -> None:
    given = {"num": 5, "max_cosine": 0.6, "max_gallery_cosine": 0.6, **wrong}
    with pytest.raises(error, match=message):
        separated_people(people, **given)


def test_where_nobody_is_left_it_stops_and_says_so(people: PeopleDistribution) -> None:
    message = r"only \d+ of 500 new people were found below cosine 0.1 \(with out=FOLDER they are kept\)"
    with pytest.raises(MeasureError, match=message):
        separated_people(people, 500, max_cosine=0.1)
    assert len(separated_people(people, 0, max_cosine=0.1)) == 0
    with pytest.raises(MeasureError, match="two people at least"):
        fit_people(real(1), "test@0123456789ab")


def test_the_program_fits_the_people_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    portrait = Image.fromarray(skimage.data.astronaut()).crop((150, 30, 300, 180)).resize((128, 128))
    rows = []
    for number in range(6):
        file = tmp_path / f"{number}.png"
        Image.fromarray(np.roll(np.asarray(portrait), number, axis=2)).rotate(number).save(file)
        labels = dict.fromkeys(("p_female", "p_happy", "yaw", "pitch", "roll"), 0.5)
        image = {"bytes": file.read_bytes(), "path": file.name}
        rows.append({"image": image, "file": file.name, "identity": f"person {number // 2}", **labels})
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "faces.parquet")
    out = tmp_path / "people.safetensors"
    assert idgen(["train", "people", "--faces", str(tmp_path / "faces.parquet"), "--out", str(out)]) == 0
    people = load_people(out)
    assert people.encoder == mini_encoder().id
    table = load_faces(tmp_path / "faces.parquet")
    unit = mini_encoder().encode(table.crops(list(range(6)))).unit.numpy().astype(float)
    means = unit.reshape(3, 2, -1).mean(axis=1)
    expected = (means / np.linalg.norm(means, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(people.mean, expected, atol=1e-5)
    assert "the distribution of 3 people" in capsys.readouterr().out


def test_mini_brings_the_distribution_of_its_own_vectors() -> None:
    people = load_people(PEOPLE)
    assert people.encoder == mini_encoder().id
    found = separated_people(people, 50, max_cosine=0.459)
    assert len(found) == 50
