r"""From which cosine on does an encoder take two people for one, how often? Measured, and put into its card.

    idgen evaluate thresholds PHOTOS --encoder w600k_r50.onnx --write-card --out REPORT

PHOTOS: a folder with one folder a person, or a Parquet table, of people whom the encoder has never seen.
All pairs of two people count. The card is the JSON file beside the ONNX file; `idgen evaluate leakage` reads
the thresholds there, and every command whether an encoder shares its teacher with another one.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from idgen.config import Parser
from idgen.data.images import split_names
from idgen.data.pictures import PictureSet, read_pictures
from idgen.encoders.arcface import OnnxFaceEncoder, load_encoder
from idgen.encoders.card import EncoderCard, read_encoder_card, write_encoder_card
from idgen.encoders.gallery import embed_pictures
from idgen.errors import ConfigError, MeasureError
from idgen.faces.detect import load_detector
from idgen.metrics.leakage import PAIRS_PER_HIT, impostor_thresholds
from idgen.metrics.scores import pair_statistics
from idgen.report.document import Measure, Report, Table
from idgen.report.plots import distribution_figure
from idgen.report.write import publish

FMRS = {"1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4}


def read_people(options: argparse.Namespace) -> PictureSet:
    """The photos; where ``--held-out``, of the tenth of the people that training sets aside.

    Raises:
        MeasureError: if there are not two people.
    """
    photos = read_pictures(options.photos)
    if options.held_out:
        kept = set(split_names(list(photos.people()))[0])
        photos = photos.subset([i for i, p in enumerate(photos.pictures) if p.identity in kept])
    if len(photos.people()) < 2:
        raise MeasureError(f"{options.photos} shows {len(photos.people())} people; pairs of two are needed")
    return photos


def evaluate(options: argparse.Namespace, encoder: OnnxFaceEncoder) -> Report:
    """Everything but writing."""
    photos, detector = read_people(options), load_detector(options.detector)
    names = {name: i for i, name in enumerate(photos.people())}
    gallery = embed_pictures(
        photos.pictures, detector, [encoder], store=options.out / "seen", aligned=options.aligned
    )
    vectors = gallery.vectors[encoder.id][gallery.found]
    person = np.array([names[p.identity] for p in photos.pictures])[gallery.found]
    pairs = pair_statistics(vectors, person)
    thresholds = impostor_thresholds(vectors, person, list(FMRS.values()))
    few = f"not defined: fewer than {PAIRS_PER_HIT} pairs of two people reach it"
    measures = {
        f"{encoder.name}/threshold at FMR {name}": Measure(
            value=thresholds[fmr], note="" if np.isfinite(thresholds[fmr]) else few
        )
        for name, fmr in FMRS.items()
    }
    lost = int((~gallery.found).sum())
    lines = {f"FMR {name}": thresholds[fmr] for name, fmr in FMRS.items()}
    table = Table(
        title="Thresholds",
        columns=("measure", encoder.name),
        rows=(
            *((name.partition("/")[2], value) for name, value in measures.items()),
            ("pairs of two people", pairs.impostor.count),
        ),
        note="The lowest cosine that at most this share of all pairs of two people reach.",
    )
    histograms = pairs.genuine.histogram, pairs.impostor.histogram
    return Report(
        kind="thresholds",
        title="When are two faces one person's?",
        subject=f"{len(vectors)} photos of {len(names)} people from {options.photos.name}"
        + (" (the tenth that is set aside)" if options.held_out else ""),
        settings={"encoders": [encoder.id], "detector": detector.name, "aligned": options.aligned,
                  "held out": options.held_out},
        warnings=(f"No face was found in {lost} photos; they are left out.",) if lost else (),
        measures=measures,
        sections=(table, distribution_figure("Similarities", *histograms, thresholds=lines)),
        data={"impostor pairs": pairs.impostor.count},
    )  # fmt: skip


def card_of(encoder: OnnxFaceEncoder, report: Report, teachers: Sequence[str]) -> EncoderCard:
    """The encoder's card with these thresholds; what else it says is kept."""
    known = read_encoder_card(encoder) or EncoderCard(encoder=encoder.id)
    measured = {name: report.measures[f"{encoder.name}/threshold at FMR {name}"].value for name in FMRS}
    words = f"all {report.data['impostor pairs']:,} pairs of two people among {report.subject}"
    return replace(
        known,
        taught_by=tuple(load_encoder(spec).id for spec in teachers) or known.taught_by,
        thresholds={name: round(value, 4) for name, value in measured.items() if np.isfinite(value)},
        thresholds_from=words,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, show."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="people set aside for this")
    parser.add_argument(
        "--encoder", default="mini", metavar="SPEC", help="mini, a pack or an ONNX file (mini)"
    )
    parser.add_argument("--held-out", action="store_true", help="only the tenth of the people set aside")
    parser.add_argument("--detector", default="mini", help="mini, yunet:FILE, scrfd:FILE or a pack (mini)")
    parser.add_argument("--aligned", action="store_true", help="the photos are aligned (112 or 128 pixels)")
    parser.add_argument("--taught-by", action="append", default=[], metavar="SPEC", help="its teacher")
    parser.add_argument("--write-card", action="store_true", help="put the thresholds beside the ONNX file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    options = parser.parse_args(argv)
    if options.taught_by and not options.write_card:
        raise ConfigError("--taught-by stands in the card; add --write-card")
    encoder = load_encoder(options.encoder)
    report = evaluate(options, encoder)
    publish(report, options.out)
    if options.write_card:
        print(f"the card: {write_encoder_card(encoder.path, card_of(encoder, report, options.taught_by))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
