"""How far a dataset is: pictures a second, how many are kept, and the time that is left."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from idgen.synth.making import Progress
from idgen.synth.wording import number_of

SECONDS_A_LINE = 60.0  # where no terminal can show a bar


class Tally:
    """What was told of all shards together.

    Attributes:
        drawn: pictures made, each attempt counting.
        judged: pictures judged for the first time.
        kept: pictures kept.
        rejected: pictures rejected, each attempt counting.
        again: of these, were drawn again, or still will be.
        shards: that are done.
    """

    def __init__(self, num_planned: int) -> None:
        self.num_planned = num_planned
        self.drawn = self.judged = self.kept = self.rejected = self.again = self.shards = 0

    def add(self, told: Progress) -> None:
        """Take up what was told."""
        self.drawn += told.drawn
        self.judged += told.judged
        self.kept += told.kept
        self.rejected += told.rejected
        self.again += told.again
        self.shards += told.is_done

    @property
    def expected(self) -> int:
        """Pictures that will have been drawn at the end, if as many are rejected as until now."""
        share = self.again / self.judged if self.judged else 0.0
        return max(self.drawn, round(self.num_planned * (1 + share)))

    @property
    def text(self) -> str:
        """For the bar and the lines."""
        decided = self.kept + self.rejected
        yielded = f"{self.kept / decided:.0%} of drawn kept" if decided else "none judged yet"
        return f"{number_of(self.shards, 'shard')}, {yielded}"


class Lines:
    """How far it is, where no terminal can show a bar: a line about every minute, and one at the end.

    Args:
        tally: what is told of.
        stream: where to.
        clock: seconds, from any time on.
    """

    def __init__(self, tally: Tally, stream: TextIO, clock: Callable[[], float]) -> None:
        self.tally, self._stream, self._clock = tally, stream, clock
        self._begun = self._said = clock()

    def tell(self) -> None:
        """Say it, if the last line is a minute old."""
        now, tally = self._clock(), self.tally
        if now - self._said < SECONDS_A_LINE:
            return
        self._said = now
        if not tally.drawn:
            self._say(f"none yet in {_time(now - self._begun)}")
        else:
            left = (tally.expected - tally.drawn) * (now - self._begun) / tally.drawn
            self._say(f"{self._numbers(now)}, {_time(left)} left")

    def end(self) -> None:
        """Say how it ended; nothing, where nothing was to be drawn."""
        now = self._clock()
        if self.tally.drawn:
            self._say(f"{self._numbers(now)}, done in {_time(now - self._begun)}")

    def _numbers(self, now: float) -> str:
        tally, seconds = self.tally, max(now - self._begun, 1e-9)
        return (
            f"{tally.drawn:,} of {tally.expected:,} pictures ({tally.num_planned:,} planned), "
            f"{tally.drawn / seconds:.3g} a second, {tally.text}"
        )

    def _say(self, text: str) -> None:
        print(f"drawing: {text}", file=self._stream, flush=True)


def _time(seconds: float) -> str:
    """As the bar says it: ``05:12``, ``3:05:12``."""
    from tqdm import tqdm

    return tqdm.format_interval(seconds)


def counted(
    work: Iterable[Progress], num_planned: int, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Tally]:
    """Go through the work with a bar on stderr, or lines where that is no terminal, and give the tally.

    Args:
        work: tells what happens.
        num_planned: pictures that it is to have.
        clock: seconds, from any time on; for the lines.
    """
    from tqdm import tqdm

    tally = Tally(num_planned)
    lines = None if sys.stderr.isatty() else Lines(tally, sys.stderr, clock)
    with tqdm(total=num_planned, desc="drawing", unit="picture", disable=None, smoothing=0.05) as bar:
        for told in work:
            tally.add(told)
            bar.total = tally.expected
            bar.set_postfix_str(tally.text, refresh=False)
            bar.update(told.drawn)
            if lines is not None:
                lines.tell()
            yield tally
    if lines is not None:
        lines.end()
