"""Guests: one instance of a user module, called with whole batches of columns.

``ScalarGuest`` runs a bare scalar export through a generated driver, ``ColumnarGuest`` an
export of the columnar ABI. Both are single-threaded and thrown away after any error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import wasmtime

from tarsdb.columns import Column, concat
from tarsdb.errors import UdfError
from tarsdb.options import SandboxLimits
from tarsdb.types import SqlType
from tarsdb.udf_sandbox import driver, outputs
from tarsdb.udf_sandbox.abi import BatchLayout
from tarsdb.udf_sandbox.exports import Export
from tarsdb.udf_sandbox.limits import WASM_PAGE, Call, memory_error
from tarsdb.udf_sandbox.module import scalar_type
from tarsdb.udf_sandbox.wasmtime_backend import Store, assemble, runtime

_RESULT_DTYPES = {"i32": np.int32, "i64": np.int64, "f32": np.float32, "f64": np.float64}


@dataclass(frozen=True)
class Program:
    """Everything needed to make a guest: compiled code, signature and limits."""

    module: wasmtime.Module
    driver: wasmtime.Module | None  # of bare scalar exports
    export: str
    arguments: tuple[SqlType, ...]
    returns: SqlType
    limits: SandboxLimits
    reusable: bool  # nothing a batch leaves behind can reach the next one
    resettable: bool


def driver_module(arguments: Sequence[SqlType], returns: SqlType) -> wasmtime.Module:
    """Return the compiled driver of a signature; signatures share it."""
    text = driver.driver_text(arguments, returns).encode()
    key = "driver:" + hashlib.sha256(text).hexdigest()
    return runtime().module(key, assemble(text))


class ScalarGuest:
    """A bare scalar export and the driver that loops over it."""

    def __init__(self, program: Program, call: Call, watched: bool) -> None:
        assert program.driver is not None  # the caller matched the signature
        self.program = program
        self.store = Store(program.limits, watched)
        self.store.begin(call)
        try:
            self._start(program, call)
        except BaseException:
            self.store.close()
            raise

    def _start(self, program: Program, call: Call) -> None:
        assert program.driver is not None
        raw = self.store.raw
        user = self.store.instantiate(program.module, [], call)
        size = driver.memory_pages(len(program.arguments) + 1) * WASM_PAGE
        self.store.set_memory_limit(max(size, program.limits.max_memory_bytes))
        function = user.exports(raw)[program.export]
        instance = self.store.instantiate(program.driver, [function], call)
        self.store.set_memory_limit(program.limits.max_memory_bytes)
        exports = instance.exports(raw)
        self._run = Export(raw, exports["run"], 0)
        memory = self.store.view(exports["memory"])  # of fixed size, so it never moves
        self._rows = memory[:4].view(np.uint32)
        self._inputs = [
            _slot_view(memory, number, argument.dtype)
            for number, argument in enumerate(program.arguments)
        ]
        dtype = np.dtype(_RESULT_DTYPES[scalar_type(program.returns) or "i32"])
        self._output = _slot_view(memory, len(program.arguments), dtype)

    def batch(self, columns: Sequence[Column], rows: int, call: Call) -> Column:
        """Return the results of ``rows`` rows, none of which is NULL."""
        if rows <= driver.CHUNK_ROWS:
            return self._chunk(columns, 0, rows, call)
        starts = range(0, rows, driver.CHUNK_ROWS)
        return concat(
            self.program.returns,
            [self._chunk(columns, i, min(i + driver.CHUNK_ROWS, rows), call) for i in starts],
        )

    def footprint(self) -> int:
        """Return the bytes of memory the guest holds while idle."""
        return driver.memory_pages(len(self.program.arguments) + 1) * WASM_PAGE

    def _chunk(self, columns: Sequence[Column], start: int, stop: int, call: Call) -> Column:
        rows = stop - start
        for view, column in zip(self._inputs, columns, strict=True):
            view[:rows] = column.values[start:stop]
        self._rows[0] = rows
        self.store.invoke(self._run, call, None)
        column = Column(self.program.returns, self._output[:rows].copy())
        column = outputs.checked(column, call.function)
        if column.values.dtype != self.program.returns.dtype:
            column.values = column.values.astype(self.program.returns.dtype)
        return column


def _slot_view(memory: np.ndarray, number: int, dtype: np.dtype[np.generic]) -> np.ndarray:
    start = driver.slot(number)
    return memory[start : start + driver.CHUNK_ROWS * dtype.itemsize].view(dtype)


class ColumnarGuest:
    """An export of the columnar ABI."""

    def __init__(self, program: Program, call: Call, watched: bool) -> None:
        self.program = program
        self.store = Store(program.limits, watched)
        self.store.begin(call)
        try:
            instance = self.store.instantiate(program.module, [], call)
        except BaseException:
            self.store.close()
            raise
        exports = instance.exports(self.store.raw)
        raw = self.store.raw
        self._function = Export(raw, exports[program.export], 2)
        self._alloc = Export(raw, exports["tars_alloc"], 1)
        self._reset = Export(raw, exports["tars_reset"], 0) if program.resettable else None
        self._memory = exports["memory"]

    def batch(self, columns: Sequence[Column], rows: int, call: Call) -> Column:
        """Return the results of ``rows`` rows."""
        store, memory = self.store, self._memory
        layout = BatchLayout(columns, self.program.returns, rows)
        if layout.size > self.program.limits.max_memory_bytes:
            raise memory_error(
                call.function, self.program.limits, f"a batch of {layout.size} bytes does not fit"
            )
        if self._reset is not None:
            store.invoke(self._reset, call, memory)
        region = store.invoke(self._alloc, call, memory, layout.size) & 0xFFFFFFFF
        view = store.view(memory)
        if region in (0, 0xFFFFFFFF) or region + layout.size > len(view):
            raise memory_error(
                call.function, self.program.limits,
                f"tars_alloc({layout.size}) gave {region} in a memory of {len(view)} bytes",
            )  # fmt: skip
        base = layout.write(view, region)
        status = store.invoke(self._function, call, memory, base, rows)
        if status != 0:
            raise UdfError(f"function {call.function}: returned status {status}")
        return outputs.checked(layout.read(store.view(memory), base, call.function), call.function)

    def footprint(self) -> int:
        """Return the bytes of memory the guest holds while idle."""
        return len(self.store.view(self._memory))


Guest = ScalarGuest | ColumnarGuest
