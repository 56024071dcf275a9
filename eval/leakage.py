r"""Are made pictures somebody's? The nearest real face of each, in galleries such as the training set.

    idgen evaluate leakage PICTURES --gallery TRAINING_PHOTOS --control OTHER_PHOTOS --out REPORT

PICTURES and photos: a folder with one folder a person, a run of `idgen generate`, or a Parquet table.
A face counts as somebody's from the threshold on at which 1 in 1,000 (1 in 10,000) pairs of two people pass,
as the encoder's card says, or as --calibrate PHOTOS measures. Who has many photos to be compared with passes
by chance: read the shares beside those of --control, real people who are not in the gallery.
`quarantine.csv` lists what to take out.
"""

import argparse
import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from idgen.config import Parser
from idgen.data.pictures import Picture
from idgen.encoders.arcface import load_encoders
from idgen.encoders.base import FaceEncoder
from idgen.encoders.card import read_encoder_card, related
from idgen.encoders.seen import Seen, look
from idgen.faces.detect import load_detector
from idgen.metrics.leakage import centres, impostor_thresholds, nearest, nearest_by_faiss
from idgen.metrics.persons import mean_by_person, mean_with_interval
from idgen.report.document import Figure, Measure, Pairs, PicturePair, Report, Table
from idgen.report.plots import histogram_figure
from idgen.report.write import publish
from idgen.storage import replacing

FMRS = {"1e-3": 1e-3, "1e-4": 1e-4}
THUMBNAIL_PX = 144
Search = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What one encoder finds in one gallery."""

    encoder: FaceEncoder
    label: str  # its name, and whether it had a part in the pictures
    gallery: Seen
    thresholds: dict[str, float]  # NaN where there is none
    index: np.ndarray  # (N,) photo nearest to each picture
    cosine: np.ndarray
    centre_index: np.ndarray  # (P,) photo nearest to each identity's centre
    centre_cosine: np.ndarray
    control: np.ndarray | None  # (people not in the gallery,) cosines of their photos
    control_person: np.ndarray | None


# --- looking ----------------------------------------------------------------------------------------------


def thresholds_of(encoder: FaceEncoder, calibration: Seen | None) -> dict[str, float]:
    """From the photos that are given for it, else from the encoder's card; NaN where there is none."""
    if calibration is not None:
        measured = impostor_thresholds(
            calibration.gallery.vectors[encoder.id], calibration.person, list(FMRS.values())
        )
        return {name: measured[fmr] for name, fmr in FMRS.items()}
    card = read_encoder_card(encoder)
    return {name: card.thresholds.get(name, float("nan")) if card else float("nan") for name in FMRS}


def search_in_blocks(vectors: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`nearest` with a progress bar."""
    with tqdm(total=len(vectors), desc="searching", unit="picture", disable=None) as bar:
        return nearest(vectors, gallery, advance=bar.update)


def compare(
    made: Seen,
    gallery: Seen,
    control: Seen | None,
    encoder: FaceEncoder,
    label: str,
    thresholds: dict[str, float],
    search: Search,
) -> Neighbours:
    """Nearest photos of every picture, of every identity's centre, and of the control's photos."""
    seen, photos = made.gallery.vectors[encoder.id], gallery.gallery.vectors[encoder.id]
    index, cosine = search(seen, photos)
    centre_index, centre_cosine = search(centres(seen, made.person, len(made.names)), photos)
    strangers = strangers_person = None
    if control is not None:
        inside = set(gallery.names) - {""}
        outside = np.array([name not in inside for name in control.names])[control.person]
        strangers = search(control.gallery.vectors[encoder.id][outside], photos)[1]
        strangers_person = control.person[outside]
    return Neighbours(
        encoder=encoder, label=label, gallery=gallery, thresholds=thresholds, index=index, cosine=cosine,
        centre_index=centre_index, centre_cosine=centre_cosine, control=strangers,
        control_person=strangers_person,
    )  # fmt: skip


# --- numbers ----------------------------------------------------------------------------------------------


def share_above(cosine: np.ndarray, person: np.ndarray, threshold: float, seed: int) -> Measure:
    """Mean over people of the share of their faces above a threshold."""
    if np.isnan(threshold):
        return Measure(
            value=float("nan"), note="no threshold: none in the encoder's card; --calibrate PHOTOS"
        )
    above = np.where(np.isnan(cosine), np.nan, cosine >= threshold)
    mean, interval = mean_with_interval(
        mean_by_person(above, person, int(person.max(initial=-1)) + 1), seed=seed
    )
    return Measure(value=mean, interval=interval, note="" if np.isfinite(mean) else "no face")


def measures_of(found: Neighbours, made: Seen, seed: int) -> dict[str, Measure]:
    """The numbers of one encoder in one gallery."""
    everyone = np.arange(len(made.names))
    groups = {"pictures": (found.cosine, made.person), "centres": (found.centre_cosine, everyone)}
    if found.control is not None and found.control_person is not None:
        groups["control"] = (found.control, found.control_person)
    measures: dict[str, Measure] = {}
    for group, (cosine, person) in groups.items():
        mean, interval = mean_with_interval(
            mean_by_person(cosine, person, int(person.max(initial=-1)) + 1), seed=seed
        )
        measures[f"{group}: similarity to the nearest"] = Measure(value=mean, interval=interval)
        highest = float(np.nanmax(cosine)) if np.isfinite(cosine).any() else float("nan")
        measures[f"{group}: highest"] = Measure(value=highest)
        for name, threshold in found.thresholds.items():
            measures[f"{group}: above FMR {name}"] = share_above(cosine, person, threshold, seed)
    for name, threshold in found.thresholds.items():
        note = "" if np.isfinite(threshold) else "none in the encoder's card; --calibrate PHOTOS"
        measures[f"threshold at FMR {name}"] = Measure(value=threshold, note=note)
    return measures


# --- what is shown ----------------------------------------------------------------------------------------


def thumbnail(picture: Picture) -> bytes:
    """A small PNG of a picture."""
    image = picture.open()
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def worst_pairs(found: Neighbours, made: Seen, count: int) -> Pairs:
    """The pictures that are most like somebody, each beside that photo."""
    order = np.argsort(-np.nan_to_num(found.cosine, nan=-2.0), kind="stable")[:count]
    pairs = []
    for row in (row for row in order if found.index[row] >= 0):
        picture, photo = made.pictures.pictures[row], found.gallery.pictures.pictures[found.index[row]]
        caption = f"{found.cosine[row]:.3f} - {picture.name} and {photo.name}"
        pairs.append(PicturePair(left_png=thumbnail(picture), right_png=thumbnail(photo), caption=caption))
    return Pairs(
        title=f"Most like a photo of {found.gallery.pictures.source}, by {found.label}",
        pairs=tuple(pairs),
        note="Left the picture, right the photo. Look at them: a number does not know who somebody is.",
    )


def similarity_figure(found: Neighbours, number: int) -> Figure:
    """Similarities to the nearest photo."""
    samples = {"pictures": found.cosine, "centres of identities": found.centre_cosine}
    if found.control is not None:
        samples["people not in the gallery"] = found.control
    title = f"Similarity to the nearest photo of gallery {number}, by {found.label}"
    return histogram_figure(title, samples, "cosine to the nearest photo")


def quarantine(everything: Sequence[Neighbours], made: Seen, at: str) -> list[dict[str, str]]:
    """Pictures and identities above the threshold at FMR ``at`` by any encoder in any gallery."""
    rows = []
    for found in everything:
        kinds = (
            ("picture", found.cosine, found.index, [p.name for p in made.pictures.pictures], made.person),
            (
                "identity",
                found.centre_cosine,
                found.centre_index,
                list(made.names),
                np.arange(len(made.names)),
            ),
        )
        for kind, cosine, index, names, person in kinds:
            for row in np.flatnonzero(cosine >= found.thresholds[at]):  # false for NaN
                photo = found.gallery.pictures.pictures[index[row]]
                rows.append({
                    "kind": kind, "name": names[row], "identity": made.names[person[row]],
                    "similarity": f"{cosine[row]:.4f}", "threshold": f"{found.thresholds[at]:.4f}",
                    "encoder": found.encoder.id, "gallery": found.gallery.pictures.source,
                    "neighbour": photo.name, "neighbour_identity": photo.identity,
                })  # fmt: skip
    return sorted(rows, key=lambda row: (row["kind"], -float(row["similarity"]), row["name"]))


def write_quarantine(rows: list[dict[str, str]], path: Path) -> None:
    """The list as CSV, with its head even where nothing is on it."""
    head = [
        "kind", "name", "identity", "similarity", "threshold", "encoder", "gallery", "neighbour",
        "neighbour_identity",
    ]  # fmt: skip
    stream = io.StringIO()
    writer = csv.DictWriter(stream, head)
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as file:
        file.write(stream.getvalue().encode())


def evaluate(options: argparse.Namespace) -> tuple[Report, list[dict[str, str]]]:
    """Everything but writing: the report, and what to quarantine."""
    encoders = load_encoders(options.encoder)
    detector, store = load_detector(options.detector), options.out / "seen"
    made = look(options.pictures, detector, encoders, store=store, aligned=options.aligned, label="pictures")
    photos = {"store": store, "aligned": options.galleries_aligned}
    known = {
        name: look(path, detector, encoders, label=name, **photos)
        for name, path in (("control", options.control), ("calibrate", options.calibrate))
        if path is not None
    }
    thresholds = {e.id: thresholds_of(e, known.get("calibrate")) for e in encoders}
    made_by = (*made.pictures.encoder_ids, *options.made_by)
    labels = {e.id: f"{e.name} (related)" if related(e, made_by, encoders) else e.name for e in encoders}
    search = nearest_by_faiss if options.search == "faiss" else search_in_blocks
    everything: list[Neighbours] = []
    sections: list[Table | Figure | Pairs] = []
    measures: dict[str, Measure] = {"face found": Measure(value=float(made.gallery.found.mean()))}
    per_identity: dict[str, dict[str, float]] = {}
    for number, path in enumerate(options.gallery, 1):
        gallery = look(path, detector, encoders, label=f"gallery {number}", **photos)
        here = [
            compare(made, gallery, known.get("control"), e, labels[e.id], thresholds[e.id], search)
            for e in encoders
        ]
        numbers = [measures_of(found, made, options.seed) for found in here]
        sections.append(gallery_table(number, gallery, here, numbers))
        for found, own in zip(here, numbers, strict=True):
            stem = f"{found.encoder.name}/gallery {number}"
            measures.update({f"{stem}/{name}": value for name, value in own.items()})
            each = mean_by_person(found.cosine, made.person, len(made.names)).tolist()
            per_identity[f"{stem}/similarity to the nearest"] = dict(zip(made.names, each, strict=True))
        sections += [similarity_figure(found, number) for found in here]
        sections += [worst_pairs(found, made, options.worst) for found in here]
        everything += here
    rows = quarantine(everything, made, options.quarantine_at)
    report = Report(
        kind="leakage",
        title="Are these somebody's faces?",
        subject=f"{len(made.pictures)} pictures of {len(made.names)} identities from {options.pictures}",
        settings={"encoders": [e.id for e in encoders], "galleries": [str(p) for p in options.gallery],
                  "made by": list(made_by), "control": str(options.control or ""),
                  "calibrated on": str(options.calibrate or ""),
                  "detector": options.detector, "search": options.search, "seed": options.seed,
                  "quarantine at FMR": options.quarantine_at},
        warnings=tuple(warnings_of(made, thresholds, encoders, has_control=options.control is not None)),
        measures=measures,
        per_identity=per_identity,
        sections=tuple(sections),
        data={"to quarantine": rows},
    )  # fmt: skip
    return report, rows


def gallery_table(
    number: int, gallery: Seen, here: Sequence[Neighbours], numbers: Sequence[dict[str, Measure]]
) -> Table:
    """One row a number, one column an encoder."""
    lost = int((~gallery.gallery.found).sum())
    return Table(
        title=f"Gallery {number}: {len(gallery.pictures)} photos of {gallery.pictures.source}",
        columns=("measure", *(found.label for found in here)),
        rows=tuple((name, *(own[name] for own in numbers)) for name in numbers[0]),
        note="Cosines to the nearest photo; shares are means over identities, with intervals over them. With "
        "M photos to be compared with a face has M chances to pass a threshold: read the shares beside the "
        "control's." + (f" {lost} photos show no face and are left out." if lost else ""),
    )


def warnings_of(
    made: Seen, thresholds: dict[str, dict[str, float]], encoders: Sequence[FaceEncoder], *, has_control: bool
) -> list[str]:
    """What a reader must know first."""
    said = []
    for encoder in encoders:
        if any(np.isnan(value) for value in thresholds[encoder.id].values()):
            said.append(
                f"{encoder.name} has no threshold for some rate: nothing is quarantined by it there. "
                "Measure thresholds with --calibrate PHOTOS of people who are set aside."
            )
    if not has_control:
        said.append(
            "There is no control: without --control PHOTOS nobody can say which share passes by chance."
        )
    lost = int((~made.gallery.found).sum())
    if lost:
        said.append(f"No face was found in {lost} of {len(made.pictures)} pictures; they have no neighbour.")
    return said


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="what is evaluated")
    parser.add_argument("--gallery", type=Path, action="append", required=True, help="photos of real people")
    parser.add_argument("--control", type=Path, help="photos of real people who are not in the galleries")
    parser.add_argument("--calibrate", type=Path, metavar="PHOTOS", help="people to measure thresholds on")
    parser.add_argument(
        "--encoder", action="append", default=[], metavar="SPEC", help="besides mini and judge"
    )
    parser.add_argument("--detector", default="mini", help="mini, yunet:FILE, scrfd:FILE or a pack (mini)")
    parser.add_argument("--aligned", action="store_true", help="PICTURES are aligned (112 or 128 pixels)")
    parser.add_argument(
        "--made-by", action="append", default=[], metavar="ID", help="encoder behind PICTURES"
    )
    parser.add_argument("--galleries-aligned", action="store_true", help="all photos are")
    parser.add_argument("--search", choices=("blocks", "faiss"), default="blocks", help="how (blocks)")
    parser.add_argument("--quarantine-at", choices=sorted(FMRS), default="1e-4", help="which FMR (1e-4)")
    parser.add_argument("--worst", type=int, default=12, help="pairs to look at (12)")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, show."""
    options = read_options(argv)
    report, rows = evaluate(options)
    publish(report, options.out)
    write_quarantine(rows, options.out / "quarantine.csv")
    print(f"to quarantine: {len(rows)} ({options.out / 'quarantine.csv'})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
