"""One shard on its way: its pictures are drawn, looked at and judged, in rounds, until all are decided.

A round is made of micro-batches of different people. What is in a micro-batch follows from the shard, the
batch size and the verdicts alone, so that a shard that is made again is the same bit for bit.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from PIL import Image

from idgen.synth.curate import Verdict
from idgen.synth.looking import Seen
from idgen.synth.plan import PersonPlan, PicturePlan

LOOK = 4  # pictures looked at together; always so many, since others beside it change a vector's last bits


@dataclass(kw_only=True)
class Draft:
    """A planned picture on its way.

    Attributes:
        plan: what is to be made.
        attempt: how often it was drawn before.
        rejections: the reason of each rejected attempt.
        image: of this attempt, finished.
        is_blocked: whether the model's own safety checker made it black.
        seen: what the curator saw in it.
        verdict: of the curator; None until it was judged.
    """

    plan: PicturePlan
    attempt: int = 0
    rejections: list[str] = field(default_factory=list)
    image: Image.Image | None = None
    is_blocked: bool = False
    seen: Seen | None = None
    verdict: Verdict | None = None

    @property
    def seed(self) -> int:
        """Of this attempt: the planned one, then others that follow from it."""
        return attempt_seed(self.plan.seed, self.attempt)

    @property
    def key(self) -> str:
        """Name of the picture, unique in the dataset."""
        return f"{self.plan.identity}_{self.plan.picture:03d}"

    @property
    def is_kept(self) -> bool:
        """Whether it was judged, and kept."""
        return self.verdict is not None and self.verdict.is_kept


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of an attempt, in 53 bits as all seeds of a plan; the first one has the plan's own."""
    if not attempt:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} attempt {attempt}".encode()).digest()[:8]) >> 11


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What happened in a shard since the last time.

    Attributes:
        shard: number of the shard.
        drawn: pictures made, each attempt counting.
        judged: pictures judged for the first time.
        kept: pictures kept.
        rejected: pictures rejected, each attempt counting.
        again: of these, will be drawn again.
        is_done: whether the shard is on the disk now.
    """

    shard: int
    drawn: int = 0
    judged: int = 0
    kept: int = 0
    rejected: int = 0
    again: int = 0
    is_done: bool = False


class ShardWork:
    """One shard on its way: what a `Workshop` does with it, and when.

    The thread that draws asks for `next_batch` and hands what it made to `take`. Everything else is done by
    the pool meanwhile; `poll` says what came of it.

    Args:
        number: of the shard.
        people: whose pictures it holds.
        look: finishes a few pictures and looks at them.
        judge: decides on one, where others of the person are kept already.
        write: puts the shard onto the disk, once everything is decided.
        batch_size: pictures drawn at once.
        retries: how often a rejected picture is drawn again.
        pool: threads; they must begin tasks in the order in which these came.
    """

    def __init__(
        self,
        number: int,
        people: Sequence[PersonPlan],
        *,
        look: Callable[[Sequence[Draft]], object],
        judge: Callable[[Draft, Sequence[Seen]], Verdict],
        write: Callable[["ShardWork"], object],
        batch_size: int,
        retries: int,
        pool: Executor,
    ) -> None:
        self.number, self.batch_size, self.retries, self._pool = number, batch_size, retries, pool
        self._look, self._judge, self._write = look, judge, write
        self.people = [[Draft(plan=picture) for picture in person.pictures] for person in people]
        self._round = mixed(self.people)
        self._num_drawn = 0
        self._looking: list[Future[object]] = []
        self._ending: Future[Progress] | None = None
        self.is_done = False

    @property
    def drafts(self) -> list[Draft]:
        """All pictures, in the order of the plan."""
        return [draft for person in self.people for draft in person]

    def next_batch(self) -> list[Draft]:
        """The next micro-batch; empty where the verdicts on a round are awaited."""
        return self._round[self._num_drawn : self._num_drawn + self.batch_size]

    def take(self, batch: Sequence[Draft]) -> Progress:
        """Hand a micro-batch over, whose images are drawn."""
        self._num_drawn += len(batch)
        for start in range(0, len(batch), LOOK):
            self._looking.append(self._pool.submit(self._look, batch[start : start + LOOK]))
        if self._num_drawn == len(self._round):
            self._ending = self._pool.submit(self._end_round)
        return Progress(shard=self.number, drawn=len(batch))

    @property
    def looking(self) -> list[Future[Any]]:
        """Looks that are not done."""
        return [future for future in self._looking if not future.done()]

    @property
    def awaited(self) -> list[Future[Any]]:
        """What goes on in the pool."""
        return [*self.looking, *([self._ending] if self._ending and not self._ending.done() else [])]

    def poll(self) -> Progress | None:
        """What the verdicts of a round were, if they are there; from then on there is a next one, or none.

        Raises:
            Exception: whatever went wrong in the pool.
        """
        for future in [f for f in self._looking if f.done()]:
            future.result()
            self._looking.remove(future)
        if self._ending is None or not self._ending.done():
            return None
        told, self._ending = self._ending.result(), None
        self._round, self._num_drawn = mixed(self._rejected()), 0
        self.is_done = told.is_done
        return told

    def _end_round(self) -> Progress:
        """Judge what was drawn, in the order of the plan; write the shard if nothing is drawn again."""
        for future in tuple(self._looking):
            future.result()  # all of them began before
        judged = kept = rejected = 0
        drawn = set(map(id, self._round))
        for person in self.people:
            for draft in person:
                if id(draft) not in drawn:
                    continue
                others = [other.seen for other in person if other.is_kept and other.seen is not None]
                draft.verdict = self._judge(draft, others)
                judged += draft.attempt == 0
                kept += draft.is_kept
                if not draft.is_kept:
                    rejected += 1
                    draft.rejections.append(draft.verdict.decision)
                    draft.image = None
        again = self._rejected()
        for draft in (draft for person in again for draft in person):
            draft.attempt += 1
            draft.seen = draft.verdict = None
        num_again = sum(map(len, again))
        if not num_again:
            self._write(self)
        return Progress(
            shard=self.number,
            judged=judged,
            kept=kept,
            rejected=rejected,
            again=num_again,
            is_done=not num_again,
        )

    def _rejected(self) -> list[list[Draft]]:
        """Who is drawn again."""
        return [
            [d for d in person if not d.is_kept and len(d.rejections) <= self.retries]
            for person in self.people
        ]


def mixed(people: Sequence[Sequence[Draft]]) -> list[Draft]:
    """The first picture of everybody, the second of everybody, ...: neighbours are different people."""
    return [draft for turn in zip_longest(*people) for draft in turn if draft is not None]
