"""Asking a filter about the nodes that a search comes to.

The filter is a function of another library: called by its address, with the conventions of C, it
answers for the rows of a batch whose arguments lie where it looks for them. A search has a byte for
each node; those that are ``UNKNOWN`` are asked about together, once for each step of the search,
and become 0 or 1. The call fills in an error or a trap (as wasmtime's C interface does); either
ends the search, and whoever began it finds it in the words.

All arguments are addresses and counts; memory belongs to the caller.
"""

# Numba's decorators tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

from numba import njit

from tarsdb.kernels.cpu.calls import call_native
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import put_byte, put_int, put_long, read_byte, read_int, read_long

(
    ASK, FUNCTION, CONTEXT, EXPORT, VALUES, COUNT, TRAP, ERROR, ROWS, ANSWERS, LEFT, CALLS, PASSED,
    PLACES, COLUMNS,
) = range(15)  # fmt: skip
"""The words: address of ``ask``; of the function and its five arguments, the last of them where
it leaves a trap; what it returned, an error; where it reads an int32 number of rows and leaves an
int32 answer for each; rows that may still be asked about, calls made, rows that passed; positions
of the nodes, int64; number of columns. Then of each column:"""
ARRAY, BYTES, VALID, ROOM, COLUMN = range(5)
"""its values by position, bytes of a value (1, 2, 4 or 8), uint8 by position where 0 is NULL, or 0,
where the function reads the batch's values; the number of these words."""
UNKNOWN = 2


@linked
def _is_null(words, place):  # type: ignore[no-untyped-def]
    """Return whether an argument at a position is NULL."""
    line = words + 8 * (COLUMNS + 1)
    for _ in range(read_long(words, COLUMNS)):
        valid = read_long(line, VALID)
        if valid and not read_byte(valid, place):
            return True
        line += 8 * COLUMN
    return False


@linked
def _put_row(words, place, row):  # type: ignore[no-untyped-def]
    """Write the arguments at a position to a row of the batch."""
    line = words + 8 * (COLUMNS + 1)
    for _ in range(read_long(words, COLUMNS)):
        array, room, size = read_long(line, ARRAY), read_long(line, ROOM), read_long(line, BYTES)
        if size == 8:
            put_long(room, row, read_long(array, place))
        elif size == 4:
            put_int(room, row, read_int(array, place))
        else:
            for byte in range(size):
                put_byte(room, size * row + byte, read_byte(array, size * place + byte))
        line += 8 * COLUMN


def make_ask() -> Any:
    """Return ``ask``; see ``graph.py``."""

    @njit(nogil=True)
    def ask(words, nodes, count, allowed):  # type: ignore[no-untyped-def]
        """Ask about those of ``count`` nodes (int32) that are UNKNOWN; return 0, or 1 to end."""
        places, rows = read_long(words, PLACES), 0
        for i in range(count):
            node = read_int(nodes, i)
            if read_byte(allowed, node) == UNKNOWN:
                place = read_long(places, node)
                if _is_null(words, place):
                    put_byte(allowed, node, 0)
                else:
                    _put_row(words, place, rows)
                    rows += 1
        if rows == 0:
            return 0
        if rows > read_long(words, LEFT):
            return 1
        put_int(read_long(words, ROWS), 0, rows)
        put_long(words, CALLS, read_long(words, CALLS) + 1)
        put_long(words, ERROR, call_native(read_long(words, FUNCTION), (
            read_long(words, CONTEXT), read_long(words, EXPORT), read_long(words, VALUES),
            read_long(words, COUNT), read_long(words, TRAP),
        )))  # fmt: skip
        if read_long(words, ERROR) or read_long(read_long(words, TRAP), 0):
            return 1
        row = passed = 0
        for i in range(count):
            node = read_int(nodes, i)
            if read_byte(allowed, node) == UNKNOWN:
                answer = read_int(read_long(words, ANSWERS), row) != 0
                put_byte(allowed, node, answer)
                passed += answer
                row += 1
        put_long(words, LEFT, read_long(words, LEFT) - rows)
        put_long(words, PASSED, read_long(words, PASSED) + passed)
        return 0

    return ask
