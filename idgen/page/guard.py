"""What the page answers to: the few routes that it needs, from its own address, with no URL to fetch."""

import json
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_JSON_BYTES = 1 << 20  # of a request that is no upload: words and numbers
MAX_UPLOAD_BYTES = 200 << 20  # of all files of one upload
FREE_BYTES = 1 << 30  # that uploads leave on the disk
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
        elif refusal := self._refusal(scope):
            await _answer(send, *refusal)
        elif scope["method"] == "POST" and not scope["path"].startswith(_UPLOAD):
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
        if path.startswith(_UPLOAD) and scope["method"] == "POST":
            return _refused_upload(dict(scope["headers"]).get(b"content-length", b"").decode("latin-1"))
        return None

    async def _without_addresses(self, scope: Message, receive: Receive, send: Send) -> None:
        """Read the whole of a short request; one that names a file by an address goes no further."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > MAX_JSON_BYTES:
                await _answer(send, 413, f"a request holds at most {MAX_JSON_BYTES} bytes")
                return
        if _names_an_address(body):
            await _answer(send, 400, "files are uploaded; none is fetched from an address")
            return
        replayed = False

        async def again() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


def _refused_upload(length: str) -> tuple[int, str] | None:
    if not length.isdecimal():
        return 411, "an upload says how long it is"
    if int(length) > MAX_UPLOAD_BYTES:
        return 413, f"an upload holds at most {MAX_UPLOAD_BYTES >> 20} MB"
    if shutil.disk_usage(tempfile.gettempdir()).free < FREE_BYTES + int(length):
        return 507, "the disk of this machine is nearly full; come back when older uploads are gone"
    return None


def _host(scope: Message) -> str:
    named = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    return re.sub(r":\d+$", "", named)


def _names_an_address(body: bytes) -> bool:
    """Whether some ``path`` in JSON is an address; what is no JSON is left to gradio, which refuses it."""
    try:
        return any(_ADDRESS.match(path) for path in _paths(json.loads(body or b"null")))
    except (ValueError, RecursionError):
        return False


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
