"""Files are whole or not there, wherever the interrupt comes."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from idgen import storage
from idgen.errors import StorageError


def write_with_interrupt(path: Path, at: int) -> bool:
    """Write ``path``, with Ctrl-C at the ``at``-th line of storage.py; whether it came that far."""
    lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != storage.__file__:
            return trace
        if event == "line":
            lines += 1
            if lines == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        storage.write_bytes(path, b"new")
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_an_interrupt_at_any_line_leaves_the_old_file_or_the_new_one_and_nothing_else(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", set()
    for at in range(1, 100):
        path.write_bytes(b"old")
        interrupted = write_with_interrupt(path, at)
        seen.add(path.read_bytes())
        assert list(tmp_path.iterdir()) == [path]
        if not interrupted:
            break
    assert 5 < at < 99
    assert seen == {b"old", b"new"}


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"cannot write into {tmp_path / 'nowhere'}: No such file"):
        storage.write_bytes(tmp_path / "nowhere" / "file", b"")
