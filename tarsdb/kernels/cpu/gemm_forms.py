"""What a micro-kernel does with one line of a tile: a form for each kind of weights and processor.

A line holds one or more k of 16 columns, those of a column side by side. Everything else about a
product is the same for all forms (``gemm.py``). Knows no loops.
"""

# llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tarsdb.kernels.cpu.coded import dpbusd
from tarsdb.kernels.cpu.emit import FLOAT, I32, LANES, call, fma, load, splat

AVX2, AVX512, VNNI, BF16 = "avx2", "avx512", "vnni", "bf16"
_I8, _I16 = ir.IntType(8), ir.IntType(16)
_F16, _W16, _W8 = ir.VectorType(FLOAT, 16), ir.VectorType(I32, 16), ir.VectorType(I32, 8)
_B32, _B64 = ir.VectorType(_I8, 32), ir.VectorType(_I8, 64)
_H16, _H32 = ir.VectorType(_I16, 16), ir.VectorType(_I16, 32)


@dataclass(frozen=True)
class Form:
    """How lines of weights and words of rows are multiplied.

    Attributes
    ----------
    per_line, line_bytes : int
        Steps of k in a line, and its bytes.
    row_step : int
        Bytes of a row that belong to a line.
    padding : int
        Depth is padded to a multiple of it where weights are packed.
    tail_bytes : int
        Constants of 16 columns behind a tile's lines.
    sums : tuple of types
        Registers of 16 sums.
    values, word, add : callables
        Emit the registers of a line; a row's word, in all lanes; new sums. Words of float rows
        that end in the middle of a line are asked for with ``is_half``.
    quantized : str, optional
        What rows are turned into before: ``int16``, ``uint8``, ``bfloat16``.
    offset : int
        What is added to codes of rows to make them unsigned.
    shapes : tuple
        Rows at most, and tiles, that the registers of AVX2 and of AVX-512 hold.
    """

    per_line: int
    line_bytes: int
    row_step: int
    padding: int
    tail_bytes: int
    sums: tuple[ir.Type, ...]
    values: Callable[[Any, Any], list[Any]]
    word: Callable[[Any, Any, bool], list[Any]]
    add: Callable[[Any, list[Any], list[Any], list[Any]], list[Any]]
    quantized: str | None = None
    offset: int = 0
    shapes: tuple[tuple[int, int], tuple[int, int]] = ((6, 1), (12, 2))

    def shape(self, variant: str) -> tuple[int, int]:
        """Return rows at most and tiles that a micro-kernel takes."""
        return self.shapes[variant != AVX2]

    def row_bytes(self, depth: int) -> int:
        """Return the bytes of a row's codes."""
        return -(-depth // self.padding) * self.padding // self.per_line * self.row_step


def _fma_in_order(b: Any, totals: list[Any], values: list[Any], word: list[Any]) -> list[Any]:
    total = b.load(totals[0])
    for value, scalar in zip(values, word, strict=False):  # half a word: the first value only
        total = fma(b, scalar, value, total)
    return [total]


def _float_line(b: Any, line: Any) -> list[Any]:
    return [load(b, line, _F16)]


def _float_word(count: int) -> Callable[[Any, Any, bool], list[Any]]:
    def word(b: Any, at: Any, is_half: bool) -> list[Any]:
        return [splat(b, load(b, at, FLOAT, 4 * i)) for i in range(1 if is_half else count)]

    return word


def _bfloat16_line(b: Any, line: Any) -> list[Any]:
    """Emit 16 floats of k and 16 of k + 1."""
    bits = load(b, line, _W16)
    low = b.shl(bits, ir.Constant(_W16, [16] * LANES))
    high = b.and_(bits, ir.Constant(_W16, [-65536] * LANES))
    return [b.bitcast(low, _F16), b.bitcast(high, _F16)]


def _byte_pairs(b: Any, line: Any) -> list[Any]:
    """Emit two registers of eight columns, two int16 each."""
    return [b.sext(load(b, line, ir.VectorType(_I8, 16), 16 * i), _H16) for i in range(2)]


def _whole_word(b: Any, at: Any, is_half: bool) -> list[Any]:
    return [load(b, at, I32)]


def _add_pairs(b: Any, totals: list[Any], values: list[Any], word: list[Any]) -> list[Any]:
    pair = b.bitcast(splat(b, word[0], 8), _H16)
    return [
        b.add(b.load(total), call(b, "llvm.x86.avx2.pmadd.wd", _W8, value, pair))
        for total, value in zip(totals, values, strict=True)
    ]


def _bytes_line(b: Any, line: Any) -> list[Any]:
    return [load(b, line, _B64)]


def _add_quads(b: Any, totals: list[Any], values: list[Any], word: list[Any]) -> list[Any]:
    return [dpbusd(b, b.load(totals[0]), splat(b, word[0]), values[0])]


FLOATS = Form(1, 64, 4, 1, 0, (_F16,), _float_line, _float_word(1), _fma_in_order)
"""float32: one fused multiply-add."""
EXPANDED = Form(2, 64, 8, 32, 0, (_F16,), _bfloat16_line, _float_word(2), _fma_in_order)
"""bfloat16 weights, float32 rows: two fused multiply-adds, k in order."""
PAIRS = Form(2, 32, 4, 16, 64, (_W8, _W8), _byte_pairs, _whole_word, _add_pairs, "int16", 0,
             ((6, 1), (12, 1)))  # fmt: skip
"""int8 weights, rows as int16: exact sums of pairs."""
QUADS = Form(4, 64, 4, 64, 128, (_W16,), _bytes_line, _whole_word, _add_quads, "uint8", 128)
"""int8 weights, rows as unsigned bytes: exact sums of four (VNNI)."""
FORMS = (FLOATS, EXPANDED, PAIRS, QUADS)


def form_of(kind: str, variant: str) -> Form:
    """Return the form of a kind of weights on a variant of processors."""
    if kind == "f32":
        return FLOATS
    if kind == "bf16":
        return EXPANDED
    return QUADS if variant == VNNI else PAIRS
