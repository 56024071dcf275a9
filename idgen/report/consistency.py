"""Is the person kept? Face vectors of pictures and photos in, a report out; `idgen evaluate consistency`.

A picture without a face has similarity 0 to everything. Intervals come from resampling people.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from idgen.data.groups import group_names
from idgen.data.material import Material
from idgen.data.pictures import Picture
from idgen.encoders.base import FaceEncoder
from idgen.encoders.card import related
from idgen.encoders.gallery import Gallery
from idgen.errors import MeasureError
from idgen.metrics.identification import Identification, identify
from idgen.metrics.operating import bootstrap_intervals, error_rates, operating_points
from idgen.metrics.persons import (
    mean_by_person,
    mean_with_interval,
    share_accepted,
    similarity_to,
    spread_about_centre,
)
from idgen.metrics.scores import PairStatistics, pair_statistics
from idgen.report.document import Figure, Measure, Report, Table
from idgen.report.plots import cmc_figure, det_figure, distribution_figure

# What is shown of two kinds of pairs: name of `operating_points`, words.
SHOWN = {
    "genuine_mean": "similarity of one person's pictures",
    "impostor_mean": "similarity of two people's",
    "eer": "equal error rate",
    "fnmr_at_fmr_0.01": "FNMR at FMR 1 %",
    "fnmr_at_fmr_0.001": "FNMR at FMR 0.1 %",
    "fnmr_at_fmr_0": "FNMR at FMR 0",
    "tar_at_far_0.001": "TAR at FAR 0.1 %",
    "auc": "area under the ROC curve",
    "fisher_ratio": "Fisher ratio",
    "d_prime": "d'",
    "mcc": "best Matthews correlation",
    "genuine_lowest": "lowest of one person",
    "impostor_highest": "highest of two people",
}
MAX_RANK = 20
GROUPED = ("similarity to the reference", "similarity within", "rank-1")  # what is shown group by group


def only_with_faces(
    material: Material, galleries: Mapping[str, Gallery]
) -> tuple[Material, dict[str, Gallery], list[str]]:
    """References and other photos in which a face was found, and a warning of those that are left out.

    Unlike a picture, a photo without a face is no failure of what is evaluated.
    """
    kept, said = dict(galleries), []
    for name, words in (("references", "reference photos"), ("others", "other photos")):
        if name not in galleries:
            continue
        gallery, rows = galleries[name], np.flatnonzero(galleries[name].found)
        kept[name] = gallery.subset(rows)
        if len(rows) < len(gallery.found):
            lost = len(gallery.found) - len(rows)
            said.append(f"{lost} of {len(gallery.found)} {words} show no face and are left out.")
        photos, person = (
            ("references", "reference_person") if name == "references" else ("others", "other_person")
        )
        photos_kept = tuple(getattr(material, photos)[row] for row in rows)
        material = replace(material, **{photos: photos_kept, person: getattr(material, person)[rows]})
    if "references" in galleries and not material.references:
        raise MeasureError("no face was found in any of the reference photos; use another --detector")
    return material, kept, said


# --- what one encoder says --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the pictures.

    Attributes:
        subject: what they are called.
        detector: name of what found the faces.
        made_by: encoders behind the pictures, besides those that they name themselves.
        thresholds: name of an encoder -> cosine from which on it accepts.
        groups: labels of the pictures by which people are grouped.
        aligned: whether the pictures were aligned already.
        seed: of the resampling.
    """

    subject: str
    detector: str
    made_by: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    aligned: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Findings:
    """By one encoder: numbers, values of each person, and what the plots need."""

    label: str
    measures: dict[str, Measure]
    per_person: dict[str, np.ndarray]
    pairs: PairStatistics
    curve: np.ndarray  # CMC


def judge(
    encoder: FaceEncoder,
    label: str,
    material: Material,
    galleries: Mapping[str, Gallery],
    question: Question,
) -> Findings:
    """All numbers of one encoder."""
    seen = {name: gallery.vectors[encoder.id] for name, gallery in galleries.items()}
    num_people = len(material.names)
    pairs = pair_statistics(seen["pictures"], material.person, num_people=num_people)
    measures = pair_measures(pairs, question.seed)
    per_person = {
        "similarity within": pairs.genuine.person_mean,
        "spread (ID2)": spread_about_centre(seen["pictures"], material.person, num_people),
    }
    against = identify(seen["pictures"], material.person)
    if material.references:
        to_own, to_others = similarity_to(
            seen["references"], material.reference_person, seen["pictures"], material.person
        )
        per_person["similarity to the reference"] = mean_by_person(to_own, material.person, num_people)
        per_person["similarity to other people's references"] = mean_by_person(
            to_others, material.person, num_people
        )
        against = identify(seen["pictures"], material.person, seen["references"], material.reference_person)
    if material.others:
        beside, _ = similarity_to(seen["others"], material.other_person, seen["pictures"], material.person)
        per_person["similarity to another photo"] = mean_by_person(beside, material.person, num_people)
        per_person["copy-paste gap"] = (
            per_person["similarity to the reference"] - per_person["similarity to another photo"]
        )
    per_person.update(identification_values(against, material))
    if encoder.name in question.thresholds:
        per_person.update(accepted_values(seen, material, question.thresholds[encoder.name]))
    for name, values in per_person.items():
        mean, interval = mean_with_interval(values, seed=question.seed)
        note = "" if np.isfinite(mean) else "not defined: needs two pictures, or a reference, of a person"
        measures[name] = Measure(value=mean, interval=interval, note=note)
    return Findings(
        label=label, measures=measures, per_person=per_person, pairs=pairs,
        curve=against.cumulative_curve(min(MAX_RANK, max(2, num_people))),
    )  # fmt: skip


def pair_measures(pairs: PairStatistics, seed: int) -> dict[str, Measure]:
    """The numbers about pairs within the set."""
    numbers, intervals = operating_points(pairs), bootstrap_intervals(pairs, seed=seed)
    why = "not defined: needs pairs of one person and of two"
    return {
        name: Measure(value=value, interval=intervals.get(name), note="" if np.isfinite(value) else why)
        for name, value in numbers.items()
    }


def accepted_values(
    seen: Mapping[str, np.ndarray], material: Material, threshold: float
) -> dict[str, np.ndarray]:
    """Share of a person's pictures that pass for the person, and for somebody else, from a threshold on."""
    values = {}
    sets = (("the reference", "references", material.reference_person),
            ("another photo", "others", material.other_person))  # fmt: skip
    for words, name, whose in sets:
        if name in seen:
            own, wrong = share_accepted(seen[name], whose, seen["pictures"], material.person, threshold)
            values[f"accepted as on {words}"] = mean_by_person(own, material.person, len(material.names))
            values[f"accepted as somebody else on {words}"] = mean_by_person(
                wrong, material.person, len(material.names)
            )
    return values


def identification_values(found: Identification, material: Material) -> dict[str, np.ndarray]:
    """Rank-1, rank-5, average precision and inverse penalty, as means of each person."""
    values = {
        "rank-1": found.within(1),
        "rank-5": found.within(5),
        "mAP": found.average_precision,
        "mINP": found.inverse_penalty,
    }
    return {
        name: mean_by_person(value, material.person, len(material.names)) for name, value in values.items()
    }


# --- the report -------------------------------------------------------------------------------------------


def main_table(findings: Sequence[Findings], found: Measure) -> Table:
    """One row a number, one column an encoder."""
    people = dict.fromkeys(name for f in findings for name in f.measures if name in f.per_person)
    no_threshold = Measure(value=float("nan"), note="no --threshold for this encoder")
    rows: list[tuple[str | Measure, ...]] = [("face found", *[found] * len(findings))]
    rows += [(name, *(f.measures.get(name, no_threshold) for f in findings)) for name in people]
    rows += [(words, *(f.measures[name] for f in findings)) for name, words in SHOWN.items()]
    return Table(
        title="Is it the same person?",
        columns=("measure", *(f.label for f in findings)),
        rows=tuple(rows),
        note="Similarities are cosines; a picture without a face counts as 0. Rates are among the pictures "
        "themselves; rank, mAP and mINP against the references where there are any, else among the pictures. "
        "ID2 is the mean squared distance to the person's mean vector. The copy-paste gap is the similarity "
        "to the reference less that to another photo of the person: large where one photo is copied.",
    )


def group_tables(
    labels: Sequence[str], material: Material, findings: Sequence[Findings], found: np.ndarray, seed: int
) -> list[Table]:
    """For each label: what is found and how alike, one row a group and encoder."""
    wanted = [n for n in GROUPED if n in findings[0].per_person]
    share = mean_by_person(found.astype(float), material.person, len(material.names))
    tables = []
    for label in labels:
        groups = np.array(group_names(label, labelled(label, material)))
        rows: list[tuple[str | int | Measure, ...]] = []
        for group in sorted(set(groups) - {""}):
            members = np.unique(material.person[groups == group])
            for finding in findings:
                values = [share[members], *(finding.per_person[name][members] for name in wanted)]
                cells = [
                    Measure(value=m, interval=i)
                    for m, i in (mean_with_interval(v, seed=seed) for v in values)
                ]
                rows.append((str(group), len(members), finding.label, *cells))
        head = ("group", "people", "encoder", "face found", *wanted)
        tables.append(Table(title=f"By {label}", columns=head, rows=tuple(rows)))
    return tables


def labelled(label: str, material: Material) -> list[Picture]:
    """For each picture whatever has the label: itself, else the first reference of its person."""
    if any(label in picture.labels for picture in material.pictures.pictures) or not material.references:
        return list(material.pictures.pictures)
    first = {int(number): photo for number, photo in
             zip(material.reference_person[::-1], material.references[::-1], strict=True)}  # fmt: skip
    unknown = Picture(identity="", name="")
    return [first.get(int(number), unknown) for number in material.person]


def figures(findings: Sequence[Findings]) -> list[Figure]:
    """Distributions of each encoder, DET and CMC of all."""
    drawn = []
    for f in findings:
        lines = {"equal error rate": f.measures["eer_threshold"].value,
                 "FMR 0.1 %": f.measures["threshold_at_fmr_0.001"].value}  # fmt: skip
        pair = (f.pairs.genuine.histogram, f.pairs.impostor.histogram)
        drawn.append(distribution_figure(f"Similarities by {f.label}", *pair, thresholds=lines))
    rates = {f.label: error_rates(f.pairs.genuine.histogram, f.pairs.impostor.histogram) for f in findings}
    drawn.append(det_figure("Error trade-off", {name: (r.fmr, r.fnmr) for name, r in rates.items()}))
    return [*drawn, cmc_figure("Found within rank", {f.label: f.curve for f in findings})]


def warnings_of(
    material: Material, relations: Mapping[str, bool], found: float, made_by: Sequence[str]
) -> list[str]:
    """What a reader must know first."""
    said = []
    if not made_by:
        said.append("Nothing says which encoder conditioned these pictures, so none is marked as related; "
                    "name it with --made-by.")  # fmt: skip
    if all(relations.values()):
        said.append("Every encoder here conditioned these pictures or shares a teacher with one that did: "
                    "these numbers flatter. Add an independent one with --encoder.")  # fmt: skip
    if found < 1:
        said.append(f"No face was found in {1 - found:.1%} of the pictures; they count as similarity 0.")
    people = material.pictures.people()
    single = sum(len(rows) == 1 for rows in people.values())
    if single:
        said.append(f"{single} of {len(people)} people have one picture: no pairs of their own.")
    missing = len(people) - len(np.unique(material.reference_person))
    if material.references and missing:
        said.append(f"{missing} of {len(people)} people have no reference.")
    return said


def consistency_report(
    material: Material, galleries: Mapping[str, Gallery], encoders: Sequence[FaceEncoder], question: Question
) -> Report:
    """Everything that is found, by each encoder.

    Args:
        material: who is compared with what.
        galleries: what was seen of its "pictures", "references" and "others".
        encoders: that looked, at least one.
        question: what is asked.

    Raises:
        MeasureError: if no reference photo shows a face.
    """
    material, galleries, faceless = only_with_faces(material, galleries)
    made_by = (*material.pictures.encoder_ids, *question.made_by)
    relations = {encoder.id: related(encoder, made_by, encoders) for encoder in encoders}
    findings = []
    for encoder in encoders:
        label = f"{encoder.name} (related)" if relations[encoder.id] else encoder.name
        findings.append(judge(encoder, label, material, galleries, question))
    found = galleries["pictures"].found
    share, interval = mean_with_interval(
        mean_by_person(found.astype(float), material.person, len(material.names)), seed=question.seed
    )
    measures = {"face found": Measure(value=share, interval=interval)}
    per_identity: dict[str, dict[str, float]] = {}
    for encoder, finding in zip(encoders, findings, strict=True):
        measures.update({f"{encoder.name}/{name}": value for name, value in finding.measures.items()})
        for name, values in finding.per_person.items():
            per_identity[f"{encoder.name}/{name}"] = dict(zip(material.names, values.tolist(), strict=True))
    return Report(
        kind="consistency",
        title="Is the person kept?",
        subject=f"{len(material.pictures)} pictures of {len(material.names)} people from {question.subject}",
        settings={"encoders": [e.id for e in encoders], "detector": question.detector,
                  "made by": list(made_by), "aligned": question.aligned,
                  "references": bool(material.references), "seed": question.seed,
                  "thresholds": question.thresholds},
        warnings=(*faceless, *warnings_of(material, relations, share, made_by)),
        measures=measures,
        per_identity=per_identity,
        sections=(main_table(findings, measures["face found"]),
                  *group_tables(question.groups, material, findings, found, question.seed),
                  *figures(findings)),
        data={"related": [e.id for e in encoders if relations[e.id]],
              "without face": [material.pictures.pictures[row].name for row in np.flatnonzero(~found)]},
    )  # fmt: skip
