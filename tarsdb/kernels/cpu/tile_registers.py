"""Tile registers (AMX): products of 16 rows and 16 columns, 64 bytes of each at a time.

There are eight registers of 16 rows of 64 bytes. A process asks the system for them once
(:func:`allowed`); a kernel opens them before and closes them after. Arguments are addresses.

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import I64, call, pointer, store

_I8 = ir.IntType(8)
ROWS, LINE = 16, 64
"""Rows of a register, and bytes of a row."""
PRODUCTS = {"int8": "tdpbusd", "codes": "tdpbsud", "bf16": "tdpbf16ps"}
"""Instructions: unsigned by signed bytes, signed by unsigned ones, bfloat16."""


def allowed() -> bool:
    """Ask the kernel to let this process use tile registers; False where it cannot."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    try:
        return bool(ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0)  # arch_prctl, tile data
    except (OSError, AttributeError):
        return False


class Registers:
    """Emits instructions on registers by number, 0 to 7."""

    def __init__(self, b: Any) -> None:
        self.b = b

    def zero(self, register: int) -> None:
        """Emit zeros."""
        call(self.b, "llvm.x86.tilezero", ir.VoidType(), _number(register))

    def load(self, register: int, address: Any, stride: Any) -> None:
        """Emit a load of 16 rows, ``stride`` bytes apart."""
        self._move("tileloadd64", register, address, stride)

    def store(self, register: int, address: Any, stride: Any) -> None:
        """Emit a store of 16 rows, ``stride`` bytes apart."""
        self._move("tilestored64", register, address, stride)

    def multiply(self, kind: str, sums: int, rows: int, columns: int) -> None:
        """Emit ``sums += rows @ columns``; each word of a line of columns meets one of a row."""
        numbers = map(_number, (sums, rows, columns))
        call(self.b, f"llvm.x86.{PRODUCTS[kind]}", ir.VoidType(), *numbers)

    def _move(self, name: str, register: int, address: Any, stride: Any) -> None:
        where = pointer(self.b, address, _I8)
        call(self.b, f"llvm.x86.{name}", ir.VoidType(), _number(register), where, stride)


def emit_open(b: Any, memory: Any) -> None:
    """Emit the shape of all registers, 16 rows of 64 bytes, said in 64 bytes of memory."""
    shape = [1] + [0] * 15 + [LINE, 0] * 8 + [0] * 16 + [ROWS] * 8 + [0] * 8
    store(b, ir.Constant(ir.VectorType(_I8, 64), shape), memory)
    call(b, "llvm.x86.ldtilecfg", ir.VoidType(), pointer(b, memory, _I8))


def emit_close(b: Any) -> None:
    """Emit giving the registers back."""
    call(b, "llvm.x86.tilerelease", ir.VoidType())


def _number(value: int) -> Any:
    return ir.Constant(_I8, value)


@intrinsic
def open_tiles(typingctx, memory):  # type: ignore[no-untyped-def]
    """Shape all registers, with 64 bytes of memory to say so."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        emit_open(b, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def close_tiles(typingctx):  # type: ignore[no-untyped-def]
    """Give the registers back."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        emit_close(b)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic(prefer_literal=True)
def multiply_tiles(  # type: ignore[no-untyped-def]
    typingctx, kind, blocks, tiles, a, a_stride, a_step, a_block, columns, tile, turns, sums,
    sums_stride, fresh,
):  # fmt: skip
    """Add products of 16 or 32 rows and one or two tiles of 16 columns.

    Parameters
    ----------
    kind : literal str
        Of PRODUCTS.
    blocks, tiles : literal int
        1 or 2: of 16 rows, of 16 columns.
    a, a_stride, a_step, a_block : address, bytes
        From row to row, from 64 bytes of a row to the next, and to the second 16 rows; there are
        ``turns`` times 64 bytes of each row.
    columns, tile : address, bytes
        A tile is ``turns`` times 16 lines of 64 bytes; the second lies ``tile`` bytes on.
    sums, sums_stride : address, bytes
        Numbers of 32 bits (16 * blocks, 16 * tiles); they start at zero if ``fresh`` is not 0.
    """
    name, two, wide = kind.literal_value, blocks.literal_value, tiles.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        a, a_stride, a_step, a_block, columns, tile, turns, sums, sums_stride, fresh = args[3:]
        registers, line = Registers(b), ir.Constant(I64, LINE)
        places = {}
        for i in range(two):
            down = b.mul(sums_stride, ir.Constant(I64, ROWS * i))
            for j in range(wide):
                places[2 * i + j] = b.add(b.add(sums, down), ir.Constant(I64, LINE * j))
        with b.if_else(b.icmp_signed("!=", fresh, ir.Constant(I64, 0))) as (then, otherwise):
            with then:
                for each in places:
                    registers.zero(each)
            with otherwise:
                for each, place in places.items():
                    registers.load(each, place, sums_stride)
        with cgutils.for_range(b, turns) as loop:
            along = b.mul(loop.index, a_step)
            lines = b.mul(loop.index, ir.Constant(I64, ROWS * LINE))
            for i in range(two):
                block = b.add(a, b.mul(a_block, ir.Constant(I64, i)))
                registers.load(4 + i, b.add(block, along), a_stride)
            for j in range(wide):
                start = b.add(columns, b.mul(tile, ir.Constant(I64, j)))
                registers.load(6 + j, b.add(start, lines), line)
            for each in places:
                registers.multiply(name, each, 4 + each // 2, 6 + each % 2)
        for each, place in places.items():
            registers.store(each, place, sums_stride)
        return context.get_dummy_value()

    return types.void(kind, blocks, tiles, *[types.int64] * 10), codegen
