"""Zips in and out: of a stranger's zip only its pictures are unpacked, under names that are not the zip's."""

import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from idgen.data.pictures import SUFFIXES
from idgen.errors import ImageError

MAX_MEMBERS = 5_000  # that a zip may list, pictures or not
MAX_FILE_BYTES = 25 << 20  # of one picture, as for an upload
MAX_BYTES = 200 << 20  # of all of them, unpacked
PIECE_BYTES = 1 << 20
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1  # flag of a member (APPNOTE.TXT of PKWARE, 4.4.4)


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """A picture out of a zip.

    Attributes:
        parts: its path within the zip.
        path: where it lies now.
    """

    parts: tuple[str, ...]
    path: Path


def pack(folder: Path, out: Path) -> Path:
    """Put all files of a folder into a zip, byte for byte, in the order of their names."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
    return out


def unpack_pictures(archive: Path, folder: Path, *, at_most: int, name: str) -> list[Unpacked]:
    """Unpack the pictures of a zip; files of other kinds and hidden ones stay in it.

    What the zip says of sizes is not believed: bytes are counted as they come out.

    Args:
        archive: the zip.
        folder: is made, and filled.
        at_most: pictures.
        name: what the zip is called, for people.

    Raises:
        ImageError: if it is damaged, locked, or too large; if a name in it leads out of it, or is a link.
        StorageError: if the disk is full.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            if len(members) > MAX_MEMBERS:
                raise ImageError(
                    f"{name} lists {len(members):,} files; at most {MAX_MEMBERS:,} are looked through"
                )
            wanted = [member for member in members if _is_wanted(member, name)]
            if len(wanted) > at_most:
                raise ImageError(
                    f"{name} holds {len(wanted):,} pictures; at most {at_most} are measured here"
                )
            folder.mkdir()
            found, room = [], MAX_BYTES
            for number, member in enumerate(wanted):
                parts = PurePosixPath(member.filename).parts
                path = folder / f"{number:05d}{PurePosixPath(member.filename).suffix.lower()}"
                room -= _unpack(opened, member, path, min(room, MAX_FILE_BYTES), name)
                found.append(Unpacked(parts=parts, path=path))
            return found
    except ImageError:
        raise
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError, RuntimeError):
        raise ImageError(f"{name} is no zip that can be read; pack it again, without a password") from None


def _is_wanted(member: zipfile.ZipInfo, name: str) -> bool:
    """Whether it is a picture; a name that is an attack is refused, whatever it names."""
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
        raise ImageError(f"{name} holds a file whose name leads out of it; nothing of it is unpacked")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ImageError(f"{name} holds a link to another file; pack the pictures themselves")
    is_hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    is_picture = path.suffix.lower() in SUFFIXES and not member.is_dir()
    if is_picture and not is_hidden and member.flag_bits & ENCRYPTED:
        raise ImageError(f"{name} asks for a password; pack it again without one")
    if is_picture and not is_hidden and member.compress_type not in METHODS:
        raise ImageError(f"{name} is packed in a rare way; pack it again as a usual zip (deflate)")
    return is_picture and not is_hidden


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, room: int, name: str) -> int:
    size = 0
    with archive.open(member) as source, path.open("xb") as file:
        while piece := source.read(PIECE_BYTES):
            size += len(piece)
            if size > room:
                raise ImageError(
                    f"{name} is too large: a picture may have {MAX_FILE_BYTES >> 20} MB, and all of them "
                    f"{MAX_BYTES >> 20} MB, unpacked"
                )
            file.write(piece)
    return size
