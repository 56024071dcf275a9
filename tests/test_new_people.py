"""New identities: far apart, far from real people, the same for a seed."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import skimage.data
from PIL import Image

from idgen.cli import main as idgen
from idgen.data.images import load_faces
from idgen.encoders.arcface import mini_encoder
from idgen.errors import IdentityError, MeasureError
from idgen.mini import PEOPLE
from idgen.synth.identities import PeopleDistribution, fit_people, load_people, separated_people

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


def test_where_nobody_is_left_it_stops_and_says_so(people: PeopleDistribution) -> None:
    with pytest.raises(MeasureError, match=r"only \d+ of 500 new people were found below cosine 0.1"):
        separated_people(people, 500, max_cosine=0.1)
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
