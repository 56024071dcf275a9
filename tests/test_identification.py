"""Ranking a gallery: against a loop that sorts by hand, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from idgen.metrics.identification import identify


def people(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, 10))
    person, gallery_person = np.repeat(np.arange(6), 3), np.repeat(np.arange(5), 4)  # nobody knows person 5

    def seen(who: np.ndarray) -> np.ndarray:
        vectors = centres[who] + 1.5 * rng.normal(size=(len(who), 10))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return seen(person), person, seen(gallery_person), gallery_person


def test_a_gallery_of_others() -> None:
    probes, person, gallery, gallery_person = people()
    found = identify(probes, person, gallery, gallery_person)
    for row, vector in enumerate(probes):
        right = gallery_person == person[row]
        if not right.any():
            assert np.isnan([found.rank[row], found.average_precision[row], found.inverse_penalty[row]]).all()
            continue
        ranked = sorted(range(len(gallery)), key=lambda k: -float(vector @ gallery[k]))
        places = [place for place, k in enumerate(ranked, 1) if right[k]]
        assert found.rank[row] == places[0]
        assert found.inverse_penalty[row] == len(places) / places[-1]
        expected = average_precision_score(right, gallery @ vector)
        assert found.average_precision[row] == pytest.approx(expected)


def test_among_themselves_a_picture_does_not_find_itself() -> None:
    probes, person, _, _ = people()
    found = identify(probes, person)
    for row in range(len(probes)):
        rest = np.arange(len(probes)) != row
        alone = identify(probes[row : row + 1], person[row : row + 1], probes[rest], person[rest])
        assert found.rank[row] == alone.rank[0]
        assert found.average_precision[row] == alone.average_precision[0]


def test_a_picture_without_a_face_finds_nobody() -> None:
    gallery = np.eye(4)
    found = identify(np.zeros((1, 4)), np.array([2]), gallery, np.arange(4))
    assert found.rank[0] == 4
    assert not found.within(1)[0]


def test_the_curve_counts_known_people_only() -> None:
    gallery = np.eye(3)
    probes = np.array([[1.0, 0.1, 0.2], [0.3, 0.2, 1.0], [1.0, 0.0, 0.0]])
    found = identify(probes, np.array([0, 0, 9]), gallery, np.arange(3))
    assert found.rank[:2].tolist() == [1, 2]
    np.testing.assert_array_equal(found.cumulative_curve(3), [0.5, 1, 1])
    np.testing.assert_array_equal(found.within(1), [1, 0, np.nan])
    assert np.isnan(identify(probes[2:], np.array([9]), gallery, np.arange(3)).cumulative_curve(2)).all()
