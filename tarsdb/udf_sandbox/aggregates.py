"""Aggregate functions: many rows of a group to one value, in states that the guest keeps.

All groups of a call are stepped together: a call into the guest takes a batch of rows, and the
number of the group of each. Knows no SQL: rows come sorted by group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from tarsdb.columns import Column, concat, empty
from tarsdb.errors import UdfError, UdfValidationError
from tarsdb.options import SandboxLimits
from tarsdb.types import BIGINT, SqlType
from tarsdb.udf_sandbox import outputs
from tarsdb.udf_sandbox.abi import ALIGNMENT, BatchLayout
from tarsdb.udf_sandbox.backends import Program
from tarsdb.udf_sandbox.function import MAX_BATCH_ROWS, SandboxedFunction, fitting, valid_rows
from tarsdb.udf_sandbox.guests import InstanceGuest
from tarsdb.udf_sandbox.limits import Budget, Call
from tarsdb.udf_sandbox.module import ModuleInfo, check_arity, inspect_module
from tarsdb.udf_sandbox.sections import FuncType

MAX_STATE_BYTES = 1 << 20
PARTS = {
    "state_size": FuncType((), ("i32",)),
    "init": FuncType(("i32", "i32"), ("i32",)),
    "step": FuncType(("i32",) * 4, ("i32",)),
    "final": FuncType(("i32",) * 3, ("i32",)),
}
"""Exports of an aggregate function ``f``, each called ``f_<part>``, and their types."""


def check_aggregate(info: ModuleInfo, export: str, arguments: Sequence[SqlType]) -> None:
    """Check that a module exports an aggregate function.

    Raises
    ------
    UdfValidationError
        Naming the export that is missing or has another type.
    """
    check_arity(export, arguments)
    if not info.columnar:
        raise UdfValidationError(
            f"aggregate function {export} needs a module that exports memory, tars_alloc and the "
            "global tars_abi_v1",
            hint="see docs/udf-abi.md",
        )
    for part, wanted in PARTS.items():
        found = info.functions.get(f"{export}_{part}")
        if found != wanted:
            what = "nothing" if found is None else str(found)
            raise UdfValidationError(
                f"aggregate function {export} needs the export {export}_{part} of type {wanted}, "
                f"the module has {what}",
                hint="see docs/udf-abi.md",
            )


class AggregateFunction(SandboxedFunction):
    """A function that maps the rows of each group to one value.

    Parameters
    ----------
    code : bytes
    export : str
        The stem of the exports in :data:`PARTS`.
    arguments : sequence of SqlType
    returns : SqlType
    strict : bool
        Rows with a NULL argument are left out.
    limits : SandboxLimits

    Raises
    ------
    UdfValidationError, UdfLimitError
        As for :class:`~tarsdb.udf_sandbox.ScalarFunction`.
    """

    def __init__(
        self, code: bytes, export: str, arguments: Sequence[SqlType], returns: SqlType, *,
        strict: bool = True, limits: SandboxLimits | None = None,
    ) -> None:  # fmt: skip
        info = inspect_module(bytes(code), allow=() if limits is None else limits.allow)
        check_aggregate(info, export, arguments)
        self.returns = returns
        self.strict = strict
        super().__init__(
            Program(
                code=bytes(code), sha256=info.sha256, driver=None, export=export,
                arguments=tuple(arguments), returns=returns, limits=fitting(info, export, limits),
                reusable=info.resettable, resettable=info.resettable, kind="aggregate",
            )
        )  # fmt: skip

    def call(
        self, columns: Sequence[Column], offsets: np.ndarray, budget: Budget | None = None
    ) -> Column:
        """Return one value for each group.

        Parameters
        ----------
        columns : sequence of Column
            One per argument, the rows of a group side by side. Only read.
        offsets : int (groups + 1,)
            Rows ``offsets[g]`` to ``offsets[g + 1]`` are group g's; a group may have none.
        budget : Budget, optional
            Of the statement; a fresh one when absent.

        Raises
        ------
        UdfTrapError, UdfLimitError, UdfError, InterruptError
            No part of the result survives, and the guest that failed is thrown away.
        """
        budget = Budget() if budget is None else budget
        rows = int(offsets[-1])
        self._check(columns, rows)
        keep = valid_rows(columns) if self.strict else None
        if keep is not None:
            before = np.concatenate(([0], np.cumsum(keep)))
            columns, offsets = [column.take(keep) for column in columns], before[offsets]
            columns = [Column(c.type, c.values, c.offsets, None) for c in columns]
        groups = len(offsets) - 1
        if groups == 0:
            return empty(self.returns)
        given = [Column(BIGINT, np.asarray(offsets, dtype=np.int64)), *columns]
        return self._within_budget(
            lambda guest, call: guest.batch(given, groups, call), given, rows + groups, budget
        )


class AggregateGuest(InstanceGuest):
    """The exports of one aggregate function."""

    def batch(self, columns: Sequence[Column], rows: int, call: Call) -> Column:
        """Return the values of ``rows`` groups; the first column has their offsets."""
        offsets, export = columns[0].values, self.program.export
        size = self.instance.invoke(f"{export}_state_size", call)
        if not 1 <= size <= MAX_STATE_BYTES:
            raise UdfError(
                f"function {call.function}: {export}_state_size gave {size}, "
                f"expected 1..{MAX_STATE_BYTES}"
            )
        room = max(self.program.limits.max_memory_bytes // 4 // size, 1)
        parts = []
        for first in range(0, rows, room):
            bounds = offsets[first : min(first + room, rows) + 1]
            taken = [column.slice(int(bounds[0]), int(bounds[-1])) for column in columns[1:]]
            parts.append(self._groups(taken, bounds - bounds[0], size, call))
        return parts[0] if len(parts) == 1 else concat(self.program.returns, parts)

    def _groups(
        self, columns: Sequence[Column], offsets: np.ndarray, size: int, call: Call
    ) -> Column:
        """Return the values of groups whose states fit the guest's memory together."""
        export, groups = self.program.export, len(offsets) - 1
        self.reset(call)
        states = self._aligned(call, groups * size)
        self.ask(f"{export}_init", call, states, groups)
        numbers = np.repeat(np.arange(groups, dtype="<i4"), np.diff(offsets))
        batches = list(self._batches(columns, len(numbers)))
        if batches:
            _, region = self.allocate(call, max(layout.size for _, layout in batches))
            named = self._aligned(call, 4 * max(layout.rows for _, layout in batches))
        for start, layout in batches:
            memory = self.instance.memory()
            part = numbers[start : start + layout.rows].view(np.uint8)
            memory[named : named + len(part)] = part
            base = layout.write(memory, region)
            self.ask(f"{export}_step", call, states, named, base, layout.rows)
        layout = BatchLayout((), (self.program.returns,), groups)
        base = layout.write(*self.allocate(call, layout.size))
        self.ask(f"{export}_final", call, states, groups, base)
        column = layout.read(self.instance.memory(), base, call.function)
        return outputs.checked(column, call.function)

    def _aligned(self, call: Call, size: int) -> int:
        _, region = self.allocate(call, size + ALIGNMENT)
        return -(-region // ALIGNMENT) * ALIGNMENT

    def _batches(self, columns: Sequence[Column], rows: int) -> Iterator[tuple[int, BatchLayout]]:
        """Yield batches of at most a quarter of the guest's memory: first row and layout."""
        size = sum(column.nbytes for column in columns)
        wanted = -(-size // (self.program.limits.max_memory_bytes // 4))
        step = max(min(-(-rows // max(wanted, 1)), MAX_BATCH_ROWS), 1)
        for start, stop in pairwise([*range(0, rows, step), rows]):
            yield start, BatchLayout([c.slice(start, stop) for c in columns], (), stop - start)
