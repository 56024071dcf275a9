"""Opening a user's ONNX file with errors a user can act on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from idgen.errors import ModelNotFoundError, WeightsError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


_num_threads: ContextVar[int | None] = ContextVar("num_threads", default=None)


@contextmanager
def threads_each(num: int) -> Iterator[None]:
    """A block in which sessions are opened with that many threads each, where nothing else is said."""
    before = _num_threads.set(num)
    try:
        yield
    finally:
        _num_threads.reset(before)


def open_session(
    path: Path, *, num_threads: int | None = None, content: bytes | None = None
) -> "InferenceSession":
    """An onnxruntime session on the CPU.

    Args:
        path: the ONNX file.
        num_threads: of one run; None as `threads_each` says, else as OMP_NUM_THREADS does (so does
            torch), else every core.
        content: what to open in place of what the file holds: a graph made from it.

    Raises:
        ModelNotFoundError: if there is no such file.
        WeightsError: if onnxruntime cannot read it.
    """
    import onnxruntime  # 0.3 s, and only needed by those who detect

    if not path.is_file():
        raise ModelNotFoundError(f"no such file: {path}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings about unused initialisers concern whoever exported the file
    num_threads = num_threads or _num_threads.get()
    if num_threads is None:
        said = os.environ.get("OMP_NUM_THREADS", "")
        num_threads = int(said) if said.isdecimal() else 0
    options.intra_op_num_threads = num_threads  # 0: every core
    try:
        return onnxruntime.InferenceSession(content or str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path} is not an ONNX file that onnxruntime can open: {reason}") from None
