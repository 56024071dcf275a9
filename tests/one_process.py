"""Programs that start others, tested without the seconds of imports that each new process costs."""

import gc
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
        assert options.keys() <= {"capture_output", "text", "check", "stdout", "stderr"}, options
        assert not options.get("check"), "a failure is to be an exit code"
        if log := options.get("stdout"):
            assert options["stderr"] == subprocess.STDOUT
            with redirect_stdout(log), redirect_stderr(log):
                return subprocess.CompletedProcess(command, main(command[3:]))
        if not options.get("capture_output"):
            return subprocess.CompletedProcess(command, main(command[3:]))
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            code = main(command[3:])
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", run)
        yield


PATIENCE_SECONDS = 300  # after which a copy is ended: a test fails, it does not hang


@contextmanager
def _ready_to_be_copied() -> Iterator[None]:
    """A copy has no other threads than the one that runs: it must not clear away what would wait for them.

    Sound where this process computes with one thread, as the tests do. Autograd on CPUs has none of its own.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def begin(program: Callable[[Sequence[str]], object], command: Sequence[str]) -> BaseProcess:
    """Start a program in a process that begins as a copy of this one, with everything imported."""
    process = multiprocessing.get_context("fork").Process(target=_quietly, args=(program, command))
    with _ready_to_be_copied():
        process.start()
    return process


def _quietly(program: Callable[[Sequence[str]], object], command: Sequence[str]) -> None:
    signal.alarm(PATIENCE_SECONDS)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        program(command)


def run_by_two_processes(command: Sequence[str], logs: Path) -> None:
    """`torchrun --nproc-per-node 2 --no-python idgen ...`: its launcher, for two copies of this process."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id=logs.name, start_method="fork", max_restarts=0, monitor_interval=0.05,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )  # fmt: skip
    with _ready_to_be_copied():
        codes = elastic_launch(config, _one_of_two)(list(command))
    assert codes == {0: 0, 1: 0}, "".join(path.read_text() for path in sorted(logs.rglob("*.log")))


def _one_of_two(command: list[str]) -> int:
    signal.alarm(PATIENCE_SECONDS)
    AcceleratorState._reset_state(reset_partial_state=True)  # what the copied process was: alone
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return main(command)
