"""Work in a thread of its own: the latest news of it, its result, and an end to it at any time."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

NOBODY_SECONDS = 60.0  # after which work that nobody waits for is given up

News = TypeVar("News")


class Stopped(Exception):
    """Nobody wants this work any more."""


class Job(Generic[News]):
    """What the thread that works and the one that waits tell each other: the latest news, no old ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._latest: News | None = None
        self._error: BaseException | None = None
        self._is_stopped = self._is_awaited = self._is_over = False
        self._asked = time.monotonic()

    # --- the worker's side ---

    def check(self) -> None:
        """Go on, if somebody still wants that.

        Raises:
            Stopped: if nobody does.
        """
        waits = self._is_awaited or time.monotonic() - self._asked < NOBODY_SECONDS
        if self._is_stopped or not waits:
            raise Stopped

    def tell(self, news: News) -> None:
        """Say how far it is."""
        with self._changed:
            self._latest = news
            self._changed.notify_all()

    def run(self, work: "Callable[[Job[News]], News]") -> None:
        """Do the work; what it returns is the last news, what it raises reaches whoever waits."""
        try:
            result = work(self)
            with self._changed:
                self._latest = result
        except Stopped:
            with self._changed:
                self._latest = None
        except BaseException as error:
            self._error = error
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    # --- the side of who waits ---

    def stop(self) -> None:
        """Let the work end when it looks next."""
        self._is_stopped = True

    def news(self) -> Iterator[News]:
        """All news from now on, as far as they are not overtaken by others.

        Raises:
            Exception: whatever the work raised.
        """
        is_over = False
        while not is_over:
            with self._changed:
                self._is_awaited = True
                self._changed.wait_for(lambda: self._latest is not None or self._is_over)
                news, self._latest, is_over = self._latest, None, self._is_over
                self._is_awaited, self._asked = False, time.monotonic()
            if self._error is not None:
                raise self._error
            if news is not None:
                yield news


def followed(work: Callable[[Job[News]], News], *, name: str) -> Iterator[News]:
    """Do the work in a thread and iterate over its news, the last of which is its result.

    Whoever stops asking stops the work when it checks next; there is no result then.

    Args:
        work: is given its job, to `Job.check` and to `Job.tell`.
        name: of the thread.

    Raises:
        Exception: whatever the work raises.
    """
    job = Job[News]()
    worker = threading.Thread(target=job.run, args=(work,), name=name, daemon=True)
    worker.start()
    try:
        yield from job.news()
    finally:
        job.stop()
        worker.join()
