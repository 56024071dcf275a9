"""Numbers as messages say them: with their unit, in the singular where it is one."""

UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 1000))
MANY = {"person": "people", "process": "processes"}  # others get an s


def number_of(num: int, thing: str) -> str:
    """``1 shard``, ``2 shards``, ``12,000 people``.

    Args:
        num: how many.
        thing: one of them.
    """
    return f"{num:,} {thing if num == 1 else MANY.get(thing, thing + 's')}"


def bytes_as_text(num: int) -> str:
    """``300 kB``, ``12.5 MB``, ``1.57 GB``: three figures."""
    unit, size = next((name, size) for name, size in UNITS if num >= size or size == 1000)
    return f"{float(f'{num / size:.3g}'):,g} {unit}"
