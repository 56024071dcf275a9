"""Opening a user's ONNX file with errors a user can act on."""

from pathlib import Path
from typing import TYPE_CHECKING

from idgen.errors import ModelNotFoundError, WeightsError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def open_session(
    path: Path, *, num_threads: int | None = None, content: bytes | None = None
) -> "InferenceSession":
    """An onnxruntime session on the CPU.

    Args:
        path: the ONNX file.
        num_threads: of one run; None lets onnxruntime take every core.
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
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    try:
        return onnxruntime.InferenceSession(content or str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path} is not an ONNX file that onnxruntime can open: {reason}") from None
