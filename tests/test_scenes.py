"""Pasted faces lie where they are said to lie, and pictures without faces depend on their seed alone."""

import math

import numpy as np
import pytest
from skimage.data import astronaut

from idgen.data.backgrounds import PLAIN, background, face_scraps, shuffled_faces
from idgen.data.scenes import (
    Placement,
    Portrait,
    ellipse_mask,
    paste,
    placed_box,
    placed_landmarks,
    portrait_of,
    square_mask,
)
from idgen.faces.detect import detectors


def dotted(size_px: int = 128) -> Portrait:
    """A black portrait with a soft white dot at every landmark."""
    landmarks = np.array([[44, 52], [84, 54], [63, 76], [48, 98], [80, 99]], np.float32)
    axis = np.arange(size_px)
    image = np.zeros((size_px, size_px), np.float64)
    for x, y in landmarks:
        image += 255 * np.exp(-((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * 2.5**2))
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return Portrait(
        image=np.repeat(pixels[..., None], 3, axis=2),
        box=np.array([26, 18, 104, 126], np.float32),
        landmarks=landmarks,
    )


def centroid(image: np.ndarray, around: np.ndarray, radius: int) -> np.ndarray:
    """Middle of the brightness near a point."""
    x, y = around.round().astype(int)
    part = image[y - radius : y + radius + 1, x - radius : x + radius + 1, 0].astype(np.float64)
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.array([x + (part * columns).sum() / part.sum(), y + (part * rows).sum() / part.sum()])


@pytest.mark.parametrize("scale", [0.3, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("angle_deg", [0, 25, -40])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_landmarks_are_where_the_pixels_go(scale: float, angle_deg: float, is_mirrored: bool) -> None:
    portrait = dotted().mirrored() if is_mirrored else dotted()
    placement = Placement(scale=scale, angle_rad=math.radians(angle_deg), centre=(200.3, 180.7))
    scene = np.zeros((400, 400, 3), np.uint8)
    paste(scene, portrait, placement, square_mask(128, feather_px=0))
    for point in placed_landmarks(portrait, placement):
        found = centroid(scene, point, math.ceil(7 * scale))
        assert np.abs(found - point).max() < 0.12 + 0.05 * scale  # pixels


def test_mirroring_keeps_the_order_as_seen() -> None:
    mirrored = dotted().mirrored()
    assert mirrored.landmarks[0, 0] < mirrored.landmarks[1, 0]
    assert mirrored.landmarks[3, 0] < mirrored.landmarks[4, 0]
    twice = mirrored.mirrored()
    np.testing.assert_array_equal(twice.landmarks, dotted().landmarks)
    np.testing.assert_array_equal(twice.box, dotted().box)


@pytest.mark.parametrize("angle_deg", [0, 17, 30, 90])
def test_box_is_the_one_around_the_turned_ellipse(angle_deg: float) -> None:
    portrait, angle = dotted(), math.radians(angle_deg)
    placement = Placement(scale=1.4, angle_rad=angle, centre=(100.0, 120.0))
    turn = np.linspace(0, 2 * np.pi, 3600)
    half = (portrait.box[2:] - portrait.box[:2]) / 2 * 1.4
    x, y = half[0] * np.cos(turn), half[1] * np.sin(turn)
    points = np.stack(
        [x * np.cos(angle) - y * np.sin(angle) + 100, x * np.sin(angle) + y * np.cos(angle) + 120]
    )
    expected = [*points.min(axis=1), *points.max(axis=1)]
    np.testing.assert_allclose(placed_box(portrait, placement), expected, atol=0.01)


def test_a_face_beside_the_scene_changes_nothing() -> None:
    scene = np.full((50, 50, 3), 7, np.uint8)
    placement = Placement(scale=0.5, angle_rad=0.0, centre=(500.0, 500.0))
    paste(scene, dotted(), placement, square_mask(128, feather_px=0))
    assert (scene == 7).all()


def test_masks_are_opaque_inside_and_clear_outside() -> None:
    box = np.array([30, 20, 90, 110], np.float32)
    oval = ellipse_mask(128, box, grow=1.0, feather=0.2)
    assert oval[65, 60] == 255
    assert oval[22, 32] == oval[0, 0] == 0
    soft, hard = square_mask(128, feather_px=10), square_mask(128, feather_px=0)
    assert soft[64, 64] == 255
    assert 0 < soft[0, 64] < 60
    assert (hard == 255).all()


def test_portrait_of_asks_a_detector() -> None:
    mini = detectors.build("mini")
    face = astronaut()[40:196, 148:304]
    portrait = portrait_of(np.ascontiguousarray(face), mini)
    assert portrait is not None
    expected = np.array([[57, 57], [99, 63], [74, 87], [53, 101], [91, 106]])
    assert np.linalg.norm(portrait.landmarks - expected, axis=1).mean() < 5
    assert portrait_of(np.zeros((128, 128, 3), np.uint8), mini) is None


@pytest.mark.parametrize("make", PLAIN)
def test_plain_backgrounds_depend_on_the_seed_alone(make) -> None:  # noqa: ANN001
    first, second, other = (np.asarray(make(np.random.default_rng(seed), 96)) for seed in (1, 1, 2))
    assert first.shape == (96, 96, 3)
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_pieces_of_portraits_are_used_where_there_are_any() -> None:
    for make in (face_scraps, shuffled_faces):
        assert np.asarray(make(np.random.default_rng(0), 96, [dotted()])).shape == (96, 96, 3)
    assert background(np.random.default_rng(0), 96, []).shape == (96, 96, 3)
