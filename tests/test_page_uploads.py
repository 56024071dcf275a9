"""Uploads that would fill the disk or the memory, or keep the machine busy, and are refused in a sentence."""

import io
import json
import select
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from knocking import API, FORM, ask, begun, bytes_kept, eventually, file_data, form_head, outcome, upload
from paging import Photos, Served
from PIL import Image

from idgen.page import incoming
from idgen.page.looking import MAX_SCANS

MB = 1_000_000


def memory_mb() -> float:
    """What this process holds, the page in it."""
    if not Path("/proc/self/statm").is_file():
        pytest.skip("no /proc here")
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / MB


def is_clean(served: Served) -> bool:
    """Whether no piece of an upload lies about."""
    return not [path for path in served.keeping.root.glob("tmp*") if path.stat().st_size > 0]


# --- filling the disk and the memory ----------------------------------------------------------------------


def poured(
    connection: socket.socket, chunks: Iterator[bytes], watch: Callable[[], None]
) -> tuple[int, bytes]:
    """Send until there is an answer: how much went out, and the answer."""
    sent = 0
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            readable, _, _ = select.select([connection], [connection], [], 60)
            if readable:
                return sent, b"".join(iter(lambda: connection.recv(65536), b""))
            taken = connection.send(view)
            view, sent = view[taken:], sent + taken
        watch()
    return sent, b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_file_of_200_mb_is_refused_while_it_comes(served: Served) -> None:
    disk, memory = [bytes_kept(served)], [memory_mb()]
    chunk = bytes(MB)
    size = len(form_head("big.png")) + 200 * MB + len(b"\r\n--x--\r\n")

    def stream() -> Iterator[bytes]:
        yield form_head("big.png")
        for _ in range(200):
            yield chunk
        yield b"\r\n--x--\r\n"

    def watch() -> None:
        disk.append(bytes_kept(served))
        memory.append(memory_mb())

    with begun(served, f"content-length: {size}") as connection:
        sent, answer = poured(connection, stream(), watch)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"maximum allowed size" in answer
    assert sent < 60 * MB
    assert max(disk) - disk[0] < 30 * MB
    assert max(memory) - memory[0] < 40
    assert eventually(lambda: bytes_kept(served) <= disk[0])


def test_more_than_200_mb_are_refused_before_any_of_it(served: Served) -> None:
    with begun(served, f"content-length: {300 * MB}") as connection:
        sent, answer = poured(connection, iter([form_head("big.png"), *([bytes(MB)] * 50)]), lambda: None)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"an upload holds at most 200 MB" in answer
    assert sent < 50 * MB
    assert is_clean(served)


@pytest.mark.parametrize("more", [(), ("content-length: 10",), ("content-length: 1" + "0" * 20,)])
def test_an_upload_of_unknown_length_is_refused(served: Served, more: tuple[str, ...]) -> None:
    with begun(served, "transfer-encoding: chunked", *more) as connection:
        answer = connection.recv(65536)
    assert answer.startswith((b"HTTP/1.1 411", b"HTTP/1.1 400"))
    for length in ("-1", "٣", "1e3", "0x10"):
        with begun(served, f"content-length: {length}") as connection:
            assert connection.recv(65536).startswith((b"HTTP/1.1 411", b"HTTP/1.1 400"))


def test_an_upload_holds_files_and_nothing_else(served: Served) -> None:
    before = memory_mb()
    head = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n'
    text = iter([head, *([bytes(MB)] * 100)])
    with begun(served, f"content-length: {len(head) + 100 * MB}") as connection:
        _, answer = poured(connection, text, lambda: None)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"an upload holds files and nothing else" in answer
    assert memory_mb() - before < 40


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x",
        b"--y\r\n\r\n",
        b"--x\r\n\r\nx\r\n--x--",
        b"\x00" * 99,
        form_head("a") + b"x",
        b"--x--\r\n",
    ],
)
def test_what_is_no_form_is_refused(served: Served, body: bytes) -> None:
    status, _, answer = ask(served, "POST", f"{API}/upload", body, content_type=FORM)
    assert status == 400 or (status, answer) == (200, b"[]"), answer
    assert is_clean(served)
    assert ask(served, "POST", f"{API}/upload", body, content_type="multipart/form-data")[0] == 400
    assert ask(served, "POST", f"{API}/upload", body, content_type="text/plain")[0] == 400


def test_an_upload_that_breaks_off_leaves_nothing(served: Served) -> None:
    before = bytes_kept(served)
    with begun(served, f"content-length: {20 * MB}") as connection:
        connection.sendall(form_head("part.png") + bytes(3 * MB))
        assert eventually(lambda: bytes_kept(served) > before)
    assert eventually(lambda: is_clean(served) and bytes_kept(served) <= before)


def test_an_upload_that_does_not_go_on_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "IDLE_SECONDS", 0.3)
    with begun(served, f"content-length: {20 * MB}") as connection:
        connection.sendall(form_head("part.png") + bytes(MB))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"nothing more came" in answer
    assert is_clean(served)


def test_uploads_leave_room_on_the_disk(
    served: Served, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photos.person.read_bytes()
    with monkeypatch.context() as full:
        full.setattr(incoming, "FREE_BYTES", 1 << 60)
        status, _, answer = upload(served, "a.png", data)
        assert (status, json.loads(answer)["detail"]) == (507, incoming.FULL)
    free = iter([1 << 50, 0])
    with monkeypatch.context() as filling:  # by somebody else, while this comes
        filling.setattr(incoming, "_free_bytes", lambda: next(free))
        status, _, answer = upload(served, "a.png", bytes(20 * MB))
        assert (status, answer.decode()) == (400, incoming.FULL)
    assert is_clean(served)
    assert upload(served, "a.png", data)[0] == 200


# --- pictures that are none, or too much ------------------------------------------------------------------


def png_of(
    width: int, height: int, *, bits: int = 8, colour: int = 2, rows: int = 1, extra: bytes = b""
) -> bytes:
    """A PNG that says a size, and holds so many rows of zeros (PNG specification, 5 and 11)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    samples = {0: 1, 2: 3, 6: 4}[colour]
    row = bytes(1 + width * samples * bits // 8)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    size = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def encoded(kind: str, image: Image.Image, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def refined_jpeg(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded("JPEG", Image.new("RGB", (side, side), (120, 100, 90)), progressive=True)
    last = data[data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda")) : -2]
    return data[:-2] + last * scans + data[-2:]


def text_bomb() -> bytes:
    """A chunk of PNG with 80 MB of text, packed."""
    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(bytes(MB)) for _ in range(80)) + packer.flush()
    data = b"Comment\0\0" + text
    return struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(50 * MB))
    return file.getvalue()


def gif_bomb() -> bytes:
    """A GIF whose canvas is 65535 x 65535 (GIF89a, 18: Logical Screen Descriptor)."""
    data = bytearray(encoded("GIF", Image.new("P", (8, 8))))
    data[6:10] = struct.pack("<HH", 65535, 65535)
    return bytes(data)


def tiff_bomb() -> bytes:
    return encoded("TIFF", Image.new("1", (16_000, 16_000)), compression="group4")


def cut_jpeg() -> bytes:
    return encoded("JPEG", Image.effect_noise((400, 400), 60))[:9000]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="99999" height="99999"><image href="file:///etc/passwd"/></svg>'
NO_PICTURE = "is not a picture that can be read"
PICTURES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "huge": ("a.png", lambda: png_of(60_000, 60_000), "too large to open safely"),
    "large": ("a.png", lambda: png_of(9_000, 8_000), "at most 50 megapixels are opened here"),
    "deep": (
        "a.png",
        lambda: png_of(5_000, 5_000, bits=16, colour=0),
        "more than 8 bits a level; at most 12",
    ),
    "claims more": ("a.png", lambda: png_of(6_000, 6_000, rows=10)[:-40], "is damaged or cut short"),
    "endless text": ("a.png", lambda: png_of(8, 8, rows=8, extra=text_bomb()), "is damaged or cut short"),
    "refined": ("a.jpg", lambda: refined_jpeg(64, 5_000), f"is a JPEG of more than {MAX_SCANS} scans"),
    "cut": ("a.jpg", cut_jpeg, "damaged or cut short"),
    "gif": ("a.gif", gif_bomb, "too large to open safely"),
    "tiff": ("a.tif", tiff_bomb, "too large to open safely"),
    "svg": ("a.png", lambda: SVG, NO_PICTURE),
    "zip": ("a.jpg", zipped, NO_PICTURE),
    "eps": ("a.jpg", lambda: encoded("EPS", Image.new("RGB", (30, 30))), "is EPS; give a JPEG, PNG, WebP"),
    "program": ("a.png", lambda: b"#!/bin/sh\ntouch /tmp/evil\n", NO_PICTURE),
    "nothing": ("a.png", lambda: b"", "is empty"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_that_cannot_be_used_costs_little_and_is_told(served: Served, kind: str) -> None:
    name, make, words = PICTURES[kind]
    data = make()
    assert len(data) < 2 * MB
    status, _, answer = upload(served, name, data)
    assert status == 200
    (stored,) = json.loads(answer)
    highest, ended = [memory_mb()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            highest.append(memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.process_time()
    said = outcome(served, "look", [[file_data(stored)], "the only one"], "bombs")
    spent = time.process_time() - began
    ended.set()
    watcher.join()
    assert words in said, said
    assert '"success": true' in said
    assert "Traceback" not in said
    assert str(served.keeping.root) not in said
    assert spent < 4
    assert max(highest) - highest[0] < 200


def test_of_a_moving_picture_the_first_frame_is_looked_at(served: Served, photos: Photos) -> None:
    frames = [Image.new("P", (400, 400), colour) for colour in range(200)]
    with Image.open(photos.person) as person:
        moving = encoded("GIF", person.resize((400, 400)), save_all=True, append_images=frames)
    (stored,) = json.loads(upload(served, "a.gif", moving)[2])
    assert "Good to use." in outcome(served, "look", [[file_data(stored)], "the only one"])
