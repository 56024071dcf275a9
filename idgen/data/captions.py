"""Captions composed from weak labels and from what the picture shows; what is not clear is not said."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from idgen.data.images import FaceTable

T = TypeVar("T")

CLEAR = (0.2, 0.8)  # a probability between these is unknown
TURNED_DEG = 14.0  # yaw beyond which a head is said to turn; about the outer third of the pictures
AHEAD_DEG = 7.0  # yaw below which it is said to look straight ahead
CORNER_PX = 20  # the upper corners of a 128 px portrait show background (or hair: then the two disagree)
GREYISH = 46  # HSV saturation (of 255) below which a colour has no hue to speak of
DARK, LIGHT = 52, 190  # HSV value (of 255) below which a colour is black, above which a greyish one is white
DIM, BRIGHT = 88.0, 158.0  # mean luminance (of 255) of the face: about the lowest and highest sixth

# Upper bound of the hue in degrees -> its everyday name.
HUES = (
    (15, "red"),
    (45, "orange"),
    (70, "yellow"),
    (165, "green"),
    (255, "blue"),
    (290, "purple"),
    (345, "pink"),
    (361, "red"),
)


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What can be said of one portrait; None where it is not clear. Left and right are the picture's."""

    presentation: str | None = None  # "man" | "woman"
    smiling: bool | None = None
    turn: str | None = None  # "left" | "right" | "ahead"
    background: str | None = None
    light: str | None = None  # "dim" | "bright"

    def mirrored(self) -> "Attributes":
        """The same of the picture flipped left to right."""
        swap = {"left": "right", "right": "left"}
        turn = None if self.turn is None else swap.get(self.turn, self.turn)
        return Attributes(
            presentation=self.presentation, smiling=self.smiling, turn=turn,
            background=self.background, light=self.light,
        )  # fmt: skip


def attributes(table: FaceTable, row: int) -> Attributes:
    """What can be said of one row of a table."""
    return read_attributes({name: values[row] for name, values in table.labels.items()}, table.images[row])


def read_attributes(labels: Mapping[str, Any], image: np.ndarray) -> Attributes:
    """Take the clear labels, and measure background colour and light from the pixels of a portrait.

    Args:
        labels: ``p_female``, ``p_happy`` in [0, 1] and ``yaw`` in degrees, as far as they are known.
        image: (128, 128, 3) uint8, an aligned portrait.
    """
    nan = float("nan")
    return Attributes(
        presentation=_clear(float(labels.get("p_female", nan)), "man", "woman"),
        smiling=_clear(float(labels.get("p_happy", nan)), False, True),
        turn=_turn(float(labels.get("yaw", nan))),
        background=_background(image),
        light=_light(image),
    )


def _clear(probability: float, low: T, high: T) -> T | None:
    if probability <= CLEAR[0]:
        return low
    return high if probability >= CLEAR[1] else None


def _turn(yaw_deg: float) -> str | None:
    """Positive yaw moves the nose to the left of the picture (looked at, not assumed)."""
    if abs(yaw_deg) <= AHEAD_DEG:
        return "ahead"
    if not abs(yaw_deg) >= TURNED_DEG:  # nor where it is not known
        return None
    return "left" if yaw_deg > 0 else "right"


def colour_name(rgb: np.ndarray) -> str:
    """The everyday name of an (R, G, B) colour in 0..255."""
    pixel = Image.fromarray(np.asarray(rgb, dtype=np.uint8).reshape(1, 1, 3)).convert("HSV").getpixel((0, 0))
    hue, saturation, value = pixel  # pyright: ignore[reportGeneralTypeIssues] - three bands, hence a tuple
    if value < DARK:
        return "black"
    if saturation < GREYISH:
        return "white" if value > LIGHT else "grey"
    name = next(name for bound, name in HUES if hue * 360 / 255 < bound)
    return "brown" if name in {"orange", "red"} and value < 140 and saturation < 190 else name


def _background(image: np.ndarray) -> str | None:
    """Colour of the upper corners, where both have the same one."""
    corners = image[:CORNER_PX, :CORNER_PX], image[:CORNER_PX, -CORNER_PX:]
    left, right = (colour_name(np.median(corner.reshape(-1, 3), axis=0)) for corner in corners)
    return left if left == right else None


def _light(image: np.ndarray) -> str | None:
    inner = image[36:108, 36:92].reshape(-1, 3) @ np.array([0.299, 0.587, 0.114])
    mean = float(inner.mean())
    if mean < DIM:
        return "dim"
    return "bright" if mean > BRIGHT else None


OPENINGS = ("a photo of", "a portrait of", "a close portrait of", "a picture of", "")
SMILES = {
    True: ("smiling", "with a smile", "laughing", "happy"),
    False: ("not smiling", "serious", "with a serious face"),
}
TURNS = {
    "left": ("looking to the left", "turned to the left", "head turned left", "looking left"),
    "right": ("looking to the right", "turned to the right", "head turned right", "looking right"),
    "ahead": ("looking straight ahead", "facing the camera", "looking at the camera"),
}
LIGHTS = {
    "dim": ("in dim light", "dark light", "low light"),
    "bright": ("in bright light", "bright light", "sunlight"),
}


BACKGROUNDS = ("{} background", "on a {} background", "in front of a {} wall")
COLOURS = ("black", "white", "grey", "brown", *dict.fromkeys(name for _, name in HUES))


def every_phrase() -> list[str]:
    """Every phrase that a caption can be made of; a tokenizer learns its words from them."""
    backgrounds = [phrase.format(colour) for phrase in BACKGROUNDS for colour in COLOURS]
    groups = (*SMILES.values(), *TURNS.values(), *LIGHTS.values())
    return [*OPENINGS, "a the man woman person", *(p for group in groups for p in group), *backgrounds]


def caption(attributes: Attributes, rng: np.random.Generator, *, keep: float = 0.7) -> str:
    """Say in one of many ways what is known; each attribute is mentioned with probability ``keep``."""

    def pick(choices: tuple[str, ...]) -> str:
        return choices[rng.integers(len(choices))]

    def mentioned() -> bool:
        return bool(rng.random() < keep)

    noun = attributes.presentation if attributes.presentation and mentioned() else "person"
    article = "the" if rng.random() < 0.1 else "a"
    subject = f"{pick(OPENINGS)} {article} {noun}".strip()
    details = []
    if attributes.smiling is not None and mentioned():
        details.append(pick(SMILES[attributes.smiling]))
    if attributes.turn is not None and mentioned():
        details.append(pick(TURNS[attributes.turn]))
    if attributes.background is not None and mentioned():
        details.append(pick(BACKGROUNDS).format(attributes.background))
    if attributes.light is not None and mentioned():
        details.append(pick(LIGHTS[attributes.light]))
    rng.shuffle(details)
    return ", ".join([subject, *details])
