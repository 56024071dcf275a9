"""Pickles of numbers, text, bytes and lists of them: whatever could name a function or class is refused."""

import io
import pickle
import pickletools
from typing import Any, NoReturn

from idgen.errors import ImageError

# Opcodes that build plain data (Python's pickletools); none of them imports or calls anything.
PLAIN = {
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
}  # fmt: skip


class _PlainUnpickler(pickle.Unpickler):
    """Finds no class at all."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"{module_name}.{global_name}")


def read_plain_pickle(data: bytes, *, source: str) -> Any:  # noqa: ANN401 - plain data
    """The plain data of a pickle; nothing of it is run, and it cannot ask for more memory than it has bytes.

    Raises:
        ImageError: if it is damaged, or names a function, a class, or anything else that is no plain data.
    """
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in PLAIN:
                raise ImageError(
                    f"{source} is a pickle with more than plain data in it ({opcode.name}); it is not read, "
                    "because that could run code"
                )
            if "PUT" in opcode.name and int(argument or 0) > len(data):  # a memo of that size would be made
                raise ImageError(f"{source} is a damaged pickle")
        return _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except ImageError:
        raise
    except (
        pickle.UnpicklingError,
        ValueError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
    ) as error:
        raise ImageError(f"{source} is a damaged pickle: {error}") from None
