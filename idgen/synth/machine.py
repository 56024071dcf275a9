"""How much memory the machine has."""

import os


def machine_bytes() -> int | None:
    """All of its memory; None where it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not POSIX, or silent about it
        return None
