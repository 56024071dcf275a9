"""The page when things go wrong: a model that fails, a full disk, people who leave, a long line."""

import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from knocking import (
    API,
    JSON,
    address_of,
    ask,
    bytes_kept,
    completed,
    eventually,
    function_index,
    join,
    listening,
    news,
    outcome,
    pictures_of,
    uploaded,
    wishes,
)
from paging import Photos, Served, program, running_page

from idgen.cli import main
from idgen.errors import ConfigError
from idgen.page import serving
from idgen.page.sentences import FULL, MEMORY
from idgen.page.serving import WAITING, Address, free_port, serve
from idgen.provenance import read_provenance

LONG = 100  # steps, the most that may be asked for


@pytest.fixture(scope="module")
def stored(served: Served, photos: Photos) -> str:
    """Where the photo of a person lies that was uploaded."""
    return uploaded(served, photos.person)


def is_working() -> bool:
    """Whether pictures are being made."""
    return "pictures" in {thread.name for thread in threading.enumerate()}


def error_of(said: str) -> str:
    """What a click is told that did not work."""
    message = json.loads(said)
    assert not message["success"], message
    return message["output"]["error"]


def clicked(served: Served, stored: str, session: str, **changes: Any) -> str:
    """Join the line, and do not listen yet: the number of the click."""
    status, answer = join(served, "portrait", wishes(served, stored, **changes), session)
    assert status == 200, answer
    return json.loads(answer)["event_id"]


def said_in_the_file(served: Served, path: str, folder: Path) -> tuple[str, int]:
    """Prompt and seed, as a picture that was fetched says them."""
    (folder / "fetched.png").write_bytes(ask(served, "GET", path)[2])
    said = read_provenance(folder / "fetched.png")
    assert said.seed is not None
    return str(said.prompt), said.seed


def cancel(served: Served, session: str, event: str) -> None:
    """What the button does."""
    body = {"session_hash": session, "event_id": event, "fn_index": function_index(served, "portrait")}
    status, _, _ = ask(served, "POST", f"{API}/cancel", json.dumps(body).encode(), content_type=JSON)
    assert status == 200


# --- the model --------------------------------------------------------------------------------------------


FAILURES = {
    "The program failed at that (RuntimeError)": RuntimeError("a kernel failed at 0xdeadbeef"),
    "The program failed at that (KeyError)": KeyError("/secret/path"),
    MEMORY: RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
    MEMORY[:-1]: MemoryError(),
}


def test_a_model_that_fails_in_a_step_leaves_the_page_alive(
    served: Served, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = served.shop.pipe.unet
    forward = unet.forward
    for words, error in FAILURES.items():
        steps = iter((True, False))

        def fails_at_the_second(*inputs: Any, error: Exception = error, steps: Iterator[bool] = steps,
                                **more: Any) -> Any:  # fmt: skip
            if next(steps):
                return forward(*inputs, **more)
            raise error

        with monkeypatch.context() as broken:
            broken.setattr(unet, "forward", fails_at_the_second)
            said = error_of(outcome(served, "portrait", wishes(served, stored), "fails"))
        assert words in said
        assert not any(hidden in said for hidden in ("Traceback", "deadbeef", "/secret", "20 GiB"))
        assert not is_working()
    assert '"success": true' in outcome(served, "portrait", wishes(served, stored), "goes-on")


@contextmanager
def no_room_on_the_disk(limit: int) -> Iterator[None]:
    """A block in which the system refuses longer files than this, as it does where the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_nothing_half_is_left(served: Served, stored: str) -> None:
    before = bytes_kept(served)
    asked = wishes(served, stored)
    with no_room_on_the_disk(3000):
        said = error_of(outcome(served, "portrait", asked, "full"))
    assert said == FULL
    assert bytes_kept(served) == before
    assert '"success": true' in outcome(served, "portrait", asked, "room-again")


# --- people who leave -------------------------------------------------------------------------------------


def begun_work(served: Served, stored: str, session: str) -> str:
    """A long click that is being worked on: its number."""
    event = clicked(served, stored, session, steps=LONG)
    assert eventually(is_working)
    return event


def test_whoever_goes_away_stops_their_own_work(served: Served, stored: str, tmp_path: Path) -> None:
    begun_work(served, stored, "leaves")
    clicked(served, stored, "stays", prompt="who stays", seed=5)
    with listening(served, "leaves") as heard:
        assert next(news(heard))
    (path,) = pictures_of(completed(served, "stays"))
    assert said_in_the_file(served, path, tmp_path) == ("who stays", 5)
    assert eventually(lambda: not is_working())


def test_whoever_leaves_the_line_is_not_waited_for(served: Served, stored: str) -> None:
    with served.shop.turn():
        clicked(served, stored, "first")
        assert eventually(is_working)
        before = len(list(served.keeping.root.rglob("idgen-77-*.png")))
        clicked(served, stored, "leaves-line", seed=77)
        with listening(served, "leaves-line") as heard:
            assert next(news(heard))
    pictures_of(completed(served, "first"))
    pictures_of(json.loads(outcome(served, "portrait", wishes(served, stored), "after")))
    assert len(list(served.keeping.root.rglob("idgen-77-*.png"))) == before


def test_cancel_of_one_is_not_cancel_of_another(served: Served, stored: str, tmp_path: Path) -> None:
    running = begun_work(served, stored, "runs")
    clicked(served, stored, "waits", prompt="who waits", seed=6)
    other = clicked(served, stored, "also-waits", prompt="who also waits", seed=7)
    cancel(served, "also-waits", other)  # in the line
    cancel(served, "waits", "0" * 32)  # nobody knows the number of another's click: 122 bits of chance
    assert is_working()
    cancel(served, "runs", running)
    (path,) = pictures_of(completed(served, "waits"))
    assert said_in_the_file(served, path, tmp_path) == ("who waits", 6)
    assert not list(served.keeping.root.rglob("idgen-7-*.png"))


# --- the line ---------------------------------------------------------------------------------------------


def test_forty_wait_the_next_is_told_and_each_gets_their_own_answer(
    served: Served, stored: str, tmp_path: Path
) -> None:
    makes, index = 3, function_index(served, "portrait")
    asked = wishes(served, stored, steps=1)
    changes: list[dict[str, Any]] = [
        {"prompt": f"person {i}", "seed": 100 + i} if i < makes else {"count": 100 + i}
        for i in range(WAITING + 1)
    ]
    with served.shop.turn():  # the first one comes to the model, and no further
        for number, change in enumerate(changes):
            clicked(served, stored, f"line-{number}", steps=1, **change)
            assert number > 0 or eventually(is_working)
        body = json.dumps({"data": asked, "fn_index": index, "session_hash": "too-many"}).encode()
        status, _, answer = ask(served, "POST", f"{API}/queue/join", body, content_type=JSON)
        assert status == 503, answer
        assert ask(served, "GET", "/config")[0] == 200  # everything else goes on
    answers: dict[int, dict[str, Any]] = {}

    def hear(number: int) -> None:
        answers[number] = completed(served, f"line-{number}")

    listeners = [threading.Thread(target=hear, args=(number,)) for number in range(WAITING + 1)]
    for listener in listeners:
        listener.start()
    for listener in listeners:
        listener.join()
    for number, change in enumerate(changes):
        if number < makes:
            (path,) = pictures_of(answers[number])
            assert said_in_the_file(served, path, tmp_path) == (change["prompt"], change["seed"])
        else:
            assert f"Value {change['count']} is greater than" in answers[number]["output"]["error"]
    assert '"success": true' in outcome(served, "portrait", asked, "after-them")


# --- time -------------------------------------------------------------------------------------------------


def test_uploads_and_pictures_are_gone_after_their_time(photos: Photos) -> None:
    with running_page(keep_seconds=0.5) as page:  # how often it is swept
        page.keeping.keep_seconds = 3600.0
        stored = uploaded(page, photos.person)
        (path,) = pictures_of(json.loads(outcome(page, "portrait", wishes(page, stored, steps=1))))
        assert ask(page, "GET", path)[0] == ask(page, "GET", f"{API}/file={stored}")[0] == 200
        page.keeping.keep_seconds = 0.1
        assert eventually(lambda: bytes_kept(page) == 0)
        assert ask(page, "GET", path)[0] == ask(page, "GET", f"{API}/file={stored}")[0] == 403
        said = error_of(outcome(page, "portrait", wishes(page, stored), "late"))
        assert "No such file: the photo (ann.png). Uploads are deleted after an hour: add it again" in said
        folders = [path for path in page.keeping.root.iterdir() if path.is_dir()]
        assert eventually(lambda: not any(folder.exists() for folder in folders))


# --- the port and the end ---------------------------------------------------------------------------------


def test_a_second_page_on_the_port_says_so_and_names_one_that_is_free(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = address_of(served)
    assert main(["app", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"port {port} is taken, perhaps by a page that runs already; the next free one: --port " in said
    offered = int(said.strip().rpartition(" ")[2])
    assert free_port("127.0.0.1", offered) == offered
    monkeypatch.setattr(serving, "PORT", port)
    assert free_port("127.0.0.1", None) == offered  # nobody has to name one


def test_a_port_that_is_lost_at_the_last_moment_is_told(served: Served) -> None:
    _, port = address_of(served)
    page = program()["build_page"](served.shop, served.keeping)
    with pytest.raises(ConfigError, match=f"port {port} cannot be had any more"):
        serve(page, Address(port=port), wait=False)
