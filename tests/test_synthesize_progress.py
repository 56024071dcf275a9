"""How far `idgen synthesize` is: a bar on a terminal, lines elsewhere; and what is drawn beside what."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from idgen.synth.counting import Tally, counted
from idgen.synth.making import Draft, Progress, mixed
from idgen.synth.plan import PicturePlan


class Clock:
    """Goes on only where it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def work(
    clock: Clock, num: int, *, seconds: float = 15.0, kept: int = 4, again: int = 0
) -> Iterator[Progress]:
    """Micro-batches of four, each judged at once, of which so many are kept; then the shard is done."""
    for _ in range(num):
        clock.now += seconds
        yield Progress(shard=0, drawn=4)
        yield Progress(shard=0, judged=4, kept=kept, rejected=4 - kept, again=again)
    yield Progress(shard=0, is_done=True)


def test_without_a_terminal_a_line_a_minute_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    clock, said = Clock(), list[tuple[float, str]]()
    for _ in counted(work(clock, 10), 40, clock=clock):
        said += [(clock.now - 1000, line) for line in capsys.readouterr().err.splitlines()]
    middle = "of 40 pictures (40 planned), 0.267 a second, 0 shards, 100% of drawn kept,"
    assert said == [(60, f"drawing: 16 {middle} 01:30 left"), (120, f"drawing: 32 {middle} 00:30 left")]
    end = "40 of 40 pictures (40 planned), 0.267 a second, 1 shard, 100% of drawn kept, done in 02:30"
    assert capsys.readouterr().err == f"drawing: {end}\n"


def test_what_is_drawn_again_counts_in_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    for _ in zip(range(9), counted(work(clock, 5, kept=2, again=2), 40, clock=clock), strict=False):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert "16 of 60 pictures (40 planned)" in line  # half of those judged until then are drawn again
    assert line.endswith("50% of drawn kept, 02:45 left")


@pytest.mark.parametrize(("num", "seconds", "lines"), [(0, 15, 0), (3, 15, 1), (2, 200, 3)])
def test_a_short_run_has_one_line_and_a_slow_one_a_line_a_micro_batch(
    num: int, seconds: float, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    for _ in counted(work(clock, num, seconds=seconds), 4 * num, clock=clock):
        pass
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_a_stopped_run_says_nothing_of_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> Iterator[Progress]:
        yield Progress(shard=0, drawn=4)
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        list(counted(stopped(), 40))
    assert not capsys.readouterr().err


def test_on_a_terminal_a_bar_has_rate_yield_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, terminal = Clock(), Terminal()
    monkeypatch.setattr("tqdm.std.time", clock)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    for _ in counted(work(clock, 5, seconds=2), 40, clock=clock):
        pass
    shown = terminal.getvalue().split("\r")
    assert any("4/40 [00:02<00:18,  2.00picture/s, 0 shards, none judged yet]" in line for line in shown)
    assert "20/40 [00:10<00:10,  2.00picture/s, 1 shard, 100% of drawn kept]" in shown[-1]
    assert not any(line.startswith("drawing: 4 of") for line in shown)


def test_a_tally_expects_as_many_rejections_as_until_now() -> None:
    tally = Tally(100)
    assert (tally.expected, tally.text) == (100, "0 shards, none judged yet")
    tally.add(Progress(shard=0, drawn=20, judged=20, kept=15, rejected=5, again=4))
    assert (tally.expected, tally.text) == (120, "0 shards, 75% of drawn kept")
    tally.add(Progress(shard=0, drawn=110, is_done=True))
    assert tally.expected == 130


# ---- what is drawn at once


def drafts(sizes: list[int]) -> list[list[Draft]]:
    """So many pictures of each person."""
    rest: dict[str, Any] = {"attributes": {}, "prompt": "", "negative_prompt": ""}
    return [
        [
            Draft(plan=PicturePlan(person=who, identity=str(who), picture=i, seed=i, **rest))
            for i in range(num)
        ]
        for who, num in enumerate(sizes)
    ]


@pytest.mark.parametrize("sizes", [[8] * 32, [3, 1, 2, 5], [20] * 4, [7]])
def test_a_micro_batch_shows_as_many_people_as_there_are(sizes: list[int]) -> None:
    people = drafts(sizes)
    order = mixed(people)
    assert sorted((d.plan.identity, d.plan.picture) for d in order) == sorted(
        (d.plan.identity, d.plan.picture) for person in people for d in person
    )
    start = 0
    while start < len(order):
        batch = order[start : start + 16]
        names = np.array([draft.plan.identity for draft in batch])
        left = {draft.plan.identity for draft in order[start:]}
        assert len(set(names.tolist())) == min(len(batch), len(left))
        start += len(batch)
