"""Further bits of candidates that sign bits name: better keys, by which they are put in order.

A rotated row is coded as y = 4 (s - 1/2) + (l - 3/2) an element (RaBitQ of three bits; Gao et al.,
SIGMOD 2025), s its sign bit and l two bits more, which lie row by row: bytes (padded / 4), the
i-th with elements i, i + padded / 4, and so on, from the lowest bits up; then float32 base, ratio,
slope and sum of l. The product of y and the query is made of that of the signs, which the key by
these tells, and of a sum of whole numbers. Integers are exact and float steps the same on every
level. Arguments are addresses and counts. Knows no index.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import call, load
from tarsdb.kernels.cpu.heap import order
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import prefetch, put_long, read_long, read_real
from tarsdb.kernels.cpu.sorted_list import key_of, node_of, pack

CONSTANTS = 16
"""Bytes of a row's constants."""
PLACE = 4
"""Numbers that say where a list lies: first node, addresses of codes, constants and further
bits."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_B16, _H16, _W16 = (ir.VectorType(kind, 16) for kind in (_I8, _I16, _I32))


@intrinsic
def _product(typingctx, codes, numbers, quarter):  # type: ignore[no-untyped-def]
    """Return the sum of two bits times a byte below 64; 16 divides ``quarter``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        codes, numbers, quarter = args
        total = cgutils.alloca_once_value(b, ir.Constant(_W16, None))
        b.store(ir.Constant(_W16, None), total)
        with cgutils.for_range(b, b.lshr(quarter, ir.Constant(_I64, 4))) as loop:
            at = b.shl(loop.index, ir.Constant(_I64, 4))
            four, found = load(b, b.add(codes, at), _B16), ir.Constant(_H16, None)
            place = b.add(numbers, at)
            for part in range(4):
                two = b.and_(b.lshr(four, ir.Constant(_B16, [2 * part] * 16)),
                             ir.Constant(_B16, [3] * 16))  # fmt: skip
                wide = (b.zext(each, _H16) for each in (two, load(b, place, _B16)))
                found = b.add(found, b.mul(*wide))
                place = b.add(place, quarter)
            b.store(b.add(b.load(total), b.zext(found, _W16)), total)
        whole = call(b, "llvm.vector.reduce.add.v16i32", _I32, b.load(total))
        return b.zext(whole, _I64)

    return types.int64(*[types.int64] * 3), codegen


@linked
def _list_of(table, lists, node):  # type: ignore[no-untyped-def]
    """Return the list that holds a node."""
    low, high = np.int64(0), lists
    while high - low > 1:
        middle = (low + high) >> 1
        if read_long(table, PLACE * middle) <= node:
            low = middle
        else:
            high = middle
    return low


@linked
def refine(table, lists, keys, padded, query, numbers, best, size, places):  # type: ignore[no-untyped-def]
    """Put candidates in the order of their better keys.

    ``table`` int64 (lists + 1, PLACE); ``keys`` float32 (lists,) of the centroids of lists that
    candidates lie in; ``query`` and ``numbers`` are what ``sign_bits.number`` makes of a query;
    ``best`` are entries (``sorted_list.py``), ``places`` is room for int64 (size,).
    """
    pitch = (padded >> 2) + CONSTANTS
    for at in range(size):
        node = node_of(read_long(best, at))
        list_ = _list_of(table, lists, node)
        row = node - read_long(table, PLACE * list_)
        first = read_long(table, PLACE * list_ + 3) + pitch * row
        put_long(places, at, list_)
        for line in range(0, pitch, 64):
            prefetch(first + line)
        prefetch(first + pitch - 1)
    step, low = read_real(numbers, 0), read_real(numbers, 1)
    always = np.float32(3) * read_real(numbers, 2)
    for at in range(size):
        entry, list_ = read_long(best, at), read_long(places, at)
        node, of_list = node_of(entry), read_real(keys, list_)
        row = node - read_long(table, PLACE * list_)
        codes = read_long(table, PLACE * list_ + 3) + pitch * row
        constants = codes + (padded >> 2)
        common = np.float32(_product(codes, query, padded >> 2))
        product = (step * common + low * read_real(constants, 3)) + always
        known = read_real(constants, 1) * (key_of(entry) - of_list)
        key = (read_real(constants, 0) + of_list + known) + read_real(constants, 2) * product
        put_long(best, at, pack(key, node))
    order(best, size)
