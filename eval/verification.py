r"""How well does an encoder tell people apart? The verification protocol on any list of pairs.

    idgen evaluate verification --pairs pairs.txt --pictures lfw --encoder w600k_r50.onnx --out REPORT
    idgen evaluate verification --pairs lfw.bin --encoder buffalo_l --flip-test --grid arcface --out REPORT

PAIRS: `pairs.txt` as LFW has it, a CSV (file_a, file_b, same, fold), or a `.bin` of insightface. Each fold is
decided by the threshold that is best on the others; a list without folds is cut into ten of neighbours.
A picture without a face has similarity 0 to everything.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from idgen.config import Parser
from idgen.data.pairs import PairList, folds_of, read_pairs
from idgen.encoders.arcface import load_encoder, told_apart
from idgen.encoders.base import FaceEncoder
from idgen.encoders.flipped import FlipTest
from idgen.encoders.gallery import embed_pictures
from idgen.faces.detect import load_detector
from idgen.metrics.bootstrap import paired_difference
from idgen.metrics.scores import NUM_BINS
from idgen.metrics.verification import (
    best_threshold,
    decided_rightly,
    fold_means,
    grid_decided_rightly,
    roc,
    standard_error,
    tar_at_far,
)
from idgen.report.document import Figure, Measure, Report, Table
from idgen.report.format import number
from idgen.report.plots import distribution_figure, roc_figure
from idgen.report.write import publish

FARS = (0.1, 0.01, 0.001)
PROTOCOLS = {"exact": decided_rightly, "arcface": grid_decided_rightly}
NUM_FOLDS = 10


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What one encoder says of the pairs."""

    name: str
    similarity: np.ndarray  # (P,)
    right: np.ndarray  # (P,) whether the protocol decides it rightly
    accuracies: np.ndarray  # (folds,)
    threshold: float  # best on all pairs
    far: np.ndarray
    tar: np.ndarray
    measures: dict[str, Measure]


def judge(name: str, vectors: np.ndarray, pairs: PairList, fold: np.ndarray, grid: str) -> Findings:
    """All numbers of one encoder; ``vectors`` (number of pictures, D) of unit length, or zero."""
    similarity = np.einsum("pd,pd->p", vectors[pairs.first], vectors[pairs.second], dtype=np.float64)
    right = PROTOCOLS[grid](similarity, pairs.same, fold)
    accuracies = fold_means(right, fold)
    far, tar, _ = roc(similarity, pairs.same)
    error = standard_error(accuracies)
    mean = float(accuracies.mean())
    measures = {
        "accuracy": Measure(value=mean, interval=(mean - 1.96 * error, mean + 1.96 * error)),
        "standard error": Measure(value=error),
        "best threshold": Measure(value=best_threshold(similarity, pairs.same)),
        "area under the ROC curve": Measure(value=float(np.trapezoid(tar, far))),
    }
    for limit in FARS:
        measures[f"TAR at FAR {limit:g}"] = Measure(value=tar_at_far(similarity, pairs.same, limit)[0])
    return Findings(
        name=name,
        similarity=similarity,
        right=right,
        accuracies=accuracies,
        threshold=measures["best threshold"].value,
        far=far,
        tar=tar,
        measures=measures,
    )


def pair_by_pair(findings: Sequence[Findings]) -> tuple[Table, dict[str, Measure]]:
    """The first against each other one on the same pairs."""
    first, *others = findings
    rows, measures = [], {}
    for other in others:
        found = paired_difference(first.accuracies, other.accuracies)
        difference = Measure(value=found.mean, interval=found.interval, note=f"p = {number(found.p)}")
        only_other, only_first = (other.right & ~first.right).sum(), (first.right & ~other.right).sum()
        rows.append((other.name, difference, int(only_other), int(only_first), found.p))
        measures[f"{other.name}/accuracy less {first.name}"] = difference
    table = Table(
        title=f"Pair by pair against {first.name}",
        columns=("encoder", "difference in accuracy", "right by it alone", f"by {first.name} alone", "p"),
        rows=tuple(rows),
        note="By paired bootstrap over the folds, whose people are disjoint: pairs of one person are not "
        "independent.",
    )
    return table, measures


def figures(findings: Sequence[Findings], same: np.ndarray) -> list[Figure]:
    """Distributions of each encoder, ROC of all."""
    drawn = [
        distribution_figure(
            f"Similarities by {f.name}",
            *(np.histogram(f.similarity[k], bins=NUM_BINS, range=(-1, 1))[0] for k in (same, ~same)),
            thresholds={"best": f.threshold},
        )
        for f in findings
    ]
    return [*drawn, roc_figure("Accepted rightly and wrongly", {f.name: (f.far, f.tar) for f in findings})]


def evaluate(options: argparse.Namespace) -> Report:
    """Everything but writing."""
    pairs = read_pairs(options.pairs, options.pictures)
    fold = folds_of(pairs)
    encoders: list[FaceEncoder] = [*told_apart(map(load_encoder, options.encoder or ["mini"]))]
    if options.flip_test:
        encoders = [FlipTest(encoder) for encoder in encoders]
    aligned = options.aligned or options.pairs.suffix == ".bin"
    detector = load_detector(options.detector)
    gallery = embed_pictures(pairs.pictures, detector, encoders, store=options.out / "seen", aligned=aligned)
    findings = [judge(e.name, gallery.vectors[e.id], pairs, fold, options.grid) for e in encoders]
    found = float(gallery.found.mean())
    lost = [pairs.pictures[row].name for row in np.flatnonzero(~gallery.found)]
    rows = [("face found", *[Measure(value=found)] * len(findings))]
    rows += [(name, *(f.measures[name] for f in findings)) for name in findings[0].measures]
    numbers = [f"fold {n}" for n in np.unique(fold)]
    table = Table(
        title="Are they told apart?",
        columns=("measure", *(f.name for f in findings)),
        rows=tuple(rows),
        note="Accuracy is the mean over folds, each decided by the threshold that is best on the others "
        + ("(insightface's grid of 400 squared distances)" if options.grid == "arcface" else "(exact)")
        + "; its interval is 1.96 standard errors over folds. The best threshold is the one on all pairs.",
    )
    sections, measures = [table], {f"{f.name}/{name}": m for f in findings for name, m in f.measures.items()}
    if len(findings) > 1:
        compared, differences = pair_by_pair(findings)
        sections.append(compared)
        measures |= differences
    return Report(
        kind="verification",
        title="Are people told apart?",
        subject=f"{len(pairs.same)} pairs ({int(pairs.same.sum())} of one person) of {options.pairs}",
        settings={"encoders": [e.id for e in encoders], "aligned": aligned, "detector": detector.name,
                  "grid": options.grid, "flip test": options.flip_test, "folds": len(numbers)},
        warnings=(f"No face was found in {len(lost)} of {len(pairs.pictures)} pictures; they count as "
                  "similarity 0.",) if lost else (),
        measures=measures,
        per_identity={f"{f.name}/accuracy": dict(zip(numbers, f.accuracies.tolist(), strict=True))
                      for f in findings},
        sections=(*sections, *figures(findings, pairs.same)),
        data={"without face": lost},
    )  # fmt: skip


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="which pictures are compared")
    parser.add_argument("--pictures", type=Path, help="where they lie: a folder, or a Parquet table")
    parser.add_argument("--encoder", action="append", metavar="SPEC", help="mini, a pack, an ONNX (mini)")
    parser.add_argument("--flip-test", action="store_true", help="look at mirror images too")
    parser.add_argument("--grid", choices=sorted(PROTOCOLS), default="exact", help="thresholds tried (exact)")
    parser.add_argument("--detector", default="mini", help="mini, yunet:FILE, scrfd:FILE or a pack (mini)")
    parser.add_argument("--aligned", action="store_true", help="the pictures are aligned (112 or 128 pixels)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, show."""
    options = read_options(argv)
    report = evaluate(options)
    publish(report, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
