"""Instructions of other processors, made of those that every processor has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llvmlite import ir
from numba.core import cgutils

from tarsdb.kernels.cpu import tile_registers
from tarsdb.kernels.cpu.emit import I32, I64, fma, load, splat, store

WORDS, FLOATS = ir.VectorType(ir.IntType(32), 16), ir.VectorType(ir.FloatType(), 16)
SIXTEEN = ir.Constant(I64, 16)


def plain_dpbusd(b: Any, sums: Any, codes: Any, query: Any) -> Any:
    """Emit what ``coded.dpbusd`` does in instructions that every processor has."""

    def wide(x: Any, widen: Any) -> Any:
        return widen(b.bitcast(x, ir.VectorType(ir.IntType(8), 64)), every)

    every = ir.VectorType(ir.IntType(32), 64)
    products = b.mul(wide(codes, b.zext), wide(query, b.sext))
    for place in range(4):
        lanes = ir.Constant(sums.type, [4 * i + place for i in range(16)])
        sums = b.add(sums, b.shuffle_vector(products, products, lanes))
    return sums


def called_dpbusd(b: Any, sums: Any, codes: Any, query: Any) -> Any:
    """Call ``plain_dpbusd``, of which a module has one: many in a row compile for minutes."""
    kind, name = ir.FunctionType(WORDS, [WORDS] * 3), "called_dpbusd"
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block())
        inner.ret(plain_dpbusd(inner, *function.args))
    words = [b.bitcast(each, WORDS) for each in (sums, codes, query)]
    return b.call(function, words)


def half_dpbf16(b: Any, sums: Any, rows: Any, weights: Any, odd: bool) -> Any:
    """Add the products of the odd or of the even of each pair of bfloat16."""

    def floats(pairs: Any) -> Any:
        kind = pairs.type
        bits = b.and_(pairs, ir.Constant(kind, [-65536] * 16))
        return b.bitcast(bits if odd else b.shl(pairs, ir.Constant(kind, [16] * 16)), sums.type)

    return fma(b, floats(rows), floats(weights), sums)


def plain_dpbf16(b: Any, sums: Any, rows: Any, weights: Any, odd_first: bool = True) -> Any:
    """Emit what ``gemm_forms.dpbf16`` does in instructions that every processor has."""
    for odd in (odd_first, not odd_first):
        sums = half_dpbf16(b, sums, rows, weights, odd)
    return sums


class PlainRegisters:
    """Emits what ``tile_registers.Registers`` does: registers are 1 KB of the stack."""

    def __init__(self, b: Any) -> None:
        self.b = b
        lines = ir.ArrayType(ir.VectorType(ir.IntType(32), 16), 16)
        self.memory = [b.ptrtoint(cgutils.alloca_once(b, lines), I64) for _ in range(8)]

    def zero(self, register: int) -> None:
        with cgutils.for_range(self.b, SIXTEEN) as loop:
            store(self.b, WORDS(None), self._line(register, loop.index))

    def load(self, register: int, address: Any, stride: Any) -> None:
        with cgutils.for_range(self.b, SIXTEEN) as loop:
            row = self.b.add(address, self.b.mul(stride, loop.index))
            store(self.b, load(self.b, row, WORDS), self._line(register, loop.index))

    def store(self, register: int, address: Any, stride: Any) -> None:
        with cgutils.for_range(self.b, SIXTEEN) as loop:
            row = self.b.add(address, self.b.mul(stride, loop.index))
            store(self.b, load(self.b, self._line(register, loop.index), WORDS), row)

    def multiply(self, kind: str, sums: int, rows: int, columns: int) -> None:
        b = self.b
        with cgutils.for_range(b, SIXTEEN) as loop:
            line = self._line(sums, loop.index)
            if kind == "bf16":
                chains = self.chains(self._line(rows, loop.index), columns)
                store(b, b.fadd(load(b, line, FLOATS), chains), line)
                return
            total = cgutils.alloca_once_value(b, load(b, line, WORDS))
            b.store(load(b, line, WORDS), total)
            for word, column in self.pairs(self._line(rows, loop.index), columns):
                order = (word, column) if kind == "int8" else (column, word)
                b.store(plain_dpbusd(b, b.load(total), *order), total)
            store(b, b.load(total), line)

    def chains(self, row: Any, columns: int) -> Any:
        found = []
        for odd in (False, True):
            total = FLOATS(None)
            for word, column in self.pairs(row, columns):
                total = half_dpbf16(self.b, total, word, column, odd)
            found.append(total)
        return self.b.fadd(*found)

    def pairs(self, row: Any, columns: int) -> Iterator[tuple[Any, Any]]:
        for k in range(16):
            word = splat(self.b, load(self.b, row, I32, 4 * k))
            yield word, load(self.b, self._line(columns, ir.Constant(I64, k)), WORDS)

    def _line(self, register: int, number: Any) -> Any:
        return self.b.add(self.memory[register], self.b.shl(number, ir.Constant(I64, 6)))


def replace_registers(
    monkeypatch: pytest.MonkeyPatch, registers: type[PlainRegisters] = PlainRegisters
) -> None:
    """Let kernels that are compiled from now on use memory in place of tile registers."""
    monkeypatch.setattr(tile_registers, "Registers", registers)
    monkeypatch.setattr(tile_registers, "emit_open", lambda b, memory: None)
    monkeypatch.setattr(tile_registers, "emit_close", lambda b: None)
