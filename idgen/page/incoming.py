"""An upload on its way in: files alone, no endless pause, room on the disk, an answer that is heard."""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_UPLOAD_BYTES = 200 << 20  # of all files of one upload
FREE_BYTES = 1 << 30  # that uploads leave on the disk
FULL = "the disk of this machine is nearly full; come back when older uploads are gone"
IDLE_SECONDS = 60.0  # after which a request that does not go on is given up
DRAIN_SECONDS = 2.0  # for which what is refused is still taken in
_LOOK_AT_DISK_BYTES = 8 << 20


def refused_upload(headers: dict[bytes, bytes]) -> tuple[int, str] | None:
    """What can be said of an upload before any of it is read: status and words, or None if it may come.

    Args:
        headers: of the request, names in lower case.
    """
    length = headers.get(b"content-length", b"").decode("latin-1")
    # One that comes in chunks may name a length as well, and a server goes by the chunks (RFC 9112, 6.3).
    if b"transfer-encoding" in headers or not (length.isascii() and length.isdecimal()):
        return 411, "an upload says how long it is"
    if int(length) > MAX_UPLOAD_BYTES:
        return 413, f"an upload holds at most {MAX_UPLOAD_BYTES >> 20} MB"
    if _free_bytes() < FREE_BYTES + int(length):
        return 507, FULL
    return None


class Upload:
    """Stands between the server and gradio for one upload.

    What it objects to reaches gradio as a `MultiPartException` in the middle of the body: gradio then deletes
    the files that it began. It does not where a connection just ends.

    Args:
        scope: of the request.
        receive: of the server.
        send: of the server.
    """

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._form = _Form(dict(scope["headers"]).get(b"content-type", b""))
        self._is_whole = self._is_refused = False
        self._unchecked = 0  # bytes since the disk was last looked at

    async def receive(self) -> Message:
        """The next part of the upload.

        Raises:
            MultiPartException: if it breaks off, stops or is cut short, holds no file, or fills the disk.
        """
        from starlette.formparsers import MultiPartException

        if self._is_whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), IDLE_SECONDS)
        except TimeoutError:
            raise MultiPartException(f"nothing more came for {IDLE_SECONDS:.0f} s") from None
        if message["type"] == "http.disconnect":
            raise MultiPartException("the upload broke off")
        body = message.get("body", b"")
        self._form.read(body)
        self._is_whole = not message.get("more_body", False)
        if self._is_whole and not self._form.is_whole:
            raise MultiPartException("the upload is cut short")
        self._unchecked += len(body)
        if self._unchecked > _LOOK_AT_DISK_BYTES:  # others may be filling it meanwhile
            self._unchecked = 0
            if _free_bytes() < FREE_BYTES:
                raise MultiPartException(FULL)
        return message

    async def send(self, message: Message) -> None:
        """Hand the answer on; one that comes before the upload is whole ends the connection.

        A connection that is closed while the other side still sends is reset, and the answer lost with it
        (RFC 9112, 9.6). So the answer goes out first, and some more is taken in before the end.
        """
        if message["type"] == "http.response.start" and not self._is_whole:
            self._is_refused = True
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        is_end = message["type"] == "http.response.body" and not message.get("more_body", False)
        if self._is_refused and is_end:
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                more = True
                while more:
                    message = await self._receive()
                    more = message["type"] == "http.request" and message.get("more_body", False)
        except TimeoutError:  # it had its time
            return


class _Form:
    """Reads along which parts an upload has: gradio keeps in memory whatever is no file, however long."""

    def __init__(self, content_type: bytes) -> None:
        from python_multipart.multipart import MultipartParser, parse_options_header

        self._options_of = parse_options_header
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        self._name = self._value = self._disposition = b""
        self.is_whole = boundary is None
        self._parser = None if boundary is None else MultipartParser(boundary, {
            "on_part_begin": self._begin_part, "on_header_field": self._add_to_name,
            "on_header_value": self._add_to_value, "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers, "on_end": self._end,
        })  # fmt: skip

    def read(self, data: bytes) -> None:
        """The next bytes.

        Raises:
            MultiPartException: at a part that is no file, or where this is no form.
        """
        from python_multipart.exceptions import MultipartParseError
        from starlette.formparsers import MultiPartException

        if self._parser is None:
            return  # gradio refuses what has no boundary before it reads any of it
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise MultiPartException(f"this is no upload: {error}") from None

    def _end(self) -> None:
        self.is_whole = True

    def _begin_part(self) -> None:
        self._name = self._value = self._disposition = b""

    def _add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _end_headers(self) -> None:
        from starlette.formparsers import MultiPartException

        if b"filename" not in self._options_of(self._disposition)[1]:
            raise MultiPartException("an upload holds files and nothing else")


def _free_bytes() -> int:
    return shutil.disk_usage(tempfile.gettempdir()).free
