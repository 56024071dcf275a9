"""A typed table from names to factories: the one extension point of idgen."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from idgen.config import nearest
from idgen.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Factories by name, for one kind of component (encoders, detectors, rewards, ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator: make a factory available as ``name``; a second use of a name is an error."""

        def add(factory: Callable[..., T]) -> Callable[..., T]:
            if name in self._factories:
                raise ValueError(f"{self.kind} {name!r} is already registered by {self._factories[name]!r}")
            self._factories[name] = factory
            return factory

        return add

    def build(self, name: str, /, **settings: object) -> T:
        """Call the factory registered as ``name``.

        Raises:
            UnknownNameError: if nothing is registered under ``name``; the nearest name is shown.
        """
        if name not in self._factories:
            known = sorted(self)
            raise UnknownNameError(
                f"no {self.kind} called {name!r}{nearest(name, known)} (known: {', '.join(known)})"
            )
        return self._factories[name](**settings)

    def __iter__(self) -> Iterator[str]:
        return iter(self._factories)
