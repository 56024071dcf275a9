r"""What strength of the identity costs: similarity against obedience to the prompt, over --id-scale.

    idgen evaluate sweep --faces $IDGEN_FACES/faces_train.parquet --held-out --people 40 \
        --encoder OTHER.onnx --emotion emotion.onnx --headpose headpose.onnx --out runs/sweep

For each strength it runs `idgen evaluate draw`, `consistency` and `quality` into folders of their own,
and reads their reports. Started again, it goes on with what is missing. Choose strengths on people set aside.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from idgen.config import Parser
from idgen.errors import ConfigError, MeasureError
from idgen.report.document import Measure, Report, Table
from idgen.report.plots import scatter_figure
from idgen.report.write import JSON, publish, read_report

SIMILARITY = "similarity to the reference"
OBEYED = ("smile where asked", "no smile where asked", "turn to the side asked, by landmarks",
          "turn to the side asked, by head-pose net")  # fmt: skip
CLIP = "CLIP score"


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one strength gave."""

    scale: float
    similarity: dict[str, Measure]  # encoder -> to the reference
    related: frozenset[str]  # encoders that had a part in the pictures
    obeyed: dict[str, Measure]  # name of the check -> share, or CLIP score
    warnings: tuple[str, ...]

    @property
    def agreement(self) -> float:
        """Mean of the checks, without CLIP's; NaN where there is none."""
        shares = [measure.value for name, measure in self.obeyed.items() if name != CLIP]
        return float(np.mean(shares)) if shares else float("nan")


def run(*words: object) -> None:
    """One evaluation in a process of its own.

    Raises:
        MeasureError: if it does not succeed; it has said why.
    """
    command = [sys.executable, "-m", "idgen", "evaluate", *map(str, words)]
    if subprocess.run(command).returncode:
        raise MeasureError(f"stopped: `idgen evaluate {' '.join(map(str, words[:2]))} ...` did not succeed")


def measure(scale: float, options: argparse.Namespace) -> Point:
    """Draw, measure, read."""
    stem = options.out / f"scale-{scale:g}"
    drawn, kept, good = (stem.with_name(f"{stem.name}{end}") for end in ("", "-consistency", "-quality"))
    draw = ["draw", "--faces", options.faces, "--model", options.model, "--people", options.people, "--count",
            options.count, "--seed", options.seed, "--id-scale", scale, "--out", drawn]  # fmt: skip
    optional = {"--adapter": options.adapter, "--steps": options.steps, "--guidance": options.guidance}
    draw += [word for name, value in optional.items() if value is not None for word in (name, value)]
    run(*draw, *(["--held-out"] if options.held_out else []))
    detector = ["--detector", options.detector]
    if not (kept / JSON).exists():
        encoders = [word for spec in options.encoder for word in ("--encoder", spec)]
        references = ["--references", options.faces, "--references-aligned"]
        run("consistency", drawn, *references, *encoders, *detector, "--out", kept)
    if not (good / JSON).exists():
        nets = {"--emotion": options.emotion, "--headpose": options.headpose, "--clip": options.clip}
        given = [word for name, value in nets.items() if value is not None for word in (name, value)]
        run("quality", drawn, *given, *detector, "--out", good)
    consistency, quality = read_report(kept), read_report(good)
    end = f"/{SIMILARITY}"
    return Point(
        scale=scale,
        similarity={n.removesuffix(end): m for n, m in consistency.measures.items() if n.endswith(end)},
        related=frozenset(encoder_id.partition("@")[0] for encoder_id in consistency.data["related"]),
        obeyed={n: quality.measures[n] for n in (*OBEYED, CLIP) if n in quality.measures},
        warnings=consistency.warnings,
    )


def report_of(points: Sequence[Point], options: argparse.Namespace) -> Report:
    """A table with one row a strength, and the frontier."""
    encoders, checks = list(points[0].similarity), list(points[0].obeyed)
    rows = [
        (p.scale, *(p.similarity[e] for e in encoders), *(p.obeyed[c] for c in checks),
         Measure(value=p.agreement))
        for p in points
    ]  # fmt: skip
    shown = {name: f"{name} (related)" if name in points[0].related else name for name in encoders}
    columns = ("strength", *(f"similarity by {name}" for name in shown.values()), *checks, "agreement")
    agreement = np.array([p.agreement for p in points])
    curves = {
        f"by {shown[name]}": (agreement, np.array([p.similarity[name].value for p in points]))
        for name in encoders
    }
    figure = scatter_figure(
        "Identity against prompt",
        curves,
        "agreement with the prompt",
        SIMILARITY,
        labels=[f"{p.scale:g}" for p in points],
        note="Each point is one strength; up and to the right is better.",
    )
    table = Table(
        title="Over the strength of the identity",
        columns=columns,
        rows=tuple(rows),
        note="Agreement is the mean of the checks; chance is about one half.",
    )
    measures = {f"strength {p.scale:g}/{e}/{SIMILARITY}": p.similarity[e] for p in points for e in encoders}
    measures |= {f"strength {p.scale:g}/{c}": p.obeyed[c] for p in points for c in checks}
    return Report(
        kind="sweep",
        title="What strength of the identity costs",
        subject=f"{options.people} people of {options.faces.name}, {options.count} pictures each",
        settings={name: str(value) for name, value in sorted(vars(options).items()) if name != "out"},
        warnings=points[0].warnings,
        measures=measures,
        sections=(table, figure),
    )


def strengths(text: str) -> list[float]:
    """Numbers between commas, each once, rising.

    Raises:
        ConfigError: if they are not two numbers or more.
    """
    try:
        found = sorted({float(word) for word in text.split(",")})
    except ValueError:
        raise ConfigError(f"--scales are numbers between commas, such as 0,0.5,1; got {text!r}") from None
    if len(found) < 2:
        raise ConfigError(f"--scales needs two strengths at least, got {text!r}")
    return found


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True, help="Parquet of portraits")
    parser.add_argument("--held-out", action="store_true", help="the tenth of the people set aside")
    parser.add_argument("--scales", default="0,0.25,0.5,0.75,1,1.25", metavar="NUMBER,...", help="strengths")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--adapter", type=Path, help="FaceID file (the one that came with the model)")
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--count", type=int, default=4, help="pictures a person (4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument(
        "--encoder", action="append", default=[], metavar="SPEC", help="besides mini and judge"
    )
    parser.add_argument("--detector", default="mini", help="mini, yunet:FILE, scrfd:FILE or a pack (mini)")
    parser.add_argument("--emotion", type=Path, metavar="ONNX", help="seven expressions")
    parser.add_argument("--headpose", type=Path, metavar="ONNX", help="yaw, pitch, roll (FSA-Net)")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="CLIP, as transformers keeps it")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything")
    options = parser.parse_args(argv)
    options.scales = strengths(options.scales)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every strength, write, show."""
    options = read_options(argv)
    points = []
    for number, scale in enumerate(options.scales, 1):
        print(f"strength {scale:g} ({number} of {len(options.scales)})", flush=True)
        points.append(measure(scale, options))
    report = report_of(points, options)
    publish(report, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
