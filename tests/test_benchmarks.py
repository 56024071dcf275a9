"""Benchmarks run, and compare what they say they compare."""

import re
import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_both_ways_accept_the_same_people_where_many_are_turned_away(
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = runpy.run_path(str(BENCHMARKS / "identities.py"))
    turned_away = ["--dim", "32", "--max-cosine", "0.45", "--people", "400", "--both", "100", "200"]
    assert program["main"](turned_away) == 0
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = {row[0].strip("| "): row[1:] for row in table[2:]}
    assert list(rows) == ["100", "200", "400"]
    for people in ("100", "200"):
        assert re.fullmatch(r"\d+\.\d \(\d+\.\d\) \|", rows[people][2])
    assert "not measured: extrapolated" in rows["400"][1]


def test_a_difference_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    program = runpy.run_path(str(BENCHMARKS / "identities.py"))
    usual = program["by_appending"]
    names = program["main"].__globals__
    monkeypatch.setitem(names, "by_appending", lambda *given: usual(*given)[::-1])
    with pytest.raises(program["MeasureError"], match="accept different people at 100"):
        program["main"](["--dim", "32", "--max-cosine", "0.6", "--people", "100", "--both", "100"])
