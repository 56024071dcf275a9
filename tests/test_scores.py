"""All pairs: against loops, whatever the blocks and the order."""

from typing import Any

import numpy as np
import pytest

from idgen.errors import MeasureError
from idgen.metrics import scores
from idgen.metrics.scores import PairStatistics, pair_statistics


def people(seed: int = 0, num_people: int = 7, most: int = 6, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    person = np.concatenate([np.full(rng.integers(1, most + 1), i) for i in range(num_people)])
    vectors = rng.normal(size=(num_people, dim))[person] + rng.normal(size=(len(person), dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[3] = 0  # a picture without a face
    order = rng.permutation(len(person))
    return vectors[order].astype(np.float32), person[order]


def by_loops(
    vectors: np.ndarray, person: np.ndarray, others: Any = None, other_person: Any = None
) -> np.ndarray:
    """(cosine, person, other person) of every pair."""
    is_within = others is None
    others, other_person = (vectors, person) if is_within else (others, other_person)
    found = []
    for i in range(len(vectors)):
        for j in range(i + 1 if is_within else 0, len(others)):
            a, b = vectors[i].astype(np.float64), others[j].astype(np.float64)
            norm = np.linalg.norm(a) * np.linalg.norm(b)
            found.append((a @ b / norm if norm else 0.0, person[i], other_person[j]))
    return np.array(found)


def assert_equal(found: PairStatistics, pairs: np.ndarray, num_people: int) -> None:
    same = pairs[:, 1] == pairs[:, 2]
    for kind, wanted in ((found.genuine, pairs[same]), (found.impostor, pairs[~same])):
        cosines = wanted[:, 0]
        assert kind.count == len(cosines)
        np.testing.assert_allclose([kind.mean, kind.std], [cosines.mean(), cosines.std()], atol=1e-6)
        np.testing.assert_allclose([kind.lowest, kind.highest], [cosines.min(), cosines.max()], atol=1e-6)
        counted, _ = np.histogram(cosines, bins=scores.NUM_BINS, range=(-1, 1))
        assert np.abs(np.cumsum(counted - kind.histogram)).max() <= 1  # one on the border of two bins
        for person in range(num_people):
            own = wanted[(wanted[:, 1] == person) | (wanted[:, 2] == person), 0]
            assert kind.person_count[person] == len(own)
            if len(own):
                assert kind.person_mean[person] == pytest.approx(own.mean(), abs=1e-6)
            else:
                assert np.isnan(kind.person_mean[person])
    highest = pairs[~same, 0].max()
    assert found.genuine_within_impostors == (pairs[same, 0] <= highest + 1e-9).sum()


def test_pairs_of_a_set_are_those_of_a_loop() -> None:
    vectors, person = people()
    assert_equal(pair_statistics(vectors, person), by_loops(vectors, person), 7)


def test_pairs_of_two_sets_are_those_of_a_loop() -> None:
    vectors, person = people()
    others, other_person = people(seed=1)
    found = pair_statistics(vectors, person, others, other_person)
    assert_equal(found, by_loops(vectors, person, others, other_person), 7)


@pytest.mark.parametrize("block", [1, 5, 8, 1000])
@pytest.mark.parametrize("is_within", [True, False])
def test_neither_blocks_nor_order_change_anything(block: int, is_within: bool) -> None:
    vectors, person = people(num_people=9, dim=64)
    rest = () if is_within else people(seed=1, num_people=9, dim=64)
    expected = pair_statistics(vectors, person, *rest)
    order = np.random.default_rng(2).permutation(len(person))
    found = pair_statistics(vectors[order], person[order], *rest, block=block)
    for a, b in ((found.genuine, expected.genuine), (found.impostor, expected.impostor)):
        np.testing.assert_array_equal(a.histogram, b.histogram)
        np.testing.assert_array_equal(a.person_histogram, b.person_histogram)
        assert (a.lowest, a.highest) == (b.lowest, b.highest)
        np.testing.assert_allclose([a.total, a.squares], [b.total, b.squares], rtol=1e-12)
    assert found.genuine_within_impostors == expected.genuine_within_impostors


def test_equal_pictures_are_alike_exactly_and_opposite_ones_exactly_not() -> None:
    vector = np.full(64, 0.125, np.float32)
    found = pair_statistics(np.stack([vector, vector, -vector]), np.array([0, 0, 1]))
    assert found.genuine.highest == 1.0
    assert found.impostor.lowest == -1.0
    assert found.genuine.histogram[-1] == 1
    assert found.impostor.histogram[0] == 2


def test_one_person_one_picture_nobody() -> None:
    vectors = np.eye(3, dtype=np.float32)
    one_person = pair_statistics(vectors, np.zeros(3, int))
    assert (one_person.genuine.count, one_person.impostor.count) == (3, 0)
    assert np.isnan(one_person.impostor.mean)
    assert np.isnan(one_person.impostor.highest)
    one_picture = pair_statistics(vectors[:1], np.zeros(1, int))
    assert (one_picture.genuine.count, one_picture.impostor.count) == (0, 0)
    nobody = pair_statistics(np.zeros((0, 3), np.float32), np.zeros(0, int))
    assert nobody.genuine.count == 0


def test_what_is_no_face_vector_is_refused() -> None:
    vectors = np.eye(3, dtype=np.float32)
    vectors[1, 1] = np.nan
    with pytest.raises(MeasureError, match="row 1 is not"):
        pair_statistics(vectors, np.arange(3))
    with pytest.raises(MeasureError, match="of length 2"):
        pair_statistics(2 * np.eye(3, dtype=np.float32), np.arange(3))
    with pytest.raises(MeasureError, match=r"\(N, D\) and people \(N,\)"):
        pair_statistics(np.eye(3, dtype=np.float32), np.arange(2))
