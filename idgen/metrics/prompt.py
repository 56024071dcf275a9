"""Is what the prompt asks for in the picture?

Shapes: N pictures, D width of the common space of pictures and texts.
"""

import re
from dataclasses import dataclass

import numpy as np

SMILES = 0.5  # probability of "happy" from which on a face smiles
NOT_SMILING = re.compile(
    r"\b(not|without( a)?|no)\s+(smil(e|ing)|laugh(ing)?|happy)\b|\b(serious|stern|unsmiling)\b",
    re.IGNORECASE,
)
SMILING = re.compile(r"\b(smil(e|es|ing)|laugh(s|ing)?|grin(s|ning)?|happy)\b", re.IGNORECASE)
TURN = re.compile(
    r"\b(look(s|ing)?|turn(s|ed|ing)?|fac(es|ing))\s+(to\s+|toward(s)?\s+)?(the\s+|their\s+|his\s+|her\s+)?"
    r"(left|right)\b",
    re.IGNORECASE,
)
AHEAD = re.compile(
    r"\b(straight ahead|look(s|ing)? (ahead|straight)|(facing|at|into) the camera|frontal)\b", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a prompt asks of a face; None where it is silent. Left and right are the picture's."""

    smile: bool | None = None
    turn: str | None = None  # "left" | "right" | "ahead"


def asked_of(prompt: str) -> Asked:
    """Read a prompt; "not smiling" and "serious" ask for no smile."""
    smile = False if NOT_SMILING.search(prompt) else True if SMILING.search(prompt) else None
    side = TURN.search(prompt)
    turn = side.group(side.lastindex or 0).lower() if side else "ahead" if AHEAD.search(prompt) else None
    return Asked(smile=smile, turn=turn)


def smile_obeyed(asked: bool | None, p_happy: float) -> float:
    """1 or 0: whether a smile is there where it is asked for, and absent where it is not wanted.

    NaN where nothing is asked. A picture without a face (``p_happy`` NaN) does not obey.
    """
    if asked is None:
        return float("nan")
    return float(p_happy >= SMILES if asked else p_happy < SMILES)


def turn_obeyed(asked: str | None, yaw_deg: float) -> float:
    """1 or 0: whether the head turns to the side asked for, be it a little: by the sign of the yaw.

    ``yaw_deg`` is positive where the nose points to the left of the picture. NaN where no side is asked for.
    A picture without a face (``yaw_deg`` NaN) does not obey.
    """
    if asked not in ("left", "right"):
        return float("nan")
    return float(yaw_deg > 0 if asked == "left" else yaw_deg < 0)


def clip_scores(pictures: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """``100 max(cos(picture, text), 0)`` of each pair of rows (Hessel et al. 2021; torchmetrics' factor).

    Args:
        pictures: (N, D), of any length but zero.
        texts: (N, D) likewise.

    Returns:
        (N,) in [0, 100].
    """
    dots = np.einsum("nd,nd->n", pictures, texts, dtype=np.float64)
    lengths = np.linalg.norm(pictures, axis=1) * np.linalg.norm(texts, axis=1)
    return 100 * np.maximum(dots / lengths, 0)
