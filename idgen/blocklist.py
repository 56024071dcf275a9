"""People who refused: nobody like them is drawn, whatever photo or vector is given.

One safetensors file with face vectors by person and encoder, and no photo. It can recognise these people:
it is readable for its owner alone.

Shapes: N people, D width of a face vector.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from idgen.config import nearest
from idgen.encoders.thresholds import threshold_at
from idgen.errors import (
    ConfigError,
    EncoderMismatchError,
    IdentityError,
    RefusedPersonError,
    RunFolderError,
    StorageError,
)
from idgen.identity import Feature, Identity, similarity
from idgen.storage import lock, replacing, sorted_header

if TYPE_CHECKING:
    from idgen.encoders.base import FaceEncoder

FORMAT = 1  # of the file; a reader refuses what is newer than itself
VARIABLE = "IDGEN_BLOCKLIST"  # environment variable: another place for the list
# A miss makes pictures of somebody who refused, which nobody can take back; a false alarm costs a second look
# at a message that says how to go on. So the looser rate: 1 in 1,000 strangers is taken for a listed person.
FMR = "1e-3"
OWNER_ONLY = 0o600
MAX_NAMES = 3  # that a message lists
PATIENCE_SECONDS, PAUSE_SECONDS = 30.0, 0.02  # while another process changes the list

_NAME = re.compile(r"\S(.{0,98}\S)?")


def default_path() -> Path:
    """Where the list lies: ``$IDGEN_BLOCKLIST``, else ``idgen/blocklist.safetensors`` of the user's data."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    # The XDG base directory specification: a relative path is to be ignored.
    data = data if data.is_absolute() else Path("~/.local/share").expanduser()
    return data / "idgen" / "blocklist.safetensors"


class Blocklist:
    """Who refused.

    Args:
        people: name -> identity with one face vector of each encoder that has seen the person.
        path: where the list lies.

    Attributes:
        people: as given.
        path: as given.
    """

    def __init__(self, people: Mapping[str, Identity] | None = None, path: Path | None = None) -> None:
        self.people = dict(people or {})
        self.path = path or default_path()
        self._thresholds: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self.people)

    def __eq__(self, other: object) -> bool:
        """Whether the same people are on it with the same vectors, wherever the list lies."""
        return isinstance(other, Blocklist) and self._content() == other._content()

    def _content(self) -> dict[str, list[tuple[str, bytes]]]:
        return {name: [(f.encoder, f.value.tobytes()) for f in i.features] for name, i in self.people.items()}

    # --- the file -----------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: Path | None = None, *, may_be_missing: bool = False) -> Self:
        """Read a list.

        Args:
            path: of the file; if not given, `default_path`. Where the default place of the user's data holds
                none, nobody has refused.
            may_be_missing: take a file that is not there for an empty list, wherever it was named.

        Raises:
            IdentityError: if a file that was named, also by ``$IDGEN_BLOCKLIST``, is missing; if it is
                damaged, something else, or written by a newer idgen.
        """
        where = path or default_path()
        if not where.exists():
            if path is None and not os.environ.get(VARIABLE):
                may_be_missing = True
            if not may_be_missing:
                raise IdentityError(
                    f"no list of people who refused at {where}: nobody would be checked. "
                    "`idgen blocklist add` begins one"
                )
            return cls(path=where)
        try:
            with safe_open(where, framework="np") as file:
                rows = _read_head(where, file.metadata() or {})
                features: dict[str, list[Feature]] = {}
                for row in rows:
                    vector = file.get_tensor(row["tensor"])
                    of_person = features.setdefault(_checked_name(row["name"]), [])
                    of_person.append(Feature(row["encoder"], "face_vector", vector))
            return cls({name: Identity(tuple(of_person)) for name, of_person in features.items()}, where)
        except (SafetensorError, OSError) as error:
            raise IdentityError(f"{where} is no list of people who refused: {error}") from None
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise IdentityError(f"{where} is a damaged list of people who refused: {error!r}") from None

    def save(self) -> None:
        """Write the list to its place, whole or not at all.

        Raises:
            StorageError: if it cannot be written.
        """
        rows, tensors = [], {}
        for name, identity in self.people.items():
            for feature in identity.features:
                key = f"vector_{len(rows)}"
                rows.append({"name": name, "encoder": feature.encoder, "tensor": key})
                tensors[key] = feature.value
        head = {"idgen_blocklist": str(FORMAT), "people": json.dumps(rows, ensure_ascii=False)}
        with replacing(self.path) as file:
            Path(file.name).chmod(OWNER_ONLY)  # before there is anything to be read
            file.write(sorted_header(save(tensors, head)))

    @classmethod
    @contextmanager
    def changing(cls, path: Path | None = None, *, may_be_missing: bool = False) -> Iterator[Self]:
        """A block that is given the list and changes it; it is saved at the end, unless something goes wrong.

        Other processes that want to change it wait: nobody who was put on it meanwhile is lost. A hidden file
        beside it is what they wait for.

        Args:
            path: as for `load`; its folder must be there.
            may_be_missing: likewise.

        Raises:
            IdentityError: as for `load`.
            RunFolderError: if another process does not come to an end with its change.
            StorageError: if it cannot be written.
        """
        where = path or default_path()
        try:
            held = where.with_name(f".{where.name}.lock").open("wb")
        except OSError as error:
            raise StorageError(f"cannot write into {where.parent}: {error.strerror or error}") from None
        with held:
            patience = time.monotonic() + PATIENCE_SECONDS
            while True:
                try:
                    lock(
                        held, f"another process changes {where}, and does not come to an end; try again later"
                    )
                    break
                except RunFolderError:
                    if time.monotonic() > patience:
                        raise
                    time.sleep(PAUSE_SECONDS)
            listed = cls.load(path, may_be_missing=may_be_missing)
            yield listed
            listed.save()

    # --- who is on it -------------------------------------------------------------------------------------

    def add(self, identity: Identity, name: str | None = None) -> str:
        """Put the face vectors of a person on the list; other features are left out.

        Args:
            identity: of the person.
            name: any name, also a made-up one; if not given, ``person-N``. A person who is on the list
                already gets the vectors of further encoders.

        Returns:
            The name.

        Raises:
            ConfigError: if the name cannot be used, or has a vector of that encoder; if the very same vector
                stands under another name.
            IdentityError: if the identity holds no face vector.
        """
        vectors = tuple(f for f in identity.features if f.kind == "face_vector")
        if not vectors:
            identity.feature("face_vector")  # raises, and says what there is instead
        name = self._free_name() if name is None else _checked_name(name)
        known = self.people[name].features if name in self.people else ()
        for feature in vectors:
            if any(feature.encoder == other.encoder for other in known):
                raise ConfigError(
                    f"{name!r} is on the list with a vector of {feature.encoder} already; add another person "
                    "under another name, or remove this one first"
                )
            self._check_new(feature)
        kept = (Feature(f.encoder, f.kind, f.value) for f in vectors)  # without the norm: it is not needed
        self.people[name] = Identity((*known, *kept))
        return name

    def _free_name(self) -> str:
        number = 1
        while f"person-{number}" in self.people:
            number += 1
        return f"person-{number}"

    def _check_new(self, feature: Feature) -> None:
        """Let a vector pass that is as wide as the others of its encoder, and is none of them."""
        for name, identity in self.people.items():
            for other in identity.features:
                if other.encoder == feature.encoder and other.value.shape != feature.value.shape:
                    raise EncoderMismatchError(
                        f"vectors of {feature.encoder} on the list are of shape {other.value.shape}, "
                        f"this one is of {feature.value.shape}"
                    )
                if other.encoder == feature.encoder and np.array_equal(other.value, feature.value):
                    raise ConfigError(
                        f"this person is on the list already, as {name!r}, with the same vector of "
                        f"{feature.encoder}; only vectors of further encoders can be added, under that name"
                    )

    def remove(self, name: str) -> None:
        """Take a person off the list.

        Raises:
            ConfigError: if nobody of that name is on it; the nearest name is shown.
        """
        if name not in self.people:
            raise ConfigError(
                f"nobody called {name!r} is on the list{nearest(name, list(self.people))} "
                "(`idgen blocklist show` lists them)"
            )
        del self.people[name]

    # --- checking -----------------------------------------------------------------------------------------

    def threshold(self, encoder: "FaceEncoder | str") -> float:
        """The cosine from which on somebody counts as a listed person: the card's, at FMR 1e-3.

        Raises:
            ConfigError: if the card of the encoder is not known, or says nothing of that rate.
        """
        name = encoder if isinstance(encoder, str) else encoder.id
        if name not in self._thresholds:
            self._thresholds[name] = threshold_at(encoder, FMR)
        return self._thresholds[name]

    def check(
        self,
        identity: Identity,
        threshold: float | None = None,
        *,
        encoder: "FaceEncoder | None" = None,
        allow_unchecked: bool = False,
    ) -> None:
        """Refuse a person who is on the list.

        Args:
            identity: who is meant; each face vector is compared with those of the same encoder.
            threshold: cosine from which on it is the same person; if not given, `threshold`.
            encoder: one that made a face vector; needed where its card is not found by its id.
            allow_unchecked: go on where a listed person has no vector by any encoder of this identity.

        Raises:
            RefusedPersonError: if it is somebody on the list.
            EncoderMismatchError: if somebody on the list cannot be compared; how to cure that is said.
            ConfigError: if the threshold is not known.
        """
        if not self.people:
            return
        eyes = [f.encoder for f in identity.features if f.kind == "face_vector"]
        unchecked = []
        for name, listed in self.people.items():
            shared = [f.encoder for f in listed.features if f.encoder in eyes]
            if not shared:
                unchecked.append(name)
            for eye in shared:
                known = encoder if encoder is not None and encoder.id == eye else eye
                limit = self.threshold(known) if threshold is None else threshold
                cosine = similarity(identity, listed, encoder=eye)
                if cosine >= limit:
                    raise RefusedPersonError(
                        f"this is {name!r}, who refused to be shown, or somebody very alike: similarity "
                        f"{cosine:.3f} by {eye}, at or above {limit:.3f}. Nothing is made of listed people "
                        f"({self.path}; `idgen blocklist remove NAME` takes somebody off)"
                    )
        if unchecked and not allow_unchecked:
            raise self._not_checked(unchecked, eyes)

    def gallery(self, encoder: str, *, allow_unchecked: bool = False) -> np.ndarray:
        """Everybody's face vector by one encoder: (N, D) float32; (0, 0) where there is none.

        Raises:
            EncoderMismatchError: if somebody has none, unless ``allow_unchecked``.
        """
        found = {n: [f.value for f in i.features if f.encoder == encoder] for n, i in self.people.items()}
        missing = [name for name, vectors in found.items() if not vectors]
        if missing and not allow_unchecked:
            raise self._not_checked(missing, [encoder])
        vectors = [vector for of_person in found.values() for vector in of_person]
        return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)

    def _not_checked(self, names: list[str], eyes: list[str]) -> EncoderMismatchError:
        shown = ", ".join(map(repr, names[:MAX_NAMES]))
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        by = " or ".join(eyes) or "any face vector, for there is none"
        return EncoderMismatchError(
            f"not checked against people who refused: {shown}{more} of {self.path} cannot be compared by "
            f"{by}. Embed their photos again with the encoder in use, `idgen blocklist add PHOTO "
            "--name NAME --encoder SPEC`, or go on without them (--allow-unchecked, where a command has it)"
        )


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise ConfigError(f"a name on the list is 1 to 100 printable characters, got {name!r}")
    return name


def _read_head(path: Path, head: dict[str, str]) -> list[dict[str, Any]]:
    version = head.get("idgen_blocklist", "")
    if not version.isascii() or not version.isdigit():
        raise IdentityError(f"{path} is no list of people who refused")
    if int(version) > FORMAT:
        raise IdentityError(
            f"{path} was written by a newer idgen (format {version}, this one reads up to {FORMAT}): "
            "`pip install --upgrade idgen`"
        )
    return json.loads(head["people"])
