"""Guests: one instance of a user module, called with whole batches of columns.

``ScalarGuest`` runs a bare scalar export through a generated driver, ``ColumnarGuest`` an
export of the columnar ABI. Both are single-threaded and thrown away after any error. They see an
instance as exports and a memory of bytes; what runs it is the backend's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from tarsdb.columns import Column
from tarsdb.errors import UdfError
from tarsdb.records import dataclass
from tarsdb.types import SqlType
from tarsdb.udf_sandbox import outputs
from tarsdb.udf_sandbox.abi import BatchLayout, WritableMemory
from tarsdb.udf_sandbox.backends import Guest, Instance, Place, Program
from tarsdb.udf_sandbox.limits import Call, memory_error
from tarsdb.udf_sandbox.modules import driver
from tarsdb.udf_sandbox.modules.module import scalar_type, to_wasm

_RESULT_DTYPES = {"i32": np.int32, "i64": np.int64, "f32": np.float32, "f64": np.float64}


@functools.lru_cache(maxsize=64)
def driver_code(arguments: tuple[SqlType, ...], returns: SqlType) -> bytes:
    """Return the driver module of a signature."""
    return to_wasm(driver.driver_text(arguments, returns))


def guest_of(program: Program, instance: Instance) -> Guest:
    """Return the guest that calls an instance as its program's export asks."""
    if program.kind == "scalar":
        return (ColumnarGuest if program.driver is None else ScalarGuest)(program, instance)
    if program.kind == "aggregate":
        from tarsdb.udf_sandbox.functions.aggregates import AggregateGuest

        return AggregateGuest(program, instance)
    from tarsdb.udf_sandbox.functions.table_functions import TableGuest

    return TableGuest(program, instance)


class InstanceGuest:
    """What all guests over an :class:`Instance` share."""

    def __init__(self, program: Program, instance: Instance) -> None:
        self.program = program
        self.instance = instance

    def begin(self, call: Call) -> bool:
        """Give the instance the fuel and the time of a call; False when it is gone."""
        return self.instance.begin(call)

    def end(self, call: Call) -> int:
        """Return the fuel the call used."""
        return self.instance.end(call)

    def footprint(self) -> int:
        """Return the bytes of memory the guest holds while idle."""
        return len(self.instance.memory())

    def reset(self, call: Call) -> None:
        """Let the guest forget what it has allocated, where its module can."""
        if self.program.resettable:
            self.instance.invoke("tars_reset", call)

    def allocate(self, call: Call, size: int) -> tuple[WritableMemory, int]:
        """Return the guest's memory and the address of ``size`` free bytes in it."""
        limits = self.program.limits
        if size > limits.max_memory_bytes:
            raise memory_error(call.function, limits, f"a batch of {size} bytes does not fit")
        region = self.instance.invoke("tars_alloc", call, size) & 0xFFFFFFFF
        memory = self.instance.memory()
        if region in (0, 0xFFFFFFFF) or region + size > len(memory):
            raise memory_error(
                call.function, limits,
                f"tars_alloc({size}) gave {region} in a memory of {len(memory)} bytes",
            )  # fmt: skip
        return memory, region

    def ask(self, export: str, call: Call, *arguments: int) -> None:
        """Call an export that returns a status, which must be 0."""
        status = self.instance.invoke(export, call, *arguments)
        if status != 0:
            raise UdfError(f"function {call.function}: {export} returned status {status}")

    def close(self) -> None:
        """Free the instance."""
        self.instance.close()


class ScalarGuest(InstanceGuest):
    """A bare scalar export and the driver that loops over it."""

    def __init__(self, program: Program, instance: Instance) -> None:
        super().__init__(program, instance)
        memory = instance.memory()  # the driver's: of fixed size, so it never moves
        assert isinstance(memory, np.ndarray)  # no backend fetches a driver's
        self._rows = memory[:4].view(np.uint32)
        self._inputs = [
            _slot_view(memory, number, argument.dtype)
            for number, argument in enumerate(program.arguments)
        ]
        dtype = np.dtype(_RESULT_DTYPES[scalar_type(program.returns) or "i32"])
        self._output = _slot_view(memory, len(program.arguments), dtype)
        self._most = min(map(len, [*self._inputs, self._output]))  # rows of a call
        self._size = len(memory)

    def footprint(self) -> int:
        """Return the bytes of memory the guest holds while idle."""
        return self._size

    def batch(self, columns: Sequence[Column], rows: int, call: Call) -> Column:
        """Return the results of ``rows`` rows, none of which is NULL."""
        returns = self.program.returns
        values = np.empty(rows, dtype=self._output.dtype)
        for start in range(0, rows, self._most):
            stop = min(start + self._most, rows)
            for view, column in zip(self._inputs, columns, strict=True):
                column.copy_rows(start, stop, view[: stop - start])
            self._rows[0] = stop - start
            self.instance.invoke("run", call)
            values[start:stop] = self._output[: stop - start]
        column = outputs.checked(Column(returns, values), call.function)
        column.values = column.values.astype(returns.dtype, copy=False)
        return column

    def lend(self, call: Call) -> Lent | None:
        """Return what compiled code needs to call it; None where it cannot."""
        found = self.instance.lend("run", call)
        if found is None:
            return None

        def end(rows: int, calls: int) -> None:
            call.rows, call.transitions = rows, call.transitions + calls
            call.bytes_in = rows * sum(each.itemsize for each in self._inputs)
            call.bytes_out = rows * self._output.itemsize

        place, check = found
        return Lent(place, self._rows, self._inputs, self._output, check, end)


@dataclass(slots=True)
class Lent:
    """A guest that compiled code calls, for a batch at a time, as long as its call lasts.

    Attributes
    ----------
    place : tuple of int
        By what it is called; see ``backends``.
    rows : uint32 (1,)
        Takes the number of rows of a batch.
    arguments : list of (rows,)
        Take the arguments, none of them NULL.
    answers : (rows,)
        Has the results then.
    check : callable
        Takes what the last call returned; raises its error, if there was one.
    end : callable
        Takes how many rows it was called for, and by how many calls.
    """

    place: Place
    rows: np.ndarray
    arguments: list[np.ndarray]
    answers: np.ndarray
    check: Callable[[int], None]
    end: Callable[[int, int], None]


def _slot_view(memory: np.ndarray, number: int, dtype: np.dtype[np.generic]) -> np.ndarray:
    start = driver.slot(number)
    return memory[start : start + driver.SLOT_BYTES].view(dtype)


class ColumnarGuest(InstanceGuest):
    """An export of the columnar ABI."""

    def batch(self, columns: Sequence[Column], rows: int, call: Call) -> Column:
        """Return the results of ``rows`` rows; a column of one row stands for all of them."""
        layout = BatchLayout(columns, (self.program.returns,), rows)
        self.reset(call)
        base = layout.write(*self.allocate(call, layout.size))
        self.ask(self.program.export, call, base, rows)
        column = layout.read(self.instance.memory(), base, call.function)
        return outputs.checked(column, call.function)
