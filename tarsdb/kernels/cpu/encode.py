"""Coders of float32 vectors: int8 codes, and numbers that bound what they lose.

Rows are laid in tiles of 16 with constants; queries one after the other, with the factors that the
sieve in ``coded`` multiplies these constants by. ``index/coded`` derives the bounds. Norms and
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

from tarsdb.kernels.cpu.emit import call, fma, load, splat, store
from tarsdb.kernels.cpu.memory import put_int, put_real, read_double

TILE, CONSTANTS = 16, 5  # as in coded.py; a test compares them
L2, IP, COSINE = range(3)  # as in reference.py
TINY_SCALE = 2.0**-100  # below, a row is coded as zero and all of it is residual
HUGE = 1e36  # squares of distances beyond it are left to the float kernel
UPWARD = 1 + 2.0**-18  # more than the rounding of a product to float32 takes
SIGNATURE = types.int64(*[types.int64] * 6)
QUERY_SIGNATURE = types.int64(*[types.int64] * 11)

_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_F16, _D16, _W16 = (ir.VectorType(kind, TILE) for kind in (_FLOAT, _DOUBLE, _I32))


class _RowCoder:
    """Emits the coding of one row: largest element, codes, and norms in float64."""

    def __init__(self, b: Any, row: Any, width: Any) -> None:
        self.b, self.row, self.width = b, row, width
        self.buffer = cgutils.alloca_once(b, _F16)

    def steps(self, body: Any) -> None:
        """Run ``body(vector, first element)`` over a row; the tail is padded with zeros."""
        b, step = self.b, ir.Constant(_I64, TILE)
        with cgutils.for_range(b, b.udiv(self.width, step)) as loop:
            done = b.mul(loop.index, step)
            body(load(b, b.add(self.row, b.shl(done, ir.Constant(_I64, 2))), _F16), done)
        left = b.urem(self.width, step)
        with b.if_then(b.icmp_unsigned("!=", left, ir.Constant(_I64, 0)), likely=False):
            done = b.sub(self.width, left)
            b.store(ir.Constant(_F16, None), self.buffer)
            base = b.ptrtoint(self.buffer, _I64)
            with cgutils.for_range(b, left) as loop:
                offset = b.shl(loop.index, ir.Constant(_I64, 2))
                source = b.add(b.add(self.row, b.shl(done, ir.Constant(_I64, 2))), offset)
                store(b, load(b, source, _FLOAT), b.add(base, offset))
            body(b.load(self.buffer), done)

    def largest_and_square(self) -> tuple[Any, Any]:
        """Return the largest magnitude (float32) and the squared norm (float64)."""
        b = self.b
        top = cgutils.alloca_once_value(b, ir.Constant(_F16, None))
        square = cgutils.alloca_once_value(b, ir.Constant(_D16, None))

        def body(x: Any, _: Any) -> None:
            size = call(b, "llvm.fabs.v16f32", _F16, x)
            larger = b.fcmp_ordered(">", size, b.load(top))
            b.store(b.select(larger, size, b.load(top)), top)
            wide = b.fpext(x, _D16)
            b.store(fma(b, wide, wide, b.load(square)), square)

        self.steps(body)
        largest = call(b, "llvm.vector.reduce.fmax.v16f32", _FLOAT, b.load(top))
        return largest, self.total(square)

    def total(self, pointer: Any) -> Any:
        """Return the sum of the lanes of a float64 vector."""
        b, value = self.b, self.b.load(pointer)
        whole = ir.Constant(_DOUBLE, 0.0)
        for lane in range(TILE):
            whole = b.fadd(whole, b.extract_element(value, ir.Constant(_I32, lane)))
        return whole

    def scale(self, largest: Any, limit: Any) -> tuple[Any, Any]:
        """Return scale and its inverse, float32; both zero for a vector too small to code."""
        b = self.b
        one, zero = ir.Constant(_FLOAT, 1.0), ir.Constant(_FLOAT, 0.0)
        scale = b.fdiv(largest, limit)
        usable = b.fcmp_ordered(">=", scale, ir.Constant(_FLOAT, TINY_SCALE))
        inverse = b.select(usable, b.fdiv(one, scale), zero)
        return b.select(usable, scale, zero), inverse

    def code(self, scale: Any, inverse: Any, limit: Any, put: Any) -> tuple[Any, Any, Any]:
        """Give codes to ``put(int8 vector, first element)``.

        Returns the squared norms of codes and of the residual, and the sum of codes; float64.
        """
        b = self.b
        coded, residual, sums = (
            cgutils.alloca_once_value(b, ir.Constant(_D16, None)) for _ in range(3)
        )
        factor, back = splat(b, inverse), splat(b, b.fpext(b.fsub(
            ir.Constant(_FLOAT, -0.0), scale), _DOUBLE))  # fmt: skip
        top = splat(b, limit)

        def body(x: Any, done: Any) -> None:
            value = call(b, "llvm.rint.v16f32", _F16, b.fmul(x, factor))
            value = call(b, "llvm.minnum.v16f32", _F16, value, top)
            value = call(b, "llvm.maxnum.v16f32", _F16, value, b.fneg(top))
            put(b.trunc(b.fptosi(value, _W16), ir.VectorType(_I8, TILE)), done)
            wide = b.fpext(value, _D16)
            rest = fma(b, wide, back, b.fpext(x, _D16))
            b.store(fma(b, wide, wide, b.load(coded)), coded)
            b.store(fma(b, rest, rest, b.load(residual)), residual)
            b.store(b.fadd(b.load(sums), wide), sums)

        self.steps(body)
        return self.total(coded), self.total(residual), self.total(sums)


@intrinsic
def _encode_row(typingctx, row, width, target, constants):  # type: ignore[no-untyped-def]
    """Code one row: bytes go to ``target``, a lane of the tile's constants to ``constants``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, width, target, constants = args
        coder = _RowCoder(b, row, width)
        zero, limit = ir.Constant(_FLOAT, 0.0), ir.Constant(_FLOAT, 127.0)
        largest, square = coder.largest_and_square()
        scale, inverse = coder.scale(largest, limit)
        flip = ir.Constant(ir.VectorType(_I8, TILE), [-128] * TILE)

        def put(codes: Any, done: Any) -> None:
            words = b.bitcast(b.xor(codes, flip), ir.VectorType(_I32, 4))
            line = b.add(target, b.mul(done, ir.Constant(_I64, TILE)))
            for word in range(4):
                store(b, b.extract_element(words, ir.Constant(_I32, word)), line, 64 * word)

        coded, residual, _ = coder.code(scale, inverse, limit, put)

        def root(value: Any) -> Any:
            return call(b, "llvm.sqrt.f64", _DOUBLE, value)

        def upward(value: Any) -> Any:
            more = b.fmul(value, ir.Constant(_DOUBLE, 1 + 1e-6))
            return b.fptrunc(b.fadd(more, ir.Constant(_DOUBLE, 1e-42)), _FLOAT)

        norm = root(square)
        inverse_norm = b.fptrunc(b.fdiv(ir.Constant(_DOUBLE, 1.0), norm), _FLOAT)
        none = b.fcmp_ordered("==", square, ir.Constant(_DOUBLE, 0.0))
        found = (
            scale, b.fptrunc(square, _FLOAT), upward(b.fmul(root(coded), b.fpext(scale, _DOUBLE))),
            upward(root(residual)), b.select(none, zero, inverse_norm),
        )  # fmt: skip
        for line, value in enumerate(found):
            store(b, value, constants, 4 * TILE * line)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def _encode_query(typingctx, query, width, limit, target, found):  # type: ignore[no-untyped-def]
    """Code one query to int8 ``target``, which holds zeros to the next multiple of 16.

    Scale, squared norm, squared norm of the residual and sum of codes go to ``found``, float64.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        query, width, limit, target, found = args
        coder = _RowCoder(b, query, width)
        largest, square = coder.largest_and_square()
        most = b.sitofp(limit, _FLOAT)
        scale, inverse = coder.scale(largest, most)
        _, residual, total = coder.code(
            scale, inverse, most, lambda codes, done: store(b, codes, b.add(target, done))
        )
        for number, value in enumerate((b.fpext(scale, _DOUBLE), square, residual, total)):
            store(b, value, found, 8 * number)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


def make_query_coder() -> Any:
    """Return the (not yet compiled) coder of queries.

    Parameters, all int64
    ---------------------
    queries, count, width : address of (count, width) float32
    padded : bytes of a coded query, a multiple of 64
    codes : address of (count, padded) int8
    numbers, pitch : address of (8, pitch) 4-byte numbers, see ``coded``: column j is of query j
    metric : L2, IP or COSINE
    limit : largest magnitude of a code
    extremes : address of 2 float64, the largest and the smallest squared norm of the rows
    work : 32 bytes of memory

    Returns how many queries are usable; no row is within the limit of the others.
    """

    @njit(nogil=True)
    def code_queries(  # type: ignore[no-untyped-def]
        queries, count, width, padded, codes, numbers, pitch, metric, limit, extremes,
        work,
    ):  # fmt: skip
        largest, smallest = read_double(extremes, 0), read_double(extremes, 1)
        kappa = 4 * 2.0**-24 * (width / 8 + 32)
        usable = 0
        for j in range(count):
            target = codes + j * padded
            for word in range(width // TILE * TILE // 4, padded // 4):
                put_int(target, word, 0)
            _encode_query(queries + 4 * width * j, width, limit, target, work)
            scale, square = read_double(work, 0), read_double(work, 1)
            norm, lost = math.sqrt(square), math.sqrt(read_double(work, 2)) * (1 + 1e-9)
            of_dot, of_coded, of_residual = scale, lost, norm
            of_square, always = 0.0, 0.0
            if metric == L2:
                of_dot, of_coded, of_residual = 2 * scale, 2 * lost, 2 * norm
                of_square, always = kappa, kappa * square
            elif metric == IP:
                of_coded, of_residual = lost + kappa * norm, norm * (1 + kappa)
            else:
                safe = norm if norm > 0 else 1.0
                of_dot, of_coded, of_residual, always = scale / safe, lost / safe, 1.0, kappa
            known = (norm + math.sqrt(largest)) ** 2 < HUGE
            if metric == COSINE:
                known = known and square >= TINY_SCALE and smallest >= TINY_SCALE
            usable += known
            if not known:
                of_dot = of_coded = of_residual = of_square = always = 0.0
            put_real(numbers, j, of_dot)
            put_real(numbers, pitch + j, of_coded * UPWARD)
            put_real(numbers, 2 * pitch + j, of_residual * UPWARD)
            put_real(numbers, 3 * pitch + j, of_square * UPWARD)
            put_real(numbers, 4 * pitch + j, (always + width * TINY_SCALE) * UPWARD)
            put_real(numbers, 5 * pitch + j, math.inf if known else -3.0e38)
            put_int(numbers, 6 * pitch + j, int(128 * read_double(work, 3)) if known else 0)
            put_int(numbers, 7 * pitch + j, 0)
        return usable

    return code_queries


def make_encode() -> Any:
    """Return the (not yet compiled) coder.

    Parameters, all int64: address of (rows, width) float32 data; rows; width; padded width, a
    multiple of 64; address of the codes, padded * 16 bytes a tile; address of the constants,
    (tiles, 5, 16) float32. Lanes past the last row are left alone.
    """

    @njit(nogil=True)
    def encode(data, rows, width, padded, codes, constants):  # type: ignore[no-untyped-def]
        for row in range(rows):
            tile, lane = row // TILE, row % TILE
            _encode_row(data + 4 * width * row, width, codes + tile * padded * TILE + 4 * lane,
                        constants + 4 * (tile * CONSTANTS * TILE + lane))  # fmt: skip
        return rows

    return encode
