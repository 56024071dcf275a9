r"""Do pictures keep the person? Error rates, identification, similarity to references, by several encoders.

    idgen evaluate consistency PICTURES --references PHOTOS --encoder mini --encoder OTHER.onnx --out REPORT

PICTURES and PHOTOS: a folder with one folder a person, a run of `idgen generate`, or a Parquet table with the
columns identity and image or path. A picture without a face has similarity 0 to everything.
Intervals come from resampling people. Where PICTURES name the photo they were made from, that one is the
reference, and other photos of the person in PHOTOS show what is kept beside that one photo.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from idgen.config import Parser
from idgen.data.material import gather
from idgen.encoders.arcface import load_encoders
from idgen.encoders.gallery import embed_pictures
from idgen.errors import ConfigError, MeasureError
from idgen.faces.detect import load_detector
from idgen.metrics.scores import memory_bytes
from idgen.report.consistency import Question, consistency_report
from idgen.report.document import Report
from idgen.report.write import publish


def evaluate(options: argparse.Namespace) -> Report:
    """Everything but writing."""
    material = gather(options.pictures, options.references, options.other_photos)
    encoders, detector = load_encoders(options.encoder), load_detector(options.detector)
    unknown = set(options.thresholds) - {encoder.name for encoder in encoders}
    if unknown:
        known = ", ".join(encoder.name for encoder in encoders)
        raise ConfigError(f"--threshold {sorted(unknown)[0]}=...: no such encoder here (known are {known})")
    dim = max(encoder.dim for encoder in encoders)
    need = memory_bytes(len(material.names), dim, len(material.pictures), block=options.block)
    print(f"{len(material.pictures)} pictures of {len(material.names)} people; "
          f"comparing all pairs takes about {need / 1e6:.0f} MB at most")  # fmt: skip
    sets = {
        "pictures": (material.pictures.pictures, options.aligned),
        "references": (material.references, options.references_aligned),
        "others": (material.others, options.references_aligned),
    }
    galleries = {
        name: embed_pictures(
            pictures, detector, encoders, store=options.out / "seen", aligned=aligned, label=name
        )
        for name, (pictures, aligned) in sets.items()
        if pictures
    }
    question = Question(
        subject=str(options.pictures),
        detector=detector.name,
        made_by=tuple(options.made_by),
        thresholds=options.thresholds,
        groups=tuple(options.groups),
        aligned=options.aligned,
        seed=options.seed,
    )
    return consistency_report(material, galleries, encoders, question)


def named_threshold(text: str) -> tuple[str, float]:
    """``mini=0.27`` -> name and cosine.

    Raises:
        ConfigError: if it is not that.
    """
    name, _, cosine = text.rpartition("=")
    try:
        value = float(cosine)
    except ValueError:
        value = float("nan")
    if not name or not -1 <= value <= 1:
        raise ConfigError(f"--threshold is an encoder's name and a cosine, as mini=0.27; got {text!r}")
    return name, value


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="what is evaluated")
    parser.add_argument("--references", type=Path, help="photos of the same people")
    parser.add_argument("--other-photos", type=Path, help="further photos of them, for the copy-paste gap")
    parser.add_argument(
        "--encoder", action="append", default=[], metavar="SPEC", help="besides mini and judge"
    )
    parser.add_argument("--detector", default="mini", help="mini, yunet:FILE, scrfd:FILE or a pack (mini)")
    parser.add_argument("--aligned", action="store_true", help="PICTURES are aligned (112 or 128 pixels)")
    parser.add_argument("--references-aligned", action="store_true", help="the photos are")
    parser.add_argument(
        "--made-by", action="append", default=[], metavar="ID", help="encoder behind PICTURES"
    )
    parser.add_argument("--groups", type=lambda text: text.split(","), default=[], metavar="LABEL,...")
    parser.add_argument("--threshold", action="append", default=[], metavar="NAME=COSINE",
                        help="from where on an encoder accepts, as mini=0.27")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the resampling (0)")
    parser.add_argument("--block", type=int, default=2048, help="pictures a side compared at once (2048)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    options = parser.parse_args(argv)
    options.thresholds = dict(map(named_threshold, options.threshold))
    if options.block < 1:
        raise ConfigError(f"--block must be at least 1, got {options.block}")
    if options.other_photos and not options.references:
        raise MeasureError("--other-photos are compared with --references; give these too")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, show."""
    options = read_options(argv)
    report = evaluate(options)
    publish(report, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
