"""Coders of float32 vectors: int8 codes, and numbers that bound what they lose.

Rows are laid in two planes with constants, as ``coded`` says; queries one after the other, with the
factors that the sieves multiply these constants by. ``index/sieve`` derives the bounds. Norms and
residuals are summed in float64, so that rounding them up by a millionth is enough.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.candidates import (
    CONSTANTS,
    CORRECTION,
    COSINE,
    HEAD_CORRECTION,
    IP,
    L2,
    LIMIT,
    NEVER,
    OF_TAIL,
    ROUGH_CORRECTION,
    TILE,
)
from tarsdb.kernels.cpu.emit import call, fma, load, splat, store
from tarsdb.kernels.cpu.memory import put_int, put_real, read_double

ZERO = 136  # the byte of zero: its higher four bits, 8, stand for zero as well
LOWEST, HIGHEST = -136.0, 119.0  # codes of a row
MOST = 127.0  # largest magnitude of a query's code
TINY_SCALE = 2.0**-100  # below, a row is coded as zero and all of it is residual
UNDERFLOW = 2.0**-125  # more than a product loses that is no normal float32
HUGE = 1e36  # squares of distances beyond it are left to the float kernel
UPWARD = 1 + 2.0**-18  # more than the rounding of a product to float32 takes
SIGNATURE = types.int64(*[types.int64] * 11)
QUERY_SIGNATURE = types.int64(*[types.int64] * 11)

_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_F16, _D16, _W16, _B16 = (ir.VectorType(kind, TILE) for kind in (_FLOAT, _DOUBLE, _I32, _I8))
_W4 = ir.VectorType(_I32, 4)


class _RowCoder:
    """Emits the coding of one row: its extremes, codes, and norms in float64."""

    def __init__(self, b: Any, row: Any, width: Any) -> None:
        self.b, self.row, self.width = b, row, width
        self.buffer = cgutils.alloca_once(b, _F16)

    def steps(self, body: Any, row: Any = None) -> None:
        """Run ``body(vector, first element)`` over a row; what is left is padded with zeros."""
        b, step, row = self.b, ir.Constant(_I64, TILE), self.row if row is None else row
        with cgutils.for_range(b, b.udiv(self.width, step)) as loop:
            done = b.mul(loop.index, step)
            body(load(b, b.add(row, b.shl(done, ir.Constant(_I64, 2))), _F16), done)
        left = b.urem(self.width, step)
        with b.if_then(b.icmp_unsigned("!=", left, ir.Constant(_I64, 0)), likely=False):
            done = b.sub(self.width, left)
            b.store(ir.Constant(_F16, None), self.buffer)
            base = b.ptrtoint(self.buffer, _I64)
            with cgutils.for_range(b, left) as loop:
                offset = b.shl(loop.index, ir.Constant(_I64, 2))
                source = b.add(b.add(row, b.shl(done, ir.Constant(_I64, 2))), offset)
                store(b, load(b, source, _FLOAT), b.add(base, offset))
            body(b.load(self.buffer), done)

    def extremes(self) -> tuple[Any, Any]:
        """Return how far elements go below and above zero, float32."""
        b = self.b
        below, above = (cgutils.alloca_once_value(b, ir.Constant(_F16, None)) for _ in range(2))

        def body(x: Any, _: Any) -> None:
            for pointer, value in ((below, b.fneg(x)), (above, x)):
                larger = b.fcmp_ordered(">", value, b.load(pointer))
                b.store(b.select(larger, value, b.load(pointer)), pointer)

        self.steps(body)
        least, most = (
            call(b, "llvm.vector.reduce.fmax.v16f32", _FLOAT, b.load(each))
            for each in (below, above)
        )
        return least, most

    def square(self, row: Any) -> Any:
        """Return the squared norm of a row of the same width, float64."""
        (sums,) = self.sums(1)
        self.steps(lambda x, _: self.add_square(sums, x), row)
        return self.total(sums)

    def add_square(self, sums: Any, x: Any) -> None:
        """Add the squares of x, float64."""
        b = self.b
        wide = b.fpext(x, _D16)
        b.store(fma(b, wide, wide, b.load(sums)), sums)

    def total(self, pointer: Any) -> Any:
        """Return the sum of the lanes of a float64 vector."""
        b, value = self.b, self.b.load(pointer)
        whole = ir.Constant(_DOUBLE, 0.0)
        for lane in range(TILE):
            whole = b.fadd(whole, b.extract_element(value, ir.Constant(_I32, lane)))
        return whole

    def larger(self, one: Any, two: Any) -> Any:
        """Return the larger of two numbers."""
        return self.b.select(self.b.fcmp_ordered(">", one, two), one, two)

    def usable(self, scale: Any) -> tuple[Any, Any]:
        """Return scale and its inverse, float32; both zero for a vector too small to code."""
        b = self.b
        one, zero = ir.Constant(_FLOAT, 1.0), ir.Constant(_FLOAT, 0.0)
        size = call(b, "llvm.fabs.f32", _FLOAT, scale)
        usable = b.fcmp_ordered(">=", size, ir.Constant(_FLOAT, TINY_SCALE))
        inverse = b.select(usable, b.fdiv(one, scale), zero)
        return b.select(usable, scale, zero), inverse

    def sums(self, count: int) -> list[Any]:
        """Return so many float64 vectors to sum in, zeros."""
        zero = ir.Constant(_D16, None)
        return [cgutils.alloca_once_value(self.b, zero) for _ in range(count)]

    def add_rest(self, sums: Any, x: Any, value: Any, back: Any) -> None:
        """Add the squares of x + back * value, float64."""
        b = self.b
        rest = fma(b, value, back, b.fpext(x, _D16))
        b.store(fma(b, rest, rest, b.load(sums)), sums)

    def code(self, scale: Any, inverse: Any, limits: tuple[float, float], put: Any) -> Any:
        """Give codes to ``put(int32 vector, elements, minus scale float64, first element)``.

        Returns the squared norm of the residual, float64.
        """
        b = self.b
        (residual,) = self.sums(1)
        factor, back = splat(b, inverse), splat(b, b.fpext(b.fneg(scale), _DOUBLE))
        least, most = (ir.Constant(_F16, [limit] * TILE) for limit in limits)

        def body(x: Any, done: Any) -> None:
            value = call(b, "llvm.rint.v16f32", _F16, b.fmul(x, factor))
            value = call(b, "llvm.minnum.v16f32", _F16, value, most)
            value = call(b, "llvm.maxnum.v16f32", _F16, value, least)
            self.add_rest(residual, x, b.fpext(value, _D16), back)
            put(b.fptosi(value, _W16), x, back, done)

        self.steps(body)
        return self.total(residual)


def _row_scale(coder: _RowCoder) -> tuple[Any, Any]:
    """Emit a row's scale and its inverse.

    Codes reach further below zero than above: the sign of the scale puts the larger side there.
    """
    b = coder.b
    below, above = coder.extremes()
    low, high = (ir.Constant(_FLOAT, size) for size in (-LOWEST, HIGHEST))
    upright = coder.larger(b.fdiv(below, low), b.fdiv(above, high))
    turned = coder.larger(b.fdiv(above, low), b.fdiv(below, high))
    better = b.fcmp_ordered("<=", upright, turned)
    scale, inverse = coder.usable(b.select(better, upright, b.fneg(turned)))
    return scale, inverse


class _Planes:
    """Emits where the codes of a row's elements go, 16 at a time."""

    def __init__(self, b: Any, high: Any, low: Any, rest: Any, head: Any) -> None:
        self.b, self.high, self.low, self.rest, self.head = b, high, low, rest, head

    def put(self, small: Any, done: Any) -> None:
        """Store bytes of elements from ``done`` on in the planes of the head."""
        b, (four, lower, higher) = self.b, (
            ir.Constant(_I32, value) for value in (4, 0x0F0F0F0F, 0xF0F0F0F0 - (1 << 32))
        )  # fmt: skip
        together = b.bitcast(small, _W4)
        words = [b.extract_element(together, ir.Constant(_I32, word)) for word in range(4)]
        line = b.add(self.high, b.shl(done, ir.Constant(_I64, 3)))
        for pair in range(2):
            even, odd = words[2 * pair], words[2 * pair + 1]
            upper = b.or_(b.and_(b.lshr(even, four), lower), b.and_(odd, higher))
            store(b, upper, line, 64 * pair)
        # 32 elements in the lower halves of 32 bytes, then 32 in the higher ones
        part = b.and_(done, ir.Constant(_I64, 32))
        is_first = b.icmp_unsigned("==", part, ir.Constant(_I64, 0))
        block = b.lshr(b.and_(done, ir.Constant(_I64, -64)), ir.Constant(_I64, 1))
        at = b.add(self.low, b.add(block, b.and_(done, ir.Constant(_I64, 16))))
        under = b.and_(small, ir.Constant(_B16, [15] * TILE))
        both = b.or_(load(b, at, _B16), b.shl(under, ir.Constant(_B16, [4] * TILE)))
        store(b, b.select(is_first, under, both), at)

    def put_rest(self, small: Any, done: Any) -> None:
        """Store bytes of elements behind the head."""
        store(self.b, small, self.b.add(self.rest, self.b.sub(done, self.head)))


@intrinsic
def _encode_row(typingctx, row, rotated, width, head, high, low, rest, constants, fives):  # type: ignore[no-untyped-def]
    """Code one row: to each plane four bits, to ``rest`` bytes, a lane of its constants."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, rotated, width, head, high, low, rest, constants, fives = args
        coder, planes = _RowCoder(b, rotated, width), _Planes(b, high, low, rest, head)
        scale, inverse = _row_scale(coder)
        square = coder.square(row)
        rough, five, tail = coder.sums(3)

        def put(values: Any, x: Any, back: Any, done: Any) -> None:
            codes = b.add(values, ir.Constant(_W16, [ZERO] * TILE))
            small = b.trunc(codes, _B16)
            with b.if_else(b.icmp_unsigned("<", done, head)) as (in_head, behind):
                with in_head:
                    nearest = b.add(codes, ir.Constant(_W16, [4] * TILE))
                    for sums, value, step, zero in (
                        (rough, codes, 16, ZERO - 8), (five, nearest, 8, ZERO),
                    ):  # fmt: skip
                        steps = b.and_(value, ir.Constant(_W16, [-step] * TILE))
                        middle = b.sub(steps, ir.Constant(_W16, [zero] * TILE))
                        coder.add_rest(sums, x, b.sitofp(middle, _D16), back)
                    planes.put(small, done)
                with behind:
                    coder.add_square(tail, x)
                    planes.put_rest(small, done)

        residual = coder.code(scale, inverse, (LOWEST, HIGHEST), put)

        def root(value: Any) -> Any:
            return call(b, "llvm.sqrt.f64", _DOUBLE, value)

        def upward(value: Any) -> Any:
            more = b.fmul(value, ir.Constant(_DOUBLE, 1 + 1e-6))
            return b.fptrunc(b.fadd(more, ir.Constant(_DOUBLE, 1e-42)), _FLOAT)

        norm = root(square)
        inverse_norm = b.fptrunc(b.fdiv(ir.Constant(_DOUBLE, 1.0), norm), _FLOAT)
        none = b.fcmp_ordered("==", square, ir.Constant(_DOUBLE, 0.0))
        found = (
            scale, b.fptrunc(square, _FLOAT), upward(norm), upward(root(coder.total(rough))),
            upward(root(residual)), upward(root(coder.total(tail))),
            b.select(none, ir.Constant(_FLOAT, 0.0), inverse_norm),
        )  # fmt: skip
        for line, value in enumerate(found):
            store(b, value, constants, 4 * TILE * line)
        store(b, upward(root(coder.total(five))), fives)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), codegen


@intrinsic
def _encode_query(typingctx, query, width, head, target, found):  # type: ignore[no-untyped-def]
    """Code one query to int8 ``target``, which holds zeros to the next multiple of 16.

    Scale, squared norm, squared norm of the residual, squared norm and sum of codes, the sum of
    those of the head and the squared norm of what is behind it go to ``found``, float64.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        query, width, head, target, found = args
        coder = _RowCoder(b, query, width)
        below, above = coder.extremes()
        square, most = coder.square(query), ir.Constant(_FLOAT, MOST)
        scale, inverse = coder.usable(b.fdiv(coder.larger(below, above), most))
        coded, total, before, tail = coder.sums(4)

        def put(values: Any, x: Any, back: Any, done: Any) -> None:
            store(b, b.trunc(values, _B16), b.add(target, done))
            wide = b.sitofp(values, _D16)
            b.store(fma(b, wide, wide, b.load(coded)), coded)
            b.store(b.fadd(b.load(total), wide), total)
            with b.if_else(b.icmp_unsigned("<", done, head)) as (in_head, behind):
                with in_head:
                    b.store(b.fadd(b.load(before), wide), before)
                with behind:
                    coder.add_square(tail, x)

        residual = coder.code(scale, inverse, (-MOST, MOST), put)
        sums = (coder.total(each) for each in (coded, total, before, tail))
        for number, value in enumerate((b.fpext(scale, _DOUBLE), square, residual, *sums)):
            store(b, value, found, 8 * number)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


def make_query_coder() -> Any:
    """Return the (not yet compiled) coder of queries.

    Parameters, all int64
    ---------------------
    queries, count, width : address of (count, width) float32, rotated as the rows were
    padded, head : bytes of a coded query, of its head, multiples of 64
    codes : address of (count, padded) int8
    numbers, pitch : address of (10, pitch) 4-byte numbers, see ``candidates``: column j is of
        query j
    metric : L2, IP or COSINE
    extremes : address of 3 float64, the largest and the smallest squared norm of the rows, and
        what rotation may change: see ``distortion`` of ``index/quantization/principal``
    work : 56 bytes of memory

    Returns how many queries are usable; no row is within the limit of the others.
    """

    @njit(nogil=True)
    def code_queries(  # type: ignore[no-untyped-def]
        queries, count, width, padded, head, codes, numbers, pitch, metric, extremes, work,
    ):  # fmt: skip
        largest, smallest = read_double(extremes, 0), read_double(extremes, 1)
        distortion = read_double(extremes, 2)
        kappa = 4 * 2.0**-24 * (width / 8 + 32) + 3 * distortion
        usable = 0
        for j in range(count):
            target = codes + j * padded
            for word in range(width // TILE * TILE // 4, padded // 4):
                put_int(target, word, 0)
            _encode_query(queries + 4 * width * j, width, head, target, work)
            scale, square = read_double(work, 0), read_double(work, 1)
            norm, lost = math.sqrt(square), math.sqrt(read_double(work, 2)) * (1 + 1e-9)
            coded = scale * math.sqrt(read_double(work, 3)) * (1 + 1e-9)
            tail = math.sqrt(read_double(work, 6)) * (1 + 1e-9)
            of_dot, of_norm, of_residual, of_tail = scale, lost, coded, tail
            of_square, always = 0.0, 0.0
            if metric == L2:
                of_dot, of_norm, of_residual, of_tail = 2 * scale, 2 * lost, 2 * coded, 2 * tail
                of_square, always = kappa, kappa * square
            elif metric == IP:
                of_norm = lost + kappa * norm
            else:
                safe = norm if norm > 0 else 1.0
                of_dot, of_norm, of_residual = scale / safe, lost / safe, coded / safe
                of_tail, always = tail / safe, kappa
            always += width * TINY_SCALE
            if distortion > 0:
                always += (norm + math.sqrt(largest)) * width * width * UNDERFLOW
            known = (norm + math.sqrt(largest)) ** 2 < HUGE
            if metric == COSINE:
                known = known and square >= TINY_SCALE and smallest >= TINY_SCALE
            usable += known
            if not known:
                of_dot = of_norm = of_residual = of_square = of_tail = always = 0.0
            put_real(numbers, j, of_dot)
            put_real(numbers, pitch + j, of_norm * UPWARD)
            put_real(numbers, 2 * pitch + j, of_residual * UPWARD)
            put_real(numbers, 3 * pitch + j, of_square * UPWARD)
            put_real(numbers, 4 * pitch + j, always * UPWARD)
            put_real(numbers, LIMIT * pitch + j, math.inf if known else NEVER)
            put_real(numbers, OF_TAIL * pitch + j, of_tail * UPWARD)
            total = int(read_double(work, 4)) if known else 0
            before = int(read_double(work, 5)) if known else 0
            put_int(numbers, CORRECTION * pitch + j, ZERO * total)
            put_int(numbers, ROUGH_CORRECTION * pitch + j, (ZERO - 8) * before)
            put_int(numbers, HEAD_CORRECTION * pitch + j, ZERO * before)
        return usable

    return code_queries


def make_encode() -> Any:
    """Return the (not yet compiled) coder.

    Parameters, all int64
    ---------------------
    data, rotated : addresses of (rows, width) float32, of which the norms are and of which the
        codes are; the same where nothing is rotated
    rows, width
    padded, head : bytes of a coded row, of its head, multiples of 64
    high, low, rest : addresses of (tiles, head / 8, 16, 4), (rows, head / 2) and
        (rows, padded - head) bytes
    constants : address of (tiles, 7, 16) float32; lanes past the last row are left alone
    fives : address of (rows,) float32, the residuals of five bits
    """

    @njit(nogil=True)
    def encode(data, rotated, rows, width, padded, head, high, low, rest, constants, fives):  # type: ignore[no-untyped-def]
        half = head // 2
        for row in range(rows):
            tile, lane = row // TILE, row % TILE
            place = constants + 4 * (tile * CONSTANTS * TILE + lane)
            _encode_row(data + 4 * width * row, rotated + 4 * width * row, width, head,
                        high + tile * half * TILE + 4 * lane, low + row * half,
                        rest + row * (padded - head), place, fives + 4 * row)  # fmt: skip
        return rows

    return encode
