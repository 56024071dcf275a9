r"""Does a trait of the person come out where the prompt is silent about it? By a probe on face vectors.

    idgen evaluate follow PICTURES --references PHOTOS --label p_female --learn-from TRAINING_PHOTOS \
        --encoder OTHER.onnx --out REPORT

A probe (a support vector machine) learns the label on TRAINING_PHOTOS (Parquet tables have labels;
probabilities count where they are clear, above 0.8 or below 0.2), one mean vector a person, and answers for
PICTURES. The right answer is the label of the person in PHOTOS. How often the probe is right on PHOTOS
themselves stands beside it.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from idgen.config import Parser
from idgen.data.groups import group_names
from idgen.encoders.arcface import load_encoders
from idgen.encoders.card import related
from idgen.encoders.seen import Seen, look
from idgen.errors import MeasureError
from idgen.faces.detect import load_detector
from idgen.metrics.leakage import centres
from idgen.metrics.persons import mean_by_person, mean_with_interval
from idgen.metrics.probe import Probe, fit_probe
from idgen.report.document import Measure, Report, Table
from idgen.report.write import publish


def label_of_people(seen: Seen, label: str) -> dict[str, str]:
    """Person -> the group of their first clear picture; people without one are left out.

    Raises:
        ConfigError: if no picture has the label.
    """
    groups = group_names(label, seen.pictures.pictures)
    found: dict[str, str] = {}
    for picture, group in zip(seen.pictures.pictures, groups, strict=True):
        if group:
            found.setdefault(picture.identity, group)
    return found


def learn(seen: Seen, encoder_id: str, truth: Mapping[str, str], positive: str) -> Probe:
    """The probe on one mean vector a person."""
    vectors = centres(seen.gallery.vectors[encoder_id], seen.person, len(seen.names))
    rows = [i for i, name in enumerate(seen.names) if name in truth and vectors[i].any()]
    return fit_probe(vectors[rows], np.array([truth[seen.names[i]] == positive for i in rows]))


def right_answers(
    probe: Probe, seen: Seen, encoder_id: str, truth: Mapping[str, str], positive: str
) -> np.ndarray:
    """(people,) share of right answers of each; no face is wrong, NaN where the label is not known."""
    vectors = seen.gallery.vectors[encoder_id]
    says = probe.says(vectors)
    wanted = [truth.get(picture.identity) for picture in seen.pictures.pictures]
    right = [
        np.nan if want is None else float(bool(face) and bool(said) == (want == positive))
        for want, said, face in zip(wanted, says, np.any(vectors, axis=1).tolist(), strict=True)
    ]
    return mean_by_person(np.array(right), seen.person, len(seen.names))


def evaluate(options: argparse.Namespace) -> Report:
    """Everything but writing.

    Raises:
        MeasureError: if the label has not two groups, or the two sets have no person in common.
    """
    encoders = load_encoders(options.encoder)
    detector, store = load_detector(options.detector), options.out / "seen"
    made = look(options.pictures, detector, encoders, store=store, aligned=options.aligned, label="pictures")
    photos, teaching = (
        look(path, detector, encoders, store=store, aligned=options.photos_aligned, label="photos")
        for path in (options.references, options.learn_from)
    )
    taught, truth = label_of_people(teaching, options.label), label_of_people(photos, options.label)
    groups = sorted(set(taught.values()))
    if len(groups) != 2:
        raise MeasureError(f"a probe answers yes or no; {options.label} has the groups {', '.join(groups)}")
    asked = {name: truth[name] for name in made.names if name in truth}
    if not asked:
        raise MeasureError(f"nobody of {options.pictures} has a clear {options.label} there")
    made_by = (*made.pictures.encoder_ids, *options.made_by)
    measures: dict[str, Measure] = {}
    per_identity: dict[str, dict[str, float]] = {}
    rows: list[tuple[str | Measure, ...]] = []
    for encoder in encoders:
        probe = learn(teaching, encoder.id, taught, groups[0])
        label = f"{encoder.name} (related)" if related(encoder, made_by, encoders) else encoder.name
        cells = []
        for words, seen in (("pictures", made), ("photos", photos)):
            each = right_answers(probe, seen, encoder.id, asked, groups[0])
            mean, interval = mean_with_interval(each, seed=options.seed)
            cells.append(Measure(value=mean, interval=interval))
            measures[f"{encoder.name}/{options.label} of {words}"] = cells[-1]
            if seen is made:
                per_identity[f"{encoder.name}/{options.label} of {words}"] = dict(
                    zip(made.names, each.tolist(), strict=True)
                )
        rows.append((label, *cells))
    settings = {
        "encoders": [encoder.id for encoder in encoders],
        "label": options.label,
        "groups": groups,
        "learned from": str(options.learn_from),
        "detector": options.detector,
        "made by": list(made_by),
        "seed": options.seed,
    }
    table = Table(
        title="Right answers of the probe",
        columns=("probe on", "pictures", "photos of them"),
        rows=tuple(rows),
        note="Means over people. A picture without a face is wrong.",
    )
    return Report(
        kind="follow",
        title=f"Does {options.label} follow the person?",
        subject=f"{len(made.pictures)} pictures of {len(made.names)} people, {len(asked)} of a clear label",
        settings=settings,
        measures=measures,
        per_identity=per_identity,
        sections=(table,),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, show."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="what is evaluated")
    parser.add_argument("--references", type=Path, required=True, help="labelled photos of the same people")
    parser.add_argument("--learn-from", type=Path, required=True, help="labelled photos of other people")
    parser.add_argument("--label", default="p_female", help="which label (p_female)")
    parser.add_argument(
        "--encoder", action="append", default=[], metavar="SPEC", help="besides the embedded ones"
    )
    parser.add_argument("--detector", default="mini", help="mini, yunet:FILE, scrfd:FILE or a pack (mini)")
    parser.add_argument("--aligned", action="store_true", help="PICTURES are aligned (112 or 128 pixels)")
    parser.add_argument("--photos-aligned", action="store_true", help="all photos are")
    parser.add_argument(
        "--made-by", action="append", default=[], metavar="ID", help="encoder behind PICTURES"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resampling (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    options = parser.parse_args(argv)
    report = evaluate(options)
    publish(report, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
