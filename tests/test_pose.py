"""Head pose from landmarks: of heads turned by known angles, and of real ones."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from idgen.data.images import FaceTable
from idgen.faces.detect import load_detector
from idgen.faces.pose import MEAN_FACE, pose_from_landmarks


def projected(yaw: float, pitch: float, roll: float, scale: float = 40.0) -> np.ndarray:
    """Landmarks of the mean face turned; angles as `pose_from_landmarks` names them, in degrees.

    x runs right, y down, z to the viewer, a left-handed frame: angles about y and x keep their sign when
    read from where the nose goes.
    """
    turn = Rotation.from_euler("ZYX", [0, -yaw, pitch], degrees=True).as_matrix()
    lean = Rotation.from_euler("Z", roll, degrees=True).as_matrix()
    return (MEAN_FACE @ (lean @ turn).T)[:, :2] * scale + 100


@pytest.mark.parametrize("angle", [-40, -10, 0, 25])
def test_known_angles_come_back(angle: float) -> None:
    faces = np.stack([projected(angle, 0, 0), projected(0, angle, 0), projected(0, 0, angle)])
    np.testing.assert_allclose(pose_from_landmarks(faces), angle * np.eye(3), atol=1e-6)


def test_signs_are_as_said() -> None:
    ahead = projected(0, 0, 0)
    nose = np.eye(5)[2][:, None]
    left, up = ahead - 8 * nose * [1, 0], ahead - 8 * nose * [0, 1]
    assert pose_from_landmarks(left[None])[0, 0] > 10
    assert pose_from_landmarks(up[None])[0, 1] > 5
    leaning = ahead + np.array([[0, -3], [0, 3], [0, 0], [0, -3], [0, 3]])  # the eye on the right is lower
    assert pose_from_landmarks(leaning[None])[0, 2] > 3


def test_size_and_place_do_not_matter() -> None:
    face = projected(20, 10, 5)
    np.testing.assert_allclose(
        pose_from_landmarks((3.7 * face - 250)[None]), pose_from_landmarks(face[None]), atol=1e-9
    )


def test_faces_without_a_pose() -> None:
    faces = np.stack([np.full((5, 2), np.nan), np.full((5, 2), 7.0), projected(10, 0, 0)])
    pose = pose_from_landmarks(faces)
    assert np.isnan(pose[:2]).all()
    assert pose[2, 0] == pytest.approx(10)
    assert pose_from_landmarks(np.zeros((0, 5, 2))).shape == (0, 3)


def test_real_heads_turn_where_their_labels_say(faces_test: FaceTable, weights_folder: Path) -> None:
    detector = load_detector(f"yunet:{weights_folder / 'yunet.onnx'}")
    clear = np.flatnonzero(np.abs(faces_test.labels["yaw"]) > 15)[:60]
    landmarks = []
    for row in clear:
        enlarged = faces_test.images[row].repeat(3, axis=0).repeat(3, axis=1)
        landmarks.append(max(detector.detect(enlarged), key=lambda face: face.size_px).landmarks)
    yaw = pose_from_landmarks(np.stack(landmarks))[:, 0]
    assert (np.sign(yaw) == np.sign(faces_test.labels["yaw"][clear])).mean() > 0.95
    assert np.corrcoef(yaw, faces_test.labels["yaw"][clear])[0, 1] > 0.9
