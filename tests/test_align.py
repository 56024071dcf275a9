"""The closed form against scikit-image, the warp against OpenCV, and gradients against finite differences."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from skimage.transform import SimilarityTransform

from idgen.errors import FaceError
from idgen.faces.align import (
    ARCFACE_TEMPLATE,
    align_faces,
    align_ffhq,
    ffhq_matrix,
    invert,
    similarity_matrix,
    transform_points,
    warp,
)


def random_landmarks(count: int, seed: int = 0) -> torch.Tensor:
    """Templates turned by any angle, scaled, moved and disturbed: (count, 5, 2) float64."""
    rng = np.random.default_rng(seed)
    angle, scale = rng.uniform(-np.pi, np.pi, count), rng.uniform(0.3, 5, count)
    turn = scale[:, None, None] * np.stack(
        [np.stack([np.cos(angle), -np.sin(angle)], -1), np.stack([np.sin(angle), np.cos(angle)], -1)], axis=1
    )
    points = ARCFACE_TEMPLATE.double().numpy() @ turn.transpose(0, 2, 1) + rng.uniform(
        -200, 400, (count, 1, 2)
    )
    return torch.from_numpy(points + rng.normal(0, 2, points.shape))


def test_matrix_equals_scikit_image() -> None:
    source = random_landmarks(50)
    ours = similarity_matrix(source, ARCFACE_TEMPLATE.double()).numpy()
    for points, matrix in zip(source.numpy(), ours, strict=True):
        theirs = SimilarityTransform.from_estimate(points, ARCFACE_TEMPLATE.double().numpy())
        np.testing.assert_allclose(matrix, theirs.params[:2], atol=1e-9)


def test_matrix_in_single_precision_is_as_close_as_measured() -> None:
    source = random_landmarks(50, seed=1)
    single = similarity_matrix(source.float(), ARCFACE_TEMPLATE)
    double = similarity_matrix(source, ARCFACE_TEMPLATE.double())
    moved = transform_points(single, source.float()) - transform_points(double, source)
    assert moved.abs().max() < 1e-3  # pixels of the crop


def test_no_other_similarity_fits_better() -> None:
    source = random_landmarks(1)
    best = similarity_matrix(source, ARCFACE_TEMPLATE.double())
    target = ARCFACE_TEMPLATE.double()
    error = (transform_points(best, source) - target).square().sum()
    a, b = best[0, 0, 0], best[0, 1, 0]
    for step in (1e-3, -1e-3):
        for da, db, dx, dy in torch.eye(4, dtype=torch.float64) * step:
            rows = [
                torch.stack([a + da, -b - db, best[0, 0, 2] + dx]),
                torch.stack([b + db, a + da, best[0, 1, 2] + dy]),
            ]
            other = torch.stack(rows)[None]
            assert (transform_points(other, source) - target).square().sum() > error


def test_reflection_is_never_used() -> None:
    mirrored = ARCFACE_TEMPLATE * torch.tensor([-1.0, 1.0])
    matrix = similarity_matrix(mirrored[None], ARCFACE_TEMPLATE)
    assert torch.linalg.det(matrix[:, :, :2]) > 0


def test_invert_goes_back() -> None:
    matrix = similarity_matrix(random_landmarks(8), ARCFACE_TEMPLATE.double())
    points = random_landmarks(8, seed=2)
    torch.testing.assert_close(transform_points(invert(matrix), transform_points(matrix, points)), points)


def test_coinciding_landmarks_are_refused() -> None:
    with pytest.raises(FaceError, match="all lie on one point"):
        similarity_matrix(torch.ones(1, 5, 2), ARCFACE_TEMPLATE)


@pytest.mark.parametrize("size_px", [112, 224])
def test_warp_equals_opencv(size_px: int) -> None:
    # a smooth picture: OpenCV rounds the source position to 1/32 pixel, which noise would turn into grey
    # levels
    picture = cv2.GaussianBlur(astronaut(), (0, 0), 3)
    landmarks = torch.tensor(
        [[[205.1, 96.9], [247.5, 102.8], [222.4, 126.6], [201.0, 141.0], [239.0, 146.4]]]
    )
    template = ARCFACE_TEMPLATE * (size_px / 112)
    matrix = similarity_matrix(landmarks.double(), template.double())
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].double()
    ours = warp(image, matrix, size_px)[0].permute(1, 2, 0).numpy()
    theirs = cv2.warpAffine(picture.astype(np.float32), matrix[0].numpy(), (size_px, size_px))
    assert np.abs(ours - theirs).max() < 0.5  # grey levels of 255
    torch.testing.assert_close(align_faces(image, landmarks.double(), size_px), warp(image, matrix, size_px))


def test_outside_of_the_picture_is_black_as_in_opencv() -> None:
    picture = np.full((40, 60, 3), 200, np.uint8)
    matrix = torch.tensor([[[1.3, -0.4, 20.0], [0.4, 1.3, 11.0]]], dtype=torch.float64)
    ours = (
        warp(torch.from_numpy(picture).permute(2, 0, 1)[None].double(), matrix, 112)[0]
        .permute(1, 2, 0)
        .numpy()
    )
    theirs = cv2.warpAffine(picture.astype(np.float32), matrix[0].numpy(), (112, 112))
    assert (ours[-1] == 0).all()
    assert np.abs(ours - theirs).max() < 200 / 16  # the edge itself moves by up to 1/32 pixel a side there


def test_whole_pixel_shifts_are_exact() -> None:
    image = torch.rand(1, 3, 30, 40)
    matrix = torch.tensor([[[1.0, 0.0, -5.0], [0.0, 1.0, -7.0]]])
    torch.testing.assert_close(warp(image, matrix, 16), image[:, :, 7:23, 5:21], atol=1e-5, rtol=0)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    image, landmarks = torch.rand(4, 3, 60, 80), random_landmarks(4).float() * 0.1 + 20
    together = align_faces(image, landmarks)
    alone = torch.cat([align_faces(image[i : i + 1], landmarks[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert together.shape == (4, 3, 112, 112)


def test_gradients_equal_finite_differences() -> None:
    image = torch.rand(2, 2, 9, 11, dtype=torch.float64, requires_grad=True)
    # size 5: the template spans 5 pixels of a crop, taken from a part of the picture of about the same size
    landmarks = (ARCFACE_TEMPLATE.double() / 14 + torch.tensor([1.13, 0.71])).repeat(2, 1, 1)
    landmarks = (landmarks + torch.randn(2, 5, 2, dtype=torch.float64) * 0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda i, p: align_faces(i, p, 5), (image, landmarks), eps=1e-7, atol=1e-5
    )


def test_gradient_reaches_every_landmark_and_the_pixels_of_the_face() -> None:
    image = torch.rand(1, 3, 128, 128, requires_grad=True)
    landmarks = (ARCFACE_TEMPLATE + 8)[None].clone().requires_grad_()
    align_faces(image, landmarks).square().sum().backward()
    assert landmarks.grad is not None
    assert image.grad is not None
    assert (landmarks.grad.abs().sum(dim=2) > 0).all()
    assert (image.grad[:, :, 9:119, 9:119].abs() > 0).float().mean() > 0.99


# the pose of FFHQ ------------------------------------------------------------------------------------------


def ffhq_corners(landmarks: np.ndarray) -> np.ndarray:
    """The crop of one face as FFHQ's script finds it: (4, 2), from the upper left one down and around."""
    eyes, mouth = (landmarks[0] + landmarks[1]) / 2, (landmarks[3] + landmarks[4]) / 2
    across, down = landmarks[1] - landmarks[0], mouth - eyes
    x = across - np.array([-down[1], down[0]])
    x = x / np.hypot(*x) * max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8)
    y = np.array([-x[1], x[0]])
    centre = eyes + down * 0.1
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def test_ffhq_crop_has_the_corners_of_its_script() -> None:
    landmarks = random_landmarks(50)
    corners = torch.from_numpy(np.stack([ffhq_corners(points) for points in landmarks.numpy()]))
    moved = transform_points(ffhq_matrix(landmarks, 64), corners)
    # the outer corner of the first pixel lies half a pixel before its centre
    expected = torch.tensor([[-0.5, -0.5], [-0.5, 63.5], [63.5, 63.5], [63.5, -0.5]]).double()
    torch.testing.assert_close(moved, expected.expand(50, 4, 2))


def test_ffhq_crop_of_a_known_face() -> None:
    """Upright, 60 pixels from eye to eye and to the mouth: 2.0 x 60 = 120 each way from 6 below the eyes."""
    face = torch.tensor([[[170.0, 200], [230, 200], [205, 230], [180, 260], [220, 260]]])
    expected = torch.tensor([[[1.0, 0, -80.5], [0, 1, -86.5]]])  # 200 - 120 + 0.5, 206 - 120 + 0.5
    torch.testing.assert_close(ffhq_matrix(face, 240), expected)
    long = face.clone()
    long[:, 3:, 1] += 60  # now 1.8 x 120 = 216 counts, and the centre lies 12 below the eyes
    expected = torch.tensor([[[0.5, 0, 0.5 * (0.5 - 200) + 107.75], [0, 0.5, 0.5 * (0.5 - 212) + 107.75]]])
    torch.testing.assert_close(ffhq_matrix(long, 216)[:, :, :2], expected[:, :, :2])
    middle = transform_points(ffhq_matrix(long, 216), torch.tensor([[[200.0, 212.0]]]))
    torch.testing.assert_close(middle, torch.tensor([[[107.5, 107.5]]]))
    turned = torch.stack([-face[..., 1], face[..., 0]], dim=-1)  # by a quarter: the same crop
    crops = [transform_points(ffhq_matrix(f, 240), f) for f in (face, turned)]
    torch.testing.assert_close(*crops)


def test_ffhq_crop_equals_pillow_on_the_corners() -> None:
    """FFHQ's script gives Pillow the corners, half a pixel on, since Pillow counts from the pixels' edges."""
    picture = cv2.GaussianBlur(astronaut(), (0, 0), 3)
    landmarks = torch.tensor([[[205.1, 116.9], [247.5, 122.8], [222.4, 146.6], [201.0, 161], [239.0, 166.4]]])
    corners = (ffhq_corners(landmarks[0].numpy()) + 0.5).flatten()
    size = (192, 192)
    quad = Image.fromarray(picture).transform(size, Image.Transform.QUAD, corners, Image.Resampling.BILINEAR)
    ours = align_ffhq(torch.from_numpy(picture).permute(2, 0, 1)[None].double(), landmarks.double(), 192)
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - np.asarray(quad)).max() < 2  # Pillow rounds down


def test_ffhq_crop_mirrors_what_lies_outside_of_the_photo() -> None:
    """Twice 12 pixels each way from (9.5, 11.5): 14 columns and 12 rows are missing before, 2 and 4 after."""
    face = torch.tensor([[[3.5, 10.5], [15.5, 10.5], [10, 13], [5.5, 20.5], [13.5, 20.5]]])
    photo = torch.rand(1, 3, 32, 32)
    expected = np.pad(photo.numpy(), ((0, 0), (0, 0), (12, 4), (14, 2)), mode="symmetric")
    torch.testing.assert_close(align_ffhq(photo, face, 48), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_ffhq_gradients_equal_finite_differences_and_a_face_without_direction_is_refused() -> None:
    image = torch.rand(2, 2, 9, 11, dtype=torch.float64, requires_grad=True)
    landmarks = (ARCFACE_TEMPLATE.double() / 28 + torch.tensor([3.13, 2.71])).repeat(2, 1, 1)
    landmarks = (landmarks + torch.randn(2, 5, 2, dtype=torch.float64) * 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, p: align_ffhq(i, p, 5), (image, landmarks), eps=1e-7, atol=1e-5)
    with pytest.raises(FaceError, match="leave open where is up"):
        ffhq_matrix(torch.ones(1, 5, 2), 64)
