"""Head pose from five landmarks: enough to say where a head turns, by no network.

Shapes: N faces.
"""

import numpy as np

# A mean face seen from the front, as multiples of the distance of the eyes: x to the right of the picture, y
# down, z towards the viewer. Eyes and mouth are the ArcFace template made symmetric; height and depth of the
# nose and depth of the mouth are those at which pitch is zero in the mean, and yaw has the scale, of a
# head-pose network (FSA-Net) on 592 portraits. Correlations there: yaw 0.92, pitch 0.51, roll (of
# upright faces) 0.65.
MEAN_FACE = np.array(
    [[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.657, 0.55], [-0.414, 1.155, 0.2], [0.414, 1.155, 0.2]]
)


def pose_from_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll of heads, by scaled orthographic projection (DeMenthon and Davis 1995, POS).

    The 2 x 3 matrix that takes the mean face closest to the landmarks in least squares is replaced by the
    nearest scaled rotation; its angles are returned.

    Args:
        landmarks: (N, 5, 2) in pixels: eyes, nose, corners of the mouth, left ones of the picture first.

    Returns:
        (N, 3) degrees; yaw within 5 in the mean, pitch coarse. Yaw is positive where the nose points to
        the left of the picture, pitch where it points up, roll where the head leans to the right. NaN
        where landmarks are NaN or lie on one point.
    """
    pose = np.full((len(landmarks), 3), np.nan)
    spread = np.ptp(landmarks, axis=1).max(axis=1, initial=0)
    good = np.isfinite(landmarks).all(axis=(1, 2)) & (spread > 0)
    if not good.any():
        return pose
    face = MEAN_FACE - MEAN_FACE.mean(axis=0)
    points = landmarks[good] - landmarks[good].mean(axis=1, keepdims=True)
    matrix = np.einsum("npi,pj->nij", points, np.linalg.pinv(face).T)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    rows = left @ right  # (n, 2, 3): the nearest two orthonormal rows
    forward = np.cross(rows[:, 0], rows[:, 1])  # third row: where each axis of the face goes in depth
    nose_x, nose_y, nose_z = rows[:, 0, 2], rows[:, 1, 2], forward[:, 2]
    yaw, pitch = np.arctan2(-nose_x, nose_z), np.arcsin(np.clip(-nose_y, -1, 1))
    roll = np.arctan2(rows[:, 1, 0], rows[:, 0, 0])
    pose[good] = np.degrees(np.stack([yaw, pitch, roll], axis=1))
    return pose
