"""Groups of pictures by a label, for tables: presentation, pose, source, or whatever a table says."""

from collections.abc import Sequence

from idgen.data.pictures import Picture
from idgen.errors import ConfigError

CLEAR = (0.2, 0.8)  # a probability between these is no label
YAW_DEG = 15.0  # a head is turned from here on


def group_names(label: str, pictures: Sequence[Picture]) -> list[str]:
    """The group of each picture by ``label``; empty where it is not clear.

    Words are groups as they are. ``p_<name>`` is a probability, clear from 0.8 up and from 0.2 down.
    ``yaw`` is in degrees: positive where the nose points to the left of the picture.

    Raises:
        ConfigError: if no picture has the label.
    """
    values = [picture.labels.get(label) for picture in pictures]
    if all(value is None for value in values):
        known = sorted({name for picture in pictures for name in picture.labels})
        raise ConfigError(f"no picture has the label {label!r}; known are {', '.join(known) or 'none'}")
    return [_group(label, value) for value in values]


def _group(label: str, value: str | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if label.startswith("p_"):
        name = label.removeprefix("p_")
        return name if value >= CLEAR[1] else f"not {name}" if value <= CLEAR[0] else ""
    if label == "yaw":
        return "to the left" if value > YAW_DEG else "to the right" if value < -YAW_DEG else "ahead"
    return f"{value:g}"
