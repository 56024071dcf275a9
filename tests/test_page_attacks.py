"""What strangers might try on the page: to read the disk, to send it elsewhere, to fill or to stall it."""

import io
import json
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from knocking import (
    API,
    JSON,
    ask,
    completed,
    file_data,
    function_index,
    outcome,
    parameters_of,
    pictures_of,
    upload,
    uploaded,
    wishes,
)
from paging import Photos, Served, running_page

from idgen.provenance import read_provenance


@pytest.fixture(scope="module")
def calls() -> Iterator[list[str]]:
    """Whom this process has called, the page in it."""
    called: list[str] = []
    is_on = True

    def note(event: str, details: tuple[Any, ...]) -> None:
        if is_on and event == "socket.connect" and isinstance(details[1], tuple):
            called.append(str(details[1][0]))

    sys.addaudithook(note)  # it cannot be taken away again, only told to be still
    yield called
    is_on = False


@pytest.fixture(scope="module")
def served(calls: list[str]) -> Iterator[Served]:
    """The page, whose calls are noted from its start on."""
    with running_page() as page:
        yield page


# --- reading the disk -------------------------------------------------------------------------------------

TARGET = Path(__file__).resolve()  # a file that the user of the page can read, and nobody else should


def spellings(path: str) -> list[str]:
    """The same path, as a careless server might be led to it."""
    up = "../" * 12 + path.lstrip("/")
    return [
        path, up, "/" + up, path.replace("/", "%2f"), path.replace("/", "%252f"), up.replace(".", "%2e"),
        up.replace("../", "..%2f"), up.replace("../", "..\\"), up.replace("../", "..%5c"),
        up.replace("../", "....//"), "/" + path, "//" + path, f"file://{path}", f"{path}%00.png",
        path.replace("/", "/./"), up.replace("..", "%c0%ae%c0%ae"), f"/proc/self/root{path}",
    ]  # fmt: skip


@pytest.mark.parametrize("route", [f"{API}/file=", "/static/", "/assets/", "/svelte/", "/", f"{API}/"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_spelling_of_a_path_reaches_a_file(served: Served, route: str, method: str) -> None:
    inside = [
        f"{served.keeping.root}/../../../../../..{TARGET}",
        f"{served.keeping.root}/x/..%2f..%2f..{TARGET}",
    ]
    for path in [*spellings(str(TARGET)), *spellings("/proc/self/environ"), *inside]:
        status, _, body = ask(served, method, route + path)
        assert status in (400, 403, 404, 405), (path, body[:100])
        assert b"strangers" not in body
        assert b"PATH=" not in body


def test_folders_links_and_neighbours_are_not_served(served: Served, photos: Photos, tmp_path: Path) -> None:
    root = served.keeping.root
    stored = Path(uploaded(served, photos.person))
    assert ask(served, "GET", f"{API}/file={stored}")[0] == 200
    beside = root.with_name(root.name + "-else")
    beside.mkdir()
    link = stored.with_name("link.png")
    link.symlink_to(TARGET)
    try:
        (beside / "secret.png").write_bytes(b"not for you")
        for path in (root, f"{root}/", root.parent, stored.parent, beside / "secret.png", link):
            status, _, body = ask(served, "GET", f"{API}/file={path}")
            assert status in (403, 404), path
            assert b"not for you" not in body
            assert stored.parent.name.encode() not in body.replace(str(path).encode(), b"")
    finally:
        link.unlink()
        (beside / "secret.png").unlink()
        beside.rmdir()


def test_a_click_names_no_file_but_an_upload(served: Served) -> None:
    root = served.keeping.root
    for path in (
        str(TARGET),
        f"{root}/../{TARGET}",
        "tests/test_page_attacks.py",
        "/proc/self/environ",
        "~/.ssh",
    ):
        for named in (
            file_data(path), {"path": path}, path, file_data(path, is_stream=True),
            file_data(path, url=f"/gradio_api/file={path}"), {"image": file_data(path), "caption": None},
        ):  # fmt: skip
            said = outcome(served, "look", [[named], "the only one"])
            assert '"success": false' in said, (named, said)
            assert "strangers" not in said
            assert "Traceback" not in said


# --- sending the page elsewhere ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A server of somebody else on this machine, and who asked it for something."""
    asked: list[str] = []

    class Note(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"secret")

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *details: object) -> None:  # noqa: A002 - its own name for it
            asked.append(format % details)

    server = HTTPServer(("127.0.0.1", 0), Note)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def bodies(fn_index: int, photo: Any) -> dict[str, dict[str, Any]]:
    """The ways to click, each with its body."""
    data = {"data": [[photo], "the only one"]}
    return {
        "queue/join": {**data, "fn_index": fn_index, "session_hash": "elsewhere1"},
        "call/look": data,
        "call/v2/look": {"photos": [photo], "who": "the only one"},
        "run/look": {**data, "fn_index": fn_index, "session_hash": "elsewhere1"},
    }


def test_no_address_is_fetched_by_any_way_to_click(served: Served, elsewhere: tuple[str, list[str]]) -> None:
    home, asked = elsewhere
    index = function_index(served, "look")
    for address in (
        f"{home}/a.png",
        f"{home.upper()}/a.png",
        f" {home}/a.png",
        "http://169.254.169.254/latest",
    ):
        for photo in (
            file_data(address), {"path": address, "url": address}, file_data("a.png", url=address), address,
            {"deeper": [{"and": file_data(address)}]}, {"url": address}, {"path": {"path": address}},
        ):  # fmt: skip
            for way, body in bodies(index, photo).items():
                status, _, answer = ask(
                    served, "POST", f"{API}/{way}", json.dumps(body).encode(), content_type=JSON
                )
                if status == 200 and way == "queue/join":
                    answer = json.dumps(completed(served, "elsewhere1")).encode()
                    assert b'"success": false' in answer
                elif status == 200 and way.startswith("call"):
                    event = json.loads(answer)["event_id"]
                    ask(served, "GET", f"{API}/{way.replace('/v2', '')}/{event}")
                assert b"secret" not in answer
    for path in (f"{API}/file={home}/a.png", f"{API}/proxy={home}/a.png", f"{API}/file=//{home[7:]}/a.png"):
        assert ask(served, "GET", path)[0] in (400, 403, 404)
    assert asked == []


def test_what_is_nested_without_end_goes_no_further(served: Served) -> None:
    body = b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    status, _, answer = ask(served, "POST", f"{API}/queue/join", body, content_type=JSON)
    assert (status, json.loads(answer)["detail"]) == (400, "that is nested too deeply")


def test_a_page_of_somebody_else_cannot_click(served: Served, photos: Photos) -> None:
    host = served.url.removeprefix("http://").rstrip("/")
    data = photos.person.read_bytes()
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", f"http://{host}.evil.example"):
        assert upload(served, "a.png", data, origin=origin)[0] == 403
        for path in (f"{API}/queue/join", f"{API}/cancel", f"{API}/call/look", "/login"):
            status, _, answer = ask(served, "POST", path, b"{}", content_type="text/plain", origin=origin)
            assert status == 403
            assert b"another page sends this" in answer
    assert upload(served, "a.png", data, origin=f"http://{host}")[0] == 200
    proxied = {"origin": "https://faces.example", "x_forwarded_host": "faces.example:443"}
    assert upload(served, "a.png", data, **proxied)[0] == 200


def test_the_page_itself_calls_nobody(served: Served, photos: Photos, calls: list[str]) -> None:
    said = outcome(served, "portrait", wishes(served, uploaded(served, photos.person)), "calls")
    assert '"success": true' in said
    assert calls  # of these tests themselves
    assert set(calls) <= {"127.0.0.1", "localhost", "::1"}  # from its start on, whatever was tried on it


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../../../evil.png", "..\\\\..\\\\evil.png", "/etc/evil.png", "..", ".", "", "%2e%2e%2fevil.png",
        "a\x00.png", "x" * 3000 + ".png", "\u202egnp.evil", "CON.png", "a;b|c`d`.png", "\U0001f600.png",
        ".in-use", "-rf.png",
    ],
)  # fmt: skip
def test_a_name_keeps_an_upload_in_its_folder(served: Served, name: str) -> None:
    status, _, answer = upload(served, name, b"x")
    assert status in (200, 400, 500), answer
    if status == 200:
        (stored,) = (Path(path) for path in json.loads(answer))
        assert stored.resolve().parent.parent == served.keeping.root.resolve()
        assert len(stored.name.encode()) <= 255
    root = served.keeping.root
    assert not list(root.glob("*evil*"))
    assert not list(root.parent.glob("*evil*"))
    assert (root / ".in-use").stat().st_size == 0
    assert ask(served, "GET", "/config")[0] == 200


@pytest.mark.parametrize(
    "name", ["a.html", "a.svg", "a.xhtml", "a.xml", "a.js", "a.css", "a.pdf", "a", "a.png.html"]
)
def test_an_upload_never_runs_in_a_browser(served: Served, name: str) -> None:
    content = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/><script>alert(1)</script>'
    (stored,) = json.loads(upload(served, name, content)[2])
    status, headers, body = ask(served, "GET", f"{API}/file={stored}")
    assert (status, body) == (200, content)
    assert headers["content-disposition"].startswith("attachment")
    assert headers["content-type"].startswith("application/octet-stream")
    assert headers["x-content-type-options"] == "nosniff"
    assert "object-src 'none'" in headers["content-security-policy"]


# --- words in the page ------------------------------------------------------------------------------------

NASTY = "<img src=x onerror=alert(1)><script>alert(2)</script>{{7*7}}${7*7}'\"><svg onload=alert(3)>"


def test_html_of_others_is_text_in_a_browser_and_nothing_stays_there(
    browser: Any, served: Served, photos: Photos, tmp_path: Path
) -> None:
    from test_page_browser import Visit

    named = tmp_path / "<img src=x onerror=alert(1)>.png"
    named.write_bytes(photos.person.read_bytes())
    faceless = tmp_path / "<svg onload=alert(3)>.png"
    faceless.write_bytes(photos.nobody.read_bytes())
    visit = Visit(browser, served, viewport={"width": 1280, "height": 900})
    page = visit.page
    visit.upload(named)
    page.locator("#portrait-prompt textarea").fill(NASTY)
    page.get_by_label("number input for Pictures").first.fill("1")
    page.get_by_label("number input for Pictures").first.press("Tab")
    visit.consent()
    visit.make()
    page.locator("#portrait-status .verdict").wait_for()
    page.get_by_role("button", name="Numbers").click()
    page.get_by_text("onerror=alert(1)><script>").first.wait_for()
    visit.pictures().first.click()
    page.keyboard.press("Escape")
    visit.upload(named, faceless)
    visit.make()
    assert "svg onload=alert(3)" in visit.toast()  # gradio takes < and > out of names
    assert page.locator("img[src='x'], svg[onload], script:text('alert(2)')").count() == 0
    kept = page.evaluate(
        "async () => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie,"
        " (await indexedDB.databases()).map(d => d.name), await caches.keys()])"
    )
    assert "onerror" not in kept
    local, session, cookies, databases, caches = json.loads(kept)
    assert (databases, caches, cookies) == ([], [], "")
    assert all(len(str(value)) < 100 for value in {**local, **session}.values())
    assert visit.close() == []


def test_html_in_a_prompt_reaches_the_file_unchanged(served: Served, photos: Photos, tmp_path: Path) -> None:
    stored = uploaded(served, photos.person)
    message = json.loads(outcome(served, "portrait", wishes(served, stored, prompt=NASTY), "words"))
    (path,) = pictures_of(message)
    status, headers, data = ask(served, "GET", path)
    assert (status, headers["content-type"]) == (200, "image/png")
    (tmp_path / "a.png").write_bytes(data)
    assert read_provenance(tmp_path / "a.png").prompt == NASTY
    assert "<img" not in message["output"]["data"][0]


def zip_of(photo: Path, *names: str) -> bytes:
    """A zip in which the same photo has several names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, photo.read_bytes())
    return file.getvalue()


def evaluated(served: Served, **zips: bytes) -> str:
    """What comes of measuring two sets of pictures."""
    sets = {
        name: [file_data(json.loads(upload(served, "set.zip", data)[2])[0])] for name, data in zips.items()
    }
    wanted = [sets.get(p["parameter_name"]) for p in parameters_of(served, "evaluate")]
    return outcome(served, "evaluate", wanted, "evaluates")


def test_html_in_the_names_of_people_is_text(served: Served, photos: Photos) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    said = evaluated(
        served, pictures=zip_of(photos.person, f"{nasty}/1.png", "bob/1.png"),
        references=zip_of(photos.person, "<svg onload=alert(2)>/1.png", "eve/1.png"),
    )  # fmt: skip
    error = json.loads(said)["output"]["error"]  # which a browser shows as HTML
    assert "None of the people of the photos" in error
    assert "&lt;img src=x" in error
    assert "<" not in error


def test_a_zip_puts_nothing_elsewhere(served: Served, photos: Photos) -> None:
    root = served.keeping.root
    before = set(root.rglob("*evil*"))  # uploads of other tests that were called so
    for name in (
        "../../../evil.png",
        "/tmp/idgen-evil.png",
        "a/../../evil.png",
        "..\\evil.png",
        "C:\\evil.png",
    ):
        said = evaluated(served, pictures=zip_of(photos.person, "ann/1.png", name))
        assert "whose name leads out of it; nothing of it is unpacked" in said
    assert not [path for folder in (root, root.parent) for path in folder.glob("*evil*")]
    assert set(root.rglob("*evil*")) == before
