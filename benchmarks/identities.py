"""New people who are far from each other: seconds of idgen's sampler against the usual way, and the ratio.

    python benchmarks/identities.py                                # 100,000 people, both ways at up to 20,000
    python benchmarks/identities.py --people 5000 --both 1000 2000
    python benchmarks/identities.py --people 300000 --both 5000 10000 --out people   # killed, it goes on

The usual way: one candidate at a time, compared with everybody accepted so far, who stand in an array that
is made anew with one row more. Both ways get the same candidates, and must accept the same people. The usual
way is measured at the numbers of --both; beyond them its time is extrapolated from the last two, and marked.
Of both ways the seconds of the processor are counted too, which other work on the machine hardly changes, and
how much memory the process came to hold, beside what `memory_bytes` says. With --out the people lie
on the disk, and are written as they are found.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from idgen.blocklist import Blocklist
from idgen.config import Parser
from idgen.errors import MeasureError
from idgen.synth.identities import candidates, memory_bytes, separated_people
from idgen.synth.sources import UniformSphere


def by_appending(people: UniformSphere, num: int, max_cosine: float) -> np.ndarray:
    """The usual way."""
    kept = np.zeros((0, people.dim), np.float32)
    chunk = 0
    with tqdm(total=num, desc=f"usual way, {num:,}", unit="person", disable=None) as bar:
        while len(kept) < num:
            for vector in candidates(people, 0, chunk):
                if not len(kept) or (kept @ vector).max() < max_cosine:
                    kept = np.vstack([kept, vector[None]])
                    bar.update()
                if len(kept) == num:
                    break
            chunk += 1
    return kept


def by_idgen(people: UniformSphere, num: int, max_cosine: float, out: Path | None = None) -> np.ndarray:
    """Chunks of candidates against blocks of those accepted."""
    with tqdm(total=num, desc=f"idgen, {num:,}", unit="person", disable=None) as bar:
        return separated_people(
            people, num, max_cosine=max_cosine, blocklist=Blocklist(), out=out, advance=bar.update
        )


def peak_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class Spent(NamedTuple):
    """What a call took: seconds by the clock, and of the processor, threads added up."""

    seconds: float
    processor: float


def timed(call: Callable[[], np.ndarray]) -> tuple[Spent, np.ndarray]:
    """What it took, and what it found."""
    start, processor = time.perf_counter(), time.process_time()
    found = call()
    return Spent(time.perf_counter() - start, time.process_time() - processor), found


def extrapolated(seconds: dict[int, float], num: int) -> tuple[float, float]:
    """Seconds at ``num`` by the power law through the last two numbers measured, and its exponent."""
    (less, early), (more, late) = sorted(seconds.items())[-2:]
    exponent = math.log(late / early) / math.log(more / less)
    return late * (num / more) ** exponent, exponent


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, check that both accept the same people, print a table in Markdown."""
    parser = Parser(description=__doc__)
    parser.add_argument("--people", type=int, default=100_000, help="of idgen alone (100000)")
    parser.add_argument("--both", type=int, nargs="+", default=[5_000, 10_000, 20_000], help="of both ways")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--max-cosine", type=float, default=0.3)
    parser.add_argument(
        "--out", type=Path, help="folder of the --people; one that is found there is filled up"
    )
    options = parser.parse_args(argv)
    source = UniformSphere(encoder="drawn@000000000000", dim=options.dim)
    by_idgen(source, 300, options.max_cosine)  # first calls are not what is measured
    ours: dict[int, Spent] = {}
    usual: dict[int, Spent] = {}
    before = 0
    for num in sorted({*options.both, options.people}):
        before = peak_bytes()
        out = options.out if num == options.people else None
        ours[num], found = timed(lambda n=num, o=out: by_idgen(source, n, options.max_cosine, o))
        if num in options.both:
            usual[num], same = timed(lambda n=num: by_appending(source, n, options.max_cosine))
            if not np.array_equal(found, same):
                raise MeasureError(f"the two ways accept different people at {num:,}")
    memory_gb = memory_bytes(options.people, options.dim) / 1e9
    print(f"{options.dim}-d, every cosine below {options.max_cosine:g}; {options.people:,} people need "
          f"{memory_gb:.2f} GB, by `memory_bytes`; the process came to hold "
          f"{(peak_bytes() - before) / 1e9:.2f} GB more than it had held before\n")  # fmt: skip
    print("| people | idgen, seconds (of the processor) | usual way, seconds (of the processor) "
          "| ratio (of the processor's seconds) |\n| --- | --- | --- | --- |")  # fmt: skip
    for num, (seconds, cpu) in ours.items():
        mine = f"| {num:,} | {seconds:.2f} ({cpu:.2f}) |"
        if num in usual:
            other, other_cpu = usual[num]
            print(f"{mine} {other:.2f} ({other_cpu:.2f}) | {other / seconds:.1f} ({other_cpu / cpu:.1f}) |")
        elif len(usual) > 1:
            far, exponent = extrapolated({n: spent.seconds for n, spent in usual.items()}, num)
            print(f"{mine} {far:.0f}, not measured: extrapolated as n^{exponent:.2f} | "
                  f"{far / seconds:.1f}, extrapolated |")  # fmt: skip
        else:
            print(f"{mine} not measured | |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
