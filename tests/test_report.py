"""Reports: what is written is read back, nothing escapes, text can be read."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reporting import EVIL, sample_report

from idgen.errors import ConfigError, StorageError
from idgen.report.document import Figure, Measure, Table
from idgen.report.format import cell, number
from idgen.report.html import STYLE, render_html
from idgen.report.plots import bars_figure, curve_figure, histogram_figure, scatter_figure
from idgen.report.terminal import print_report, table_lines
from idgen.report.write import read_report, write_report


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    report = sample_report()
    page = write_report(report, tmp_path / "new" / "folder")
    back = read_report(page.parent)
    assert (back.kind, back.title, back.subject, back.warnings) == (
        report.kind, report.title, report.subject, report.warnings,
    )  # fmt: skip
    assert back.measures["mini/eer"] == report.measures["mini/eer"]
    assert math.isnan(back.measures["mini/undefined"].value)
    assert back.measures["mini/undefined"].note == "needs two people"
    assert back.per_identity["mini/rank-1"][EVIL] == 0.5
    assert math.isnan(back.per_identity["mini/rank-1"]["carl"])
    plain = json.loads((page.parent / "report.json").read_text(), parse_constant=pytest.fail)  # strict JSON
    for figure in plain["figures"]:
        with Image.open(page.parent / figure["file"]) as image:
            assert image.width >= 800
    assert plain["data"]["infinite"] == "inf"


def test_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the report"):
        read_report(tmp_path)
    for text, message in [("[]", "not a report"), ("{", "not a report"), ('{"idgen_report": 99}', "newer")]:
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_report(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the folder"):
        write_report(sample_report(), tmp_path / "file" / "below")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_nothing_is_fetched_and_nothing_runs() -> None:
    page = render_html(sample_report(), version="1")
    tags = Tags()
    tags.feed(page)
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in tags.seen)
    for tag, attributes in tags.seen:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert page.count("&lt;script&gt;") >= 5
    assert all(attributes.get("alt") for tag, attributes in tags.seen if tag == "img")


def test_headings_come_in_order_and_the_contents_lead_to_them() -> None:
    tags = Tags()
    tags.feed(render_html(sample_report(), version="1"))
    levels = [tag for tag, _ in tags.seen if re.fullmatch(r"h\d", tag)]
    assert levels == ["h1", *["h2"] * len(sample_report().sections)]
    ids = {attributes["id"] for tag, attributes in tags.seen if tag == "h2"}
    links = {str(attributes["href"]).removeprefix("#") for tag, attributes in tags.seen if tag == "a"}
    assert links == ids


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_stands_out_from_its_ground(scheme: int) -> None:
    """Contrast as WCAG 2.2 defines it, 4.5 at least, light and dark."""
    blocks = re.findall(r":root \{[^}]*\}", STYLE)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    for ink, ground in [("ink", "paper"), ("faint", "paper"), ("accent", "paper"), ("warn-ink", "warn"),
                        ("ink", "band"), ("faint", "band")]:  # fmt: skip
        high, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def test_numbers_are_short_and_undefined_ones_are_a_dash() -> None:
    given = [0.12345, 12.3456, 1234.5, 3, 0.0, 1e-5, float("nan"), float("inf"), -0.5, 123456]
    assert [number(value) for value in given] == [
        "0.123", "12.346", "1,234.5", "3", "0", "1.00e-05", "-", "∞", "-0.500", "123,456",
    ]  # fmt: skip
    assert cell(Measure(value=0.5, interval=(0.25, 0.75))) == "0.500 [0.250, 0.750]"
    assert cell("word") == "word"


def test_the_terminal_shows_columns_under_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="t", columns=("name", "n"), rows=(("a", 1), ("longer", 1000)))
    assert table_lines(table)[1:] == ["name        n", "------  -----", "a           1", "longer  1,000"]
    print_report(sample_report())
    shown = capsys.readouterr().out
    assert "! Only one encoder judges." in shown
    assert "0.042 [0.031, 0.055]" in shown


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 columns, a row has 1"):
        Table(title="t", columns=("a", "b"), rows=(("a",),))


def figures() -> list[Figure]:
    x = np.linspace(0, 1, 5)
    return [
        curve_figure("c", {"a": (x, x)}, "x", "y", log_x=True, log_y=True),
        curve_figure("no errors", {"a": (x, 0 * x)}, "x", "y", log_x=True, log_y=True),
        histogram_figure("h", {"a": np.array([1.0, np.nan, 2.0]), "b": np.zeros(0)}, "x"),
        histogram_figure("empty", {}, "x"),
        scatter_figure("s", {"a": (x, x**2)}, "x", "y", labels=list("01234")),
        bars_figure("b", {"a": Measure(value=float("nan"))}, "y"),
    ]


@pytest.mark.filterwarnings("error")
def test_plots_take_what_is_degenerate_and_are_the_same_each_time() -> None:
    once, again = figures(), figures()
    for figure, other in zip(once, again, strict=True):
        assert figure.png == other.png
        assert figure.png.startswith(b"\x89PNG")
        assert figure.title in figure.alt
