"""Batch driver for bare scalar exports: a generated module that loops so that the host need not.

The driver imports the user's function, owns a memory of fixed size for the arguments and the
result, and calls the function once a row. The user's module never sees that memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from tarsdb.types import Physical, SqlType
from tarsdb.udf_sandbox.modules.module import scalar_type

CHUNK_ROWS = 32_768  # of values of 8 bytes; where all are shorter, as many as fit the slots
PAGE = 65_536
SLOT_BYTES = 8 * CHUNK_ROWS
FIRST_SLOT = 2048
"""Half a page of the host's: a copy between places that agree in the low twelve bits is slow."""

_LOADS = {
    Physical.BOOL: "i32.load8_u", Physical.INT16: "i32.load16_s", Physical.INT32: "i32.load",
    Physical.INT64: "i64.load", Physical.FLOAT32: "f32.load", Physical.FLOAT64: "f64.load",
}  # fmt: skip
SHIFTS = {
    Physical.BOOL: 0, Physical.INT16: 1, Physical.INT32: 2, Physical.INT64: 3,
    Physical.FLOAT32: 2, Physical.FLOAT64: 3,
}  # fmt: skip


def slot(number: int) -> int:
    """Return the address of column ``number``; the result is the last column."""
    return FIRST_SLOT + number * SLOT_BYTES


def memory_pages(columns: int) -> int:
    """Return the size of the driver's memory for that many columns, the result included."""
    return -(-slot(columns) // PAGE)


def driver_text(arguments: Sequence[SqlType], returns: SqlType) -> str:
    """Return the driver's WebAssembly text.

    It exports ``memory`` and ``run()``. ``run`` reads the number of rows from address 0 as i32.
    Results are stored as the wasm type (SMALLINT and BOOLEAN as i32), to be narrowed by the host.
    """
    params = " ".join(scalar_type(argument) or "" for argument in arguments)
    result = scalar_type(returns)
    pages = memory_pages(len(arguments) + 1)
    loads = "\n        ".join(
        f"({_LOADS[argument.physical]} offset={slot(number)} {_scaled(SHIFTS[argument.physical])})"
        for number, argument in enumerate(arguments)
    )
    shift = result_shift(result or "i32")
    return f"""(module
  (import "user" "f" (func $f (param {params}) (result {result})))
  (memory (export "memory") {pages} {pages})
  (func (export "run") (local $i i32) (local $n i32)
    (local.set $n (i32.load (i32.const 0)))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
        ({result}.store offset={slot(len(arguments))} {_scaled(shift)}
          (call $f {loads}))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))))
"""


def result_shift(result: str) -> int:
    """Return the binary logarithm of the bytes a result takes."""
    return 2 if result in ("i32", "f32") else 3


def _scaled(shift: int) -> str:
    return f"(i32.shl (local.get $i) (i32.const {shift}))" if shift else "(local.get $i)"
