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
from tarsdb.kernels.cpu.vector_math import from_bfloat16

AVX2, AVX512, VNNI, BF16, AMX = "avx2", "avx512", "vnni", "bf16", "amx"
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
        Emit the registers of a line; a row's word, in all lanes; new sums.
    quantized : str, optional
        What rows are turned into before, see ``activations.make_quantize``.
    offset : int
        What is added to codes of rows to make them unsigned.
    shapes : tuple
        Rows at most, and tiles, that the registers of AVX2 and of AVX-512 hold.
    chains, streams : int
        Of one row: sums that are added up at the end, where they are exact and lines come in
        multiples of it, and tiles read at a time. Memory gives one stream faster than four (int4
        from main memory in 0.6 of the time), sums of floats need four to keep the units busy.
    asks : bool
        Whether memory is asked for the next tiles of one row, in their order.
    """

    per_line: int
    line_bytes: int
    row_step: int
    padding: int
    tail_bytes: int
    sums: tuple[ir.Type, ...]
    values: Callable[..., Any]
    word: Callable[..., Any]
    add: Callable[..., Any]
    quantized: str | None = None
    offset: int = 0
    shapes: tuple[tuple[int, int], tuple[int, int]] = ((6, 1), (12, 2))
    chains: int = 1
    streams: int = 4
    asks: bool = False

    def shape(self, variant: str) -> tuple[int, int]:
        """Return rows at most and tiles that a micro-kernel takes."""
        return self.shapes[variant != AVX2]

    def step(
        self, b: Any, totals: list[list[list[Any]]], columns: list[Any], starts: list[Any]
    ) -> None:
        """Emit the products of a line: ``totals[row][tile]`` are where its sums are kept."""
        values = [self.values(b, column) for column in columns]
        for start, row in zip(starts, totals, strict=True):
            word = self.word(b, start)
            for value, parts in zip(values, row, strict=True):
                for part, total in zip(parts, self.add(b, parts, value, word), strict=True):
                    b.store(total, part)

    def row_bytes(self, depth: int) -> int:
        """Return the bytes of a row's codes."""
        return -(-depth // self.padding) * self.padding // self.per_line * self.row_step


def _fma_in_order(b: Any, totals: list[Any], values: list[Any], word: list[Any]) -> list[Any]:
    total = b.load(totals[0])
    for value, scalar in zip(values, word, strict=True):
        total = fma(b, scalar, value, total)
    return [total]


def _float_line(b: Any, line: Any) -> list[Any]:
    return [load(b, line, _F16)]


def _float_word(b: Any, at: Any) -> list[Any]:
    return [splat(b, load(b, at, FLOAT))]


def _bfloat16_line(b: Any, line: Any) -> list[Any]:
    """Emit 16 floats of k + 1 and 16 of k."""
    bits = load(b, line, _W16)
    low = b.shl(bits, ir.Constant(_W16, [16] * LANES))
    high = b.and_(bits, ir.Constant(_W16, [-65536] * LANES))
    return [b.bitcast(high, _F16), b.bitcast(low, _F16)]


def _half_line(b: Any, line: Any) -> list[Any]:
    return [from_bfloat16(b, load(b, line, _H16))]


def _float_pair(b: Any, at: Any) -> list[Any]:
    return [splat(b, load(b, at, FLOAT, 4 * i)) for i in (1, 0)]


def _words_line(b: Any, line: Any) -> list[Any]:
    return [load(b, line, _W16)]


def _add_dots(b: Any, totals: list[Any], values: list[Any], word: list[Any]) -> list[Any]:
    return [dpbf16(b, b.load(totals[0]), splat(b, word[0]), values[0])]


def dpbf16(b: Any, sums: Any, rows: Any, weights: Any) -> Any:
    """Add products of two pairs of bfloat16 to each of 16 sums, the odd ones first."""
    return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", _F16, sums, rows, weights)


def _byte_pairs(b: Any, line: Any) -> list[Any]:
    """Emit two registers of eight columns, two int16 each."""
    return [b.sext(load(b, line, ir.VectorType(_I8, 16), 16 * i), _H16) for i in range(2)]


def _whole_word(b: Any, at: Any) -> list[Any]:
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


FLOATS = Form(1, 64, 4, 1, 0, (_F16,), _float_line, _float_word, _fma_in_order)
"""float32: one fused multiply-add."""
EXPANDED = Form(2, 64, 8, 32, 0, (_F16,), _bfloat16_line, _float_pair, _fma_in_order,
                "rounded", shapes=((5, 1), (12, 2)))  # fmt: skip
"""bfloat16, made floats: two fused multiply-adds, the odd k first, as AVX512-BF16 does. A line
takes four of AVX2's registers, which leaves none for a sixth row: in a whole decoder that halved
the speed."""
HALVES = Form(1, 32, 4, 1, 0, (_F16,), _half_line, _float_word, _fma_in_order)
"""float32 rows, columns of bfloat16 in the order of k: keys and values of a decoder's cache."""
DOTS = Form(2, 64, 4, 32, 0, (_F16,), _words_line, _whole_word, _add_dots, "bfloat16",
            asks=True)  # fmt: skip
"""bfloat16, two steps at once (AVX512-BF16)."""
PAIRS = Form(2, 32, 4, 16, 64, (_W8, _W8), _byte_pairs, _whole_word, _add_pairs, "int16", 0,
             ((6, 1), (12, 1)), 4, 1)  # fmt: skip
"""int8 weights, rows as int16: exact sums of pairs."""
QUADS = Form(4, 64, 4, 64, 128, (_W16,), _bytes_line, _whole_word, _add_quads, "uint8", 128,
             chains=4, streams=1)  # fmt: skip
"""int8 weights, rows as unsigned bytes: exact sums of four (VNNI)."""


@dataclass(frozen=True)
class GroupForm(Form):
    """int4 weights: a line is a group of 32 k, its scales behind it; rows are coded by groups.

    Weights are unsigned, code + 8, eight words of four k; the low bits of a byte belong to an
    even word, the high bits to the next. Sums of a group are exact integers; then
    total = fma(sum, row's scale * column's scale, total).
    """

    def step(
        self, b: Any, totals: list[list[list[Any]]], columns: list[Any], starts: list[Any]
    ) -> None:
        """Emit the products of a group."""
        kind, size = self.sums[0], 64 // len(self.sums)
        lanes = ir.VectorType(_I8, size)
        sums: dict[tuple[int, int, int], Any] = {}
        for word in range(8):
            lines = [
                [
                    _nibbles(b, load(b, column, lanes, 64 * (word // 2) + size * part), word % 2)
                    for part in range(len(self.sums))
                ]
                for column in columns
            ]
            for r, start in enumerate(starts):
                codes = b.bitcast(splat(b, load(b, start, I32, 4 * word), size // 4), lanes)
                for t, parts in enumerate(lines):
                    for part, line in enumerate(parts):
                        known = sums.get((r, t, part))
                        sums[r, t, part] = self.add(b, known, line, codes)
        for t, column in enumerate(columns):
            halves = ir.VectorType(ir.HalfType(), kind.count)
            scales = [
                b.fpext(load(b, column, halves, 256 + 2 * kind.count * part), kind)
                for part in range(len(self.sums))
            ]
            for r, start in enumerate(starts):
                scale = splat(b, load(b, start, FLOAT, 32), kind.count)
                correction = splat(b, load(b, start, I32, 36), kind.count)
                for part, total in enumerate(totals[r][t]):
                    whole = b.sub(self.values(b, sums[r, t, part]), correction)
                    factor = b.fmul(scale, scales[part])
                    b.store(fma(b, b.sitofp(whole, kind), factor, b.load(total)), total)


def _nibbles(b: Any, line: Any, is_high: int) -> Any:
    kind = line.type
    if is_high:
        words = ir.VectorType(_I16, kind.count // 2)
        line = b.lshr(b.bitcast(line, words), ir.Constant(words, [4] * words.count))
        line = b.bitcast(line, kind)
    return b.and_(line, ir.Constant(kind, [15] * kind.count))


def _add_words(b: Any, known: Any, line: Any, codes: Any) -> Any:
    """Add pairs of products in 16 bits: of a group at most 8 * 2 * 15 * 127."""
    found = call(b, "llvm.x86.avx2.pmadd.ub.sw", _H16, line, codes)
    return found if known is None else b.add(known, found)


def _add_four(b: Any, known: Any, line: Any, codes: Any) -> Any:
    return dpbusd(b, ir.Constant(_W16, None) if known is None else known, line, codes)


def _widened(b: Any, pairs: Any) -> Any:
    return call(b, "llvm.x86.avx2.pmadd.wd", _W8, pairs, ir.Constant(_H16, [1] * 16))


_F8 = ir.VectorType(FLOAT, 8)
GROUPS = GroupForm(32, 288, 40, 32, 0, (_F8, _F8), _widened, _whole_word, _add_words, "groups",
                   0, ((6, 1), (12, 1)), streams=1)  # fmt: skip
"""int4 weights, AVX2."""
GROUP_QUADS = GroupForm(32, 288, 40, 32, 0, (_F16,), lambda b, sums: sums, _whole_word, _add_four,
                        "groups", 0, ((6, 1), (12, 1)), streams=1)  # fmt: skip
"""int4 weights, VNNI."""
TILE_KINDS = ("int8", "bf16")
"""Kinds whose packed lines are lines of tile registers (AMX)."""
FORMS = (FLOATS, EXPANDED, HALVES, DOTS, PAIRS, QUADS, GROUPS, GROUP_QUADS)


def form_of(kind: str, variant: str) -> Form:
    """Return the form of a kind of weights, or of 'halves', on a variant of processors."""
    if kind in ("int8", "int4"):
        choices = (PAIRS, QUADS) if kind == "int8" else (GROUPS, GROUP_QUADS)
        return choices[variant in (VNNI, AMX)]
    if kind in ("f32", "halves"):
        return HALVES if kind == "halves" else FLOATS
    return (EXPANDED, DOTS)[variant in (BF16, AMX)]
