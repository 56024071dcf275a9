"""The people of one call as tensors.

Shapes: R rows, P = R * num_images_per_prompt pictures in the order row 0, row 0, ..., row 1, row 1, ...;
n references of a person, D width of the face vector, L layers and C width of a W+ code.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from idgen.adapters.checkpoint import AdapterFile
from idgen.adapters.wplus import WPlusAdapter
from idgen.errors import ConfigError, EncoderMismatchError, IdentityError
from idgen.identity import Feature, Identity

Person: TypeAlias = Identity | Sequence[Identity] | None  # one reference, several, or nobody (the base model)


@dataclass(frozen=True)
class IdentityRows:
    """The identities of P pictures as tensors, for one adapter.

    Attributes:
        id_embedding: (P, n, D) float32 face vectors, or (P, L, C) W+ codes.
        mask: (P, n) bool, False where a person has fewer references than n; None if all have n.
        is_somebody: (P,) bool, False for a row without an identity.
    """

    id_embedding: Tensor
    mask: Tensor | None
    is_somebody: Tensor


def identity_rows(persons: Sequence[Person], file: AdapterFile, num_images: int) -> IdentityRows:
    """What an adapter reads of R persons, repeated for the pictures of each.

    References without such a feature are passed over, and persons without any are nobody to this adapter;
    `check_features` refuses those that no adapter reads. Of several face vectors each makes tokens of its
    own; several W+ codes are averaged.

    Raises:
        EncoderMismatchError: if a feature is of another encoder than the adapter's; both are named.
        ConfigError: if an entry is no identity.
    """
    kind = file.adapter.feature_kind
    known = [[one for one in _references(person) if kind in _kinds(one)] for person in persons]
    make = _mean_codes if isinstance(file.adapter, WPlusAdapter) else _face_vectors
    embedding, mask = make(known, file)
    is_somebody = torch.tensor([bool(row) for row in known])
    return IdentityRows(
        embedding.repeat_interleave(num_images, 0),
        None if mask is None else mask.repeat_interleave(num_images, 0),
        is_somebody.repeat_interleave(num_images, 0),
    )


def check_features(persons: Sequence[Person], files: Collection[AdapterFile]) -> None:
    """Refuse references that no adapter reads anything of.

    Raises:
        IdentityError: if there is one; what it has is named, and what the adapters read.
        ConfigError: if an entry is no identity.
    """
    read = {file.adapter.feature_kind for file in files}
    for row, person in enumerate(persons):
        for one in _references(person):
            if not read & _kinds(one):
                at = "the identity" if len(persons) == 1 else f"identity[{row}]"
                has = ", ".join(f"{feature.kind} of {feature.encoder}" for feature in one.features)
                wanted = ", ".join(
                    f"{file.adapter.feature_kind} of {file.card.encoder} ({file.path.name})" for file in files
                )
                raise IdentityError(
                    f"{at} has nothing that the loaded adapters read: it has {has}; they read {wanted}"
                )


def _kinds(identity: Identity) -> set[str]:
    return {feature.kind for feature in identity.features}


def _face_vectors(known: Sequence[Sequence[Identity]], file: AdapterFile) -> tuple[Tensor, Tensor | None]:
    """(R, n, D), and the mask (R, n) of those that are there if not all are."""
    most = max(1, *(len(row) for row in known))
    embedding = torch.zeros(len(known), most, file.adapter.id_dim)
    mask = torch.zeros(len(known), most, dtype=torch.bool)
    mask[:, 0] = True  # a row without anybody still looks at one (zero) token, at strength 0
    for row, references in enumerate(known):
        for column, one in enumerate(references):
            embedding[row, column] = torch.from_numpy(face_vector(file, one).copy())
            mask[row, column] = True
    return embedding, None if bool(mask.all()) else mask


def _mean_codes(known: Sequence[Sequence[Identity]], file: AdapterFile) -> tuple[Tensor, None]:
    """(R, L, C), zero where there is none."""
    codes = torch.zeros(len(known), file.adapter.num_layers, file.adapter.style_dim)
    for row, references in enumerate(known):
        if references:
            codes[row] = torch.from_numpy(np.mean([wplus_code(file, one) for one in references], axis=0))
    return codes, None


def _references(person: Person) -> list[Identity]:
    references = [] if person is None else [person] if isinstance(person, Identity) else list(person)
    for reference in references:
        if not isinstance(reference, Identity):
            raise ConfigError(
                f"an identity is an idgen.Identity or a list of them (several references), got "
                f"{type(reference).__name__}; make one with Identity.load, or from a photo with `idgen embed`"
            )
    return references


def face_vector(file: AdapterFile, identity: Identity) -> np.ndarray:
    """The face vector (D,) of an identity that the adapter reads: of unit length, or of its own.

    Raises:
        EncoderMismatchError: if it was made by another encoder, or has another width.
        IdentityError: if the identity has no face vector, or its own length is wanted and not known.
    """
    feature = _feature_for(file, identity)
    vector = feature.value
    if len(vector) != file.adapter.id_dim:
        raise EncoderMismatchError(
            f"{feature.encoder} makes face vectors of width {len(vector)}, but the adapter "
            f"{file.path.name} reads width {file.adapter.id_dim} (of {file.card.encoder})"
        )
    if file.card.feature == "face_vector":
        return vector
    if feature.norm is None:
        raise IdentityError(
            f"the adapter {file.path.name} reads face vectors of their own length, which this identity does "
            "not know; make it again from photos with `idgen embed`"
        )
    return vector * np.float32(feature.norm)


def wplus_code(file: AdapterFile, identity: Identity) -> np.ndarray:
    """The W+ code (L, C) of an identity that the adapter reads.

    Raises:
        EncoderMismatchError: if it was made by another encoder, or has another shape.
        IdentityError: if the identity has no W+ code.
    """
    feature = _feature_for(file, identity)
    wanted = (file.adapter.num_layers, file.adapter.style_dim)
    if feature.value.shape != wanted:
        raise EncoderMismatchError(
            f"{feature.encoder} makes W+ codes of {feature.value.shape}, but the adapter {file.path.name} "
            f"reads {wanted} (of {file.card.encoder})"
        )
    return feature.value


def _feature_for(file: AdapterFile, identity: Identity) -> Feature:
    """The feature of the adapter's kind that its encoder made."""
    kind = file.adapter.feature_kind
    encoders = [feature.encoder for feature in identity.features if feature.kind == kind]
    fitting = [encoder for encoder in encoders if file.reads(encoder)]
    return identity.feature(kind, fitting[0] if fitting else file.card.encoder)
