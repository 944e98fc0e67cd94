"""Sieve over int8 codes for many queries with AVX2: five bits at once, after a guess at limits.

The planes of a tile are put together once and rounded to their higher five bits, 0 to 32, in
memory that stays in the L1 cache; against them go the queries, four at a time. Less 16, products
of such codes and a query's fit 16 bits sixteen times over, so that sums become 32 bits wide only
then. Rows that the bound of five bits lets pass are looked at one by one.

Most would pass before the limits have come down. So some tiles are read first, and of each the row
that seems nearest to a query; some of these, bounded by their whole codes, make a guess at its
limit, which the end proves or gives up. Arguments are integers (addresses and counts).
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.candidates import (
    BASE,
    CONSTANTS,
    CORRECTION,
    COSINE,
    ENTRY,
    HEAD_CORRECTION,
    LIMIT,
    NEVER,
    NORM,
    OF_TAIL,
    PREPARED,
    RESIDUAL,
    SCALE,
    SQUARE,
    TAIL,
    TILE,
    finish,
    half_width,
    is_live,
    keep,
    prepare,
)
from tarsdb.kernels.cpu.coded import emit_maddubs, emit_widened, left_of_five, rest_dot
from tarsdb.kernels.cpu.coded_batch import emit_whole_codes, prefetch_part
from tarsdb.kernels.cpu.emit import call, fma, load, splat, store
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import (
    lowest_bit,
    put_int,
    put_long,
    put_real,
    read_int,
    read_long,
    read_real,
    read_signed,
)

SEVERAL = 4  # queries whose sums are in registers together
AT_ONCE = 8  # queries of a turn
SAMPLED = 32  # tiles of which the first is of the sample
RANKS, RANKS_PER_K = 5, 16  # tiles of the sample whose nearest rows make the guess
_PART = 32  # elements whose products are summed in 16 bits
_MIDDLE = 16  # what is taken from codes of 0 to 32
_BYTE = 136  # the byte of zero, in a query's corrections
_ITEM = 16  # bytes of a row of the sample: its distance (then the guess), product, row, block
_ABOUT, _DOT, _ROW, _BLOCK = range(4)
STEP, FIVE = PREPARED // 64, PREPARED // 64 + 1
"""Lines behind a prepared tile: eight scales, residuals of five bits as the metric needs them."""
_MAXIMA = PREPARED + 128  # places in the scratch memory
_LIMITS = _MAXIMA + 64
_HITS = _LIMITS + 64
_DOTS = _HITS + 16 * AT_ONCE
_NEAR = _DOTS + 64 * AT_ONCE
SCRATCH = _NEAR + 64
"""Bytes of scratch memory before the codes of a tile."""

_FLOAT = ir.FloatType()
_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))
_F8, _F16 = (ir.VectorType(_FLOAT, lanes) for lanes in (8, 16))
_W8, _W16, _H16 = ir.VectorType(_I32, 8), ir.VectorType(_I32, 16), ir.VectorType(_I16, 16)


# --- a tile's codes --------------------------------------------------------------------------


@intrinsic
def _five_bits(typingctx, high, low, head, out):  # type: ignore[no-untyped-def]
    """Put a tile's codes together, to the nearest eighth: 0 to 32, (head / 4, 16, 4) bytes."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        def eighth(codes: Any) -> Any:
            one, two = ir.Constant(_W16, [1] * TILE), ir.Constant(_W16, [2] * TILE)
            quarter = b.and_(b.lshr(codes, two), ir.Constant(_W16, [0x3F3F3F3F] * TILE))
            more = b.add(quarter, ir.Constant(_W16, [0x01010101] * TILE))
            return b.and_(b.lshr(more, one), ir.Constant(_W16, [0x3F3F3F3F] * TILE))

        high, low, head, out = args
        emit_whole_codes(b, (high, low), head, out, eighth)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def _summarise(typingctx, metric, constants, fives, scratch):  # type: ignore[no-untyped-def]
    """Write the lines behind a prepared tile, and its largest norm, residual and square."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        metric, constants, fives, scratch = args
        scale = load(b, scratch, _F16, 64 * SCALE)
        store(b, b.fmul(scale, ir.Constant(_F16, [8.0] * TILE)), scratch, 64 * STEP)
        five, inverse = load(b, fives, _F16), load(b, constants, _F16, 64 * (CONSTANTS - 1))
        is_cosine = b.icmp_signed("==", metric, ir.Constant(_I64, COSINE))
        store(b, b.select(is_cosine, b.fmul(five, inverse), five), scratch, 64 * FIVE)
        for number, line in enumerate((NORM, FIVE, SQUARE)):
            value = load(b, scratch, _F16, 64 * line)
            largest = call(b, "llvm.vector.reduce.fmax.v16f32", _FLOAT, value)
            store(b, largest, scratch, _MAXIMA + 4 * number)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@linked
def _centre(queries, count, padded, head, out):  # type: ignore[no-untyped-def]
    """Write what the middle takes from sums of 32 elements: two of 16 bits for each query.

    Before them what zero takes from the rest, int32: (count / 4, head / 32 + 1, 4).
    """
    for q in range(count):
        line, before = queries + q // TILE * TILE * padded + q % TILE * 64, 0
        place = out + q // SEVERAL * SEVERAL * (head // 8 + 4)
        for part in range(head // _PART):
            at, word = line + part // 2 * 64 * TILE + part % 2 * _PART, 0
            for half in range(2):
                total = 0
                for element in range(2 * half, _PART, 4):
                    total += read_signed(at, element) + read_signed(at, element + 1)
                word |= (-_MIDDLE * total & 0xFFFF) << 16 * half
                before += total
            put_int(place, SEVERAL * (1 + part) + q % SEVERAL, word)
        put_int(place, q % SEVERAL, -before)


# --- which pairs of rows and queries may pass ------------------------------------------------


def _apart(b: Any, value: Any) -> Any:
    """Emit a value as it is, that no later sum is reordered with: the registers would not do."""
    return b.asm(ir.FunctionType(value.type, [value.type]), "", "=x,0", [value], False)


def _emit_sums(b: Any, codes: Any, queries: Any, centres: Any, head: Any, out: Any) -> None:
    """Emit inner products of a tile and four queries, int32 (4, 16), to ``out``.

    Of codes less that of zero; of the queries every 64 bytes, and the next 64 elements behind 16.
    """
    for j in range(SEVERAL):
        store(b, splat(b, load(b, centres, _I32, 4 * j)), out, 64 * j)
    with cgutils.for_range(b, b.lshr(head, ir.Constant(_I64, 5))) as loop:
        line = b.add(codes, b.shl(loop.index, ir.Constant(_I64, 9)))
        pair = b.shl(b.lshr(loop.index, ir.Constant(_I64, 1)), ir.Constant(_I64, 10))
        half = b.shl(b.and_(loop.index, ir.Constant(_I64, 1)), ir.Constant(_I64, 5))
        at = b.add(b.add(queries, pair), half)
        own = b.add(centres, b.shl(loop.index, ir.Constant(_I64, 4)))
        sums = []
        for j in range(SEVERAL):
            start = b.bitcast(splat(b, load(b, own, _I32, 4 * (SEVERAL + j)), 8), _H16)
            sums.append([start, start])
        for step in range(_PART // 4):
            rows = [load(b, line, _W8, 64 * step + 32 * side) for side in range(2)]
            for j, few in enumerate(sums):
                four = splat(b, load(b, at, _I32, 64 * j + 4 * step), 8)
                for side, row in enumerate(rows):
                    few[side] = _apart(b, b.add(few[side], emit_maddubs(b, row, four)))
        for number, each in enumerate(each for few in sums for each in few):
            total = b.add(load(b, out, _W8, 32 * number), emit_widened(b, each))
            store(b, total, out, 32 * number)


def _emit_limits(b: Any, numbers: Any, pitch: Any, scratch: Any) -> None:
    """Emit limits that hold for all rows of a tile, of eight queries.

    The largest constants stand for those of each row, a little more for the rounding.
    """
    lines = [b.add(numbers, b.mul(pitch, ir.Constant(_I64, line))) for line in range(LIMIT + 1)]
    half = load(b, lines[4], _F8)
    for line in range(3):
        top = splat(b, load(b, scratch, _FLOAT, _MAXIMA + 4 * line), 8)
        half = fma(b, load(b, lines[1 + line], _F8), top, half)
    limit = load(b, lines[LIMIT], _F8)
    size = b.fadd(call(b, "llvm.fabs.v8f32", _F8, limit), half)
    more = b.fmul(size, ir.Constant(_F8, [2.0**-20] * 8))
    store(b, b.fadd(b.fadd(limit, half), more), scratch, _LIMITS)


class _Screen:
    """Emits the test of a tile's products against a query's limit, and the list of marks."""

    def __init__(self, b: Any, numbers: Any, pitch: Any, scratch: Any) -> None:
        self.b, self.numbers, self.scratch = b, numbers, scratch
        self.tails = b.add(numbers, b.mul(pitch, ir.Constant(_I64, OF_TAIL)))
        self.rows = [
            [load(b, scratch, _F8, 64 * line + 32 * side) for line in (STEP, TAIL, BASE)]
            for side in range(2)
        ]
        for row in self.rows:
            row[:2] = b.fneg(row[0]), b.fneg(row[1])
        self.found = cgutils.alloca_once_value(b, ir.Constant(_I64, 0))
        b.store(ir.Constant(_I64, 0), self.found)

    def add(self, query: int) -> None:
        """List a query if any of its rows is marked, without a branch."""
        b, masks = self.b, []
        of_dot, of_tail, limit = (
            splat(b, load(b, at, _FLOAT, offset + 4 * query), 8)
            for at, offset in ((self.numbers, 0), (self.tails, 0), (self.scratch, _LIMITS))
        )
        for side, (step, tail, base) in enumerate(self.rows):
            dot = b.sitofp(load(b, self.scratch, _W8, _DOTS + 64 * query + 32 * side), _F8)
            low = fma(b, of_dot, b.fmul(step, dot), fma(b, of_tail, tail, base))
            within = b.fcmp_unordered("<=", low, limit)
            masks.append(b.zext(b.bitcast(within, ir.IntType(8)), _I64))
        marked = b.or_(masks[0], b.shl(masks[1], ir.Constant(_I64, 8)))
        count = b.load(self.found)
        hit = b.add(self.scratch, b.shl(count, ir.Constant(_I64, 4)))
        store(b, ir.Constant(_I64, query), hit, _HITS)
        store(b, marked, hit, _HITS + 8)
        any_ = b.zext(b.icmp_unsigned("!=", marked, ir.Constant(_I64, 0)), _I64)
        b.store(b.add(count, any_), self.found)


@intrinsic
def _mark(typingctx, codes, queries, head, centres, numbers, pitch, scratch):  # type: ignore[no-untyped-def]
    """List which of eight queries any row of a tile may pass; returns how many.

    Pairs of a query's number and its 16 bits, int64, go to the hits, inner products with codes
    less that of zero, int32 (8, 16), to their place.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        codes, queries, head, centres, numbers, pitch, scratch = args
        _emit_limits(b, numbers, pitch, scratch)
        screen = _Screen(b, numbers, pitch, scratch)
        for start in range(0, AT_ONCE, SEVERAL):
            dots = b.add(scratch, ir.Constant(_I64, _DOTS + 64 * start))
            _emit_sums(b, codes, b.add(queries, ir.Constant(_I64, 64 * start)), centres, head, dots)
            half = b.lshr(head, ir.Constant(_I64, 1))
            centres = b.add(centres, b.add(half, ir.Constant(_I64, 16)))
            for query in range(start, start + SEVERAL):
                screen.add(query)
        return b.load(screen.found)

    return types.int64(*[types.int64] * 7), codegen


# --- rows that may pass ----------------------------------------------------------------------


@linked
def _of_head(dot, row, block, query, head, number, pitch):  # type: ignore[no-untyped-def]
    """Return the product of the whole head, from that of five bits."""
    before = read_int(number + HEAD_CORRECTION * pitch, 0) // _BYTE
    line = read_long(block, 1) + row * (head // 2)
    return 8 * dot + left_of_five(line, query, head, 64 * TILE) - 4 * before


@linked
def _of_rest(row, block, query, padded, head, number, pitch):  # type: ignore[no-untyped-def]
    """Return the product of what is behind the head."""
    line = read_long(block, 6) + row * (padded - head)
    behind = read_int(number + CORRECTION * pitch, 0)
    behind -= read_int(number + HEAD_CORRECTION * pitch, 0)
    return rest_dot(line, query + head * TILE, padded - head, 64 * TILE) - behind


@linked
def _keep_marked(bits, at, q, row, block, query, padded, head, number, pitch, k, heap, places, lows, cap, state, scratch):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501
    """Bound the marked rows of a tile by the whole head, then by whole codes; keep candidates."""
    dots, limit_at = scratch + _DOTS + 64 * at, number + LIMIT * pitch
    while bits:
        lane = lowest_bit(bits)
        bits &= bits - 1
        if not is_live(row + lane, block):
            continue
        here, limit = scratch + 4 * lane, read_real(limit_at, 0)
        base = read_real(here, BASE * TILE)
        slope = read_real(number, 0) * read_real(here, SCALE * TILE)
        of_residual, half = read_real(number + 2 * pitch, 0), half_width(number, pitch, here)
        tail = read_real(number + OF_TAIL * pitch, 0) * read_real(here, TAIL * TILE)
        nearest = base - slope * np.float32(8 * read_int(dots, lane)) - half - tail
        if nearest - of_residual * read_real(here, FIVE * TILE) > limit:
            continue
        dot = _of_head(read_int(dots, lane), row + lane, block, query, head, number, pitch)
        half += of_residual * read_real(here, RESIDUAL * TILE)
        if padded > head:
            if base - slope * np.float32(dot) - half - tail > limit:
                continue
            dot += _of_rest(row + lane, block, query, padded, head, number, pitch)
        middle = base - slope * np.float32(dot)
        keep(middle - half, middle + half, read_long(block, 5) + row + lane, limit_at, k, heap,
             places, lows, cap, state)  # fmt: skip


# --- a guess at the limits -------------------------------------------------------------------


@intrinsic
def _nearest(typingctx, number, at, scratch):  # type: ignore[no-untyped-def]
    """Write how far a query is from a tile's rows, as the heads tell it; return the least."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        number, at, scratch = args
        dots = b.add(scratch, b.shl(at, ir.Constant(_I64, 6)))
        dot = b.fmul(b.sitofp(load(b, dots, _W16, _DOTS), _F16), load(b, scratch, _F16, 64 * STEP))
        known = b.fmul(splat(b, load(b, number, _FLOAT)), dot)
        about = b.fsub(load(b, scratch, _F16, 64 * BASE), known)
        store(b, about, scratch, _NEAR)
        return call(b, "llvm.vector.reduce.fmin.v16f32", _FLOAT, about)

    return types.float32(*[types.int64] * 3), codegen


@linked
def _remember(items, ranks, about, at, row, number, scratch):  # type: ignore[no-untyped-def]
    """Put the nearest row of a tile among the nearest so far, in the place of the farthest."""
    farthest = items
    for rank in range(1, ranks):
        item = items + _ITEM * rank
        if read_real(item, _ABOUT) > read_real(farthest, _ABOUT):
            farthest = item
    if not about < read_real(farthest, _ABOUT):
        return
    lane = 0
    while lane < TILE - 1 and read_real(scratch + _NEAR, lane) != about:
        lane += 1
    put_real(farthest, _ABOUT, about)
    put_int(farthest, _DOT, read_int(scratch + _DOTS + 64 * at, lane))
    put_int(farthest, _ROW, row + lane)
    put_int(farthest, _BLOCK, number)


@linked
def _guess(items, ranks, table, query, padded, head, number, pitch, metric, scratch):  # type: ignore[no-untyped-def]
    """Lower a limit to the largest upper bound of the sample's nearest rows, by whole codes."""
    guess = read_real(items, _ABOUT)
    for rank in range(ranks):
        item = items + _ITEM * rank
        if read_real(item, _ABOUT) == np.inf:  # a small sample
            guess = np.float32(np.inf)
            continue
        row, block = read_int(item, _ROW), table + ENTRY * read_int(item, _BLOCK)
        prepare(metric, read_long(block, 2) + row // TILE * 4 * CONSTANTS * TILE, scratch)
        here = scratch + row % TILE * 4
        dot = _of_head(read_int(item, _DOT), row, block, query, head, number, pitch)
        if padded > head:
            dot += _of_rest(row, block, query, padded, head, number, pitch)
        half = half_width(number, pitch, here)
        half += read_real(number + 2 * pitch, 0) * read_real(here, RESIDUAL * TILE)
        slope = read_real(number, 0) * read_real(here, SCALE * TILE)
        high = read_real(here, BASE * TILE) - slope * np.float32(dot) + half
        guess = high if rank == 0 else max(guess, high)
    put_real(items, _ABOUT, guess)
    if guess < read_real(number + LIMIT * pitch, 0):
        put_real(number + LIMIT * pitch, 0, guess)


@linked
def _verify(asked, items, ranks, k, heaps, state):  # type: ignore[no-untyped-def]
    """Give up queries of which fewer than k rows are known to be within the guess."""
    for q in range(asked):
        guess = read_real(items + _ITEM * ranks * q, _ABOUT)
        is_known = read_long(state, 2 * q) == k and read_real(heaps, k * q) <= guess
        if not is_known and guess < np.inf:
            put_long(state, 2 * q + 1, -1)


# --- the sieve -------------------------------------------------------------------------------


@linked
def _lay(block, tile, metric, head, codes, scratch, is_sample):  # type: ignore[no-untyped-def]
    """Put a tile's codes and constants together; of a sample, dead rows are infinitely far."""
    at = tile * head * TILE // 2
    _five_bits(read_long(block, 0) + at, read_long(block, 1) + at, head, codes)
    constants = read_long(block, 2) + tile * 4 * CONSTANTS * TILE
    tiles = (read_long(block, 3) + TILE - 1) // TILE
    fives = read_long(block, 2) + 4 * TILE * (tiles * CONSTANTS + tile)
    prepare(metric, constants, scratch)
    _summarise(metric, constants, fives, scratch)
    for lane in range(TILE if is_sample else 0):
        if not is_live(tile * TILE + lane, block):
            put_real(scratch, BASE * TILE + lane, np.float32(np.inf))


def make_sieve_many() -> Any:
    """Return the (not yet compiled) sieve of many queries for AVX2.

    Parameters are those of ``coded_batch.make_sieve_many``, but for the scratch memory:
    SCRATCH + 16 * head + (head / 8 + 4 + 16 * ranks) * count bytes. Returns the number of queries.
    """

    @njit(nogil=True)
    def sieve_many(  # type: ignore[no-untyped-def]
        table, blocks, queries, count, padded, head, numbers, k, heaps, metric, places, lows, cap,
        state, scratch,
    ):  # fmt: skip
        pitch, asked = 4 * count, count  # without the last ones, which no row can pass
        while asked > 0 and read_real(numbers + LIMIT * pitch, asked - 1) == NEVER:
            asked -= 1
        turns, ranks = (asked + AT_ONCE - 1) // AT_ONCE, RANKS + k // RANKS_PER_K
        codes = scratch + SCRATCH
        centres = codes + TILE * head
        items = centres + (head // 8 + 4) * count
        for item in range(ranks * count):
            put_real(items + _ITEM * item, _ABOUT, np.float32(np.inf))
        _centre(queries, turns * AT_ONCE, padded, head, centres)
        for is_sample in (True, False):
            for number in range(blocks):
                block = table + ENTRY * number
                tiles = (read_long(block, 3) + TILE - 1) // TILE
                for tile in range(0, tiles, SAMPLED if is_sample else 1):
                    _lay(block, tile, metric, head, codes, scratch, is_sample)
                    for turn in range(turns):
                        prefetch_part(block, tile + 1, 1, turn, turns, padded, head)
                        done = turn * AT_ONCE
                        laid = queries + done // TILE * TILE * padded + done % TILE * 64
                        marked = _mark(codes, laid, head, centres + (head // 8 + 4) * done,
                                       numbers + 4 * done, pitch, scratch)  # fmt: skip
                        for at in range(AT_ONCE if is_sample else 0):
                            q = done + at
                            about = _nearest(numbers + 4 * q, at, scratch)
                            _remember(items + _ITEM * ranks * q, ranks, about, at, tile * TILE,
                                      number, scratch)  # fmt: skip
                        for hit in range(0 if is_sample else marked):
                            at = read_long(scratch + _HITS, 2 * hit)
                            bits, q = read_long(scratch + _HITS, 2 * hit + 1), done + at
                            _keep_marked(bits, at, q, tile * TILE, block, laid + 64 * at, padded,
                                         head, numbers + 4 * q, pitch, k, heaps + 4 * k * q,
                                         places + 8 * cap * q, lows + 4 * cap * q, cap,
                                         state + 16 * q, scratch)  # fmt: skip
            for q in range(asked if is_sample else 0):
                _guess(items + _ITEM * ranks * q, ranks, table,
                       queries + q // TILE * TILE * padded + q % TILE * 64, padded, head,
                       numbers + 4 * q, pitch, metric, scratch)  # fmt: skip
        finish(numbers + LIMIT * pitch, count, places, lows, cap, state)
        _verify(asked, items, ranks, k, heaps, state)
        return count

    return sieve_many
