"""Requests to the page as they stand, for what a well-behaved client would never send."""

import functools
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from paging import STEPS, Served

API = "/gradio_api"
JSON = "application/json"
FORM = "multipart/form-data; boundary=x"
PATIENCE_S = 60.0  # of a machine that has much else to do
Answer = tuple[int, dict[str, str], bytes]


def address_of(served: Served) -> tuple[str, int]:
    """Host and port."""
    host, port = served.url.removeprefix("http://").rstrip("/").split(":")
    return host, int(port)


def ask(served: Served, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """One request, its path as it stands: no client tidies it up."""
    connection = HTTPConnection(*address_of(served), timeout=PATIENCE_S)
    connection.putrequest(method, path, skip_host="host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None:
        connection.putheader("content-length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    data = answer.read() if "event-stream" not in str(answer.getheader("content-type")) else b""
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, data


# --- clicks -----------------------------------------------------------------------------------------------


@functools.cache
def function_index(served: Served, name: str) -> int:
    """By which number a browser calls an endpoint."""
    config = json.loads(ask(served, "GET", "/config")[2])
    return next(d["id"] for d in config["dependencies"] if d["api_name"] == name)


@functools.cache
def parameters_of(served: Served, name: str) -> list[dict[str, Any]]:
    """What an endpoint wants, as the page describes it."""
    return json.loads(ask(served, "GET", f"{API}/info")[2])["named_endpoints"][f"/{name}"]["parameters"]


def join(served: Served, fn: str, data: list[Any], session: str = "abcdefgh") -> tuple[int, bytes]:
    """A click, as a browser sends it."""
    index = function_index(served, fn)
    body = json.dumps({"data": data, "fn_index": index, "session_hash": session}).encode()
    status, _, answer = ask(served, "POST", f"{API}/queue/join", body, content_type=JSON)
    return status, answer


@contextmanager
def listening(served: Served, session: str = "abcdefgh") -> Iterator[HTTPResponse]:
    """What a browser is told of its clicks, line by line, until it goes away."""
    connection = HTTPConnection(*address_of(served), timeout=PATIENCE_S)
    connection.request("GET", f"{API}/queue/data?session_hash={session}")
    with connection.getresponse() as heard:
        yield heard
    connection.close()


def news(heard: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The messages of a stream of events."""
    for line in heard:
        if line.startswith(b"data:"):
            yield json.loads(line.removeprefix(b"data:"))


def completed(served: Served, session: str = "abcdefgh") -> dict[str, Any]:
    """The last message about a click."""
    with listening(served, session) as heard:
        return next(message for message in news(heard) if message["msg"] == "process_completed")


def outcome(served: Served, fn: str, data: list[Any], session: str = "abcdefgh") -> str:
    """What comes of a click, as a browser hears it; no client has looked at the data before."""
    status, answer = join(served, fn, data, session)
    assert status == 200, answer
    return json.dumps(completed(served, session))


def file_data(path: str, **more: Any) -> dict[str, Any]:
    """A file as clicks name it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png", **more}


def wishes(served: Served, stored: str, **changes: Any) -> list[Any]:
    """What the tab Portrait sends for one picture of an uploaded photo."""
    asked = {"photos": [file_data(stored)], "prompt": "a photo", "seed": 1, "count": 1, "consent": True,
             "steps": STEPS, **changes}  # fmt: skip
    wanted = parameters_of(served, "portrait")
    return [asked.get(p["parameter_name"], p["parameter_default"]) for p in wanted]


def pictures_of(message: dict[str, Any]) -> list[str]:
    """The pictures of a click that went well: where each lies, for `ask`."""
    assert message["success"], message
    _, gallery, *_ = message["output"]["data"]
    return [re.sub(r"^https?://[^/]+", "", item["image"]["url"]) for item in gallery]


# --- uploads ----------------------------------------------------------------------------------------------


def form_head(name: str) -> bytes:
    """How the part of a form begins that is a file of this name."""
    return f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()


def upload(served: Served, name: str, data: bytes, **headers: str) -> Answer:
    """One file."""
    body = form_head(name) + data + b"\r\n--x--\r\n"
    return ask(served, "POST", f"{API}/upload", body, **{"content_type": FORM, **headers})


def uploaded(served: Served, file: Path) -> str:
    """Where the page put a file of this disk."""
    status, _, answer = upload(served, file.name, file.read_bytes())
    assert status == 200, answer
    (stored,) = json.loads(answer)
    return stored


def begun(served: Served, *headers: str, path: str = f"{API}/upload") -> socket.socket:
    """A connection on which an upload has said its head, and nothing more."""
    connection = socket.create_connection(address_of(served), timeout=PATIENCE_S)
    host, port = address_of(served)
    lines = [f"POST {path} HTTP/1.1", f"host: {host}:{port}", f"content-type: {FORM}", *headers, "", ""]
    connection.sendall("\r\n".join(lines).encode())
    return connection


def bytes_kept(served: Served) -> int:
    """How much lies in the page's folder."""
    total = 0
    for path in served.keeping.root.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # just deleted
            continue
    return total


def eventually(is_so: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
