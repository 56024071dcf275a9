"""The people of one call as tensors.

Shapes: R rows, P = R * num_images_per_prompt pictures in the order row 0, row 0, ..., row 1, row 1, ...;
n references of a person, D width of the face vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from idgen.adapters.checkpoint import AdapterFile
from idgen.errors import ConfigError, EncoderMismatchError, IdentityError
from idgen.identity import Identity

Person: TypeAlias = Identity | Sequence[Identity] | None  # one reference, several, or nobody (the base model)


@dataclass(frozen=True)
class IdentityRows:
    """The identities of P pictures as tensors.

    Attributes:
        id_embedding: (P, n, D) float32.
        mask: (P, n) bool, False where a person has fewer references than n; None if all have n.
        is_somebody: (P,) bool, False for a row without an identity.
    """

    id_embedding: Tensor
    mask: Tensor | None
    is_somebody: Tensor


def identity_rows(persons: Sequence[Person], file: AdapterFile, num_images: int) -> IdentityRows:
    """The face vectors of R persons, repeated for the pictures of each.

    Raises:
        EncoderMismatchError: if a face vector is of another encoder than the adapter's; both are named.
        ConfigError: if an entry is no identity.
    """
    vectors = [[face_vector(file, one) for one in _references(person)] for person in persons]
    most = max(1, *(len(row) for row in vectors))
    embedding = torch.zeros(len(persons), most, file.adapter.id_dim)
    mask = torch.zeros(len(persons), most, dtype=torch.bool)
    mask[:, 0] = True  # a row without anybody still looks at one (zero) token, at strength 0
    for row, references in enumerate(vectors):
        for column, vector in enumerate(references):
            embedding[row, column] = torch.from_numpy(vector.copy())
            mask[row, column] = True
    is_somebody = torch.tensor([bool(row) for row in vectors])
    whole = bool(mask.all())
    return IdentityRows(
        embedding.repeat_interleave(num_images, 0),
        None if whole else mask.repeat_interleave(num_images, 0),
        is_somebody.repeat_interleave(num_images, 0),
    )


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
    encoders = [f.encoder for f in identity.features if f.kind == "face_vector"]
    fitting = [encoder for encoder in encoders if file.reads(encoder)]
    feature = identity.feature("face_vector", fitting[0] if fitting else file.card.encoder)
    vector = feature.value
    if len(vector) != file.adapter.id_dim:
        raise EncoderMismatchError(
            f"{fitting[0]} makes face vectors of width {len(vector)}, but the adapter {file.path.name} reads "
            f"width {file.adapter.id_dim} (of {file.card.encoder})"
        )
    if file.card.feature == "face_vector":
        return vector
    if feature.norm is None:
        raise IdentityError(
            f"the adapter {file.path.name} reads face vectors of their own length, which this identity does "
            "not know; make it again from photos with `idgen embed`"
        )
    return vector * np.float32(feature.norm)
