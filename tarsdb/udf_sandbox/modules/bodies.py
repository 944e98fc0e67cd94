"""Measure function bodies before they are compiled: loops and merges times locals.

A compiler's work grows with the loops and branches of a function times its locals: 2,000 nested
loops over 2,000 locals fit 32 KB and take half a minute. So bodies are decoded (opcodes and the
length of their immediates, core specification section 5.4) and such functions refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from tarsdb.errors import UdfValidationError

MAX_LOOP_DEPTH = 32
MAX_LOOPS = 1_000  # of one function
MAX_TOTAL_LOOPS = 10_000
MAX_LOOP_LOCALS = 100_000  # loops times locals of one function
MAX_BRANCH_LOCALS = 500_000  # blocks, ifs and loops times locals of one function

_LEBS = bytearray(256)  # how many LEB128 immediates follow an opcode; 9 is a special form
for _first, _last, _count in (
    (0x02, 0x04, 9), (0x0B, 0x0B, 9), (0x0C, 0x0D, 1), (0x0E, 0x0E, 9), (0x10, 0x10, 1),
    (0x11, 0x11, 2), (0x1C, 0x1C, 9), (0x20, 0x26, 1), (0x28, 0x3E, 2), (0x3F, 0x42, 1),
    (0x43, 0x44, 9), (0xD0, 0xD0, 1), (0xD2, 0xD2, 1), (0xFC, 0xFD, 9),
):  # fmt: skip
    for _opcode in range(_first, _last + 1):
        _LEBS[_opcode] = _count
_FC_LEBS = {8: 2, 9: 1, 10: 2, 11: 1, 12: 2, 13: 1, 14: 2, 15: 1, 16: 1, 17: 1}
_BLOCK, _LOOP, _IF, _END = 0x02, 0x03, 0x04, 0x0B


def _leb(data: bytes, at: int) -> tuple[int, int]:
    """Return (value, next position) of an unsigned LEB128 number."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 28:
            return value, at
        shift += 7


def _skip(data: bytes, at: int, count: int) -> int:
    for _ in range(count):
        while data[at] >= 0x80:
            at += 1
        at += 1
    return at


def _special(data: bytes, opcode: int, at: int) -> int:
    """Return the position after the immediates of an opcode without a fixed number of LEBs."""
    if opcode == 0x0E:  # br_table
        count, at = _leb(data, at)
        return _skip(data, at, min(count, len(data)) + 1)
    if opcode == 0x1C:  # select with types
        count, at = _leb(data, at)
        return _skip(data, at, min(count, len(data)))
    if opcode in (0x43, 0x44):  # f32.const, f64.const
        return at + (4 if opcode == 0x43 else 8)
    code, at = _leb(data, at)
    if opcode == 0xFC:
        return _skip(data, at, _FC_LEBS.get(code, 0))
    if code in (12, 13):  # v128.const, i8x16.shuffle
        return at + 16
    if code <= 11 or 84 <= code <= 93:  # loads and stores, the first eight with a lane
        return _skip(data, at, 2) + (84 <= code <= 91)
    return at + (21 <= code <= 34)  # lane numbers


def instructions(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield (position, opcode, position after its immediates) of a valid body."""
    at = start
    while at < stop:
        first, opcode = at, data[at]
        count = _LEBS[opcode]
        if count < 9:
            at = _skip(data, at + 1, count)
        elif opcode in (_BLOCK, _LOOP, _IF):
            at = _skip(data, at + 1, 1)
        elif opcode == _END:
            at += 1
        else:
            at = _special(data, opcode, at + 1)
        yield first, opcode, at


def count_loops(data: bytes, start: int, stop: int, local_count: int) -> int:
    """Return the number of loops of the body at ``start:stop``, locals declarations excluded.

    Raises
    ------
    UdfValidationError
        The function is over one of the caps of this module.
    """
    loops = branches = depth = 0
    nesting: list[int] = []
    at, lebs = start, _LEBS
    try:
        while at < stop:
            opcode = data[at]
            at += 1
            count = lebs[opcode]
            if count == 0:
                continue
            if count < 9:
                at = _skip(data, at, count)
            elif opcode == _END:
                if nesting:
                    depth -= nesting.pop()
            elif opcode <= _IF:
                at = _skip(data, at, 1)
                is_loop = opcode == _LOOP
                nesting.append(is_loop)
                branches += 1
                loops += is_loop
                depth += is_loop
                if depth > MAX_LOOP_DEPTH:
                    raise _over("loops nested", depth, MAX_LOOP_DEPTH)
            else:
                at = _special(data, opcode, at)
    except IndexError as error:
        what = f"module is malformed at byte {at}: function ends early"
        raise UdfValidationError(what) from error
    _check(loops, branches, max(local_count, 1))
    return loops


def _check(loops: int, branches: int, local_count: int) -> None:
    for what, number, limit in (
        ("loops", loops, MAX_LOOPS),
        ("loops times locals", loops * local_count, MAX_LOOP_LOCALS),
        ("branches times locals", branches * local_count, MAX_BRANCH_LOCALS),
    ):
        if number > limit:
            raise _over(what, number, limit)


def _over(what: str, number: int, limit: int) -> UdfValidationError:
    return UdfValidationError(
        f"module has a function with {what} {number}, at most {limit} allowed",
        hint="split the function: compiling it could take minutes",
    )
