"""Inverted lists: coding of rows, assignment to centroids, sums of clusters, search of lists.

Codes lie in tiles of 16 rows, four bytes (or one float) of a row beside those of the next, so that
one register adds to the inner products of 16 rows. Rows of a tile have two constants: squared norm
and scale. As in ``kernels/cpu/graph.py`` the key of a coded query and a row is ``square - 2 t s
dot``, their squared distance less the query's squared norm; integers are exact, and float steps
are the same on every level, so all levels give the same answers. Arguments are addresses and
counts. Knows no index.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import call, load, pointer, splat, store

VARIANTS = ("vnni", "avx2", "plain")
"""How inner products are made: 512-bit VNNI, 256-bit multiply-add, a plain loop."""
TILE = 16
SEVERAL = {"vnni": 8, "avx2": 2, "plain": 1}
"""Rows that are assigned at once."""
_NUMBERS, _DOTS, _BEST, _NAMES = 96, 128, 640, 1152
SCRATCH = 1664
"""Bytes of scratch memory of a search or an assignment."""
(CODES, CONSTANTS, STARTS, CENTROIDS, CENTROID_CONSTANTS, RADII, MEAN, LISTS, PADDED, WIDTH, KIND,
 FORM, ROTATION) = range(13)  # fmt: skip
"""Places in a search's plan; see :func:`make_kernels`."""
PLAN = 13
BYTES, FLOATS, BITS = range(3)
"""Forms of rows: int8 codes, float32, sign bits of rotated residuals."""
PLANES = 6
"""Bits of a rotated query's element."""
_AHEAD = 4096

_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _W16, _B64 = (ir.VectorType(kind, n) for kind, n in ((_FLOAT, 16), (_I32, 16), (_I8, 64)))
_W8, _H16, _B16 = ir.VectorType(_I32, 8), ir.VectorType(_I16, 16), ir.VectorType(_I8, 16)


# --- inner products of one tile --------------------------------------------------------------


def _vnni(b: Any, sums: Any, codes: Any, word: Any) -> Any:
    query = b.bitcast(splat(b, word), _B64)
    if llvm.llvm_version_info[0] < 22:
        codes, query = b.bitcast(codes, _W16), b.bitcast(query, _W16)
    return call(b, "llvm.x86.avx512.vpdpbusd.512", _W16, sums, codes, query)


def _avx2(b: Any, sums: Any, codes: Any, word: Any) -> Any:
    """Add for four rows, two sums each."""
    query = b.sext(b.bitcast(splat(b, word, 4), _B16), _H16)
    return b.add(sums, call(b, "llvm.x86.avx2.pmadd.wd", _W8, b.zext(codes, _H16), query))


def _pairs(b: Any, one: Any, two: Any) -> Any:
    """Add neighbours of two registers."""
    halves = [
        b.shuffle_vector(one, two, ir.Constant(_W8, [2 * i + odd for i in range(8)]))
        for odd in range(2)
    ]
    return b.add(*halves)


@intrinsic(prefer_literal=True)
def _dots(typingctx, variant, several, tile, queries, padded, out):  # type: ignore[no-untyped-def]
    """Inner products of a tile and some queries, int32 (queries, 16), to ``out``."""
    wide = variant.literal_value == 0
    count = several.literal_value
    parts, sums_type, codes_type = (1, _W16, _B64) if wide else (4, _W8, _B16)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, _, tile, queries, padded, out = args
        chains = 4 if wide and count == 1 else 1
        zero = ir.Constant(sums_type, None)
        sums = [
            [[cgutils.alloca_once_value(b, zero) for _ in range(chains)] for _ in range(parts)]
            for _ in range(count)
        ]
        rows = [b.add(queries, b.mul(padded, ir.Constant(_I64, j))) for j in range(count)]
        for each in (s for query in sums for part in query for s in part):
            b.store(zero, each)
        with cgutils.for_range(b, b.lshr(padded, ir.Constant(_I64, 4))) as loop:
            line = b.add(tile, b.shl(loop.index, ir.Constant(_I64, 8)))
            at = b.shl(loop.index, ir.Constant(_I64, 4))
            for step in range(4):
                if count == 1:
                    _ask(b, b.add(line, ir.Constant(_I64, _AHEAD + 64 * step)))
                codes = [load(b, line, codes_type, 64 * step + 16 * p) for p in range(parts)]
                for j, row in enumerate(rows):
                    word = load(b, b.add(row, at), _I32, 4 * step)
                    for part, code in enumerate(codes):
                        chain = sums[j][part][step % chains]
                        b.store((_vnni if wide else _avx2)(b, b.load(chain), code, word), chain)
        for j in range(count):
            totals = [[b.load(chain) for chain in part] for part in sums[j]]
            if wide:
                total = totals[0][0]
                for more in totals[0][1:]:
                    total = b.add(total, more)
                store(b, total, out, 64 * j)
            else:
                for half in range(2):
                    both = _pairs(b, totals[2 * half][0], totals[2 * half + 1][0])
                    store(b, both, out, 64 * j + 32 * half)
        return context.get_dummy_value()

    return types.void(variant, several, *[types.int64] * 4), codegen


@njit(nogil=True)
def _plain_dots(tile, query, padded, out):  # type: ignore[no-untyped-def]
    for row in range(TILE):
        total = np.int64(0)
        for at in range(padded):
            code = _byte(tile, (at >> 2) * 4 * TILE + 4 * row + (at & 3)) & 255
            total += code * _byte(query, at)
        _put_int(out, row, total)


@intrinsic
def _float_dots(typingctx, tile, query, width, out):  # type: ignore[no-untyped-def]
    """Inner products of a tile of float32 rows and a query, float32 (16,), to ``out``.

    Products are rounded before they are added, so that all levels agree.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        tile, query, width, out = args
        zero = ir.Constant(_F16, None)
        sums = [cgutils.alloca_once_value(b, zero) for _ in range(4)]
        for each in sums:
            b.store(zero, each)

        def one(at: Any, chain: Any) -> None:
            line = b.add(tile, b.shl(at, ir.Constant(_I64, 6)))
            value = splat(b, load(b, b.add(query, b.shl(at, ir.Constant(_I64, 2))), _FLOAT))
            b.store(b.fadd(b.load(chain), b.fmul(load(b, line, _F16), value)), chain)

        with cgutils.for_range(b, b.lshr(width, ir.Constant(_I64, 2))) as loop:
            first = b.shl(loop.index, ir.Constant(_I64, 2))
            for step, chain in enumerate(sums):
                one(b.add(first, ir.Constant(_I64, step)), chain)
        done = b.and_(width, ir.Constant(_I64, -4))
        with cgutils.for_range(b, b.sub(width, done)) as loop:
            one(b.add(done, loop.index), sums[0])
        first, second = (b.fadd(b.load(sums[i]), b.load(sums[i + 1])) for i in (0, 2))
        store(b, b.fadd(first, second), out)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def _bit_passing(typingctx, tile, constants, planes, words, numbers, limit, keys):  # type: ignore[no-untyped-def]
    """Write the keys of 16 rows of sign bits; return a bit for each that is at most ``limit``.

    ``numbers`` float32 (4,): step and least element of the rotated query, minus half the sum of
    its elements, and the key of the rows' centroid.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        tile, constants, planes, words, numbers, limit, keys = args
        halves = [_common_bits(b, tile, planes, words, 64 * half) for half in range(2)]
        order = ir.Constant(ir.VectorType(_I32, 16), list(range(16)))
        common = b.sitofp(b.shuffle_vector(*halves, order), _F16)
        base, slope, ones = (load(b, constants, _F16, 64 * line) for line in range(3))
        step, low, always, of_list = (splat(b, load(b, numbers, _FLOAT, 4 * at)) for at in range(4))
        product = b.fadd(b.fadd(b.fmul(step, common), b.fmul(low, ones)), always)
        found = b.fadd(b.fadd(base, of_list), b.fmul(slope, product))
        store(b, found, keys)
        bits = b.bitcast(b.fcmp_ordered("<=", found, splat(b, limit)), _I16)
        return b.zext(bits, _I64)

    kinds = [*[types.int64] * 5, types.float32, types.int64]
    return types.int64(*kinds), codegen


def _common_bits(b: Any, tile: Any, planes: Any, words: Any, offset: int) -> Any:
    """Emit sums over planes j of 2^j times the bits common to row and plane, for 8 rows."""
    whole = ir.VectorType(_I64, 8)
    sums = [cgutils.alloca_once_value(b, ir.Constant(whole, None)) for _ in range(PLANES)]
    for each in sums:
        b.store(ir.Constant(whole, None), each)
    with cgutils.for_range(b, words) as loop:
        line = b.add(tile, b.shl(loop.index, ir.Constant(_I64, 7)))
        codes = load(b, line, whole, offset)
        _ask(b, b.add(line, ir.Constant(_I64, _AHEAD + offset)))
        at = b.add(planes, b.mul(loop.index, ir.Constant(_I64, 8 * PLANES)))
        for j, each in enumerate(sums):
            word = splat(b, load(b, at, _I64, 8 * j), 8)
            ones = call(b, "llvm.ctpop.v8i64", whole, b.and_(codes, word))
            b.store(b.add(b.load(each), ones), each)
    total = b.load(sums[0])
    for j, each in enumerate(sums[1:], 1):
        total = b.add(total, b.shl(b.load(each), ir.Constant(whole, [j] * 8)))
    return b.trunc(total, _W8)


@intrinsic
def _rotate(typingctx, row, rotation, width, turned, out):  # type: ignore[no-untyped-def]
    """Write a row of ``width`` times a float32 (width, turned) matrix; 64 divides ``turned``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, rotation, width, turned, out = args
        pitch = b.shl(turned, ir.Constant(_I64, 2))
        sums = [cgutils.alloca_once_value(b, ir.Constant(_F16, None)) for _ in range(4)]
        with cgutils.for_range(b, b.lshr(turned, ir.Constant(_I64, 6))) as block:
            column = b.shl(block.index, ir.Constant(_I64, 8))
            for each in sums:
                b.store(ir.Constant(_F16, None), each)
            with cgutils.for_range(b, width) as loop:
                value = load(b, b.add(row, b.shl(loop.index, ir.Constant(_I64, 2))), _FLOAT)
                line = b.add(b.add(rotation, column), b.mul(loop.index, pitch))
                for part, each in enumerate(sums):
                    product = b.fmul(splat(b, value), load(b, line, _F16, 64 * part))
                    b.store(b.fadd(b.load(each), product), each)
            for part, each in enumerate(sums):
                store(b, b.load(each), b.add(out, column), 64 * part)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


def _ask(b: Any, address: Any) -> None:
    flags = [ir.Constant(_I32, value) for value in (0, 3, 1)]  # read, keep close, data
    call(b, "llvm.prefetch.p0", ir.VoidType(), pointer(b, address, _I8), *flags)


@intrinsic
def _request(typingctx, address):  # type: ignore[no-untyped-def]
    """Ask for the cache line of an address; never faults."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _ask(b, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# --- keys ------------------------------------------------------------------------------------


def _keys(b: Any, dots: Any, constants: Any, factor: Any, correction: Any) -> Any:
    """Return the 16 keys of integer inner products."""
    square, scale = load(b, constants, _F16), load(b, constants, _F16, 64)
    dot = b.sub(load(b, dots, _W16), splat(b, b.trunc(correction, _I32)))
    return b.fsub(square, b.fmul(b.fmul(splat(b, factor), scale), b.sitofp(dot, _F16)))


@intrinsic
def _passing(typingctx, dots, constants, factor, correction, limit, keys):  # type: ignore[no-untyped-def]
    """Write the keys of a tile; return a bit for each that is at most ``limit``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        dots, constants, factor, correction, limit, keys = args
        found = _keys(b, dots, constants, factor, correction)
        store(b, found, keys)
        bits = b.bitcast(b.fcmp_ordered("<=", found, splat(b, limit)), _I16)
        return b.zext(bits, _I64)

    kinds = [types.int64, types.int64, types.float32, types.int64, types.float32, types.int64]
    return types.int64(*kinds), codegen


@intrinsic
def _float_passing(typingctx, dots, constants, limit, keys):  # type: ignore[no-untyped-def]
    """Do the same for float inner products."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        dots, constants, limit, keys = args
        twice = b.fmul(ir.Constant(_F16, [2.0] * 16), load(b, dots, _F16))
        found = b.fsub(load(b, constants, _F16), twice)
        store(b, found, keys)
        bits = b.bitcast(b.fcmp_ordered("<=", found, splat(b, limit)), _I16)
        return b.zext(bits, _I64)

    return types.int64(types.int64, types.int64, types.float32, types.int64), codegen


@intrinsic
def _improve(typingctx, dots, constants, factor, correction, tile, best, names):  # type: ignore[no-untyped-def]
    """Keep in each of 16 lanes the smallest key so far, and the number of its tile."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        dots, constants, factor, correction, tile, best, names = args
        found = _keys(b, dots, constants, factor, correction)
        known = load(b, best, _F16)
        better = b.fcmp_ordered("<", found, known)
        store(b, b.select(better, found, known), best)
        number = splat(b, b.trunc(tile, _I32))
        store(b, b.select(better, number, load(b, names, _W16)), names)
        return context.get_dummy_value()

    kinds = [types.int64, types.int64, types.float32, *[types.int64] * 4]
    return types.void(*kinds), codegen


# --- memory ----------------------------------------------------------------------------------


def _reading(kind: ir.Type, result: Any) -> tuple[Any, Any]:
    size = 4 if kind == _FLOAT else kind.width // 8

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        place = b.add(args[0], b.mul(args[1], ir.Constant(_I64, size)))
        value = b.load(pointer(b, place, kind), align=1)
        return b.sext(value, _I64) if kind in (_I8, _I32) else value

    return result(types.int64, types.int64), codegen


def _writing(kind: ir.Type, given: Any) -> tuple[Any, Any]:
    size = 4 if kind == _FLOAT else kind.width // 8

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        place = b.add(args[0], b.mul(args[1], ir.Constant(_I64, size)))
        value = b.trunc(args[2], kind) if kind in (_I8, _I32) else args[2]
        b.store(value, pointer(b, place, kind), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, given), codegen


@intrinsic
def _long(typingctx, address, index):  # type: ignore[no-untyped-def]
    """Read int64 number ``index`` at an address."""
    return _reading(_I64, types.int64)


@intrinsic
def _int(typingctx, address, index):  # type: ignore[no-untyped-def]
    """Read int32 number ``index`` at an address."""
    return _reading(_I32, types.int64)


@intrinsic
def _byte(typingctx, address, index):  # type: ignore[no-untyped-def]
    """Read int8 number ``index`` at an address."""
    return _reading(_I8, types.int64)


@intrinsic
def _real(typingctx, address, index):  # type: ignore[no-untyped-def]
    """Read float32 number ``index`` at an address."""
    return _reading(_FLOAT, types.float32)


@intrinsic
def _put_long(typingctx, address, index, value):  # type: ignore[no-untyped-def]
    """Write int64 number ``index`` at an address."""
    return _writing(_I64, types.int64)


@intrinsic
def _put_int(typingctx, address, index, value):  # type: ignore[no-untyped-def]
    """Write int32 number ``index`` at an address."""
    return _writing(_I32, types.int64)


@intrinsic
def _put_byte(typingctx, address, index, value):  # type: ignore[no-untyped-def]
    """Write int8 number ``index`` at an address."""
    return _writing(_I8, types.int64)


@intrinsic
def _put_real(typingctx, address, index, value):  # type: ignore[no-untyped-def]
    """Write float32 number ``index`` at an address."""
    return _writing(_FLOAT, types.float32)


# --- the nearest: a max-heap of packed (key, number) -------------------------------------------


@njit(nogil=True)
def _pack(bits, number):  # type: ignore[no-untyped-def]
    """Return an integer that orders as the key's float32 bits do, then by number."""
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | number


@njit(nogil=True)
def _key_bits(entry):  # type: ignore[no-untyped-def]
    """Return the float32 bits of an entry's key."""
    bits = entry >> 32
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@njit(nogil=True)
def _sift(heap, size, entry):  # type: ignore[no-untyped-def]
    """Put an entry at the root and restore the heap."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _long(heap, child + 1) > _long(heap, child):
            child += 1
        if _long(heap, child) <= entry:
            break
        _put_long(heap, at, _long(heap, child))
        at = child
    _put_long(heap, at, entry)


@njit(nogil=True)
def _offer(heap, size, limit, entry):  # type: ignore[no-untyped-def]
    """Offer an entry to the heap of the ``limit`` smallest; returns the heap's size."""
    if size == limit:
        if entry < _long(heap, 0):
            _sift(heap, size, entry)
        return size
    at = size
    while at > 0 and _long(heap, (at - 1) >> 1) < entry:
        _put_long(heap, at, _long(heap, (at - 1) >> 1))
        at = (at - 1) >> 1
    _put_long(heap, at, entry)
    return size + 1


@njit(nogil=True)
def _sort(heap, size):  # type: ignore[no-untyped-def]
    """Turn a heap into ascending entries."""
    for end in range(size - 1, 0, -1):
        entry = _long(heap, end)
        _put_long(heap, end, _long(heap, 0))
        _sift(heap, end, entry)


@njit(nogil=True)
def _top(heap, size, limit, scratch):  # type: ignore[no-untyped-def]
    """Return the key above which nothing enters the heap."""
    if size < limit:
        return np.float32(np.inf)
    _put_int(scratch, 0, _key_bits(_long(heap, 0)))
    return _real(scratch, 0)


@njit(nogil=True)
def _sum_of(code, padded):  # type: ignore[no-untyped-def]
    """Return what codes + 128 add to every inner product with a query."""
    total = np.int64(0)
    for at in range(padded):
        total += _byte(code, at)
    return 128 * total


@njit(nogil=True)
def _code(row, width, padded, code):  # type: ignore[no-untyped-def]
    """Code float32 (width,); return scale and sum of squared codes."""
    top = np.float32(0)
    for at in range(width):
        top = max(top, abs(_real(row, at)))
    scale = top / np.float32(127) if top > 0 else np.float32(1)
    inverse = np.float32(1) / scale
    squares = np.int64(0)
    for at in range(width):
        value = np.rint(_real(row, at) * inverse)
        number = np.int64(max(min(value, np.float32(127)), np.float32(-127)))
        squares += number * number
        _put_byte(code, at, number)
    for at in range(width, padded):
        _put_byte(code, at, 0)
    return scale, squares


@njit(nogil=True)
def _move(query, width, mean, kind, moved):  # type: ignore[no-untyped-def]
    """Bring a query into the index's space, as ``index/hnsw/codes.py`` says."""
    given = width - 1 if kind == 1 else width
    factor = np.float32(1)
    if kind == 2:
        square = np.float32(0)
        for at in range(given):
            square += _real(query, at) * _real(query, at)
        factor = np.float32(1) / np.sqrt(square) if square > 0 else np.float32(0)
    for at in range(width):
        value = _real(query, at) * factor if at < given else np.float32(0)
        _put_real(moved, at, value - _real(mean, at))


@njit(nogil=True)
def _plane(row, width, planes, numbers):  # type: ignore[no-untyped-def]
    """Cut a rotated query, float32 (width,), into bit planes, uint64 (words, PLANES)."""
    low, high = _real(row, 0), _real(row, 0)
    for at in range(width):
        low, high = min(low, _real(row, at)), max(high, _real(row, at))
    most = (1 << PLANES) - 1
    step = (high - low) / np.float32(most)
    inverse = np.float32(1) / step if step > 0 else np.float32(0)
    total = np.int64(0)
    for word in range(width // 64):
        for plane in range(PLANES):
            _put_long(planes, word * PLANES + plane, 0)
        for bit in range(64):
            value = (_real(row, 64 * word + bit) - low) * inverse
            number = min(max(np.int64(value + np.float32(0.5)), 0), most)
            total += number
            for plane in range(PLANES):
                place = word * PLANES + plane
                _put_long(planes, place, _long(planes, place) | ((number >> plane & 1) << bit))
    _put_real(numbers, 0, step)
    _put_real(numbers, 1, low)
    half = np.float32(-0.5) * (np.float32(width) * low + step * np.float32(total))
    _put_real(numbers, 2, half)


_LONG = types.int64
_CODES, _CONSTANTS = types.int8[:, ::1], types.float32[:, ::1]
SIGNATURES = {
    "encode": types.void(*[_LONG] * 6),
    "assign": types.void(*[_LONG] * 11),
    "add": types.void(
        _CODES, _CONSTANTS, types.int32[::1], types.float64[:, ::1], types.int64[::1]
    ),
    "search": types.int64(*[_LONG] * 9),
}  # fmt: skip


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the (not yet compiled) kernels of a variant by name; ``SIGNATURES`` has their types.

    encode(rows, count, width, padded, codes, constants)
        float32 (count, width) to int8 (count, padded) and float32 (count, 2).
    assign(rows, constants, start, stop, padded, centroids, shapes, lists, labels, distances,
           scratch)
        For coded rows start..stop the nearest of coded centroids (tiles), the first of equals, to
        ``labels`` int32 (n,), and their squared distance to ``distances`` float32 (n,).
    add(rows, constants, labels, sums, numbers)
        Adds decoded rows to the sums of their clusters, float64 (k, width), and counts them.
    search(plan, query, wanted, effort, allowed, moved, probes, heap, scratch)
        ``plan`` int64 (PLAN,), as the names above say: addresses; lists, bytes of a code, d', 0..2
        for the operator, form of the rows, address of the rotation. Writes (key, node) to ``heap`` int64 (wanted,),
        ascending by key, then node; returns how many. ``allowed`` uint8 (n,) or 0; scratch:
        ``probes`` int64 (effort,), ``moved`` float32 (d',), int8 (padded,), float32 (padded,) and uint64
        (padded / 64, PLANES).
    """
    number, several = VARIANTS.index(variant), SEVERAL[variant]
    one_dots = _plain_dots if variant == "plain" else _make_dots(number, 1)
    many_dots = one_dots if several == 1 else _make_dots(number, several)

    @njit(nogil=True)
    def encode(rows, count, width, padded, codes, constants):  # type: ignore[no-untyped-def]
        for row in range(count):
            scale, squares = _code(rows + 4 * width * row, width, padded, codes + padded * row)
            _put_real(constants, 2 * row, np.float32(squares * np.float64(scale) ** 2))
            _put_real(constants, 2 * row + 1, scale)

    @njit(nogil=True)
    def assign(  # type: ignore[no-untyped-def]
        rows, constants, start, stop, padded, centroids, shapes, lists, labels, distances, scratch
    ):  # fmt: skip
        dots, best, names = scratch + _DOTS, scratch + _BEST, scratch + _NAMES
        at = start
        while at < stop:
            taken = several if stop - at >= several else 1
            for lane in range(taken * TILE):
                _put_real(best, lane, np.float32(np.inf))
                _put_int(names, lane, 0)
            for j in range(taken):
                _put_long(scratch, j, _sum_of(rows + padded * (at + j), padded))
            for tile in range((lists + TILE - 1) // TILE):
                line = centroids + tile * TILE * padded
                if taken == 1:
                    one_dots(line, rows + padded * at, padded, dots)
                else:
                    many_dots(line, rows + padded * at, padded, dots)
                for j in range(taken):
                    factor = np.float32(2) * _real(constants, 2 * (at + j) + 1)
                    _improve(dots + 64 * j, shapes + 128 * tile, factor, _long(scratch, j), tile,
                             best + 64 * j, names + 64 * j)  # fmt: skip
            for j in range(taken):
                low, name = np.float32(np.inf), np.int64(0)
                for lane in range(TILE):
                    key = _real(best + 64 * j, lane)
                    found = _int(names + 64 * j, lane) * TILE + lane
                    if key < low or (key == low and found < name):
                        low, name = key, found
                _put_int(labels, at + j, name)
                _put_real(distances, at + j, low + _real(constants, 2 * (at + j)))
            at += taken

    @njit(nogil=True)
    def search(plan, query, wanted, effort, allowed, moved, probes, heap, scratch):  # type: ignore[no-untyped-def]
        padded, width, lists = _long(plan, PADDED), _long(plan, WIDTH), _long(plan, LISTS)
        code, dots = moved + 4 * width, scratch + _DOTS
        _move(query, width, _long(plan, MEAN), _long(plan, KIND), moved)
        scale, squares = _code(moved, width, padded, code)
        factor, correction = np.float32(2) * scale, _sum_of(code, padded)
        square = np.float32(squares * np.float64(scale) ** 2)
        if _long(plan, FORM) == BITS:
            turned = code + padded
            _rotate(moved, _long(plan, ROTATION), width, padded, turned)
            _plane(turned, padded, turned + 4 * padded, scratch + _NUMBERS)
        count, limit = 0, np.float32(np.inf)
        line, shapes = _long(plan, CENTROIDS), _long(plan, CENTROID_CONSTANTS)
        for tile in range((lists + TILE - 1) // TILE):
            one_dots(line + tile * TILE * padded, code, padded, dots)
            bits = _passing(dots, shapes + 128 * tile, factor, correction, limit, scratch)
            if bits:
                count = _keep(bits, scratch, tile * TILE, 0, lists, probes, count, effort)
                limit = _top(probes, count, effort, scratch + 64)
        _sort(probes, count)
        size, limit = 0, np.float32(np.inf)
        for probe in range(count):
            at = _long(probes, probe) & 0xFFFFFFFF
            if size == wanted:
                _put_int(scratch + 64, 0, _key_bits(_long(probes, probe)))
                apart = np.sqrt(max(_real(scratch + 64, 0) + square, np.float32(0)))
                gap = apart - _real(_long(plan, RADII), at)
                if gap > 0 and gap * gap * np.float32(0.9999) > limit + square:
                    continue  # by the triangle inequality no row of the list is near enough
            _put_int(scratch + _NUMBERS, 3, _key_bits(_long(probes, probe)))
            size = scan(plan, at, moved, factor, correction, wanted, allowed, heap, size, scratch)
            limit = _top(heap, size, wanted, scratch + 64)
        _sort(heap, size)
        return size

    @njit(nogil=True)
    def scan(plan, number, moved, factor, correction, wanted, allowed, heap, size, scratch):  # type: ignore[no-untyped-def]
        """Offer the rows of a list to the heap; returns its size."""
        padded, width, form = _long(plan, PADDED), _long(plan, WIDTH), _long(plan, FORM)
        dots = scratch + _DOTS
        starts = _long(plan, STARTS)
        first, stop = _long(starts, 2 * number), _long(starts, 2 * number + 2)
        tile = _long(starts, 2 * number + 1)
        pitch, lines = TILE * padded, 128
        if form == FLOATS:
            pitch = 4 * TILE * width
        elif form == BITS:
            pitch, lines = TILE * padded // 8, 192
        line = _long(plan, CODES) + tile * pitch
        constants = _long(plan, CONSTANTS) + lines * tile
        planes = moved + 4 * width + 5 * padded
        limit = _top(heap, size, wanted, scratch + 64)
        while first < stop:
            if allowed == 0 or _any(allowed + first, min(stop - first, TILE)):
                if form == BITS:
                    bits = _bit_passing(line, constants, planes, padded // 64, scratch + _NUMBERS,
                                        limit, scratch)  # fmt: skip
                elif form == FLOATS:
                    _float_dots(line, moved, width, dots)
                    bits = _float_passing(dots, constants, limit, scratch)
                else:
                    one_dots(line, moved + 4 * width, padded, dots)
                    bits = _passing(dots, constants, factor, correction, limit, scratch)
                if bits:
                    size = _keep(bits, scratch, first, allowed, stop, heap, size, wanted)
                    limit = _top(heap, size, wanted, scratch + 64)
            first += TILE
            line += pitch
            constants += lines
        return size

    @njit(nogil=True)
    def add(rows, constants, labels, sums, numbers):  # type: ignore[no-untyped-def]
        for row in range(labels.shape[0]):
            label, scale = labels[row], np.float64(constants[row, 1])
            numbers[label] += 1
            for at in range(sums.shape[1]):
                sums[label, at] += scale * rows[row, at]

    return {"encode": encode, "assign": assign, "add": add, "search": search}


def _make_dots(number: int, several: int) -> Any:
    @njit(nogil=True)
    def dots(tile, queries, padded, out):  # type: ignore[no-untyped-def]
        _dots(number, several, tile, queries, padded, out)

    return dots


@njit(nogil=True)
def _any(allowed, count):  # type: ignore[no-untyped-def]
    """Tell whether one of some bytes is not 0."""
    if count == TILE:
        return (_long(allowed, 0) | _long(allowed, 1)) != 0
    found = np.int64(0)
    for at in range(count):
        found |= _byte(allowed, at)
    return found != 0


@njit(nogil=True)
def _keep(bits, keys, first, allowed, stop, heap, size, limit):  # type: ignore[no-untyped-def]
    """Offer the marked rows of a tile that exist and are allowed; returns the heap's size."""
    lane = 0
    while bits:
        number = first + lane
        if bits & 1 and number < stop and (allowed == 0 or _byte(allowed, number)):
            size = _offer(heap, size, limit, _pack(_int(keys, lane), number))
        bits >>= 1
        lane += 1
    return size
