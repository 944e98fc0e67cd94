"""Table functions: one row to any number of rows of several columns.

The guest says how many rows each argument row gives, and provides the buffers of the columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tarsdb.columns import Column, concat, empty
from tarsdb.errors import UdfError
from tarsdb.options import SandboxLimits
from tarsdb.types import INT, SqlType
from tarsdb.udf_sandbox import outputs
from tarsdb.udf_sandbox.abi import BatchLayout
from tarsdb.udf_sandbox.backends import Guest, Program
from tarsdb.udf_sandbox.functions.function import (
    MAX_BATCH_ROWS,
    SandboxedFunction,
    inspected,
    valid_rows,
)
from tarsdb.udf_sandbox.guests import InstanceGuest
from tarsdb.udf_sandbox.limits import Budget, Call
from tarsdb.udf_sandbox.modules.module import check_columnar


class TableFunction(SandboxedFunction):
    """A function that maps each row to rows of its own.

    Parameters
    ----------
    code : bytes
    export : str
    arguments : sequence of SqlType
    columns : sequence of SqlType
        What its rows hold, at least one.
    strict : bool
        A row with a NULL argument gives no rows.
    limits : SandboxLimits

    Raises
    ------
    UdfValidationError, UdfLimitError
        As for :class:`~tarsdb.udf_sandbox.ScalarFunction`.
    """

    def __init__(
        self, code: bytes, export: str, arguments: Sequence[SqlType], columns: Sequence[SqlType],
        *, strict: bool = True, limits: SandboxLimits | None = None,
    ) -> None:  # fmt: skip
        code, info, limits = inspected(code, export, limits)
        check_columnar(info, export, arguments)
        self.columns = tuple(columns)
        self.strict = strict
        super().__init__(
            Program(
                code=code, sha256=info.sha256, driver=None, export=export,
                arguments=tuple(arguments), returns=self.columns[0],
                limits=limits, reusable=info.resettable,
                resettable=info.resettable, kind="table", columns=self.columns,
            )
        )  # fmt: skip

    def call(
        self, columns: Sequence[Column], rows: int, budget: Budget | None = None
    ) -> tuple[list[Column], np.ndarray]:
        """Return the rows that all argument rows give, and whose they are.

        Parameters
        ----------
        columns : sequence of Column
            One per argument, of the declared types, each of ``rows`` rows. Only read.
        rows : int
        budget : Budget, optional
            Of the statement; a fresh one when absent.

        Returns
        -------
        columns : list of Column
            Of the declared types.
        offsets : int64 (rows + 1,)
            Rows ``offsets[i]`` to ``offsets[i + 1]`` come from argument row i.

        Raises
        ------
        UdfTrapError, UdfLimitError, UdfError, InterruptError
            No part of the result survives, and the guest that failed is thrown away.
        """
        budget = Budget() if budget is None else budget
        self._check(columns, rows)
        keep = valid_rows(columns) if self.strict else None
        chosen = np.arange(rows) if keep is None else np.flatnonzero(keep)
        if keep is not None:
            columns = [column.take(chosen) for column in columns]
            columns = [Column(c.type, c.values, c.offsets, None) for c in columns]
        parts = [
            self._batch(columns, start, min(start + MAX_BATCH_ROWS, len(chosen)), budget)
            for start in range(0, len(chosen), MAX_BATCH_ROWS)
        ]
        counts = np.zeros(rows, dtype=np.int64)
        if parts:
            counts[chosen] = np.concatenate([part[0].values for part in parts])
        found = [
            concat(sql_type, [part[number + 1] for part in parts]) if parts else empty(sql_type)
            for number, sql_type in enumerate(self.columns)
        ]
        return found, np.concatenate(([0], np.cumsum(counts)))

    def _batch(
        self, columns: Sequence[Column], start: int, stop: int, budget: Budget
    ) -> list[Column]:
        part = [column.slice(start, stop) for column in columns]

        def work(guest: Guest, call: Call) -> list[Column]:
            assert isinstance(guest, TableGuest)
            return guest.tables(part, stop - start, call)

        return self._within_budget(work, part, stop - start, budget)


class TableGuest(InstanceGuest):
    """An export of the columnar interface with a count of rows before its columns."""

    def batch(self, columns: Sequence[Column], rows: int, call: Call) -> Column:
        """Return how many rows each of ``rows`` rows gives."""
        return self.tables(columns, rows, call)[0]

    def tables(self, columns: Sequence[Column], rows: int, call: Call) -> list[Column]:
        """Return the counts of ``rows`` rows, then the columns of all rows they give."""
        types = self.program.columns
        layout = BatchLayout(columns, (INT, *types), rows, prepared=1)
        self.reset(call)
        base = layout.write(*self.allocate(call, layout.size))
        self.ask(self.program.export, call, base, rows)
        memory, name = self.instance.memory(), call.function
        counts = layout.read(memory, base, name)
        if counts.validity is not None or (counts.values < 0).any():
            row = int(np.argmin(counts.values if counts.validity is None else counts.validity))
            raise UdfError(f"function {name}: row {row} gives {counts.get(row)} rows")
        total = int(counts.values.sum(dtype=np.int64))
        found = [layout.read(memory, base, name, number + 1, total) for number in range(len(types))]
        return [counts, *(outputs.checked(column, name) for column in found)]
