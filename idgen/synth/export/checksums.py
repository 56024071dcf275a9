"""SHA256SUMS: the checksum of every file of a folder, as ``sha256sum -c SHA256SUMS`` reads it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from idgen.errors import ConfigError
from idgen.runs import file_sha256
from idgen.storage import write_bytes
from idgen.synth.export.output import MARK

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_sums(folder: Path) -> None:
    """Write the list of all files below ``folder``, by name.

    Raises:
        StorageError: if that is not possible.
    """
    not_listed = (folder / SUMS, folder / MARK)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in not_listed)
    lines = [f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_bytes(folder / SUMS, "".join(lines).encode())


def read_sums(folder: Path) -> dict[str, str]:
    """Name of each file of the list -> its checksum.

    Raises:
        ConfigError: if the list is damaged, or names files outside of the folder.
    """
    sums: dict[str, str] = {}
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / SUMS} cannot be read: {error}") from None
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None or found[2].startswith("/") or ".." in Path(found[2]).parts:
            raise ConfigError(f"{folder / SUMS} is damaged: {line[:80]!r} is no checksum and name")
        sums[found[2]] = found[1]
    return sums


def check_sums(
    folder: Path, sums: Mapping[str, str], *, advance: Callable[[int], object] = lambda _: None
) -> list[str]:
    """Compare files with their checksums.

    Args:
        folder: of the files.
        sums: as from `read_sums`.
        advance: told 1 after each file.

    Returns:
        A line for each file that is missing or changed.
    """
    problems = []
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif file_sha256(path) != expected:
            problems.append(f"{path} is not what was written: its sha256 differs")
        advance(1)
    return problems
