"""Programs that start others, tested without the seconds of imports that each new process costs."""

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import pytest

from idgen.cli import main


@contextmanager
def commands_run_here() -> Iterator[None]:
    """`python -m idgen ...`, started by a program inside the block, is the same command in this process.

    Its words, its exit code, and what it says where that is caught are the same. That the programs do start
    processes is tested beside, where one is enough. Other commands start as ever.
    """
    start = subprocess.run

    def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if list(command[:3]) != [sys.executable, "-m", "idgen"]:
            return start(command, **options)
        assert options.keys() <= {"capture_output", "text", "check"}, options
        assert not options.get("check"), "a failure is to be an exit code"
        if not options.get("capture_output"):
            return subprocess.CompletedProcess(command, main(command[3:]))
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            code = main(command[3:])
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", run)
        yield
