"""Short words for the LLVM instructions that the coding kernels are written in."""

# llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

FLOAT = ir.FloatType()
I32, I64 = ir.IntType(32), ir.IntType(64)
LANES = 16


def call(b: Any, name: str, result: ir.Type, *args: Any) -> Any:
    """Emit a call of an LLVM intrinsic."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def pointer(b: Any, address: Any, kind: ir.Type) -> Any:
    """Emit the pointer of an address."""
    return b.inttoptr(address, kind.as_pointer())


def load(b: Any, address: Any, kind: ir.Type, offset: int = 0) -> Any:
    """Emit an unaligned load."""
    return b.load(pointer(b, b.add(address, ir.Constant(I64, offset)), kind), align=1)


def store(b: Any, value: Any, address: Any, offset: int = 0) -> None:
    """Emit an unaligned store."""
    b.store(value, pointer(b, b.add(address, ir.Constant(I64, offset)), value.type), align=1)


def splat(b: Any, value: Any, lanes: int = LANES) -> Any:
    """Emit a vector of one value."""
    whole = ir.VectorType(value.type, lanes)
    first = b.insert_element(ir.Constant(whole, ir.Undefined), value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return b.shuffle_vector(first, ir.Constant(whole, ir.Undefined), zeros)


def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    """Emit x * y + z of float vectors, rounded once."""
    kind = "f32" if x.type.element == FLOAT else "f64"
    return call(b, f"llvm.fma.v{x.type.count}{kind}", x.type, x, y, z)


def lane_mask(b: Any, count: Any) -> Any:
    """Emit the mask of the first ``count`` of 16 lanes; of none below 1."""
    numbers = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
    return b.icmp_signed("<", numbers, splat(b, count))


def load_some(b: Any, address: Any, mask: Any) -> Any:
    """Emit a load of some of 16 floats; the others are zero, and not read."""
    kind = ir.VectorType(FLOAT, LANES)
    where, zero = pointer(b, address, kind), ir.Constant(kind, None)
    return call(b, "llvm.masked.load.v16f32.p0", kind, where, ir.Constant(I32, 1), mask, zero)


def store_some(b: Any, value: Any, address: Any, mask: Any) -> None:
    """Emit a store of some of 16 floats; the others stay as they are."""
    where = pointer(b, address, value.type)
    one = ir.Constant(I32, 1)
    call(b, "llvm.masked.store.v16f32.p0", ir.VoidType(), value, where, one, mask)
