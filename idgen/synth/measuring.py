"""What a finished dataset is like: how alike within people, how far apart between them, and from real people.

Everything is computed from the manifest and from the face vectors that were kept when the pictures were
judged. Of a large dataset people are drawn at random, and all pictures of these are measured.

Shapes: N measured pictures, M photos of a gallery, P people, D width of a face vector.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from idgen.data.pictures import Picture
from idgen.encoders.base import FaceEncoder
from idgen.encoders.card import read_encoder_card, related
from idgen.errors import ConfigError
from idgen.metrics.leakage import centres, nearest
from idgen.metrics.operating import bootstrap_intervals, operating_points
from idgen.metrics.persons import mean_by_person, mean_with_interval, spread_about_centre
from idgen.metrics.scores import PairStatistics, pair_statistics
from idgen.provenance import TRAINED_MODEL
from idgen.report.document import Measure
from idgen.synth.dataset import Dataset
from idgen.synth.embeddings import read_embeddings
from idgen.synth.shards import KEPT

if TYPE_CHECKING:
    import pyarrow

MOST_PICTURES = 40_000  # that are measured: 800 million pairs, 40 seconds of a core by each encoder
FMRS = ("1e-3", "1e-4")
MADE, RELATED, OTHER_EYE = "conditioned the pictures", "related to what conditioned them", "another eye"
Galleries = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The people that are measured.

    Attributes:
        names: of P people.
        person: (N,) whom each picture was made of.
        pictures: N of them, on the disk.
        vectors: encoder id -> (N, D) of unit length; nothing where no vectors were kept.
        is_everybody: whether nobody was left out.
    """

    names: tuple[str, ...]
    person: np.ndarray
    pictures: tuple[Picture, ...]
    vectors: Mapping[str, np.ndarray]
    is_everybody: bool


@dataclass(frozen=True, kw_only=True)
class Eye:
    """What one encoder sees in the sample.

    Attributes:
        encoder: it.
        role: `MADE`, `RELATED` or `OTHER_EYE`.
        vectors: (N, D).
        pairs: statistics of all pairs.
        points: of `operating_points`.
        intervals: of these, where they have one.
        own: (N,) cosine to the centre of the other pictures of the same person; NaN without any.
        other: (N,) the highest cosine to the centre of somebody else.
        other_person: (N,) that person; -1 without anybody else.
        spread: (P,) of `spread_about_centre`.
    """

    encoder: FaceEncoder
    role: str
    vectors: np.ndarray
    pairs: PairStatistics
    points: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    own: np.ndarray
    other: np.ndarray
    other_person: np.ndarray
    spread: np.ndarray

    @property
    def label(self) -> str:
        """Its name, and whether it must not judge alone."""
        return self.encoder.name if self.role == OTHER_EYE else f"{self.encoder.name} (related)"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """How near the pictures come to the real people of one gallery, by one encoder.

    Attributes:
        gallery: its name.
        eye: who compared.
        num_photos: M.
        thresholds: false match rate -> cosine, of the encoder's card; NaN where it has none.
        cosine: (N,) to the nearest photo.
        above: false match rate -> mean over people of the share of their pictures from there on.
        centres_above: the same of the centres of the people.
    """

    gallery: str
    eye: Eye
    num_photos: int
    thresholds: Mapping[str, float]
    cosine: np.ndarray
    above: Mapping[str, Measure]
    centres_above: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that was found.

    Attributes:
        dataset: that was looked at.
        manifest: of all planned pictures.
        sample: who was measured.
        eyes: of each encoder that looked when the pictures were judged.
        audits: of each gallery by each of these.
        num_marked: pictures of the sample that say in themselves that a trained model made them.
    """

    dataset: Dataset
    manifest: "pyarrow.Table"
    sample: Sample
    eyes: tuple[Eye, ...]
    audits: tuple[Audit, ...]
    num_marked: int


def find(
    folder: Path,
    *,
    encoders: Sequence[FaceEncoder],
    galleries: Galleries | None = None,
    most_pictures: int = MOST_PICTURES,
    seed: int = 0,
) -> Findings:
    """Measure a dataset; memory is for ``most_pictures`` pictures, and for the galleries in float64.

    Args:
        folder: of the dataset.
        encoders: those that looked at its pictures: whose cards know thresholds and teachers.
        galleries: name -> encoder id -> (M, D) of unit length, of real people; zero rows are left out.
        most_pictures: about as many are measured, of people drawn at random.
        seed: of the draw, and of the intervals.

    Raises:
        ConfigError: if there is no finished shard, or vectors are of an encoder that was not given.
        StorageError: if a shard or its vectors are damaged.
        MeasureError: if a gallery shows no face, or its vectors are not of unit length.
    """
    dataset = Dataset.open(folder)
    manifest = dataset.manifest()
    sample = _draw(dataset, manifest, most_pictures, seed)
    known = {encoder.id: encoder for encoder in encoders}
    lacking = sorted(set(sample.vectors) - set(known))
    if lacking:
        raise ConfigError(f"{folder} holds vectors of {lacking[0]}; give that encoder (--judge, --encoder)")
    eyes = tuple(
        _eye(encoder, dataset, encoders, sample, sample.vectors[name], seed)
        for name, encoder in known.items()
        if name in sample.vectors
    )
    audits = tuple(
        _audit(name, eye, by_encoder[eye.encoder.id], sample, seed)
        for name, by_encoder in (galleries or {}).items()
        for eye in eyes
        if eye.encoder.id in by_encoder
    )
    marked = sum(TRAINED_MODEL.encode() in picture.read_bytes() for picture in sample.pictures)
    return Findings(
        dataset=dataset, manifest=manifest, sample=sample, eyes=eyes, audits=audits, num_marked=marked
    )


# --- measuring --------------------------------------------------------------------------------------------


def _draw(dataset: Dataset, manifest: "pyarrow.Table", most: int, seed: int) -> Sample:
    """People drawn at random until they have enough pictures; in the order of the manifest."""
    identities, decisions = manifest["identity"].to_pylist(), manifest["decision"].to_pylist()
    sizes: dict[str, int] = {}
    for identity, decision in zip(identities, decisions, strict=True):
        if decision == KEPT:
            sizes[identity] = sizes.get(identity, 0) + 1
    everybody = list(sizes)
    order = np.random.default_rng([seed, len(everybody)]).permutation(len(everybody))
    before = np.cumsum([0, *(sizes[everybody[i]] for i in order)])[: len(order)]
    chosen = {everybody[i] for i, num in zip(order, before, strict=True) if num < most}
    number = {name: i for i, name in enumerate(name for name in everybody if name in chosen)}
    person: list[int] = []
    pictures: list[Picture] = []
    vectors: dict[str, list[np.ndarray]] = {}
    all_pictures = dataset.kept()
    for shard in dataset.shards:
        own = [next(all_pictures) for _ in range(shard.num_kept)]
        rows = [row for row, picture in enumerate(own) if picture.identity in number]
        pictures += [own[row] for row in rows]
        person += [number[own[row].identity] for row in rows]
        for name, values in read_embeddings(shard).items():
            vectors.setdefault(name, []).append(values[rows])
    joined = {name: np.concatenate(parts) for name, parts in vectors.items()}
    whole = {name: values for name, values in joined.items() if len(values) == len(person)}
    return Sample(
        names=tuple(number), person=np.array(person, int), pictures=tuple(pictures), vectors=whole,
        is_everybody=len(number) == len(everybody),
    )  # fmt: skip


def _eye(
    encoder: FaceEncoder,
    dataset: Dataset,
    encoders: Sequence[FaceEncoder],
    sample: Sample,
    vectors: np.ndarray,
    seed: int,
) -> Eye:
    num_people = len(sample.names)
    pairs = pair_statistics(vectors, sample.person, num_people=num_people)
    made_by = dataset.encoder_ids
    is_related = related(encoder, made_by, encoders)
    own, other, other_person = nearest_centres(vectors, sample.person, num_people)
    return Eye(
        encoder=encoder,
        role=MADE if encoder.id in made_by else RELATED if is_related else OTHER_EYE,
        vectors=vectors,
        pairs=pairs,
        points=operating_points(pairs),
        intervals=bootstrap_intervals(pairs, seed=seed),
        own=own,
        other=other,
        other_person=other_person,
        spread=spread_about_centre(vectors, sample.person, num_people),
    )


def nearest_centres(
    vectors: np.ndarray, person: np.ndarray, num_people: int, *, block: int = 1024
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Is a picture nearer to the other pictures of its person than to anybody else's?

    Args:
        vectors: (N, D) of unit length.
        person: (N,) numbers in [0, P).
        num_people: P.
        block: pictures that are compared at once.

    Returns:
        (N,) cosine to the centre of the others of the same person, NaN without any; (N,) the highest cosine
        to the centre of another person, and (N,) that person: NaN and -1 without anybody else.
    """
    exact = vectors.astype(np.float64)
    total = np.zeros((num_people, vectors.shape[1]))
    np.add.at(total, person, exact)
    rest = total[person] - exact
    length = np.linalg.norm(rest, axis=1)
    is_alone = (np.bincount(person, minlength=num_people) < 2)[person]
    with np.errstate(invalid="ignore", divide="ignore"):
        own = np.where(is_alone, np.nan, (rest * exact).sum(axis=1) / length)
    directions = centres(vectors, person, num_people)
    is_there = directions.any(axis=1)
    other, other_person = np.full(len(exact), np.nan), np.full(len(exact), -1)
    for start in range(0, len(exact), block):
        rows = slice(start, start + block)
        cosines = exact[rows] @ directions.T
        cosines[:, ~is_there] = -np.inf
        cosines[np.arange(len(cosines)), person[rows]] = -np.inf
        at = cosines.argmax(axis=1)
        best = cosines[np.arange(len(cosines)), at]
        has_any = np.isfinite(best)
        other[rows] = np.where(has_any, best, np.nan)
        other_person[rows] = np.where(has_any, at, -1)
    return own, other, other_person


def _audit(name: str, eye: Eye, photos: np.ndarray, sample: Sample, seed: int) -> Audit:
    _, cosine = nearest(eye.vectors, photos)
    num_people = len(sample.names)
    _, of_centres = nearest(centres(eye.vectors, sample.person, num_people), photos)
    card = read_encoder_card(eye.encoder)
    thresholds = {fmr: card.thresholds.get(fmr, math.nan) if card else math.nan for fmr in FMRS}
    above: dict[str, Measure] = {}
    for fmr, threshold in thresholds.items():
        if math.isnan(threshold):
            above[fmr] = Measure(value=math.nan, note="the encoder's card says nothing of that rate")
            continue
        shares = mean_by_person((cosine >= threshold).astype(float), sample.person, num_people)
        mean, interval = mean_with_interval(shares, seed=seed)
        above[fmr] = Measure(value=mean, interval=interval)
    return Audit(
        gallery=name,
        eye=eye,
        num_photos=int(photos.any(axis=1).sum()),
        thresholds=thresholds,
        cosine=cosine,
        above=above,
        centres_above={fmr: float((of_centres >= t).mean()) for fmr, t in thresholds.items()},
    )


def nearest_own(eye: Eye, sample: Sample, seed: int = 0) -> Measure:
    """Mean over people of the share of their pictures that are nearest to their own person's others."""
    is_own = np.where(np.isnan(eye.own), np.nan, ~(eye.other >= eye.own))
    shares = mean_by_person(is_own, sample.person, len(sample.names))
    mean, interval = mean_with_interval(shares, seed=seed)
    return Measure(value=mean, interval=interval)
