"""One model in memory, lent to one job after the other in the order in which they asked for it."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

LOOK_SECONDS = 0.2  # how often somebody in line looks whether they are still wanted


class Openable(Protocol):
    """Something large that can be opened and closed again."""

    def open_up(self) -> None:
        """Open it."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


class Place:
    """Where one model lies: it is closed before another one is opened.

    Unlike a `threading.Lock`, whoever gives it back and asks again at once comes after those who wait.
    """

    def __init__(self) -> None:
        self.holder: Openable | None = None
        self._gate = threading.Lock()
        self._line: deque[threading.Event] = deque()  # the first one has the turn

    @contextmanager
    def turn(self, check: Callable[[], object] = lambda: None) -> Iterator[None]:
        """A block that nobody else is in.

        Args:
            check: called now and then while others are before; what it raises leaves the line.
        """
        mine = threading.Event()
        with self._gate:
            self._line.append(mine)
            self._line[0].set()
        try:
            while not mine.wait(LOOK_SECONDS):
                check()
            yield
        finally:
            with self._gate:
                self._line.remove(mine)
                if self._line:
                    self._line[0].set()

    def put_on(self, wanted: Openable) -> None:
        """Have this one open and no other; only within a turn.

        Raises:
            Exception: if it cannot be opened; what was open before is open again then.
        """
        former = self.holder
        if former is wanted:
            return
        self.holder = None
        if former is not None:
            former.close()
        try:
            wanted.open_up()
        except BaseException:
            wanted.close()
            if former is not None:
                former.open_up()
                self.holder = former
            raise
        self.holder = wanted
