"""Calling by an address: kernels put together at run time, and functions of other libraries."""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def call_at(typingctx, entry, given):  # type: ignore[no-untyped-def]
    """Call a compiled kernel, int64 of a tuple of int64, by its address."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        count = signature.args[1].count
        kind = context.call_conv.get_function_type(types.int64, [types.int64] * count)
        out = cgutils.alloca_once(b, ir.IntType(64))
        error = cgutils.alloca_once(b, kind.args[1].pointee)
        kernel = b.inttoptr(args[0], kind.as_pointer())
        b.call(kernel, [out, error, *cgutils.unpack_tuple(b, args[1], count)])
        return b.load(out)

    return types.int64(types.int64, given), codegen


@intrinsic
def call_native(typingctx, entry, given):  # type: ignore[no-untyped-def]
    """Call a function of C, int64 or pointer of a tuple of these, by its address."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        count, word = signature.args[1].count, ir.IntType(64)
        kind = ir.FunctionType(word, [word] * count)
        function = b.inttoptr(args[0], kind.as_pointer())
        return b.call(function, cgutils.unpack_tuple(b, args[1], count))

    return types.int64(types.int64, given), codegen
