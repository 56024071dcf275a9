"""Pictures beside photos of the same people: who is compared with what."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from idgen.data.pictures import Picture, PictureSet, read_pictures
from idgen.errors import ConfigError


def nobody() -> np.ndarray:
    """No people."""
    return np.zeros(0, int)


@dataclass(frozen=True, kw_only=True)
class Material:
    """Pictures and photos with the people numbered.

    Attributes:
        pictures: what is evaluated.
        names: of the people, in the order of their numbers.
        person: (N,) whom each picture shows.
        references: the photos that the pictures were made from, where they say so; else all photos.
        reference_person: whom each shows.
        others: further photos of the people.
        other_person: whom each shows.
    """

    pictures: PictureSet
    names: tuple[str, ...]
    person: np.ndarray
    references: tuple[Picture, ...] = ()
    reference_person: np.ndarray = field(default_factory=nobody)
    others: tuple[Picture, ...] = ()
    other_person: np.ndarray = field(default_factory=nobody)


def gather(pictures_path: Path, references_path: Path | None, others_path: Path | None) -> Material:
    """Read the pictures and find the photos of their people.

    Args:
        pictures_path: what is evaluated.
        references_path: photos; those that the pictures name are the references, the rest other photos.
        others_path: other photos, in place of that rest.

    Raises:
        ConfigError: if no photo is of a person of the pictures, or a named reference is missing.
    """
    pictures = read_pictures(pictures_path)
    names = tuple(pictures.people())
    number = {name: i for i, name in enumerate(names)}
    material = Material(
        pictures=pictures, names=names, person=np.array([number[p.identity] for p in pictures.pictures])
    )
    if not references_path:
        return material
    photos = [p for p in read_pictures(references_path).pictures if p.identity in number]
    named = {p.reference for p in pictures.pictures if p.reference}
    references = [p for p in photos if p.name in named] if named else photos
    others = [p for p in photos if p.name not in named] if named else []
    if others_path:
        others = [p for p in read_pictures(others_path).pictures if p.identity in number]
    if not references:
        raise ConfigError(
            f"{references_path} holds no reference of the {len(names)} people of {pictures_path} "
            f"(the first of them is {names[0]!r}); the identities must have the same names in both"
        )
    return replace(
        material,
        references=tuple(references),
        reference_person=np.array([number[p.identity] for p in references]),
        others=tuple(others),
        other_person=np.array([number[p.identity] for p in others], dtype=int),
    )
