"""Who makes the shards: this process, one process a device, or the tasks of a Ray cluster.

All of them call `idgen.synth.work.make_shards`, and tell how far they are as it does.
"""

import multiprocessing
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from idgen.errors import ConfigError, ModelNotFoundError, WorkerError
from idgen.opening import choose_device, hide_loading_bars
from idgen.synth.making import Progress
from idgen.synth.recipe import Recipe
from idgen.synth.work import Workshop, make_shards

STOP = None  # instead of the number of a shard
RAY_RETRIES = 3  # of a shard whose process or node died
KNOCK_SECONDS = 10
MAX_THREADS = 16
ORPHANED = 1  # exit code of a process whose parent is gone; nobody reads it


def choose_devices(names: Sequence[str], engine: str = "local") -> list[str]:
    """One device for each process; ``auto`` is every GPU, or what `choose_device` finds.

    Args:
        names: as given.
        engine: of ray, one device for all tasks: whether a node has ``cuda``, its task sees.

    Raises:
        ConfigError: if one is unknown, or not there; if there are several, or a number, for tasks of Ray.
    """
    if engine == "ray":
        if len(names) > 1 or ":" in names[0]:
            raise ConfigError(
                "--device with --engine ray must be cpu, cuda or auto, since Ray chooses which one each task "
                f"has, got {','.join(names)!r}"
            )
        is_cuda = names[0] == "cuda" or (names[0] == "auto" and torch.cuda.is_available())
        return ["cuda" if is_cuda else choose_device(names[0])]
    if list(names) == ["auto"] and torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [choose_device(name.strip()) for name in names]


def choose_threads(devices: Sequence[str], engine: str = "local") -> int:
    """How many threads look at pictures beside each device.

    On a CPU one for each core, though drawing takes all of them too: a look on one core would keep the other
    cores waiting for it. A task of Ray that draws on a CPU has one core, however many there are here.
    """
    if engine == "ray" and devices[0].startswith("cpu"):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = int(any(not device.startswith("cpu") for device in devices))  # with telling the device what to do
    return max(1, min(MAX_THREADS, cores // len(devices) - busy))


def local_engine(recipe: Recipe, numbers: Sequence[int], devices: Sequence[str]) -> Iterator[Progress]:
    """Make shards on this machine: in this process if there is one device, else one process a device.

    Args:
        recipe: what is made.
        numbers: of the shards.
        devices: as in `open_model`; one that is named twice gets two processes.

    Raises:
        WorkerError: if a process died; what the others could do is done.
        Exception: whatever went wrong in a process.
    """
    if not numbers:
        return
    if len(devices) == 1 or len(numbers) == 1:
        yield from make_shards(Workshop(recipe, devices[0]), iter(numbers))
        return
    context = multiprocessing.get_context("spawn")  # what has touched CUDA cannot be forked
    workers = [_Worker(context, recipe, device) for device in devices[: len(numbers)]]
    try:
        yield from _supervise(workers, iter(numbers))
    finally:
        for worker in workers:
            worker.end()
    dead = [worker for worker in workers if worker.death]
    if dead:
        raise WorkerError("; ".join(worker.death for worker in dead))


def _supervise(workers: Sequence["_Worker"], numbers: Iterator[int]) -> Iterator[Progress]:
    """Hand out shards until all are made, or nobody is left to make them."""
    while alive := [worker for worker in workers if worker.is_working]:
        ready = wait([worker.connection for worker in alive])
        for worker in (worker for worker in alive if worker.connection in ready):
            try:
                word, value = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                worker.bury()
                continue
            if word == "next":
                worker.give(next(numbers, STOP))
            elif word == "failed":
                raise value
            elif word == "told":
                worker.heard(value)
                yield value


class _Worker:
    """A process with a device, seen from outside."""

    def __init__(self, context: Any, recipe: Recipe, device: str) -> None:  # noqa: ANN401 - SpawnContext
        self.device, self.open_shards, self.death = device, set[int](), ""
        self.is_working = True
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs, recipe, device), daemon=True)
        self.process.start()
        theirs.close()  # so that their end closes with their process

    def give(self, number: int | None) -> None:
        """Answer the question for a shard."""
        if number is not None:
            self.open_shards.add(number)
        try:
            self.connection.send(number)
        except OSError:  # it died after it had asked
            self.bury()

    def heard(self, told: Progress) -> None:
        """Take note of what it has done."""
        if told.is_done:
            self.open_shards.discard(told.shard)

    def bury(self) -> None:
        """Write down how it ended."""
        self.is_working = False
        self.process.join()
        if self.process.exitcode or self.open_shards:
            shards = ", ".join(f"{number:05d}" for number in sorted(self.open_shards)) or "none"
            self.death = f"the process on {self.device} died ({_cause(self.process)}) over shards {shards}"

    def end(self) -> None:
        """Let go of it, whatever it does."""
        if self.process.is_alive():
            self.process.terminate()
        self.process.join()
        self.connection.close()


def _cause(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _work(connection: Connection, recipe: Recipe, device: str) -> None:
    """What the process of a device does; an interrupt is for the process that started it to answer."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hide_loading_bars()

    def numbers() -> Iterator[int]:
        while True:
            connection.send(("next", None))
            number = connection.recv()
            if number is STOP:
                return
            yield number

    try:
        for told in make_shards(Workshop(recipe, device), numbers()):
            connection.send(("told", told))
    except Exception as error:  # said and raised by the process that started this one
        connection.send(("failed", error))


def _end_with_parent() -> None:
    """Wait until the parent is gone, and end at once: the next run may begin with the same shards."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(ORPHANED)


def ray_engine(
    recipe: Recipe, numbers: Sequence[int], address: str, devices: Sequence[str]
) -> Iterator[Progress]:
    """Make shards as tasks of a Ray cluster, whose nodes all see the folder of the dataset under its path.

    A task whose process or node dies is begun again elsewhere, by Ray.

    Args:
        recipe: what is made.
        numbers: of the shards.
        address: of the cluster: ``auto``, or ``ray://HOST:PORT``.
        devices: one, that a task works on: ``cpu`` or ``cuda``.

    Raises:
        ModelNotFoundError: if ray is not installed.
        ConfigError: if no cluster answers.
        WorkerError: if a task died again and again.
        Exception: whatever went wrong in a task.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.exceptions  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ModelNotFoundError('ray is not installed: `pip install "idgen[ray]"`') from None
    _knock(address)
    is_ours = not ray.is_initialized()
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, str(error).splitlines()[0]) from None
    device = devices[0]
    task = ray.remote(num_cpus=1, num_gpus=int(device.startswith("cuda")), max_retries=RAY_RETRIES)(
        _shard_task
    )
    shared = ray.put(recipe)  # once, not with each task
    waiting = {task.remote(shared, number, device): number for number in numbers}
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(done[0])
            try:
                yield from ray.get(done[0])
            except ray.exceptions.RayError as error:
                raise _as_here(error, number) from None
    finally:
        for task_left in waiting:
            ray.cancel(task_left, force=True)
        if is_ours:
            ray.shutdown()


def _as_here(error: Exception, shard: int) -> Exception:
    """What went wrong in a task, as if it had been here: Ray's own error is a traceback in colours.

    Args:
        error: that Ray raises; it has a cause if the task itself went wrong, and none if its process died.
        shard: that was not made.
    """
    import ray.exceptions  # pyright: ignore[reportMissingImports]

    cause = getattr(error, "cause", None) or error
    if not isinstance(cause, ray.exceptions.RayError):
        return cause
    return WorkerError(f"shard {shard:05d} was not made: {str(cause).splitlines()[0]}")


def _knock(address: str) -> None:
    """Try an address before Ray does, which takes minutes to give up and then ends the process."""
    if address == "auto":
        return
    found = re.fullmatch(r"(?:ray://)?([^:/]+):(\d{1,5})", address)
    if found is None:
        raise ConfigError(f"--ray-address is auto, HOST:PORT or ray://HOST:PORT, got {address!r}")
    try:
        socket.create_connection((found[1], int(found[2])), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, error.strerror or str(error)) from None


def _no_cluster(address: str, why: str) -> ConfigError:
    return ConfigError(f"no Ray cluster answers at {address}: {why}; `ray start --head` starts one")


_opened: list[tuple[Recipe, str, Workshop]] = []  # in the process of a task, which later tasks find again


def _shard_task(recipe: Recipe, number: int, device: str) -> list[Progress]:
    if not _opened or _opened[0][:2] != (recipe, device):
        _opened.clear()
        hide_loading_bars()
        _opened.append((recipe, device, Workshop(recipe, device)))
    return list(make_shards(_opened[0][2], iter([number])))
