"""Elementary functions of float vectors: emitted instructions, the same on every level.

Functions take a builder and ``<n x float>`` values and return such. Every sum has a fixed order, no
step is left to the compiler's liking, so levels give the same bits. NaN spreads. Knows no memory.
"""

# llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tarsdb.kernels.cpu.emit import FLOAT, I32, call, fma

LOG2E = 1.4426950408889634
# gelu(x) = x / (1 + exp(-x P(x^2))): minimax fit of the normal distribution's logit on |x| <= 6,
# as in kernels/transformer_reference.py
_GELU = (
    1.5957684516906738, 0.07266856729984283, -6.625999230891466e-05, -0.00011048031592508778,
    7.938218914205208e-06, -2.668928118509939e-07, 3.6112324242054683e-09,
)  # fmt: skip
_GELU_LIMIT = 36.0
_GELU_TANH = (1.5957691216057308, 0.07135481282837474)  # 2 sqrt(2/pi) (1 + 0.044715 x^2)
# 2^f on [-0.5, 0.5], minimax, relative error 2e-8
_EXP2 = (
    1.0, 0.6931471805599453, 0.2402264923172690, 0.05550332471162809, 0.009618437357674640,
    0.001339887440266574, 0.0001535336188319500,
)  # fmt: skip
_LOWEST, _HIGHEST = -126.0, 127.0
_ROUNDER = 1.5 * 2.0**23  # added, it leaves a whole number in the lowest bits


def constant(x: Any, value: float) -> Any:
    """Return a vector of one number, of the type of ``x``."""
    return ir.Constant(x.type, [value] * x.type.count)


def _bits(x: Any) -> ir.Type:
    return ir.VectorType(I32, x.type.count)


def least(b: Any, x: Any, y: Any) -> Any:
    """Emit the lesser of two; NaN where ``x`` is."""
    return b.select(b.fcmp_ordered("<", y, x), y, x)


def greatest(b: Any, x: Any, y: Any) -> Any:
    """Emit the greater of two; NaN where ``x`` is."""
    return b.select(b.fcmp_ordered(">", y, x), y, x)


def polynomial(b: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    """Emit a polynomial, coefficients from the lowest power, by Horner's rule."""
    found = constant(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        found = fma(b, found, x, constant(x, coefficient))
    return found


def exp2(b: Any, x: Any) -> Any:
    """Emit 2 ** x, relative error below 1e-7; x is clamped to -126..127."""
    x = greatest(b, least(b, x, constant(x, _HIGHEST)), constant(x, _LOWEST))
    shifted = b.fadd(x, constant(x, _ROUNDER))
    whole = b.fsub(shifted, constant(x, _ROUNDER))
    fraction = polynomial(b, b.fsub(x, whole), _EXP2)
    kind = _bits(x)
    exponent = b.add(b.bitcast(shifted, kind), ir.Constant(kind, [127] * kind.count))
    power = b.shl(exponent, ir.Constant(kind, [23] * kind.count))
    return b.fmul(fraction, b.bitcast(power, x.type))


def _sigmoid_of(b: Any, x: Any, logit: Any) -> Any:
    """Emit x / (1 + exp(-logit))."""
    power = exp2(b, b.fmul(logit, constant(x, -LOG2E)))
    return b.fdiv(x, b.fadd(power, constant(x, 1.0)))


def gelu(b: Any, x: Any) -> Any:
    """Emit x * Phi(x); absolute error below 2e-7 times max(1, |x|)."""
    square = least(b, b.fmul(x, x), constant(x, _GELU_LIMIT))
    return _sigmoid_of(b, x, b.fmul(polynomial(b, square, _GELU), x))


def gelu_tanh(b: Any, x: Any) -> Any:
    """Emit gelu's approximation by tanh."""
    return _sigmoid_of(b, x, b.fmul(polynomial(b, b.fmul(x, x), _GELU_TANH), x))


def silu(b: Any, x: Any) -> Any:
    """Emit x / (1 + exp(-x))."""
    return _sigmoid_of(b, x, x)


def relu(b: Any, x: Any) -> Any:
    """Emit the positive part."""
    return greatest(b, x, constant(x, 0.0))


def tree(b: Any, x: Any, join: Any) -> Any:
    """Emit one number of all lanes: halves are joined until one lane is left."""
    while x.type.count > 1:
        half = x.type.count // 2
        parts = [
            b.shuffle_vector(x, x, ir.Constant(ir.VectorType(I32, half), list(lanes)))
            for lanes in (range(half), range(half, 2 * half))
        ]
        x = join(*parts)
    return b.extract_element(x, ir.Constant(I32, 0))


def total(b: Any, x: Any) -> Any:
    """Emit the sum of the lanes: halves are added until one lane is left."""
    return tree(b, x, b.fadd)


def largest(b: Any, x: Any) -> Any:
    """Emit the greatest lane; undefined among NaN."""
    return tree(b, x, lambda one, two: greatest(b, one, two))


def absolute(b: Any, x: Any) -> Any:
    """Emit the absolute value."""
    return call(b, f"llvm.fabs.v{x.type.count}f32", x.type, x)


def to_bfloat16(b: Any, x: Any) -> Any:
    """Emit the bits of bfloat16, ``<n x i16>``: the nearest, ties to even; NaN stays NaN.

    Below 2^-50 is 0, see ``packing.to_bfloat16``.
    """
    kind = _bits(x)
    bits = b.bitcast(x, kind)

    def number(value: int) -> Any:
        return ir.Constant(kind, [value] * kind.count)

    odd = b.and_(b.lshr(bits, number(16)), number(1))
    nearest = b.add(b.add(bits, number(0x7FFF)), odd)
    quiet = b.or_(bits, number(0x400000))
    tiny = b.icmp_unsigned("<", b.and_(bits, number(0x7FFFFFFF)), number(77 << 23))
    nearest = b.select(tiny, number(0), nearest)
    chosen = b.select(b.fcmp_unordered("uno", x, x), quiet, nearest)
    return b.trunc(b.lshr(chosen, number(16)), ir.VectorType(ir.IntType(16), kind.count))


def from_bfloat16(b: Any, bits: Any) -> Any:
    """Emit the floats of bfloat16 bits, ``<n x i16>``."""
    count = bits.type.count
    kind = ir.VectorType(I32, count)
    wide = b.shl(b.zext(bits, kind), ir.Constant(kind, [16] * count))
    return b.bitcast(wide, ir.VectorType(FLOAT, count))
