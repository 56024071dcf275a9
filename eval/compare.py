r"""Several reports side by side, and whether their differences are more than chance.

    idgen evaluate compare runs/a-report runs/b-report --out runs/a-against-b

Each RUN is a folder that one of the other evaluations wrote, all of one kind; the first is the baseline.
Where a measure has a value for each person, the difference is tested on the people of both runs (paired
bootstrap over people); p-values are corrected for the number of measures tested (Holm).
Writes a page, `compare.md` and `compare.csv`.
"""

import argparse
import csv
import fnmatch
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from idgen.config import Parser
from idgen.errors import ConfigError, MeasureError
from idgen.metrics.bootstrap import Difference, holm, paired_difference
from idgen.report.document import Measure, Report, Table
from idgen.report.format import cell, number
from idgen.report.write import publish, read_report
from idgen.storage import replacing

UNLIKE = ("detector", "aligned", "grid", "flip test", "reference", "references", "folds", "galleries")


def named_reports(runs: Sequence[Path], names: Sequence[str]) -> dict[str, Report]:
    """The reports by name: those given, else the shortest ends of their paths that tell them apart.

    Raises:
        ConfigError: if a report cannot be read, or names are too few or not different.
        MeasureError: if there are fewer than two, or reports of several kinds.
    """
    if len(runs) < 2:
        raise MeasureError(f"two reports at least can be compared, got {len(runs)}")
    if names and (len(names) != len(runs) or len(set(names)) < len(names)):
        raise ConfigError(
            f"--name is needed once for each of the {len(runs)} runs, each different, got {names}"
        )
    found = [read_report(run) for run in runs]
    kinds = sorted({report.kind for report in found})
    if len(kinds) > 1:
        raise MeasureError(f"only reports of one kind can be compared, these are of {', '.join(kinds)}")
    return dict(zip(names or short_names(runs), found, strict=True))


def short_names(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different.

    Raises:
        MeasureError: if one run is given twice.
    """
    parts = [(run.parent if run.suffix == ".json" else run).resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise MeasureError("a run is given twice; it cannot be compared with itself")


def common_measures(reports: Mapping[str, Report], patterns: Sequence[str]) -> list[str]:
    """Names that every report has, in the order of the first, as far as a pattern wants them.

    Raises:
        MeasureError: if none is left.
    """
    first, *others = reports.values()
    common = [name for name in first.measures if all(name in other.measures for other in others)]
    wanted = [n for n in common if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]
    if not wanted:
        raise MeasureError(f"no measure is left; these reports have in common: {', '.join(common) or 'none'}")
    return wanted


def tested(baseline: Report, other: Report, names: Sequence[str], seed: int) -> dict[str, Difference]:
    """The paired test of every measure that has values of two common people or more."""
    found = {}
    for name in names:
        first, second = baseline.per_identity.get(name, {}), other.per_identity.get(name, {})
        people = sorted(first.keys() & second.keys())
        pair = [np.array([values[who] for who in people]) for values in (first, second)]
        if sum(not math.isnan(a + b) for a, b in zip(*pair, strict=True)) >= 2:
            found[name] = paired_difference(*pair, seed=seed)
    return found


def side_by_side(reports: Mapping[str, Report], names: Sequence[str]) -> Table:
    """One row a measure, one column a run."""
    rows = tuple((name, *(report.measures[name] for report in reports.values())) for name in names)
    return Table(title="Side by side", columns=("measure", *reports), rows=rows)


def differences(baseline: str, other: str, found: Mapping[str, Difference]) -> Table:
    """One row a measure that could be tested."""
    corrected = holm(np.array([difference.p for difference in found.values()]))
    rows = [
        (name, Measure(value=d.mean, interval=d.interval), d.num_people, d.p, float(p))
        for (name, d), p in zip(found.items(), corrected, strict=True)
    ]
    return Table(
        title=f"{other} less {baseline}",
        columns=("measure", "difference", "people", "p", "p (Holm)"),
        rows=tuple(rows),
        note="Mean over the people of both, by paired bootstrap. Holm's p is for all rows together.",
    )


def warnings_of(reports: Mapping[str, Report]) -> list[str]:
    """What makes a comparison unfair."""
    (baseline, first), *others = reports.items()
    said = []
    for name, report in others:
        unlike = [key for key in UNLIKE if first.settings.get(key) != report.settings.get(key)]
        if unlike:
            said.append(f"{name} was measured with another {', '.join(unlike)} than {baseline}.")
        people = [set().union(*r.per_identity.values()) for r in (first, report)]
        if people[0] != people[1]:
            said.append(
                f"{name} has {len(people[1])} people, {baseline} {len(people[0])}, "
                f"{len(people[0] & people[1])} of them in both: only these are tested."
            )
    return said


# --- files ------------------------------------------------------------------------------------------------


def markdown(tables: Sequence[Table]) -> str:
    """The tables for a README."""
    parts = []
    for table in tables:
        lines = [f"### {table.title}", "", "| " + " | ".join(table.columns) + " |"]
        lines.append("| --- |" + " ---: |" * (len(table.columns) - 1))
        lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in table.rows]
        parts.append("\n".join([*lines, "", table.note] if table.note else lines))
    return "\n\n".join(parts) + "\n"


def comma_separated(reports: Mapping[str, Report], tests: Mapping[str, Mapping[str, Difference]]) -> str:
    """One line a measure and run, numbers in full."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["measure", "run", "value", "low", "high", "difference", "difference_low",
                     "difference_high", "p", "people"])  # fmt: skip
    for name in next(iter(reports.values())).measures:
        for run, report in reports.items():
            if name not in report.measures:
                continue
            measure, test = report.measures[name], tests.get(run, {}).get(name)
            ends = measure.interval or ("", "")
            change = (test.mean, *test.interval, test.p, test.num_people) if test else ("",) * 5
            writer.writerow([name, run, measure.value, *ends, *change])
    return stream.getvalue()


def evaluate(options: argparse.Namespace) -> tuple[Report, dict[str, str]]:
    """The report, and further files by name."""
    reports = named_reports(options.runs, options.name)
    names = common_measures(reports, options.measures)
    (baseline, first), *others = reports.items()
    tests = {name: tested(first, report, names, options.seed) for name, report in others}
    tables = [side_by_side(reports, names)]
    tables += [differences(baseline, name, found) for name, found in tests.items() if found]
    measures = {
        f"{name}/{measure}/difference": Measure(value=d.mean, interval=d.interval, note=f"p = {number(d.p)}")
        for name, found in tests.items()
        for measure, d in found.items()
    }
    report = Report(
        kind="compare",
        title=f"{len(reports)} runs compared: {first.kind}",
        subject="; ".join(f"{name}: {report.subject}" for name, report in reports.items()),
        settings={"runs": {name: str(run) for name, run in zip(reports, options.runs, strict=True)},
                  "baseline": baseline, "seed": options.seed},
        warnings=tuple(warnings_of(reports)),
        measures=measures,
        sections=tuple(tables),
    )  # fmt: skip
    return report, {"compare.md": markdown(tables), "compare.csv": comma_separated(reports, tests)}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, write, show."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of reports, baseline first"
    )
    parser.add_argument("--name", action="append", default=[], help="of each run, in turn (their folders)")
    parser.add_argument("--measures", action="append", default=[], metavar="PATTERN",
                        help="only these, as 'second_*/rank-*' (all)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the resampling (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the comparison")
    options = parser.parse_args(argv)
    report, files = evaluate(options)
    publish(report, options.out)
    for name, text in files.items():
        with replacing(options.out / name) as file:
            file.write(text.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
