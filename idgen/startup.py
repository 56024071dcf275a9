"""Half of a short command is the import of torch, transformers and diffusers: what makes it shorter."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """A block whose imports the garbage collector does not interrupt; what they made it never looks at again.

    Modules live as long as the program. Left alone, the collector goes through all objects of torch again and
    again while they are made, and twice more when Python ends.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
