"""The nearest neighbour and the thresholds, against brute force."""

import numpy as np
import pytest

from idgen.errors import MeasureError
from idgen.metrics.leakage import centres, impostor_thresholds, nearest, nearest_by_faiss


def unit(num: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def faces() -> tuple[np.ndarray, np.ndarray]:
    vectors, gallery = unit(37, 24, 0), unit(91, 24, 1)
    vectors[5] = 0  # no face
    gallery[[0, 17, 90]] = 0
    gallery[60] = gallery[12]  # twice the same photo
    vectors[3] = gallery[12]
    return vectors, gallery


def by_hand(vectors: np.ndarray, gallery: np.ndarray) -> tuple[list[int], list[float]]:
    index, cosine = [], []
    for vector in vectors.astype(np.float64):
        best, at = -2.0, -1
        for number, photo in enumerate(gallery.astype(np.float64)):
            if photo.any() and vector.any():
                value = float(vector @ photo)
                if value > best + 1e-12:
                    best, at = value, number
        index.append(at)
        cosine.append(best if at >= 0 else np.nan)
    return index, cosine


def test_nearest_is_that_of_brute_force(faces: tuple[np.ndarray, np.ndarray]) -> None:
    index, cosine = nearest(*faces)
    expected_index, expected_cosine = by_hand(*faces)
    assert index.tolist() == expected_index
    np.testing.assert_allclose(cosine, expected_cosine, atol=1e-6)
    assert index[3] == 12  # the first of two equal ones
    assert index[5] == -1
    assert np.isnan(cosine[5])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 10), (37, 88), (1000, 3)])
def test_blocks_change_nothing(faces: tuple[np.ndarray, np.ndarray], rows: int, columns: int) -> None:
    done: list[int] = []
    index, cosine = nearest(*faces, rows=rows, columns=columns, advance=done.append)
    whole_index, whole_cosine = nearest(*faces)
    np.testing.assert_array_equal(index, whole_index)
    np.testing.assert_array_equal(cosine, whole_cosine)  # to the last bit
    assert sum(done) == 37


def test_faiss_finds_the_same(faces: tuple[np.ndarray, np.ndarray]) -> None:
    index, cosine = nearest_by_faiss(*faces)
    expected_index, expected_cosine = nearest(*faces)
    np.testing.assert_array_equal(cosine, expected_cosine)
    apart = index != expected_index
    assert set(np.flatnonzero(apart)) <= {3}  # of two equal photos either


@pytest.mark.parametrize("search", [nearest, nearest_by_faiss])
def test_search_that_cannot_be(search: object) -> None:
    assert callable(search)
    with pytest.raises(MeasureError, match="none of the 3 photos"):
        search(unit(2, 8, 0), np.zeros((3, 8), np.float32))
    with pytest.raises(MeasureError, match="one width"):
        search(unit(2, 8, 0), unit(2, 9, 0))
    with pytest.raises(MeasureError, match="row 1 is not"):
        search(unit(2, 8, 0), np.array([[1.0, 0], [np.nan, 1]]).repeat(4, axis=1) / 2)
    with pytest.raises(MeasureError, match="unit length"):
        search(unit(2, 8, 0), 3 * unit(2, 8, 0))


def test_no_picture_has_no_neighbour() -> None:
    index, cosine = nearest(np.zeros((0, 8)), unit(2, 8, 0))
    assert len(index) == len(cosine) == 0


def test_centres_are_means_of_the_faces_found() -> None:
    vectors = unit(5, 6, 2)
    vectors[1] = 0
    person = np.array([0, 0, 0, 2, 2])
    found = centres(vectors, person, 4)
    mean = vectors[[0, 2]].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-12)
    assert not found[1].any()  # nobody
    np.testing.assert_allclose(np.linalg.norm(found[[0, 2]], axis=1), 1)
    opposite = centres(np.array([[1.0, 0], [-1.0, 0]]), np.array([0, 0]), 1)
    assert not opposite.any()  # has no direction


def test_thresholds_let_that_share_of_impostors_through() -> None:
    vectors, person = unit(300, 16, 3), np.arange(300) // 3
    vectors[10] = 0
    face = vectors.any(axis=1)
    cosines = vectors[face].astype(np.float64) @ vectors[face].T.astype(np.float64)
    upper = np.triu(person[face][:, None] != person[face][None], 1)
    impostors = np.sort(cosines[upper])[::-1]
    thresholds = impostor_thresholds(vectors, person, (1e-2, 1e-3, 1e-4))
    for fmr in (1e-2, 1e-3):
        assert (impostors >= thresholds[fmr]).mean() <= fmr
        assert (impostors >= thresholds[fmr] - 1e-4).mean() > fmr  # the border below lets too many through
    assert np.isnan(thresholds[1e-4])  # 44,000 pairs let only four through


def test_thresholds_of_one_person_are_not_defined() -> None:
    assert np.isnan(impostor_thresholds(unit(9, 8, 0), np.zeros(9, int), (0.1,))[0.1])
