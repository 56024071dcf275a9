"""Tar files of pictures: written with nothing in them but names and bytes, read without trust."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from idgen.data.pictures import Slice
from idgen.errors import ImageError

BLOCK = 512  # of a tar; POSIX.1-2001, pax interchange format
END = bytes(2 * BLOCK)
MAX_MEMBER_BYTES = 1 << 28  # a picture of 100 megapixels is smaller
PICTURE_SUFFIXES = {"png": ".png", "jpg": ".jpg", "webp": ".webp"}


def picture_kind(data: bytes) -> str | None:
    """``png``, ``jpg`` or ``webp``, by the first bytes; None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def packed_member(name: str, data: bytes) -> bytes:
    """A file as it stands in a tar: header, bytes, filling. No owner and no time: equal files, equal tars."""
    header = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the mode is rw-r--r--
    header.size = len(data)
    return header.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name, with ``/`` between folders, and where its bytes lie."""

    name: str
    data: Slice


def members(path: Path) -> Iterator[Member]:
    """The files of a tar that is not compressed, in order; nothing is unpacked.

    Raises:
        ImageError: if it is no such tar, is cut short, or holds what a set of pictures has no use for: links,
            devices, a name that leaves its folder, the same name twice, a file of more than 256 MB.
    """
    seen: set[str] = set()
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                # it would keep a record of every file otherwise
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
                if entry.isdir():
                    continue
                _check(path, entry, size)
                name = str(PurePosixPath(entry.name))  # `tar cf x.tar .` writes ./name
                if name in seen:
                    raise ImageError(f"{path} holds {name!r} twice; nobody can say which one is meant")
                seen.add(name)
                yield Member(name, Slice(path, entry.offset_data, entry.size))
    except ImageError:
        raise
    except tarfile.ReadError as error:
        raise ImageError(
            f"{path} is no tar that can be read ({error}); unpack compressed ones first"
        ) from None
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        raise ImageError(f"{path} is damaged: {error}") from None


def _check(path: Path, entry: tarfile.TarInfo, size: int) -> None:
    name = entry.name
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\\" in name or not name.isprintable():
        raise ImageError(f"{path} holds a file called {name!r}, which is no name inside of a folder")
    if not entry.isreg() or entry.issparse():
        raise ImageError(f"{path} holds {entry.name!r}, which is a link, a device or a sparse file")
    if not 0 <= entry.size <= MAX_MEMBER_BYTES:
        raise ImageError(
            f"{path} holds {entry.name!r} of {entry.size} bytes; at most {MAX_MEMBER_BYTES} are read"
        )
    if entry.offset_data + entry.size > size:
        raise ImageError(f"{path} is cut short: {entry.name!r} ends behind its end")
