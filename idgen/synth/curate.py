"""Which pictures are kept: each is looked at once, then judged by rules; what is rejected has its reason.

Shapes: P planned people, D width of a face vector.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from idgen.blocklist import Blocklist
from idgen.encoders.base import FaceEncoder
from idgen.encoders.thresholds import threshold_at
from idgen.errors import ConfigError
from idgen.faces.detect import Detector
from idgen.synth.counts import REASONS
from idgen.synth.duplicates import resemblance
from idgen.synth.grammar import Grammar
from idgen.synth.looking import Onlooker, Seen
from idgen.synth.plan import PicturePlan
from idgen.synth.probes import PROBES, check_probes
from idgen.synth.separation import RealPeople
from idgen.synth.shards import KEPT
from idgen.synth.vectors import unit_rows

# Numbers of a row of the manifest, besides those of the probes.
COLUMNS = ("num_faces", "similarity", "other_person", "other_similarity", "real_similarity", "own_duplicate")
# False match rates. A face is not unlike the person who was planned from 1e-2 on: of the pictures that mini
# draws of new people 26 % lie below that cosine, and 68 % below that of 1e-3. Nobody real may be met at 1e-4.
SAME, STRICT = "1e-2", "1e-4"
# 528 copies of 24 drawings by mini (mirrored, shifted by up to 3 pixels, cut to 85 %, JPEG of quality 15, in
# other light, soft, noisy) have 0.905 at least; 360 pairs of different drawings of one person, and 180 of
# different photos, have 0.86 at most.
COPY = 0.9
REFUSED = "people who refused"
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class CurationRules:
    """From where on a picture is rejected; None switches a rule off.

    Attributes:
        min_similarity: cosine to the intended identity by the encoder that conditions; "auto" is what its
            card says for a false match rate of 1e-2.
        other_margin: cosine by which a picture must be nearer to its own identity than to any other one that
            is planned.
        leak_similarity: cosine to a real person from which on it is that person; "auto" is what the card of
            the encoder in question says for a false match rate of 1e-4.
        max_faces: in one picture.
        near_duplicate: likeness of two pictures of one person, as `idgen.synth.duplicates.resemblance` has
            it, from which on the later one is a duplicate: a copy, though mirrored, shifted or cropped.
        min_sharpness: variance of the Laplacian of the face at 112 pixels; not asked of pictures that the
            grammar itself changes afterwards (`finish`).
        min_face_px: shorter side of the face's box.
        min_face_score: of the detector; off, because detectors count differently.
        check_attributes: whether the checks of the grammar decide.
    """

    min_similarity: float | str | None = AUTO
    other_margin: float | None = 0.0
    leak_similarity: float | str | None = AUTO
    max_faces: int | None = 1
    near_duplicate: float | None = COPY
    min_sharpness: float | None = 8.0
    min_face_px: float | None = 20.0
    min_face_score: float | None = None
    check_attributes: bool = True

    def __post_init__(self) -> None:
        bounds = {
            "min_similarity": (-1, 1), "other_margin": (-2, 2), "leak_similarity": (-1, 1),
            "max_faces": (1, math.inf), "near_duplicate": (-1, 1), "min_sharpness": (0, math.inf),
            "min_face_px": (0, math.inf), "min_face_score": (0, 1),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is None or (value == AUTO and name in ("min_similarity", "leak_similarity")):
                continue
            if isinstance(value, str) or not low <= value <= high:
                raise ConfigError(f"{name} must be between {low:g} and {high:g}, got {value!r}")

    def resolved(self, encoder: FaceEncoder) -> "CurationRules":
        """The same rules with the cosine that "auto" stands for by the encoder that conditions.

        Raises:
            ConfigError: if the card of the encoder says nothing of that rate.
        """
        if self.min_similarity != AUTO:
            return self
        return dataclasses.replace(self, min_similarity=threshold_at(encoder, SAME))

    def real_people(self, name: str, vectors: np.ndarray, encoder: FaceEncoder) -> RealPeople | None:
        """A gallery that made faces keep away from; None where that rule is off.

        Args:
            name: of the gallery; it stands in the findings.
            vectors: (M, D) of unit length by ``encoder``; zero rows are left out.
            encoder: whose card knows the cosine, where this is "auto".

        Raises:
            ConfigError: if the card of the encoder says nothing of that rate.
            IdentityError: if a row is not of unit length.
        """
        if self.leak_similarity is None:
            return None
        limit = threshold_at(encoder, STRICT) if self.leak_similarity == AUTO else float(self.leak_similarity)
        unit = unit_rows(vectors, name, drop_zeros=True)
        return RealPeople(name=name, vectors=unit, max_cosine=limit)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a picture.

    Attributes:
        decision: ``kept``, or the first of `REASONS` that holds.
        reasons: all that hold, in the order of `REASONS`.
        measures: columns of its row in the manifest; None where there is nothing to measure.
    """

    decision: str
    reasons: tuple[str, ...]
    measures: Mapping[str, float | int | str | None]

    @property
    def is_kept(self) -> bool:
        """Whether it goes into the dataset."""
        return self.decision == KEPT


class Curator:
    """Looks at pictures and judges them; one for each process.

    Args:
        rules: as given; "auto" is looked up here.
        detector: finds faces.
        encoder: that conditioned the pictures.
        judge: a second eye, whose vectors the findings need; None without one.
        people: (P, D) float32 of unit length by ``encoder``: everybody who is planned, in all shards. It is
            not copied; a memory-mapped file is shared by all processes.
        grammar: of the plan; its checks are made where the rules say so.
        real: encoder id -> galleries of real people by it: `CurationRules.real_people`.
        blocklist: people who refused, by ``encoder``.
        allow_unchecked: go on where somebody on the list has no vector by ``encoder``.

    Raises:
        ConfigError: if the grammar names an unknown probe, or a column of the findings; if a threshold is
            not known; if galleries are of another encoder.
        EncoderMismatchError: if somebody on the list cannot be compared.
        IdentityError: if ``people`` are not of unit length.
    """

    def __init__(
        self,
        rules: CurationRules,
        *,
        detector: Detector,
        encoder: FaceEncoder,
        judge: FaceEncoder | None,
        people: np.ndarray,
        grammar: Grammar,
        real: Mapping[str, Sequence[RealPeople]] | None = None,
        blocklist: Blocklist | None = None,
        allow_unchecked: bool = False,
    ) -> None:
        check_grammar(grammar)
        self.rules, self.grammar = rules.resolved(encoder), grammar
        if people.shape[1:] != (encoder.dim,):
            raise ConfigError(f"planned people are {people.shape[-1]}-d, {encoder.id} gives {encoder.dim}-d")
        galleries = {name: list(found) for name, found in (real or {}).items()}
        _check_galleries(galleries, [encoder] if judge is None else [encoder, judge])
        if blocklist:
            refused = blocklist.gallery(encoder.id, allow_unchecked=allow_unchecked)
            if len(refused):
                listed = RealPeople(
                    name=REFUSED,
                    vectors=unit_rows(refused, REFUSED),
                    max_cosine=blocklist.threshold(encoder),
                )
                galleries.setdefault(encoder.id, []).append(listed)
        self._limits = {found.name: found.max_cosine for each in galleries.values() for found in each}
        self._onlooker = Onlooker(
            detector=detector,
            encoder=encoder,
            judge=judge,
            people=unit_rows(people, "planned people"),
            real=galleries,
        )

    def look(self, picture: Image.Image) -> Seen:
        """What one picture shows."""
        return self.look_at([picture])[0]

    def look_at(self, pictures: Sequence[Image.Image]) -> list[Seen]:
        """What each of several pictures shows; faster than one after the other."""
        return self._onlooker.look(pictures)

    def judge(self, plan: PicturePlan, person: int, seen: Seen, kept: Sequence[Seen]) -> Verdict:
        """Keep or reject a picture.

        Args:
            plan: what it was to be.
            person: row of the intended identity among the planned people.
            seen: what it shows.
            kept: pictures of the same person that were kept before, in the order of the plan.
        """
        measures = self._measures(person, seen, kept)
        if seen.has_face:
            broken = self._broken(plan, seen, measures)
            reasons = tuple(name for name in REASONS if broken.get(name, False))
        else:
            reasons = ("no_face",)
        return Verdict(decision=reasons[0] if reasons else KEPT, reasons=reasons, measures=measures)

    def _measures(self, person: int, seen: Seen, kept: Sequence[Seen]) -> dict[str, float | int | None]:
        other = next(((row, value) for row, value in seen.nearest if row != person), (None, None))
        return {
            "similarity": self._onlooker.similarity(seen, person) if seen.has_face else None,
            "other_similarity": other[1],
            "other_person": other[0],
            "real_similarity": max(seen.real.values(), default=None),
            "own_duplicate": resemblance(seen.thumbnail, [one.thumbnail for one in kept]) if kept else None,
            "num_faces": seen.num_faces,
            **{name: seen.measured.get(name) for name in PROBES},
        }

    def _broken(self, plan: PicturePlan, seen: Seen, measures: Mapping[str, float | None]) -> dict[str, bool]:
        """Reason -> whether it holds, of a picture with a face."""
        rules = self.rules
        similarity, other = measures["similarity"], measures["other_similarity"]
        near = [name for name, value in seen.real.items() if value >= self._limits[name]]
        assert similarity is not None
        assert not isinstance(rules.min_similarity, str)
        return {
            "several_faces": _above(seen.num_faces, rules.max_faces),
            "refused": REFUSED in near,
            "leakage": any(name != REFUSED for name in near),
            "unlike": _below(similarity, rules.min_similarity),
            "other_identity": rules.other_margin is not None
            and other is not None
            and similarity <= other + rules.other_margin,
            "quality": self._is_poor(plan, seen.measured),
            "attribute": rules.check_attributes and bool(self.unmet(plan, seen)),
            "near_duplicate": rules.near_duplicate is not None
            and (measures["own_duplicate"] or 0.0) >= rules.near_duplicate,
        }

    def _is_poor(self, plan: PicturePlan, measured: Mapping[str, float]) -> bool:
        rules = self.rules
        is_finished = any(
            self.grammar.finish_of(axis, value) for axis, value in plan.attributes.items() if value
        )
        return (
            _below(measured["face_px"], rules.min_face_px)
            or _below(measured["face_score"], rules.min_face_score)
            or (not is_finished and _below(measured["sharpness"], rules.min_sharpness))
        )

    def unmet(self, plan: PicturePlan, seen: Seen) -> list[str]:
        """The axes whose planned value a picture does not show; values without a check are shown."""
        found = []
        for axis, value in plan.attributes.items():
            check = self.grammar.check_of(axis, value) if value else None
            if check is not None and not check.holds(seen.measured.get(check.probe, math.nan)):
                found.append(axis)
        return found


def check_grammar(grammar: Grammar) -> None:
    """Let a grammar pass whose pictures can be judged.

    Raises:
        ConfigError: if a check names an unknown probe, or an axis is called as a column of the findings.
    """
    check_probes(grammar)
    for axis in grammar.axes:
        if axis in (*COLUMNS, *PROBES):
            raise ConfigError(
                f"the axis {axis!r} has the name of a column of measured numbers; call it otherwise"
            )


def _check_galleries(real: Mapping[str, Sequence[RealPeople]], encoders: Sequence[FaceEncoder]) -> None:
    known = {encoder.id: encoder for encoder in encoders}
    names: set[str] = set()
    for encoder_id, galleries in real.items():
        if encoder_id not in known:
            raise ConfigError(
                f"a gallery is of {encoder_id}; pictures are looked at by {' and '.join(known)}"
            )
        for gallery in galleries:
            if gallery.name in names or gallery.name == REFUSED:
                raise ConfigError(f"two galleries are called {gallery.name!r}; each needs a name of its own")
            if gallery.vectors.shape[1] != known[encoder_id].dim:
                width, dim = gallery.vectors.shape[1], known[encoder_id].dim
                raise ConfigError(f"{gallery.name} is {width}-d, {encoder_id} gives {dim}-d")
            names.add(gallery.name)


def _below(value: float, bound: float | None) -> bool:
    return bound is not None and not value >= bound  # what is not a number is below


def _above(value: float, bound: float | None) -> bool:
    return bound is not None and value > bound
