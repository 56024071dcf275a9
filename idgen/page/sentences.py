"""What went wrong, as a sentence for people: what the library says, or that it was not their fault."""

import errno
import sys
import traceback
from pathlib import Path

from idgen.errors import IdgenError
from idgen.page.markup import sentence

MEMORY = "There is not enough memory for that. Ask for fewer pictures at once, or for smaller ones."
FULL = (
    "The disk of the machine that runs this page is full, and nothing was kept. Try again later: what is "
    "older than an hour is deleted. Tell whoever runs the page if it happens twice."
)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CRASH = (
    "The program failed at that ({name}); it was not your fault. The page goes on: try again, and tell "
    "whoever runs it if it happens twice."
)


def in_words(error: Exception, *, hide: Path | None = None) -> str:
    """A sentence with a way out; what is no error of the library goes to the log of the server as well.

    Args:
        error: any.
        hide: a folder whose path is nobody's business.
    """
    if _is_for_want_of_room(error):
        print(f"idgen: the disk is full: {error}", file=sys.stderr)
        return FULL
    if isinstance(error, IdgenError):
        words = str(error)
        return sentence(words.replace(str(hide), "the page's folder") if hide else words)
    traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return MEMORY
    return CRASH.format(name=type(error).__name__)


def _is_for_want_of_room(error: BaseException) -> bool:
    """Whether the disk had none, at the root of an error that the library may have put in other words."""
    root = error.__context__ if isinstance(error, IdgenError) else error
    return isinstance(root, OSError) and root.errno in NO_ROOM
