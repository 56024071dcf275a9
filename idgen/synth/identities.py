"""New identities: drawn from a source, each kept apart from all others and from real people.

Shapes: M photos to keep away from, P new people, D width of a face vector.
"""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idgen.blocklist import Blocklist
from idgen.encoders.thresholds import threshold_at
from idgen.errors import ConfigError, EncoderMismatchError, MeasureError, RefusedPersonError
from idgen.synth.machine import machine_bytes
from idgen.synth.people_folder import PeopleFolder
from idgen.synth.separation import BLOCK, Crowd, RealPeople, reaches, too_near
from idgen.synth.sources import GivenVectors, Source
from idgen.synth.vectors import VECTORS, unit_rows
from idgen.synth.wording import bytes_as_text, number_of

if TYPE_CHECKING:
    from idgen.encoders.base import FaceEncoder

CHUNK = 256  # candidates drawn at once; part of what a seed means
LEAST_ACCEPTED = 0.01  # of the candidates of the last WATCHED chunks; below it nobody is left to be found
WATCHED = 20
REFUSED = "people who refused"
STRICT = "1e-4"  # false match rate from which on a new face may be a real person's


def memory_bytes(num: int, dim: int, *, num_real: int = 0, block: int = BLOCK) -> int:
    """What `separated_people` needs at most, besides the arrays that it is given and the libraries.

    Args:
        num: P.
        dim: D.
        num_real: photos in the galleries that are not float32 of unit length yet, and so are copied.
        block: as there.
    """
    accepted = 4 * dim * (num + CHUNK)
    real = 12 * num_real + 4 * dim * num_real  # and their lengths
    drawing = 8 * 8 * CHUNK * dim  # a chunk in float64, with what it is made of
    comparing = 4 * CHUNK * block + 16 * CHUNK * CHUNK
    return accepted + real + drawing + comparing


def check_memory(num: int, dim: int) -> None:
    """Refuse more people than this machine has memory for; where it does not tell how much, nothing happens.

    Args:
        num: P.
        dim: D.

    Raises:
        ConfigError: if `memory_bytes` of them is more than there is.
    """
    needed, there = memory_bytes(num, dim), machine_bytes()
    if there is not None and needed > there:
        raise ConfigError(
            f"finding {number_of(num, 'person')} needs {bytes_as_text(needed)} of memory, and this machine "
            f"has {bytes_as_text(there)}; ask for fewer (a plan asks for as many as its highest number of a "
            "person, counted from 0, says)"
        )


def separated_people(
    people: Source,
    num: int,
    *,
    max_cosine: float,
    seed: int = 0,
    gallery: np.ndarray | Sequence[np.ndarray] | None = None,
    max_gallery_cosine: float | None = None,
    blocklist: Blocklist | None = None,
    encoder: "FaceEncoder | None" = None,
    out: Path | None = None,
    least_accepted: float = LEAST_ACCEPTED,
    block: int = BLOCK,
    advance: Callable[[int], object] = lambda _: None,
) -> np.ndarray:
    """New people, each below a cosine to every other and to every real photo, exactly.

    Candidates come in an order that depends on the seed alone; each is accepted if it keeps its distance from
    the galleries and from everybody accepted before. The first people of a larger number are therefore
    those of a smaller one. With ``out`` those accepted are on disk at every moment: stopped and started
    again, it goes on and finds the same people. `memory_bytes` says beforehand what it needs.

    Args:
        people: where they are drawn from.
        num: P.
        max_cosine: between two new people, in (-1, 1].
        seed: of the candidates; given people (`GivenVectors`) are taken in their own order instead.
        gallery: one or several (M, D) of unit vectors to keep away from, also memory-mapped ones; zero rows
            are left out. What is not float32 of unit length within 1e-6 is rounded to that first.
        max_gallery_cosine: to these; if not given, what the encoder's card says for a false match rate of
            1e-4.
        blocklist: people who refused; nobody is found whom `Blocklist.check` would refuse. None is the
            user's own list, an empty `Blocklist` none.
        encoder: whose vectors these are; needed where its card is not found by its id.
        out: folder that keeps them; one that holds fewer people of the same settings is filled up, also if
            people were put on the list meanwhile, as long as nobody in it is near them.
        least_accepted: share of the last 5,120 candidates; if fewer keep their distance, it stops.
        block: people that candidates are compared with at once. The result does not depend on it.
        advance: told how many were accepted after each chunk of candidates.

    Returns:
        (P, D) float32 of unit length, within 1e-6; the limits hold for their dot products and for their
        cosines.

    Raises:
        ConfigError: for settings out of range, where no threshold is known, or without memory for so many.
        IdentityError: if a gallery is not of unit vectors.
        EncoderMismatchError: if the list of people who refused lacks vectors of this encoder, or ``encoder``
            is another one.
        RefusedPersonError: if somebody in ``out`` is near a person who was put on the list since.
        MeasureError: if nearly every candidate is refused: how many were found, and where they are, is said.
        RunFolderError: if ``out`` was made with other settings, holds other files, or is in use.
        StorageError: if it cannot be written.
    """
    _check_settings(num, max_cosine, max_gallery_cosine, seed, least_accepted, block)
    if encoder is not None and encoder.id != people.encoder:
        raise EncoderMismatchError(f"the people are of {people.encoder}, the encoder is {encoder.id}")
    galleries = [gallery] if isinstance(gallery, np.ndarray) else list(gallery or ())
    blocklist = Blocklist.load() if blocklist is None else blocklist
    known_by = encoder or people.encoder
    kept_away, refused = _real_people(people, galleries, max_gallery_cosine, known_by), None
    if blocklist:
        refused = refused_people(blocklist, known_by)
    real = [*kept_away, *([refused] if refused else [])]
    with contextlib.ExitStack() as stack:
        folder = None
        if out is not None:
            settings = _settings(people, max_cosine, seed, kept_away)
            folder = stack.enter_context(PeopleFolder(out, settings, people.dim))
        capacity = max(num, folder.most_people if folder else 0)
        check_memory(capacity, people.dim)
        crowd = Crowd(people.dim, max_cosine, capacity=capacity + CHUNK, real=real, block=block)
        for known in folder.restore() if folder else ():
            crowd.restore(known)
        if refused:
            _check_not_listed(crowd.vectors[:num], refused, blocklist, out)
        accepted = list(folder.accepted) if folder else []
        advance(min(len(crowd), num))
        while len(crowd) < num:
            drawn = candidates(people, seed, len(accepted))
            if not len(drawn) or _is_hopeless(accepted, least_accepted):
                raise _no_more(people, seed, accepted, crowd, num, out, is_end=not len(drawn))
            fresh = crowd.admit(drawn)
            if folder:
                folder.append(fresh)
            accepted.append(len(fresh))
            advance(min(len(fresh), num - len(crowd) + len(fresh)))
    return crowd.vectors[:num]


def candidates(people: Source, seed: int, chunk: int) -> np.ndarray:
    """(CHUNK, D) the candidates of a chunk; fewer, or none, where given people come to their end."""
    if isinstance(people, GivenVectors):
        return np.asarray(people.vectors[chunk * CHUNK : (chunk + 1) * CHUNK])
    return people.sample(CHUNK, np.random.default_rng([seed, chunk]))


def _check_settings(
    num: int,
    max_cosine: float,
    max_gallery_cosine: float | None,
    seed: int,
    least_accepted: float,
    block: int,
) -> None:
    for name, cosine in (("max_cosine", max_cosine), ("max_gallery_cosine", max_gallery_cosine)):
        if cosine is not None and not -1 < cosine <= 1:
            raise ConfigError(f"{name} must be in (-1, 1], got {cosine}")
    for name, value, least in (("num", num, 0), ("seed", seed, 0), ("block", block, 1)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    if not 0 <= least_accepted <= 1:
        raise ConfigError(f"least_accepted is a share of the candidates, in [0, 1], got {least_accepted}")


def _real_people(
    people: Source,
    galleries: Sequence[np.ndarray],
    max_cosine: float | None,
    encoder: "FaceEncoder | str",
) -> list[RealPeople]:
    if galleries and max_cosine is None:
        max_cosine = threshold_at(encoder, STRICT)
    found = []
    for number, vectors in enumerate(galleries, 1):
        unit = unit_rows(vectors, f"gallery {number}", drop_zeros=True)
        if unit.shape[1] != people.dim:
            raise ConfigError(f"gallery {number} is {unit.shape[1]}-d, new people are {people.dim}-d")
        assert max_cosine is not None
        found.append(RealPeople(name=f"gallery {number}", vectors=unit, max_cosine=float(max_cosine)))
    return found


def refused_people(blocklist: Blocklist, encoder: "FaceEncoder | str") -> RealPeople:
    """A list with somebody on it, as those whom new people keep away from.

    Args:
        blocklist: as said.
        encoder: by whose vectors; itself where its card is not found by its id.

    Raises:
        ConfigError: if no threshold is known.
        EncoderMismatchError: if somebody has no vector by it.
    """
    unit = unit_rows(blocklist.gallery(encoder if isinstance(encoder, str) else encoder.id), REFUSED)
    return RealPeople(name=REFUSED, vectors=unit, max_cosine=blocklist.threshold(encoder))


def _check_not_listed(known: np.ndarray, refused: RealPeople, blocklist: Blocklist, out: Path | None) -> None:
    """The list may have grown since these people were found: as long as nobody of them is near who is new."""
    near = np.flatnonzero(too_near(known, refused.vectors, refused.max_cosine))
    if not len(near):
        return
    vector = known[near[0]]
    name = next(
        name
        for name, listed in zip(blocklist.people, refused.vectors, strict=True)
        if reaches(vector, listed, refused.max_cosine)
    )
    raise RefusedPersonError(
        f"the list of people who refused has changed: {len(near):,} of the {number_of(len(known), 'person')} "
        f"in {out} (the first is number {near[0]}) came too near it, to {name!r} (cosine "
        f"{refused.max_cosine:.3f} or more). Choose another --out, or delete {out} and whatever was made of "
        "these people"
    )


def _settings(people: Source, max_cosine: float, seed: int, real: Sequence[RealPeople]) -> dict[str, Any]:
    """Everything that decides who is accepted; a source and galleries by what they hold.

    The list of people who refused is left out: `_check_not_listed` looks at the people themselves.
    """
    known_by = people.vectors if isinstance(people, GivenVectors) else candidates(people, seed, 0)
    settings: dict[str, Any] = {
        "encoder": people.encoder,
        "dim": people.dim,
        "seed": seed,
        "chunk": CHUNK,
        "max_cosine": float(max_cosine),
        "source": f"{type(people).__name__} {_digest(known_by)}",
    }
    for kept_away in real:
        settings[kept_away.name] = f"below {kept_away.max_cosine!r} to {_digest(kept_away.vectors)}"
    return settings


def _digest(vectors: np.ndarray) -> str:
    data = np.ascontiguousarray(vectors).data
    return f"{vectors.shape} {hashlib.sha256(data).hexdigest()[:16]}"


def _is_hopeless(accepted: Sequence[int], least: float) -> bool:
    """Whether hardly any of the last candidates was accepted."""
    return len(accepted) >= WATCHED and sum(accepted[-WATCHED:]) < least * WATCHED * CHUNK


def _no_more(
    people: Source,
    seed: int,
    accepted: Sequence[int],
    crowd: Crowd,
    num: int,
    out: Path | None,
    *,
    is_end: bool,
) -> MeasureError:
    """How many were found, where they are, and what kept the others away; drawn again to be counted."""
    chunks = range(len(accepted))
    chunks = chunks if is_end else chunks[-WATCHED:]
    near = dict.fromkeys((found.name for found in crowd.real), 0)
    for chunk in chunks:
        for name, count in crowd.turned_away(candidates(people, seed, chunk)).items():
            near[name] += count
    kept_away = "".join(f", {count:,} for being near {name}" for name, count in near.items() if count)
    kept_away = f"; turned away were{kept_away[1:]}" if kept_away else ""
    kept = f"they are in {out / VECTORS}" if out else "with out=FOLDER they are kept"
    why = (
        f"there are no more given people{kept_away}"
        if is_end
        else f"of the last {WATCHED * CHUNK} candidates {sum(accepted[-WATCHED:])} kept their distance"
        f"{kept_away}. Ask for fewer, or allow more"
    )
    return MeasureError(
        f"only {len(crowd)} of {num} new people were found below cosine {crowd.max_cosine:g} ({kept}): {why}"
    )
