"""Reading and writing memory at an address: the words every kernel is written with.

Index ``i`` means the i-th number of that size. Nothing is checked; alignment is not needed.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import call, load, pointer, store

_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_SIZES = {_FLOAT: 4, _DOUBLE: 8, _I8: 1, _I32: 4, _I64: 8}


def _at(b: Any, kind: ir.Type, address: Any, index: Any) -> Any:
    return b.add(address, b.mul(index, ir.Constant(_I64, _SIZES[kind])))


def _reading(kind: ir.Type, result: Any, is_signed: bool = True) -> tuple[Any, Any]:
    """Return type and code of a read; integers become int64."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        value = load(b, _at(b, kind, *args), kind)
        if kind in (_I8, _I32):
            return b.sext(value, _I64) if is_signed else b.zext(value, _I64)
        return value

    return result(types.int64, types.int64), codegen


def _writing(kind: ir.Type, value: Any) -> tuple[Any, Any]:
    """Return type and code of a write; an int64 is cut to the number's size."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        given = b.trunc(args[2], kind) if kind in (_I8, _I32) else args[2]
        store(b, given, _at(b, kind, *args[:2]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, value), codegen


@intrinsic
def read_byte(typingctx, address, index):  # type: ignore[no-untyped-def]
    """Read an unsigned byte."""
    return _reading(_I8, types.int64, is_signed=False)


@intrinsic
def read_signed(typingctx, address, index):  # type: ignore[no-untyped-def]
    """Read a signed byte."""
    return _reading(_I8, types.int64)


@intrinsic
def read_int(typingctx, address, index):  # type: ignore[no-untyped-def]
    """Read an int32."""
    return _reading(_I32, types.int64)


@intrinsic
def read_long(typingctx, address, index):  # type: ignore[no-untyped-def]
    """Read an int64."""
    return _reading(_I64, types.int64)


@intrinsic
def read_real(typingctx, address, index):  # type: ignore[no-untyped-def]
    """Read a float32."""
    return _reading(_FLOAT, types.float32)


@intrinsic
def read_double(typingctx, address, index):  # type: ignore[no-untyped-def]
    """Read a float64."""
    return _reading(_DOUBLE, types.float64)


@intrinsic
def put_byte(typingctx, address, index, value):  # type: ignore[no-untyped-def]
    """Write a byte."""
    return _writing(_I8, types.int64)


@intrinsic
def put_int(typingctx, address, index, value):  # type: ignore[no-untyped-def]
    """Write an int32."""
    return _writing(_I32, types.int64)


@intrinsic
def put_long(typingctx, address, index, value):  # type: ignore[no-untyped-def]
    """Write an int64."""
    return _writing(_I64, types.int64)


@intrinsic
def put_real(typingctx, address, index, value):  # type: ignore[no-untyped-def]
    """Write a float32."""
    return _writing(_FLOAT, types.float32)


@intrinsic
def address_of(typingctx, array):  # type: ignore[no-untyped-def]
    """Return the address of an array's data."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        found = context.make_array(signature.args[0])(context, b, args[0])
        return b.ptrtoint(found.data, _I64)

    return types.int64(array), codegen


@intrinsic
def keep_apart(typingctx):  # type: ignore[no-untyped-def]
    """Keep the function that calls this out of its callers' code: it is compiled once."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        b.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def prefetch(typingctx, address):  # type: ignore[no-untyped-def]
    """Ask for the cache line of an address; never faults."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        emit_prefetch(b, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def emit_prefetch(b: Any, address: Any, cache: int = 1) -> None:
    """Emit a request for the cache line of an address, into the L1 or the L2 cache."""
    flags = [ir.Constant(_I32, value) for value in (0, 4 - cache, 1)]  # read, how close, data
    call(b, "llvm.prefetch.p0", ir.VoidType(), pointer(b, address, _I8), *flags)


@intrinsic
def bits_of(typingctx, value):  # type: ignore[no-untyped-def]
    """Return the bits of a float32 as int64."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.sext(b.bitcast(args[0], _I32), _I64)

    return types.int64(types.float32), codegen


@intrinsic
def float_of(typingctx, bits):  # type: ignore[no-untyped-def]
    """Return the float32 of the lowest 32 bits."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.bitcast(b.trunc(args[0], _I32), _FLOAT)

    return types.float32(types.int64), codegen


@intrinsic
def lowest_bit(typingctx, bits):  # type: ignore[no-untyped-def]
    """Return the number of the lowest bit that is set; 64 if none is."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return call(b, "llvm.cttz.i64", _I64, args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), codegen
