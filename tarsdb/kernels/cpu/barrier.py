"""Threads that run one kernel together: where they wait for each other, and who takes what.

Memory is an array of int64 that is zero at first; words used by several threads lie in cache lines
of their own. Waiting spins, and gives the processor away once it takes long.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import I32, I64, pointer
from tarsdb.kernels.cpu.linked import linked

BARRIER_BYTES = 128
"""Of a barrier: how many have arrived, and how often all have."""
_SPINS = 4096


@intrinsic
def fetch_add(typingctx, address, value):  # type: ignore[no-untyped-def]
    """Add to an int64 that several threads use; return what it was before."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.atomic_rmw("add", pointer(b, args[0], I64), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _publish(typingctx, address, value):  # type: ignore[no-untyped-def]
    """Write an int64 after everything this thread wrote before."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        b.store_atomic(args[1], pointer(b, args[0], I64), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _observe(typingctx, address):  # type: ignore[no-untyped-def]
    """Read an int64 before everything this thread reads after."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.load_atomic(pointer(b, args[0], I64), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _pause(typingctx):  # type: ignore[no-untyped-def]
    """Tell the processor that this is a loop that waits."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _call(typingctx, function):  # type: ignore[no-untyped-def]
    """Call a C function that takes nothing and returns an int."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I32, [])
        b.call(b.inttoptr(args[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@linked
def wait_for_all(memory, parts, yielding):  # type: ignore[no-untyped-def]
    """Return when ``parts`` threads have called this.

    Parameters
    ----------
    memory : address
        BARRIER_BYTES.
    parts : int
    yielding : address
        Of ``sched_yield``; 0: spin only.
    """
    if parts == 1:
        return
    round_number = _observe(memory + 64)
    if fetch_add(memory, 1) == parts - 1:
        _publish(memory, 0)
        _publish(memory + 64, round_number + 1)
        return
    spins = 0
    while _observe(memory + 64) == round_number:
        spins += 1
        if spins > _SPINS and yielding != 0:
            _call(yielding)
        else:
            _pause()
