r"""Does a recogniser learn from made people what it learns from photos of real ones?

    idgen evaluate utility made --real faces_train.parquet --pairs pairs.csv --pictures faces_test.parquet \
        --config train/configs/recognizer_small.yaml --out runs/utility

Trains `idgen train recognizer` from scratch on each of six sets, once a seed, and compares the recognisers on
pairs of other people:

    made-equal, real-equal  as many made as real people with one histogram of pictures a person: that of the
                            real ones, as far as the made ones have so many
    made, real              all of them
    shuffled                the made pictures with permuted names: what chance gives
    both                    the made and the real people together

People with a single picture are left out. Each training is a process of its own, --jobs of them at once;
started again, it goes on with what is missing. Choose settings on people set aside (`held_out.jsonl` of each
run), not on the pairs.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from idgen.config import Parser, read_yaml
from idgen.data.pairs import PairList, folds_of, read_pairs
from idgen.encoders.arcface import load_encoder
from idgen.encoders.gallery import embed_pictures
from idgen.errors import ConfigError, MeasureError
from idgen.faces.detect import load_detector
from idgen.metrics.bootstrap import resample_runs
from idgen.metrics.verification import decided_rightly, fold_means, standard_error
from idgen.report.document import Measure, Report, Table
from idgen.report.format import number
from idgen.report.write import publish
from idgen.storage import write_json
from idgen.synth.export.reading import open_labelled

SETS = ("made-equal", "real-equal", "made", "real", "shuffled", "both")
COMPARED = (("made-equal", "real-equal"), ("made", "real"), ("both", "real"), ("made", "shuffled"))


@dataclass(frozen=True, kw_only=True)
class Training:
    """One recogniser: a set, a seed, a folder."""

    kind: str
    seed: int
    folder: Path

    def is_done(self, options: argparse.Namespace) -> bool:
        """Whether it was trained and exported.

        Raises:
            MeasureError: if it was, by another command.
        """
        if not (self.folder / "result.json").exists():
            return False
        kept = self.folder.with_suffix(".json")
        known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None
        if known != self.command(options):
            raise MeasureError(
                f"{self.folder} was trained with other data or settings ({kept}); give another --out"
            )
        return True

    def command(self, options: argparse.Namespace) -> dict[str, object]:
        """What decides the result, as it is kept."""
        words = self.words(options)
        return {"words": words, "config": read_yaml(options.config), "data": options.digests}

    def words(self, options: argparse.Namespace) -> list[str]:
        """The command."""
        made, real = str(options.made), str(options.real)
        data, settings = {
            "made-equal": (made, [f"match_histogram={real}"]),
            "real-equal": (real, [f"match_histogram={made}"]),
            "made": (made, []),
            "real": (real, []),
            "shuffled": (made, ["shuffle_identities=true"]),
            "both": (None, [f"data={json.dumps([made, real])}"]),
        }[self.kind]
        settings = [*options.set, "leave_out_singles=true", f"seed={self.seed}", *settings]
        given = [word for setting in settings for word in ("--set", setting)]
        given += ["--data", data] if data else []
        return ["train", "recognizer", "--config", str(options.config), *given, "--out", str(self.folder)]

    def run(self, options: argparse.Namespace) -> None:
        """Train, or go on; what it says goes into a file beside its folder.

        Raises:
            MeasureError: if it does not succeed, with the last thing it said.
        """
        said = self.folder.with_suffix(".log")
        if not self.folder.exists():  # what was begun goes on with its own settings, or refuses these
            write_json(self.folder.with_suffix(".json"), self.command(options))
        with said.open("a", encoding="utf-8") as log:
            command = [sys.executable, "-m", "idgen", *self.words(options)]
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        if code:
            last = said.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise MeasureError(f"{self.folder.name}: {''.join(last) or f'exit {code}'}; all of it: {said}")


def train_all(trainings: Sequence[Training], options: argparse.Namespace) -> None:
    """Those that are missing, several at once; the first that fails stops those that have not begun."""
    missing = [training for training in trainings if not training.is_done(options)]
    print(
        f"{len(missing)} of {len(trainings)} trainings are to be done; logs: {options.out}/*.log", flush=True
    )
    start = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        begun = {pool.submit(training.run, options): training for training in missing}
        try:
            for count, done in enumerate(as_completed(begun), 1):
                done.result()
                left = (time.monotonic() - start) / count * (len(missing) - count) / 60
                print(
                    f"{begun[done].folder.name}: {count} of {len(missing)}, {left:.0f} min left", flush=True
                )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def digest_of(path: Path) -> str:
    """Of the people and bytes of a dataset's pictures: one that was made anew is not the one trained on."""
    digest = hashlib.sha256()
    for picture in open_labelled(path).pictures:
        digest.update(json.dumps(picture.identity).encode())
        digest.update(hashlib.sha256(picture.read_bytes()).digest())
    return digest.hexdigest()[:16]


def judge(
    trainings: Sequence[Training], pairs: PairList, options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Which pairs each set's recognisers decide rightly: set -> (seeds, P), from 0 to 1."""
    fold, found = folds_of(pairs), {}
    encoders = [load_encoder(str(training.folder / "best.onnx")) for training in trainings]
    once = list({encoder.id: encoder for encoder in encoders}.values())  # equal data give equal files
    gallery = embed_pictures(pairs.pictures, load_detector(options.detector), once,
                             store=options.out / "seen", aligned=options.aligned)  # fmt: skip
    for training, encoder in zip(trainings, encoders, strict=True):
        vectors = gallery.vectors[encoder.id]
        similarity = np.einsum("pd,pd->p", vectors[pairs.first], vectors[pairs.second], dtype=np.float64)
        right = decided_rightly(similarity, pairs.same, fold).astype(float)
        found.setdefault(training.kind, []).append(right)
    return {kind: np.stack(rows) for kind, rows in found.items()}


def numbers_of(trainings: Sequence[Training]) -> dict[str, tuple[int, int]]:
    """Pictures and people that each set's first recogniser learned from."""
    found: dict[str, tuple[int, int]] = {}
    for training in trainings:
        data = json.loads((training.folder / "data.json").read_text(encoding="utf-8"))
        found.setdefault(training.kind, (data["pictures"], data["people"]))
    return found


def accuracies(by_fold: Mapping[str, np.ndarray], sizes: Mapping[str, tuple[int, int]]) -> Table:
    """One row a set."""
    rows = []
    for kind, values in by_fold.items():
        error, each = standard_error(values.mean(axis=0)), values.mean(axis=1)
        rows.append((kind, *sizes[kind], accuracy_of(values), error, f"{each.min():.3f} to {each.max():.3f}"))
    return Table(
        title="How well does a recogniser tell people apart that learned from",
        columns=("set", "pictures", "people", "accuracy", "standard error", "seeds"),
        rows=tuple(rows),
        note="Mean over seeds and folds, each fold decided by the threshold that is best on the others; 95 % "
        "intervals by bootstrap over folds and seeds, standard error over folds of the mean of the seeds.",
    )


def accuracy_of(values: np.ndarray) -> Measure:
    """Of (seeds, folds)."""
    drawn, _ = resample_runs(values, values)
    return Measure(value=float(values.mean()), interval=ends(drawn))


def ends(drawn: np.ndarray) -> tuple[float, float]:
    """Of a 95 % interval."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def comparisons(
    right: Mapping[str, np.ndarray], fold: np.ndarray, chance: float
) -> tuple[Table, dict[str, Measure]]:
    """Sets against each other on the same pairs: difference, and share of the way from chance."""
    rows, measures = [], {}
    for first, second in COMPARED:
        if first not in right or second not in right:
            continue
        one, other = (folded(right[kind], fold) for kind in (first, second))
        drawn_one, drawn_other = resample_runs(one, other)
        difference = Measure(value=float(one.mean() - other.mean()), interval=ends(drawn_one - drawn_other))
        share = Measure(value=float("nan"), note="the second is not above chance")
        if drawn_other.min() > chance:
            value = (one.mean() - chance) / (other.mean() - chance)
            share = Measure(value=float(value), interval=ends((drawn_one - chance) / (drawn_other - chance)))
        better = right[first].mean(axis=0) - right[second].mean(axis=0)
        rows.append(
            (f"{first} and {second}", difference, share, int((better > 0).sum()), int((better < 0).sum()))
        )
        measures |= {f"{first} less {second}": difference, f"{first} / {second} above chance": share}
    table = Table(
        title="Pair by pair",
        columns=(
            "sets",
            "difference",
            "ratio above chance",
            "pairs the first is oftener right on",
            "the second",
        ),
        rows=tuple(rows),
        note=f"Chance is {number(chance)}. Intervals by bootstrap over folds, whose people are disjoint, "
        "the same for both sets, and over the seeds of each.",
    )
    return table, measures


def folded(right: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(seeds, P) -> (seeds, folds)."""
    return np.stack([fold_means(row, fold) for row in right])


def report_of(trainings: Sequence[Training], pairs: PairList, options: argparse.Namespace) -> Report:
    """Everything but writing."""
    right, fold = judge(trainings, pairs, options), folds_of(pairs)
    by_fold = {kind: folded(rows, fold) for kind, rows in right.items()}
    share = float(pairs.same.mean())
    compared, measures = comparisons(right, fold, max(share, 1 - share))
    return Report(
        kind="utility",
        title="Do made people teach what real ones teach?",
        subject=f"{options.made} against {options.real}, on {len(fold)} pairs of {options.pairs}",
        settings={"config": str(options.config), "set": options.set, "seeds": options.seeds},
        measures={f"{kind}/accuracy": accuracy_of(values) for kind, values in by_fold.items()} | measures,
        per_identity={
            f"{kind}/accuracy": dict(
                zip((f"fold {n}" for n in np.unique(fold)), values.mean(axis=0).tolist(), strict=True)
            )
            for kind, values in by_fold.items()
        },
        sections=(accuracies(by_fold, numbers_of(trainings)), *([compared] if compared.rows else [])),
    )


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("made", type=Path, metavar="DATASET", help="of people who do not exist, any format")
    parser.add_argument(
        "--real", type=Path, required=True, metavar="DATASET", help="of real people, any format"
    )
    parser.add_argument("--pairs", type=Path, required=True, help="of people in neither")
    parser.add_argument(
        "--pictures", type=Path, help="where the pictures of the pairs lie: a folder, or a Parquet table"
    )
    parser.add_argument(
        "--aligned", action="store_true", help="the pictures of the pairs are aligned (112 or 128 pixels)"
    )
    parser.add_argument("--detector", default="mini", help="mini, yunet:FILE, scrfd:FILE or a pack (mini)")
    parser.add_argument("--config", type=Path, required=True, help="of `idgen train recognizer`")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="override a setting of it"
    )
    parser.add_argument("--sets", default=",".join(SETS), metavar="NAME,...", help="which of the six (all)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each set (3)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (1)")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything")
    options = parser.parse_args(argv)
    options.sets = options.sets.split(",")
    if unknown := [name for name in options.sets if name not in SETS]:
        raise ConfigError(f"--sets are some of {', '.join(SETS)}; got {', '.join(unknown)}")
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, measure, write, show."""
    options = read_options(argv)
    pairs = read_pairs(options.pairs, options.pictures)
    folds_of(pairs)
    read_yaml(options.config)  # refused now, not by each training
    trainings = [
        Training(kind=kind, seed=seed, folder=options.out / f"{kind}-{seed}")
        for seed in range(options.seeds)
        for kind in options.sets
    ]
    options.digests = {str(path): digest_of(path) for path in (options.made, options.real)}
    options.out.mkdir(parents=True, exist_ok=True)
    train_all(trainings, options)
    publish(report_of(trainings, pairs, options), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
