"""Coder of float32 rows: int8 codes in tiles of 16 rows, and constants that bound what is lost.

Norms and residuals are summed in float64, so that rounding them up by a millionth is enough.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import call, fma, load, splat, store

TILE, CONSTANTS = 16, 5  # as in coded.py; a test compares them
TINY_SCALE = 2.0**-100  # below, a row is coded as zero and all of it is residual
SIGNATURE = types.int64(*[types.int64] * 6)

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

    def code(self, scale: Any, inverse: Any, target: Any) -> tuple[Any, Any]:
        """Write codes + 128; return the squared norms of codes and of the residual."""
        b = self.b
        coded = cgutils.alloca_once_value(b, ir.Constant(_D16, None))
        residual = cgutils.alloca_once_value(b, ir.Constant(_D16, None))
        factor, back = splat(b, inverse), splat(b, b.fpext(b.fsub(
            ir.Constant(_FLOAT, -0.0), scale), _DOUBLE))  # fmt: skip
        limit = ir.Constant(_F16, [127.0] * TILE)
        flip = ir.Constant(ir.VectorType(_I8, TILE), [-128] * TILE)

        def body(x: Any, done: Any) -> None:
            value = call(b, "llvm.rint.v16f32", _F16, b.fmul(x, factor))
            value = call(b, "llvm.minnum.v16f32", _F16, value, limit)
            value = call(b, "llvm.maxnum.v16f32", _F16, value, b.fneg(limit))
            small = b.trunc(b.fptosi(value, _W16), flip.type)
            words = b.bitcast(b.xor(small, flip), ir.VectorType(_I32, 4))
            line = b.add(target, b.mul(done, ir.Constant(_I64, TILE)))
            for word in range(4):
                number = b.extract_element(words, ir.Constant(_I32, word))
                store(b, number, line, 64 * word)
            wide = b.fpext(value, _D16)
            rest = fma(b, wide, back, b.fpext(x, _D16))
            b.store(fma(b, wide, wide, b.load(coded)), coded)
            b.store(fma(b, rest, rest, b.load(residual)), residual)

        self.steps(body)
        return self.total(coded), self.total(residual)


@intrinsic
def _encode_row(typingctx, row, width, target, constants):  # type: ignore[no-untyped-def]
    """Code one row: bytes go to ``target``, a lane of the tile's constants to ``constants``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, width, target, constants = args
        coder = _RowCoder(b, row, width)
        one, zero = ir.Constant(_FLOAT, 1.0), ir.Constant(_FLOAT, 0.0)
        largest, square = coder.largest_and_square()
        scale = b.fdiv(largest, ir.Constant(_FLOAT, 127.0))
        usable = b.fcmp_ordered(">=", scale, ir.Constant(_FLOAT, TINY_SCALE))
        inverse = b.select(usable, b.fdiv(one, scale), zero)
        scale = b.select(usable, scale, zero)
        coded, residual = coder.code(scale, inverse, target)

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
