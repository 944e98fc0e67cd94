"""The nearest so far as a sorted list of packed (key, node, mark) entries, int64 at an address.

A list of at most ``limit`` entries has :func:`room_for` bytes: one word before it, less than all,
and behind it up to two vectors greater than all. So an entry goes in without a branch on where:
from the end downwards, each becomes the smaller of itself and the larger of its predecessor and
the new one.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import call, load, splat, store
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import bits_of, float_of, put_long, read_long

_LANES = 8
_I8, _I64 = ir.IntType(8), ir.IntType(64)
_VECTOR = ir.VectorType(_I64, _LANES)
_LEAST, MOST = -(2**63), 2**63 - 1
"""MOST stands behind the last entry."""


@linked
def pack(key, node):  # type: ignore[no-untyped-def]
    """Return an entry that orders by distance, then node; the lowest bit says expanded."""
    bits = bits_of(key)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | (np.int64(node) << 1)


@linked
def node_of(entry):  # type: ignore[no-untyped-def]
    """Return the node of an entry."""
    return (entry & 0xFFFFFFFF) >> 1


@linked
def key_of(entry):  # type: ignore[no-untyped-def]
    """Return the distance of an entry."""
    bits = entry >> 32
    return float_of(bits ^ ((bits >> 31) & 0x7FFFFFFF))


@intrinsic
def _merge(typingctx, place, entry):  # type: ignore[no-untyped-def]
    """Move a vector of entries up where they are greater; return how many are smaller."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        place, entry = args
        new = splat(b, entry, _LANES)
        own, before = load(b, place, _VECTOR), load(b, place, _VECTOR, -8)
        is_smaller = b.icmp_signed("<", own, new)
        above = b.select(b.icmp_signed(">", before, new), before, new)
        store(b, b.select(is_smaller, own, above), place)
        count = call(b, "llvm.ctpop.i8", _I8, b.bitcast(is_smaller, _I8))
        return b.zext(count, _I64)

    return types.int64(types.int64, types.int64), codegen


@linked
def room_for(limit):  # type: ignore[no-untyped-def]
    """Return the bytes of a list."""
    return 8 * (limit + 2 * _LANES + 1)


@linked
def start_list(memory, limit):  # type: ignore[no-untyped-def]
    """Make an empty list of memory; return its address."""
    put_long(memory, 0, _LEAST)
    for i in range(1, limit + 2 * _LANES + 1):
        put_long(memory, i, MOST)
    return memory + 8


@linked
def insert_into(entries, size, limit, entry):  # type: ignore[no-untyped-def]
    """Put an entry into a list; return where, or ``limit`` when all are smaller and it is full."""
    if size == limit and entry >= read_long(entries, size - 1):
        return limit
    block = size & ~(_LANES - 1)
    smaller = _merge(entries + 8 * block, entry)
    while read_long(entries, block - 1) > entry:
        block -= _LANES
        smaller = _merge(entries + 8 * block, entry)
    put_long(entries, limit, MOST)
    return block + smaller
