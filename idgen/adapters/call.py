"""The arguments of one call: lists made equally long, ranges checked, a generator for every picture.

Shapes: R rows (prompts, or identities where these are more), P = R * num_images_per_prompt pictures in the
order row 0, row 0, ..., row 1, row 1, ...
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from idgen.adapters.rows import Person
from idgen.diffusion.schedule import IDSchedule
from idgen.errors import ConfigError
from idgen.identity import Identity

MAX_SEED = 2**63 - 1  # what torch.Generator takes
PROMPTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")


@dataclass(frozen=True)
class Call:
    """A call whose arguments fit together.

    Attributes:
        num_rows: R.
        num_images: pictures a row.
        persons: one a row.
        settings: what goes to the diffusers pipeline.
    """

    num_rows: int
    num_images: int
    persons: list[Person]
    settings: dict[str, Any]

    def schedule(
        self,
        prefix: str,
        scale: float | Sequence[float],
        start: float,
        end: float,
        layers: Mapping[str, float] | None,
    ) -> IDSchedule:
        """How strong one adapter is in its pictures.

        Args:
            prefix: of the names of the other arguments, for messages: ``id`` or ``wplus``.
            scale: one, one a row, or one a picture.
            start: as ``IDSchedule.id_start``.
            end: as ``IDSchedule.id_end``.
            layers: as ``IDSchedule.layers``.

        Raises:
            ConfigError: if a value is out of range, or a list has another length.
        """
        scales = spread_to_pictures(plain(scale), self.num_rows, self.num_images, f"{prefix}_scale")
        return IDSchedule(scale=tuple(scales), id_start=start, id_end=end, layers=layers or {}, prefix=prefix)


def read_call(settings: Mapping[str, Any], identity: Identity | Sequence[Person] | None) -> Call:
    """Check the arguments of a call and give each row its own.

    Args:
        settings: arguments of the diffusers pipeline, and ``seed``.
        identity: one for all rows, or one a row.

    Raises:
        ConfigError: if a value is out of range, or the lengths of two lists differ; both are named.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    num_images = _whole(settings["num_images_per_prompt"], "num_images_per_prompt")
    _whole(settings["num_inference_steps"], "num_inference_steps")
    finite(settings["guidance_scale"], "guidance_scale")
    for name in ("height", "width"):
        if name in settings and _whole(settings[name], name) % 8:  # diffusers' own bound
            raise ConfigError(f"{name} must be a multiple of 8 pixels, got {settings[name]}")
    prompts = {name: _prompt(settings[name], name) for name in PROMPTS if name in settings}
    num_rows = count_rows({**prompts, "identity": identity, **_embedded_rows(settings)})
    seed = settings.pop("seed", None)
    if seed is not None:
        settings["generator"] = _generators(picture_seeds(plain(seed), num_rows, num_images), settings)
    if len(settings.get("prompt_embeds", range(num_rows))) != num_rows:
        raise ConfigError(
            f"prompt_embeds has {len(settings['prompt_embeds'])} rows for {num_rows} identities"
        )
    for name, value in prompts.items():
        texts = spread(value, num_rows)
        settings[name] = texts if num_rows > 1 else texts[0]  # diffusers wants all texts to be of one type
    return Call(num_rows, num_images, spread(identity, num_rows), settings)


def _embedded_rows(settings: Mapping[str, Any]) -> dict[str, list[None]]:
    """Rows of prompts that come as tensors; unlike text, they are not repeated for several identities."""
    embeds = settings.get("prompt_embeds")
    if embeds is None:
        return {}
    if "prompt" in settings:
        raise ConfigError("give either prompt or prompt_embeds, not both")
    return {"prompt_embeds": [None] * len(embeds)}


def _generators(seeds: list[int], settings: Mapping[str, Any]) -> list[torch.Generator]:
    if "generator" in settings:
        raise ConfigError("give either seed or generator, not both")
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def _prompt(value: object, name: str) -> str | list[str]:
    entries = list(value) if isinstance(value, list | tuple) else [value]
    for entry in entries:
        if not isinstance(entry, str):
            raise ConfigError(f"{name} must be text or a list of texts, got {entry!r}")
    return entries if isinstance(value, list | tuple) else entries[0]  # pyright: ignore[reportReturnType]


def plain(value: Any) -> Any:  # noqa: ANN401 - any argument of a call
    """Arrays, tensors, ranges and tuples as lists of plain numbers; anything else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, range | tuple) else value


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number >= 1, got {value!r}")
    return value


def finite(value: object, name: str) -> float:
    """A finite number >= 0.

    Raises:
        ConfigError: if it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{name} must be a finite number >= 0, got {value!r}")
    return float(value)


def share_of_guidance(id_guidance_scale: float, guidance_scale: float) -> float:
    """``g_i / g_t``, what `idgen.adapters.guidance` weighs the identity by.

    Raises:
        ConfigError: if there is no guidance to share, or the number is none.
    """
    if guidance_scale <= 1:
        raise ConfigError(
            "id_guidance_scale weighs the identity against the text, which needs guidance: "
            f"guidance_scale must be greater than 1, got {guidance_scale:g}"
        )
    return finite(id_guidance_scale, "id_guidance_scale") / guidance_scale


def count_rows(lists: Mapping[str, object]) -> int:
    """R, the common length of the lists among the arguments of a call; a single value goes with any number.

    Args:
        lists: arguments by name: a list or tuple (one entry a row, or one for all rows), or a single value.

    Raises:
        ConfigError: if a list is empty, or two have different lengths; both are named with their lengths.
    """
    lengths = {name: len(value) for name, value in lists.items() if isinstance(value, list | tuple)}
    if not lengths:
        return 1
    longest = max(lengths, key=lambda name: lengths[name])
    for name, length in lengths.items():
        if length == 0:
            raise ConfigError(
                f"{name} is an empty list; give one entry a row, or a single value for all rows"
            )
        if length not in (1, lengths[longest]):
            raise ConfigError(
                f"{name} has {length} entries and {longest} has {lengths[longest]}; "
                "give one entry a row in both, or a single value for all rows"
            )
    return lengths[longest]


def spread(value: Any, num_rows: int) -> list[Any]:  # noqa: ANN401 - any argument of a call
    """One entry a row, of a list with R entries or one, or of a single value."""
    entries = list(value) if isinstance(value, list | tuple) else [value]
    return entries * num_rows if len(entries) == 1 else entries


def spread_to_pictures(value: Any, num_rows: int, num_images: int, name: str) -> list[Any]:  # noqa: ANN401
    """One entry a picture: of a single value, of a list with one entry a row, or one a picture.

    Raises:
        ConfigError: if a list has another length.
    """
    num_pictures = num_rows * num_images
    entries = spread(value, num_rows)
    if len(entries) == num_rows:
        return [entry for entry in entries for _ in range(num_images)]
    if len(entries) != num_pictures:
        raise ConfigError(
            f"{name} has {len(entries)} entries for {num_rows} rows and {num_pictures} pictures; "
            "give one a row, one a picture, or a single value"
        )
    return entries


def picture_seeds(seed: int | Sequence[int], num_rows: int, num_images: int = 1) -> list[int]:
    """The seed of each of the P pictures.

    A single number s counts on: s, s + 1, ..., s + P - 1. A list with one entry a row counts on within the
    row; a list with one entry a picture is taken as it is. Every picture has its own noise, made on the CPU:
    it is the same picture alone, in any batch and on any device.

    Raises:
        ConfigError: if the length does not fit, or a seed is not in [0, 2^63 - 1].
    """
    num_pictures = num_rows * num_images
    if not isinstance(seed, list | tuple):
        return [_seed(_seed(seed) + i) for i in range(num_pictures)]
    if len(seed) == num_pictures:
        return [_seed(one) for one in seed]
    if len(seed) != num_rows:
        raise ConfigError(
            f"seed has {len(seed)} entries for {num_rows} rows and {num_pictures} pictures; "
            "give one a row, one a picture, or a single number"
        )
    return [_seed(_seed(first) + i) for first in seed for i in range(num_images)]


def _seed(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise ConfigError(f"a seed is a whole number in [0, {MAX_SEED}], got {value!r}")
    return int(value)
