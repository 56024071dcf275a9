"""The page behind its port, as programs use it: its endpoints, its manners, and what must not succeed."""

import hashlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, USUAL_PAGE, Reader, blocks_of
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from knocking import API, JSON, ask, bytes_kept, join, outcome, upload
from paging import STEPS, Photos, Served, running_page
from PIL import Image

from idgen.errors import ConfigError
from idgen.page.guard import MAX_JSON_BYTES
from idgen.page.serving import Address, free_port, launch_settings, read_users
from idgen.provenance import read_provenance


@pytest.fixture(scope="module")
def client(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(served.url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def portrait(client: Client, photo: Path, **changes: Any) -> Any:
    asked = {
        "prompt": "a photo of a woman",
        "seed": 1,
        "count": 1,
        "consent": True,
        "steps": STEPS,
        **changes,
    }
    return client.predict([handle_file(photo)], **asked, api_name="/portrait")


# --- what programs get ------------------------------------------------------------------------------------


def test_the_endpoints_are_named_and_documented(client: Client) -> None:
    described: Any = client.view_api(return_format="dict", print_info=False)
    assert sorted(described["named_endpoints"]) == [
        "/blend", "/dataset", "/evaluate", "/look", "/people", "/portrait",
    ]  # fmt: skip
    assert not described["unnamed_endpoints"]
    wanted = described["named_endpoints"]["/portrait"]["parameters"]
    assert [p["parameter_name"] for p in wanted][:7] == [
        "photos", "prompt", "strength", "start", "seed", "count", "consent",
    ]  # fmt: skip
    assert all(p["parameter_has_default"] for p in wanted[1:])


def test_pictures_arrive_byte_for_byte_with_what_they_say(
    client: Client, served: Served, photos: Photos
) -> None:
    status, pictures, archive, numbers = portrait(client, photos.person, count=2)
    assert "verdict" in status
    made = {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in served.keeping.root.rglob("idgen-*.png")
    }
    for picture, number in zip(pictures, numbers, strict=True):
        path = Path(picture["image"])
        assert hashlib.sha256(path.read_bytes()).hexdigest() in made
        said = read_provenance(path)
        assert said.prompt == "a photo of a woman"
        assert said.seed == number["seed"]
        shown = list(number["similarity"].values())
        assert picture["caption"] in (
            f"similarity {shown[0]:.2f} · second eye {shown[1]:.2f}",
            "no face found",
        )
    assert Path(archive).read_bytes()[:2] == b"PK"


def test_the_example_of_the_documents_runs(
    served: Served, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.open(photos.person).save("ann.jpg")
    (example,) = (block for block in blocks_of(ROOT / "docs" / "page.md") if USUAL_PAGE in block.code)
    Reader(tmp_path).follow(replace(example, code=example.code.replace(USUAL_PAGE, served.url)))


def test_looking_says_what_is_doubtful(client: Client, photos: Photos) -> None:
    said = client.predict([handle_file(photos.person), handle_file(photos.two_people)], api_name="/look")
    assert said.count("<figure>") == 2
    assert "shows 2 faces" in said


@pytest.mark.parametrize(
    ("photo", "changes", "words"),
    [
        ("person", {"consent": False}, "Please confirm first that you have the right"),
        ("nobody", {}, "No face was found in the photo (nobody.png)"),
        ("two_people", {}, "The photo (two.png) shows 2 faces"),
        ("no_picture", {}, "The photo (text.png) is not a picture that can be read"),
        ("person", {"prompt": ""}, "There is no prompt yet"),
        ("person", {"prompt": "x" * 1001}, "at most 1000 characters"),
        ("person", {"seed": -5}, "The seed must be between"),
    ],
)
def test_mistakes_come_back_as_a_sentence(
    client: Client, served: Served, photos: Photos, photo: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(AppError) as error:
        portrait(client, getattr(photos, photo), **changes)
    assert words in str(error.value)
    assert "Traceback" not in str(error.value)
    assert str(served.keeping.root) not in str(error.value)


def test_a_prompt_with_html_is_a_prompt(client: Client, photos: Photos) -> None:
    words = "<script>alert(1)</script> & <b>x</b>"
    status, pictures, _, numbers = portrait(client, photos.person, prompt=words)
    assert numbers[0]["prompt"] == read_provenance(pictures[0]["image"]).prompt == words
    assert "<script>" not in status


def test_everybody_gets_their_own_pictures(served: Served, photos: Photos) -> None:
    """A short form of `benchmarks/page_load.py`: four people at once."""
    wrong: list[object] = []

    def visit(number: int) -> None:
        try:
            own = Client(served.url, verbose=False)
            words, seed = f"person number {number}", 100 * number
            _, pictures, _, numbers = portrait(own, photos.person, prompt=words, seed=seed, steps=1)
            said = read_provenance(pictures[0]["image"])
            if (said.prompt, said.seed, numbers[0]["seed"]) != (words, seed, seed):
                wrong.append((number, said))
        except Exception as error:
            wrong.append(error)

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert not wrong


def test_a_job_can_be_cancelled(client: Client, served: Served, photos: Photos) -> None:
    job = client.submit(
        [handle_file(photos.person)], "a photo", 1, 0, 1, 1, True, "the only one", "", 100, 3.5,
        api_name="/portrait",
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not job.outputs() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job.outputs()
    job.cancel()
    while "pictures" in {t.name for t in threading.enumerate()} and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "pictures" not in {t.name for t in threading.enumerate()}
    assert portrait(client, photos.person)[1]


# --- what must not succeed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/file=/etc/passwd",
        f"{API}/file=../../../../etc/passwd",
        f"{API}/file=%2e%2e/%2e%2e/etc/passwd",
        f"{API}/file={Path(__file__).resolve()}",
        f"{API}/file=pyproject.toml",
        "/static/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc/passwd",
        "/svelte/../../gradio/routes.py",
        f"{API}/file=http://127.0.0.1:1/secret",
        f"{API}/file=https:/example.com/x.png",
        f"{API}/proxy=http://127.0.0.1:1/secret",
        "/gradio_api/deep_link?session_hash=x",
        "/monitoring",
        "/monitoring/summary",
        f"{API}/vibe-code",
        f"{API}/runs",
        f"{API}/run-history/records",
        f"{API}/profiling/traces",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_else_can_be_read(served: Served, path: str) -> None:
    status, _, body = ask(served, "GET", path)
    assert status in (400, 403, 404), body[:200]
    assert b"root:" not in body
    assert b"import" not in body


def test_the_routes_that_write_elsewhere_are_shut(served: Served) -> None:
    for path in ("process_recording", "vibe-edit", "run-history/connect", "component_server"):
        assert ask(served, "POST", f"{API}/{path}", b"{}", content_type="application/json")[0] == 404


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../etc/passwd", str(Path(__file__).resolve()), "pyproject.toml"]
)
def test_a_file_that_was_not_uploaded_is_not_opened(served: Served, path: str) -> None:
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    said = outcome(served, "look", [[file], "the only one"])
    assert '"success":false' in said.replace(" ", "")
    assert "root:" not in said
    assert "import" not in said


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/a.png", "HTTPS://example.com/a.png", "http:\\\\x/a.png"]
)
def test_no_address_is_fetched(served: Served, address: str) -> None:
    file = {"path": address, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    status, answer = join(served, "look", [[file], "the only one"])
    assert status == 400
    assert b"none is fetched from an address" in answer


def test_a_large_file_is_refused_and_leaves_nothing(served: Served) -> None:
    before = sum(path.stat().st_size for path in served.keeping.root.rglob("*") if path.is_file())
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + bytes(27_000_000) + b"\r\n--x--\r\n"
    status, _, answer = ask(
        served, "POST", f"{API}/upload", body, content_type="multipart/form-data; boundary=x"
    )
    assert status == 413, answer
    after = sum(path.stat().st_size for path in served.keeping.root.rglob("*") if path.is_file())
    assert after - before < 1_000_000


def test_an_upload_is_measured_before_it_is_read(served: Served) -> None:
    for length, status in ((str(300 << 20), 413), ("many", 411)):
        asked = {"content_type": "multipart/form-data; boundary=x", "content_length": length}
        assert ask(served, "POST", f"{API}/upload", None, **asked)[0] in (status, 400)


def test_a_name_with_a_path_in_it_stays_in_the_folder(served: Served) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../../evil.png"\r\n\r\n'
    status, _, answer = ask(
        served, "POST", f"{API}/upload", head + b"x\r\n--x--\r\n",
        content_type="multipart/form-data; boundary=x",
    )  # fmt: skip
    if status == 200:
        (stored,) = json.loads(answer)
        assert served.keeping.root.resolve() in Path(stored).resolve().parents
    assert not list(served.keeping.root.parent.glob("evil.png"))


def test_an_upload_is_never_shown_as_a_page(served: Served) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.html"\r\n\r\n'
    _, _, answer = ask(
        served, "POST", f"{API}/upload", head + b"<script>alert(1)</script>\r\n--x--\r\n",
        content_type="multipart/form-data; boundary=x",
    )  # fmt: skip
    (stored,) = json.loads(answer)
    _, headers, _ = ask(served, "GET", f"{API}/file={stored}")
    assert headers["content-disposition"].startswith("attachment")
    assert headers["x-content-type-options"] == "nosniff"


def test_a_large_request_is_refused(served: Served) -> None:
    body = b'{"data": ["' + b"x" * MAX_JSON_BYTES + b'"]}'
    assert ask(served, "POST", f"{API}/queue/join", body, content_type="application/json")[0] == 413


def test_the_page_answers_to_its_own_name_alone(served: Served) -> None:
    assert ask(served, "GET", "/config", host="evil.example:7860")[0] == 400
    assert ask(served, "GET", "/config", host="localhost:7860")[0] == 200


def test_the_page_lets_nothing_in_from_elsewhere(served: Served) -> None:
    _, headers, body = ask(served, "GET", "/")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    config = json.loads(ask(served, "GET", "/config")[2])
    assert config["analytics_enabled"] is False
    assert not config.get("run_history")
    assert b"idgen" in body


# --- how it is opened -------------------------------------------------------------------------------------


def test_a_password_is_asked_for() -> None:
    with running_page(("ann", "secret")) as guarded:
        for path in ("config", "gradio_api/info", "gradio_api/file=/etc/passwd", "gradio_api/openapi.json",
                     "gradio_api/queue/data?session_hash=a", "gradio_api/call/look/a"):  # fmt: skip
            assert ask(guarded, "GET", f"/{path}")[0] == 401, path
        clicks = json.dumps({"data": [None, "the only one"], "fn_index": 0, "session_hash": "a"}).encode()
        for path in ("queue/join", "call/look", "call/v2/look", "run/look"):
            assert ask(guarded, "POST", f"{API}/{path}", clicks, content_type=JSON)[0] == 401, path
        assert upload(guarded, "a.png", b"x")[0] == 401
        assert bytes_kept(guarded) == 0
        with pytest.raises(Exception, match=r"401|[Cc]redentials|[Ll]ogin"):
            Client(guarded.url, verbose=False)
        assert Client(guarded.url, verbose=False, auth=("ann", "secret")).view_api(return_format="dict")


def test_private_by_default() -> None:
    settings = launch_settings(Address())
    assert settings["server_name"] == "127.0.0.1"
    assert settings["share"] is settings["run_history"] is settings["enable_monitoring"] is False
    assert settings["allowed_paths"] == []
    assert Address().warning is None
    assert "everybody who reaches this machine" in str(Address(host="0.0.0.0").warning)
    assert "whoever has a password" in str(Address(host="0.0.0.0", users=(("a", "b"),)).warning)
    assert "secret" not in repr(Address(users=(("ann", "secret"),)))


def test_a_port_in_use_is_told_and_the_next_one_offered(served: Served) -> None:
    port = int(served.url.rstrip("/").rpartition(":")[2])
    assert free_port("127.0.0.1", None) != port
    with pytest.raises(ConfigError, match=f"port {port} is taken.*the next free one: --port"):
        free_port("127.0.0.1", port)


def test_users_come_from_the_command_or_a_file(tmp_path: Path) -> None:
    assert read_users(None) == ()
    assert read_users("ann:a:b") == (("ann", "a:b"),)
    file = tmp_path / "users"
    file.write_text("ann:one\n\nbob:two\n")
    file.chmod(0o600)
    assert read_users(str(file)) == (("ann", "one"), ("bob", "two"))
    file.write_text("ann:one\nann:two\n")
    with pytest.raises(ConfigError, match="names a user twice"):
        read_users(str(file))
    file.write_text("\n")
    with pytest.raises(ConfigError, match="names no user"):
        read_users(str(file))
