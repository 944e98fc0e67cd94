"""Sandboxed functions, called with columns: what all kinds share, and the scalar kind.

Handles NULLs, batch sizes, limits and reuse of guests; what runs them is a backend's.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from tarsdb.columns import Column, concat, empty
from tarsdb.errors import InterfaceError, UdfError
from tarsdb.options import SandboxLimits
from tarsdb.types import SqlType
from tarsdb.udf_sandbox import figures
from tarsdb.udf_sandbox.backends import Guest, Program, backend
from tarsdb.udf_sandbox.guests import Lent, ScalarGuest, driver_code
from tarsdb.udf_sandbox.limits import WASM_PAGE, Budget, Call, memory_error, time_error
from tarsdb.udf_sandbox.modules.module import ModuleInfo, check_signature, inspect_module

MAX_BATCH_ROWS = 65_536
KEPT_GUEST_BYTES = 16 << 20  # a guest that grew larger is freed, not kept
_IDLE_GUESTS = 4
_keys = itertools.count(1)

T = TypeVar("T")


class SandboxedFunction:
    """A program with its guests, safe to share between threads; kinds add how it is called.

    Attributes
    ----------
    name : str
        What errors call the function: the export until the owner sets another.
    figures : Figures
        What it did in this process.
    """

    def __init__(self, program: Program) -> None:
        self.name = program.export
        self.arguments = program.arguments
        self.limits = program.limits
        self.figures = figures.Figures()
        self._key = next(_keys)
        self._program = program
        self._backend = backend(self.limits.backend)
        self._compiled = self._backend.compile(program)
        self._lock = threading.Lock()
        self._idle: dict[bool, list[Guest]] = {True: [], False: []}
        self._calls: set[Call] = set()
        self._closed = False

    def interrupt(self) -> None:
        """End every running call of this function with InterruptError."""
        with self._lock:
            for call in self._calls:
                call.interrupt()

    def close(self) -> None:
        """Free idle guests; running calls end normally, later calls raise InterfaceError."""
        with self._lock:
            self._closed = True
            guests = self._idle[True] + self._idle[False]
            self._idle = {True: [], False: []}
        for guest in guests:
            guest.close()
        self._compiled.close()

    def _check(self, columns: Sequence[Column], rows: int) -> None:
        if self._closed:
            raise InterfaceError(f"function {self.name} is closed")
        if len(columns) != len(self.arguments):
            raise UdfError(
                f"function {self.name} takes {len(self.arguments)} arguments, got {len(columns)}"
            )
        for number, (column, wanted) in enumerate(zip(columns, self.arguments, strict=True), 1):
            if column.type != wanted or len(column) != rows:
                raise UdfError(
                    f"function {self.name}: argument {number} is {wanted} of {rows} rows, "
                    f"got {column.type} of {len(column)} rows"
                )

    def _within_budget(
        self, work: Callable[[Guest, Call], T], columns: Sequence[Column], rows: int, budget: Budget
    ) -> T:
        """Run work over rows of these columns with a guest, under what is left of the limits."""
        budget.check(self.name)
        fuel, seconds = budget.begin(self._key, rows, self.limits)
        began = time.monotonic()
        call = Call(self.name, self.limits, budget, fuel, began + seconds, rows=rows)
        if seconds <= 0:
            raise time_error(call)
        call.bytes_in = figures.size(columns)
        if self._program.driver is not None and self._program.reusable:
            call.likely_fuel = self.figures.fuel * rows // max(self.figures.rows, 1)
        with self._lock:
            self._calls.add(call)
        failure: BaseException | None = None
        try:
            result = self._backend.run(lambda watched: self._with_guest(work, call, watched), call)
            call.bytes_out += figures.size(result if isinstance(result, list) else [result])
            return result
        except BaseException as error:
            failure = error
            raise
        finally:
            with self._lock:
                self._calls.discard(call)
            took = time.monotonic() - began - call.waited
            budget.end(self._key, call.used, took, rows - call.rows)
            for kept in (self.figures, budget.figures_of(self.name)):
                kept.add(call, took, failure)
            figures.count(call, took, failure)
            failure = None  # it holds this frame: without this the guest's memory would stay

    def _with_guest(self, work: Callable[[Guest, Call], T], call: Call, watched: bool) -> T:
        guest = self._acquire(call, watched)
        try:
            result = work(guest, call)
        except BaseException:
            with contextlib.suppress(Exception):
                call.used = guest.end(call)
            guest.close()
            raise
        call.used = guest.end(call)
        call.memory = guest.footprint()
        self._release(guest, watched, call.memory)
        return result

    def _acquire(self, call: Call, watched: bool) -> Guest:
        while True:
            with self._lock:
                guest = self._idle[watched].pop() if self._idle[watched] else None
            if guest is None:
                return self._compiled.guest(call, watched)
            if guest.begin(call):
                call.reused = True
                return guest
            guest.close()

    def _release(self, guest: Guest, watched: bool, memory: int) -> None:
        if self._program.reusable and memory <= KEPT_GUEST_BYTES:
            with self._lock:
                if not self._closed and len(self._idle[watched]) < _IDLE_GUESTS:
                    self._idle[watched].append(guest)
                    return
        guest.close()


class ScalarFunction(SandboxedFunction):
    """A function that maps columns to a column of as many rows.

    Parameters
    ----------
    code : bytes
        A binary module. Compiled once per process and digest.
    export : str
    arguments : sequence of SqlType
    returns : SqlType
    strict : bool
        ``RETURNS NULL ON NULL INPUT``: rows with a NULL are not passed to the guest. Bare scalar
        exports cannot see NULL and must be strict.
    limits : SandboxLimits

    Raises
    ------
    UdfValidationError
        The module is not acceptable, or the export does not fit the signature.
    UdfLimitError
        The module's memory starts larger than ``limits.max_memory_bytes``.
    """

    def __init__(
        self, code: bytes, export: str, arguments: Sequence[SqlType], returns: SqlType, *,
        strict: bool = True, limits: SandboxLimits | None = None,
    ) -> None:  # fmt: skip
        code, info, limits = inspected(code, export, limits)
        kind = check_signature(info, export, arguments, returns, strict)
        self.returns = returns
        self.strict = strict
        scalar = kind == "scalar"
        super().__init__(
            Program(
                code=code, sha256=info.sha256,
                driver=driver_code(tuple(arguments), returns) if scalar else None,
                export=export, arguments=tuple(arguments), returns=returns,
                limits=limits,
                reusable=info.stateless if scalar else info.resettable,
                resettable=info.resettable and not scalar,
            )
        )  # fmt: skip

    def call(self, columns: Sequence[Column], rows: int, budget: Budget | None = None) -> Column:
        """Return the function's value for every row, as a new column.

        Parameters
        ----------
        columns : sequence of Column
            One per argument, of the declared types, each of ``rows`` rows. Only read.
        rows : int
        budget : Budget, optional
            Of the statement; a fresh one when absent.

        Raises
        ------
        UdfTrapError, UdfLimitError, UdfError, InterruptError
            No part of the result survives, and the guest that failed is thrown away.
        """
        budget = Budget() if budget is None else budget
        self._check(columns, rows)
        if rows == 0:
            return empty(self.returns)
        keep = valid_rows(columns) if self.strict else None
        if keep is None:
            return self._run(columns, rows, budget)
        chosen = np.flatnonzero(keep)
        if len(chosen) == 0:
            return _scatter(empty(self.returns), keep)
        taken = [column.take(chosen) for column in columns]
        taken = [Column(c.type, c.values, c.offsets, None) for c in taken]
        return _scatter(self._run(taken, len(chosen), budget), keep)

    @property
    def lends(self) -> bool:
        """Whether guests may be lent to compiled code: bare scalar exports in this process."""
        return self._program.driver is not None and self.limits.backend == "wasmtime"

    def lend(self, work: Callable[[Lent], T], rows: int, budget: Budget) -> T | None:
        """Run work with a guest it may call for so many rows; None where there is no such guest.

        ``work`` may be begun anew in another thread, where it turns out to be long.

        Raises
        ------
        UdfTrapError, UdfLimitError, UdfError, InterruptError
            By ``Lent.check``. The guest is thrown away then.
        """

        def lent(guest: Guest, call: Call) -> T | None:
            found = guest.lend(call) if isinstance(guest, ScalarGuest) else None
            return None if found is None else work(found)

        return self._within_budget(lent, (), rows, budget)

    def _run(self, columns: Sequence[Column], rows: int, budget: Budget) -> Column:
        pieces = 1 if self._program.driver is not None else self._pieces(columns, rows)
        if pieces == 1:
            return self._batch(columns, rows, budget)
        size = -(-rows // pieces)
        parts = []
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            part = [c.slice(start, stop) if len(c) == rows else c for c in columns]
            parts.append(self._batch(part, stop - start, budget))
        return concat(self.returns, parts)

    def _pieces(self, columns: Sequence[Column], rows: int) -> int:
        """Return how many batches keep each under a quarter of the guest's memory."""
        size = sum(column.nbytes for column in columns)
        size += rows * self.returns.width * self.returns.dtype.itemsize
        wanted = max(-(-size // (self.limits.max_memory_bytes // 4)), -(-rows // MAX_BATCH_ROWS))
        return min(max(wanted, 1), rows)

    def _batch(self, columns: Sequence[Column], rows: int, budget: Budget) -> Column:
        return self._within_budget(
            lambda guest, call: guest.batch(columns, rows, call), columns, rows, budget
        )


def inspected(
    code: bytes, export: str, limits: SandboxLimits | None
) -> tuple[bytes, ModuleInfo, SandboxLimits]:
    """Return a module, what it declares, and its limits: defaults where there are none.

    Raises
    ------
    UdfValidationError
        The module is not acceptable.
    UdfLimitError
        Its memory starts larger than its limit.
    """
    code, limits = bytes(code), limits or SandboxLimits()
    info = inspect_module(code, allow=limits.allow)
    if info.memory_pages * WASM_PAGE > limits.max_memory_bytes:
        what = f"its memory starts with {info.memory_pages * WASM_PAGE} bytes"
        raise memory_error(export, limits, what)
    return code, info, limits


def valid_rows(columns: Sequence[Column]) -> np.ndarray | None:
    """Return where no argument is NULL, or None when that is everywhere."""
    keep: np.ndarray | None = None
    for column in columns:
        if column.validity is not None:
            keep = column.validity if keep is None else keep & column.validity
    return None if keep is None or keep.all() else keep


def _scatter(column: Column, keep: np.ndarray) -> Column:
    """Spread results over the rows where ``keep`` holds; the others are NULL."""
    validity = keep.copy()
    if column.validity is not None:
        validity[keep] = column.validity
    if column.offsets is not None:
        lengths = np.zeros(len(keep), dtype=np.int64)
        lengths[keep] = np.diff(column.offsets)
        offsets = np.zeros(len(keep) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        return Column(column.type, column.values, offsets, validity)
    values = np.zeros((len(keep), *column.values.shape[1:]), dtype=column.values.dtype)
    values[keep] = column.values
    return Column(column.type, values, None, validity)
