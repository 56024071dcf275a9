"""How far a dataset is: pictures a second, how many are kept, and the time that is left."""

from collections.abc import Iterable, Iterator

from idgen.synth.making import Progress
from idgen.synth.wording import number_of


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
        """For the bar."""
        decided = self.kept + self.rejected
        yielded = f"{self.kept / decided:.0%} of drawn kept" if decided else "none judged yet"
        return f"{number_of(self.shards, 'shard')}, {yielded}"


def counted(work: Iterable[Progress], num_planned: int) -> Iterator[Tally]:
    """Go through the work with a bar, and give the tally each time."""
    from tqdm import tqdm

    tally = Tally(num_planned)
    with tqdm(total=num_planned, desc="drawing", unit="picture", disable=None, smoothing=0.05) as bar:
        for told in work:
            tally.add(told)
            bar.total = tally.expected
            bar.set_postfix_str(tally.text, refresh=False)
            bar.update(told.drawn)
            yield tally
