"""What the page answers to: the few routes that it needs, from its own address, with no URL to fetch."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

from idgen.page.incoming import IDLE_SECONDS, Application, Message, Receive, Send, Upload, refused_upload

MAX_JSON_BYTES = 1 << 20  # of a request that is no upload: words and numbers
# Of gradio 6; whatever else it offers (fetching for others, recordings, monitoring, code) is not there.
ROUTES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|login|logout|login_check)/?"
    r"|/(assets|static|svelte)/.*"
    r"|/gradio_api/(info|openapi\.json|user|login_check|app_id|token|upload|upload_progress|startup-events)/?"
    r"|/gradio_api/(queue/join|queue/data|cancel|reset|heartbeat/[\w-]+)/?"
    r"|/gradio_api/(call|run)/(v2/)?[\w-]+(/[\w-]+)?/?"
    r"|/gradio_api/file=.*"
)
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*:[/\\]", re.IGNORECASE)  # http://..., also \\ for /
_FILES = "/gradio_api/file="
_UPLOAD = "/gradio_api/upload"
HEADERS = {
    # Everything comes from this address; gradio puts scripts and styles into the page itself.
    "content-security-policy": (
        "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
        "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """An ASGI application before gradio's: refuses what the page has no use for.

    Args:
        app: behind it.
        hosts: names that the page may be called by, in lower case and without a port; any where empty. A page
            of somebody else that points its own name to 127.0.0.1 is not among them.
    """

    def __init__(self, app: Application, *, hosts: frozenset[str] = frozenset()) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":  # the page has no web sockets
            await send({"type": "websocket.close", "code": 1008})
        elif _is_upload(scope):
            upload = Upload(scope, receive, send)
            if refusal := self._refusal(scope):
                await _answer(upload.send, *refusal)
            else:
                await self.app(scope, upload.receive, _with_headers(upload.send))
        elif refusal := self._refusal(scope):
            await _answer(send, *refusal)
        elif scope["method"] == "POST":
            await self._without_addresses(scope, receive, _with_headers(send))
        else:
            await self.app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        path = scope["path"]
        if self.hosts and _host(scope) not in self.hosts:
            return 400, "this page is not called by that name"
        if not ROUTES.fullmatch(path) or (
            path.startswith(_FILES) and _ADDRESS.match(path.removeprefix(_FILES))
        ):
            return 404, "there is nothing here"
        if scope["method"] not in ("GET", "HEAD") and _is_from_elsewhere(scope):
            return 403, "another page sends this; a proxy before this one must hand on the header Host"
        if _is_upload(scope):
            return refused_upload(dict(scope["headers"]))
        return None

    async def _without_addresses(self, scope: Message, receive: Receive, send: Send) -> None:
        """Read the whole of a short request; one that names a file by an address goes no further."""
        body, more = b"", True
        while more:
            try:
                message = await asyncio.wait_for(receive(), IDLE_SECONDS)
            except TimeoutError:
                await _answer(send, 408, f"nothing more came for {IDLE_SECONDS:.0f} s")
                return
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > MAX_JSON_BYTES:
                await _answer(send, 413, f"a request holds at most {MAX_JSON_BYTES} bytes")
                return
        if refusal := _refused_words(body):
            await _answer(send, 400, refusal)
            return
        replayed = False

        async def again() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


def _is_upload(scope: Message) -> bool:
    return scope["method"] == "POST" and scope["path"].startswith(_UPLOAD)


def _is_from_elsewhere(scope: Message) -> bool:
    """Whether a page of another address asks; browsers say so (RFC 6454, 7), and other programs nothing."""
    headers = dict(scope["headers"])
    if b"origin" not in headers:
        return False
    asking = headers[b"origin"].partition(b"://")[2]
    # A page of somebody else cannot set the second one, nor can it pretend to be another than it is.
    own = (headers.get(b"host", b""), headers.get(b"x-forwarded-host", b"").partition(b",")[0].strip())
    return not asking or _without_usual_port(asking) not in map(_without_usual_port, own)


def _without_usual_port(name: bytes) -> bytes:
    return re.sub(rb":(80|443)$", b"", name.lower())


def _host(scope: Message) -> str:
    named = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    return re.sub(r":\d+$", "", named)


def _refused_words(body: bytes) -> str | None:
    """Why gradio should not see this; what is no JSON is left to it, for it refuses that."""
    try:
        if any(_ADDRESS.match(path) for path in _paths(json.loads(body or b"null"))):
            return "files are uploaded; none is fetched from an address"
    except ValueError:
        return None
    except RecursionError:
        return "that is nested too deeply"
    return None


def _paths(data: Any) -> Iterator[str]:  # noqa: ANN401 - whatever JSON holds
    if isinstance(data, dict):
        if isinstance(path := data.get("path"), str):
            yield path
        for value in data.values():
            yield from _paths(value)
    elif isinstance(data, list):
        for value in data:
            yield from _paths(value)


def _with_headers(send: Send) -> Send:
    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return send_with


async def _answer(send: Send, status: int, words: str) -> None:
    body = json.dumps({"detail": words}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
