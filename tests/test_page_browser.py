"""The page as people meet it: in a browser, with a mouse, on a phone, by the keyboard alone."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from paging import Photos, Served

from idgen.provenance import read_provenance

PATIENCE_MS = 120_000  # of a machine that has much else to do; what nobody waits for goes on for a minute


class Visit:
    """A tab with the page in it, and what went wrong there or went elsewhere."""

    def __init__(self, browser: Any, served: Served, **settings: Any) -> None:
        self.context = browser.new_context(**settings)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda said: said.type == "error" and self.wrong.append(said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda asked: self._note(asked.url, served.url))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.page.goto(served.url)
        self.page.get_by_role("button", name="Make pictures").wait_for()

    def _note(self, url: str, home: str) -> None:
        if not url.startswith((home, "data:", "blob:")):
            self.wrong.append(f"a request to {url}")

    def upload(self, *photos: Path) -> None:
        self.page.set_input_files("#portrait-photos input[type=file]", [str(photo) for photo in photos])
        self.page.locator("#portrait-seen figure").nth(len(photos) - 1).wait_for()

    def consent(self) -> None:
        self.page.locator("#portrait-consent input").check()

    def make(self) -> None:
        self.page.get_by_role("button", name="Make pictures").click()

    def pictures(self) -> Any:
        return self.page.locator("#portrait-gallery .grid-wrap img")

    def toast(self) -> str:
        toast = self.page.locator(".toast-body").first
        toast.wait_for()
        words = toast.inner_text()
        self.page.locator(".toast-close").first.click()
        return words

    def tab_to(self, selector: str) -> None:
        for _ in range(60):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        pytest.fail(f"the key Tab never reaches {selector}")

    def fits(self) -> bool:
        """Whether nothing is wider than the window."""
        wide = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return wide <= 0

    def close(self) -> list[str]:
        self.context.close()
        return self.wrong


def test_somebody_makes_pictures_and_takes_one_home(
    browser: Any, served: Served, photos: Photos, tmp_path: Path
) -> None:
    visit = Visit(browser, served, viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = visit.page
    assert not page.locator("#portrait-gallery").is_visible()  # nothing to be seen yet
    visit.upload(photos.person)
    assert "Good to use." in page.locator("#portrait-seen").inner_text()
    visit.make()
    assert "confirm first that you have the right" in visit.toast()
    visit.consent()
    visit.make()
    page.locator("#portrait-status .verdict").wait_for()
    assert visit.pictures().count() == 4
    captions = page.locator("#portrait-gallery .caption-label").all_inner_texts()
    assert len(captions) == 4
    assert all("second eye" in words or words == "no face found" for words in captions)

    first = visit.pictures().first.get_attribute("src")
    page.get_by_role("button", name="glasses").click()
    assert "wearing glasses" in page.locator("#portrait-prompt textarea").input_value()
    visit.make()
    page.wait_for_function(
        "old => { const i = document.querySelector('#portrait-gallery .grid-wrap img');"
        " return i && i.src !== old && document.querySelector('#portrait-status .verdict') }",
        arg=first,
    )
    with page.expect_download() as download:
        page.locator("#portrait-zip a").first.click()
    download.value.save_as(tmp_path / "all.zip")
    shutil.unpack_archive(tmp_path / "all.zip", tmp_path / "all")
    said = [read_provenance(path) for path in sorted((tmp_path / "all").iterdir())]
    assert [one.seed for one in said] == [0, 1, 2, 3]
    assert {one.prompt for one in said} == {"a photo of a person wearing glasses"}

    visit.pictures().first.click()  # large, with a button that downloads the file itself
    with page.expect_download() as download:
        page.locator(
            "#portrait-gallery a[download], #portrait-gallery button[aria-label='Download']"
        ).first.click()
    download.value.save_as(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "all" / "idgen-0-1.png").read_bytes()
    assert visit.close() == []


def test_mistakes_are_told_in_place_and_html_in_a_name_is_a_name(
    browser: Any, served: Served, photos: Photos, tmp_path: Path
) -> None:
    nasty = tmp_path / "<img src=x onerror=alert(1)>.png"
    nasty.write_bytes(photos.nobody.read_bytes())
    visit = Visit(browser, served, viewport={"width": 1280, "height": 900})
    page = visit.page
    visit.consent()
    visit.make()
    assert "There is no photo yet" in visit.toast()
    visit.upload(photos.person, photos.two_people, photos.nobody, photos.no_picture, nasty)
    seen = page.locator("#portrait-seen").inner_text()
    assert "Photo 2 (two.png) shows 2 faces. Say who is meant" in seen
    assert "No face was found in photo 3 (nobody.png)" in seen
    assert "Photo 4 (text.png) is not a picture that can be read" in seen
    visit.make()
    assert "Photo 2 (two.png) shows 2 faces" in visit.toast()
    assert page.locator("img[src='x']").count() == 0
    assert visit.close() == []


def test_cancelling_stops_it(browser: Any, served: Served, photos: Photos) -> None:
    visit = Visit(browser, served)
    page = visit.page
    visit.upload(photos.person)
    visit.consent()
    page.get_by_role("button", name="More settings").click()
    page.locator("#portrait-steps input[type=number]").fill("100")
    page.locator("#portrait-steps input[type=number]").press("Tab")
    visit.make()
    page.locator("#portrait-status .previews img").first.wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Stopped; nothing was kept").wait_for()
    page.wait_for_timeout(500)
    assert page.get_by_text("Stopped; nothing was kept").is_visible()  # no step comes after it
    assert visit.close() == []


def test_it_fits_a_phone_and_the_dark(browser: Any, served: Served, photos: Photos) -> None:
    visit = Visit(browser, served, viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = visit.page
    visit.upload(photos.person)
    visit.consent()
    visit.make()
    page.locator("#portrait-status .verdict").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea, img')].filter(e => e.offsetParent &&"
        " e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    for tab in ("Several people", "Blend", "Dataset", "Evaluate"):
        page.get_by_role("tab", name=tab).click()
        page.locator(f"#{tab.split()[-1].lower()}-make").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit.close() == []


def test_the_keyboard_is_enough(browser: Any, served: Served, photos: Photos) -> None:
    visit = Visit(browser, served, viewport={"width": 1280, "height": 900})
    page = visit.page
    visit.upload(photos.person)  # the one step that is the system's own dialog
    page.locator("body").press("Home")
    visit.tab_to("#portrait-prompt textarea")
    page.keyboard.press("Control+a")
    page.keyboard.type("a photo of a man")
    visit.tab_to("#portrait-consent input")
    page.keyboard.press("Space")
    visit.tab_to("#portrait-make")
    page.keyboard.press("Enter")
    page.locator("#portrait-status .verdict").wait_for()
    page.get_by_role("button", name="Numbers").press("Enter")
    page.get_by_text("a photo of a man").first.wait_for()
    assert visit.close() == []


def test_a_dataset_is_made_by_keyboard_and_measured_on_a_phone(
    browser: Any, served: Served, tmp_path: Path
) -> None:
    visit = Visit(browser, served, viewport={"width": 390, "height": 844}, accept_downloads=True)
    page = visit.page
    page.locator("body").press("Home")
    visit.tab_to("[role=tab]:nth-of-type(4)")
    assert page.evaluate("document.activeElement.innerText").strip() == "Dataset"
    page.keyboard.press("Enter")
    for elem_id in ("dataset-people", "dataset-pictures"):
        visit.tab_to(f"#{elem_id} input[type=number]")
        page.keyboard.press("Control+a")
        page.keyboard.type("3")  # several batches, so that it is seen to grow
    visit.tab_to("#dataset-make")
    page.keyboard.press("Enter")
    page.locator("#dataset-status .kept img").first.wait_for()
    assert "were drawn" in page.locator("#dataset-status").inner_text()
    assert visit.fits()
    page.locator("#dataset-status .verdict").wait_for()
    page.locator("#dataset-gallery .grid-wrap img").first.wait_for()
    assert visit.fits()
    with page.expect_download() as download:
        page.locator("#dataset-zip a").first.click()
    shutil.unpack_archive(_saved(download.value, tmp_path / "set.zip"), tmp_path / "set")
    assert (tmp_path / "set" / "manifest.parquet").is_file()

    page.get_by_role("tab", name="Evaluate").click()
    with page.expect_file_chooser() as chooser:
        page.locator("#evaluate-pictures-folder").press("Enter")
    chooser.value.set_files(tmp_path / "set")
    page.locator("#evaluate-pictures .file-preview tr").first.wait_for()
    page.locator("#evaluate-make").press("Enter")
    page.locator("#evaluate-status .verdict").wait_for()
    pictures = list((tmp_path / "set").glob("new-*/*.png"))
    people = {path.parent.name for path in pictures}
    said = page.locator("#evaluate-status").inner_text()
    assert f"{len(pictures)} pictures of {len(people)} people" in said
    assert visit.fits()
    with page.expect_download() as download:
        page.locator("#evaluate-zip a").first.click()
    assert "Is the person kept?" in _saved(download.value, tmp_path / "report.html").read_text()
    assert visit.close() == []


def test_a_folder_that_is_dropped_keeps_its_people(browser: Any, served: Served, photos: Photos) -> None:
    """A real drop needs the system's mouse; the event is made here, with entries as a browser gives them."""
    visit = Visit(browser, served, viewport={"width": 1280, "height": 900})
    page = visit.page
    page.get_by_role("tab", name="Evaluate").click()
    page.locator("#evaluate-pictures input[type=file]").wait_for(state="attached")
    page.evaluate(
        """bytes => {
          const file = (name, path) => ({ isFile: true, fullPath: path, file: done => done(
            new File([new Uint8Array(bytes), name], name, { type: 'image/png' })) });
          const folder = (path, inner) => ({ isDirectory: true, fullPath: path, createReader: () => {
            const left = [inner]; return { readEntries: done => done(left.pop() ?? []) } } });
          const entry = folder('/set', [folder('/set/ann', [file('0.png', '/set/ann/0.png')]),
            folder('/set/b__b', [file('1.png', '/set/b__b/1.png'), file('x.txt', '/set/b__b/x.txt')])]);
          const event = new Event('drop', { bubbles: true, cancelable: true });
          event.dataTransfer = { items: [{ webkitGetAsEntry: () => entry }] };
          document.querySelector('#evaluate-pictures button').dispatchEvent(event);
        }""",
        list(photos.person.read_bytes()),
    )
    page.locator("#evaluate-pictures .file-preview tr").nth(1).wait_for()
    page.get_by_role("button", name="Measure").click()
    page.locator("#evaluate-status .verdict").wait_for()
    assert "2 pictures of 2 people" in page.locator("#evaluate-status").inner_text()
    assert visit.close() == []


def test_cancelling_a_dataset_leaves_nothing(browser: Any, served: Served) -> None:
    visit = Visit(browser, served)
    page = visit.page
    page.get_by_role("tab", name="Dataset").click()
    page.get_by_role("button", name="Make the dataset").click()
    page.locator("#dataset-status .bar").wait_for()
    page.locator("#dataset-cancel").click()
    page.get_by_text("Stopped; nothing was kept").wait_for()
    page.wait_for_timeout(500)
    assert page.get_by_text("Stopped; nothing was kept").is_visible()
    assert visit.close() == []


def _saved(download: Any, path: Path) -> Path:
    download.save_as(path)
    return path
