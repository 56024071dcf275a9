"""A report as a browser shows it: it fits, it is silent, it fetches nothing."""

from pathlib import Path
from typing import Any

import pytest
from reporting import sample_report

from idgen.report.write import write_report


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(sample_report(), tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_a_report_fits_and_is_silent(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert not said
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().right])")
    assert len(sizes) == 4 + 8
    assert all(natural > 0 and right <= width for natural, right in sizes)
    # a wide table scrolls in its own box
    boxes = page.evaluate(
        "[...document.querySelectorAll('.scroll')].map(b => [b.scrollWidth, b.clientWidth])"
    )
    assert any(inner > outer for inner, outer in boxes) or width > 1000
    context.close()


def test_the_contents_lead_to_the_sections(browser: Any, page_file: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 500})
    page.goto(page_file.as_uri())
    page.get_by_role("link", name="Found within rank").click()
    top = page.evaluate("document.getElementById('s4').getBoundingClientRect().top")
    assert 0 <= top < 400
    assert page.title() == "Is the person kept?"
