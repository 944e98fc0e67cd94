"""Aggregate functions: many rows of a group to one value, in states that the guest keeps.

All groups of a call are stepped together: a call into the guest takes a batch of rows, and the
number of the group of each. Where the module can merge states, guests on several threads share the
rows of a large call. Knows no SQL: rows come sorted by group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from tarsdb.columns import Column, concat, empty
from tarsdb.errors import UdfError, UdfValidationError
from tarsdb.options import SandboxLimits
from tarsdb.records import dataclass
from tarsdb.types import BIGINT, BOOLEAN, SqlType
from tarsdb.udf_sandbox import outputs
from tarsdb.udf_sandbox.abi import ALIGNMENT, BatchLayout
from tarsdb.udf_sandbox.backends import Guest, Program
from tarsdb.udf_sandbox.functions.function import (
    MAX_BATCH_ROWS,
    SandboxedFunction,
    inspected,
    valid_rows,
)
from tarsdb.udf_sandbox.guests import InstanceGuest
from tarsdb.udf_sandbox.limits import Budget, Call
from tarsdb.udf_sandbox.modules.module import ModuleInfo, check_arity
from tarsdb.udf_sandbox.modules.sections import FuncType

MAX_STATE_BYTES = 1 << 20
PARTS = {
    "state_size": FuncType((), ("i32",)),
    "init": FuncType(("i32", "i32"), ("i32",)),
    "step": FuncType(("i32",) * 4, ("i32",)),
    "final": FuncType(("i32",) * 3, ("i32",)),
}
"""Exports of an aggregate function ``f``, each called ``f_<part>``, and their types."""
MERGE = FuncType(("i32",) * 3, ("i32",))
"""Type of ``f_merge``, which a module may export too."""
PARALLEL_ROWS = 1 << 18
"""Rows for which another thread pays."""
MOST_TREE_BYTES = 256 << 20
"""Bytes of the states of a :class:`StateTree`."""


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
    optional = {"merge": MERGE} if f"{export}_merge" in info.functions else {}
    for part, wanted in {**PARTS, **optional}.items():
        found = info.functions.get(f"{export}_{part}")
        if found != wanted:
            what = "nothing" if found is None else str(found)
            raise UdfValidationError(
                f"aggregate function {export} needs the export {export}_{part} of type {wanted}, "
                f"the module has {what}",
                hint="see docs/udf-abi.md",
            )


@dataclass(frozen=True, slots=True)
class StateTree:
    """States of runs of rows: ``levels[k][i]`` is that of rows i * 2**k to (i + 1) * 2**k.

    Attributes
    ----------
    levels : list of uint8 (rows >> k, state size)
    """

    levels: list[np.ndarray]


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
        code, info, limits = inspected(code, export, limits)
        check_aggregate(info, export, arguments)
        self.returns = returns
        self.strict = strict
        self._size = 0  # of a state, once it was asked for
        self._merges = f"{export}_merge" in info.functions
        super().__init__(
            Program(
                code=code, sha256=info.sha256, driver=None, export=export,
                arguments=tuple(arguments), returns=returns, limits=limits,
                reusable=info.resettable, resettable=info.resettable, kind="aggregate",
            )
        )  # fmt: skip

    def call(
        self, columns: Sequence[Column], offsets: np.ndarray, budget: Budget | None = None,
        threads: int = 1,
    ) -> Column:  # fmt: skip
        """Return one value for each group.

        Parameters
        ----------
        columns : sequence of Column
            One per argument, the rows of a group side by side. Only read.
        offsets : int (groups + 1,)
            Rows ``offsets[g]`` to ``offsets[g + 1]`` are group g's; a group may have none.
        budget : Budget, optional
            Of the statement; a fresh one when absent.
        threads : int
            Threads to use at most.

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
        offsets, rows = np.asarray(offsets, dtype=np.int64), int(offsets[-1])
        shares = min(threads, rows // PARALLEL_ROWS) if self._merges else 1
        if shares > 1 and groups * self._state_size(budget) <= self.limits.max_memory_bytes // 8:
            return self._shared(columns, offsets, budget, shares)
        given = [Column(BIGINT, offsets), *columns]
        return self._within_budget(
            lambda guest, call: guest.batch(given, groups, call), given, rows + groups, budget
        )

    def _state_size(self, budget: Budget) -> int:
        if self._size == 0:
            self._size = self._within_budget(
                lambda guest, call: _own(guest).state_size(call), (), 0, budget
            )
        return self._size

    def _shared(
        self, columns: Sequence[Column], offsets: np.ndarray, budget: Budget, shares: int
    ) -> Column:
        """Step shares of the rows in guests of their own, then merge the states in one."""
        bounds, groups = np.linspace(0, offsets[-1], shares + 1).astype(np.int64), len(offsets) - 1

        def states(bound: tuple[int, int]) -> Column:
            start, stop = bound
            part = [column.slice(start, stop) for column in columns]
            within = np.clip(offsets, start, stop) - start
            return self._within_budget(
                lambda guest, call: _own(guest).states(part, within, call),
                part, stop - start + groups, budget,
            )  # fmt: skip

        with ThreadPoolExecutor(shares, thread_name_prefix="tarsdb-aggregate") as pool:
            found = list(pool.map(states, pairwise(bounds.tolist())))
        return self._within_budget(
            lambda guest, call: _own(guest).merged(found, groups, call), found, groups, budget
        )

    def tree(self, columns: Sequence[Column], budget: Budget) -> StateTree | None:
        """Return the states of runs of rows, None where the module cannot merge or they are large.

        Parameters
        ----------
        columns : sequence of Column
            One per argument, of rows that are all to be stepped.
        budget : Budget
        """
        rows = len(columns[0])
        self._check(columns, rows)
        if not self._merges or 2 * rows * self._state_size(budget) > MOST_TREE_BYTES:
            return None
        levels = self._within_budget(
            lambda guest, call: _own(guest).tree(columns, call), columns, 2 * rows, budget
        )
        size = self._state_size(budget)
        return StateTree([level.values.reshape(-1, size) for level in levels])

    def framed(
        self, tree: StateTree, starts: np.ndarray, stops: np.ndarray, budget: Budget
    ) -> Column:
        """Return the value of each frame, of a tree's rows ``starts[i]`` to ``stops[i]``.

        Parameters
        ----------
        tree : StateTree
        starts, stops : int64 (frames,)
        budget : Budget
        """
        if len(starts) == 0:
            return empty(self.returns)
        merges = 2 * int(np.ceil(np.log2(np.maximum(stops - starts, 1) + 1)).sum())
        return self._within_budget(
            lambda guest, call: _own(guest).framed(tree, starts, stops, call),
            (), merges + 2 * len(starts), budget,
        )  # fmt: skip


def _own(guest: Guest) -> AggregateGuest:
    assert isinstance(guest, AggregateGuest)  # its program is an aggregate function
    return guest


class AggregateGuest(InstanceGuest):
    """The exports of one aggregate function."""

    def batch(self, columns: Sequence[Column], rows: int, call: Call) -> Column:
        """Return the values of ``rows`` groups; the first column has their offsets."""
        offsets, size = columns[0].values, self.state_size(call)
        room = max(self.program.limits.max_memory_bytes // 4 // size, 1)
        parts = []
        for first in range(0, rows, room):
            bounds = offsets[first : min(first + room, rows) + 1]
            taken = [column.slice(int(bounds[0]), int(bounds[-1])) for column in columns[1:]]
            parts.append(self._groups(taken, bounds - bounds[0], size, call))
        return parts[0] if len(parts) == 1 else concat(self.program.returns, parts)

    def states(self, columns: Sequence[Column], offsets: np.ndarray, call: Call) -> Column:
        """Return the states of groups after some of their rows, a byte a row."""
        size = (len(offsets) - 1) * self.state_size(call)
        at = self._stepped(columns, offsets, size, call)
        return Column(BOOLEAN, self._states(at, size, call).copy())

    def merged(self, parts: Sequence[Column], groups: int, call: Call) -> Column:
        """Return the values of groups whose rows were stepped in several guests."""
        size = groups * self.state_size(call)
        self.reset(call)
        states, others = self._aligned(call, size), self._aligned(call, size)
        for number, part in enumerate(parts):
            if len(part) != size:
                raise UdfError(f"function {call.function}: its states changed their size")
            at = others if number else states
            self.instance.memory()[at : at + size] = part.values
            if number:
                self.ask(f"{self.program.export}_merge", call, states, others, groups)
        return self._final(states, groups, call)

    def tree(self, columns: Sequence[Column], call: Call) -> list[Column]:
        """Return the levels of a :class:`StateTree` over rows, a byte a row."""
        size = self.state_size(call)
        parts = []
        for start, stop in pairwise(
            [*range(0, len(columns[0]), self._room(size)), len(columns[0])]
        ):
            part = [column.slice(start, stop) for column in columns]
            parts.append(self.states(part, np.arange(stop - start + 1), call).values)
        levels = [np.concatenate(parts or [np.zeros(0, np.uint8)]).reshape(-1, size)]
        while (pairs := len(levels[-1]) // 2) > 0:
            below = levels[-1]
            levels.append(self._merged(below[: 2 * pairs : 2], below[1 : 2 * pairs : 2], call))
        return [Column(BOOLEAN, level.reshape(-1)) for level in levels]

    def framed(self, tree: StateTree, starts: np.ndarray, stops: np.ndarray, call: Call) -> Column:
        """Return the values of frames, each from the runs that lie whole in it."""
        low, high, size = starts.copy(), stops.copy(), self.state_size(call)
        if tree.levels[0].shape[1] != size:
            raise UdfError(f"function {call.function}: its states changed their size")
        room, parts = self._room(size), []
        for first in range(0, len(low), room):
            part = slice(first, min(first + room, len(low)))
            parts.append(self._framed(tree, low[part], high[part], call))
        return parts[0] if len(parts) == 1 else concat(self.program.returns, parts)

    def _framed(self, tree: StateTree, low: np.ndarray, high: np.ndarray, call: Call) -> Column:
        frames, size = len(low), tree.levels[0].shape[1]
        rows = [empty(sql_type) for sql_type in self.program.arguments]
        none = self.states(rows, np.zeros(frames + 1, np.int64), call)
        left = none.values.reshape(frames, size)
        right = left.copy()
        for level in tree.levels:
            odd = np.flatnonzero((low < high) & (low & 1 == 1))
            left[odd] = self._merged(left[odd], level[low[odd]], call)
            low[odd] += 1
            odd = np.flatnonzero((low < high) & (high & 1 == 1))
            high[odd] -= 1
            right[odd] = self._merged(level[high[odd]], right[odd], call)
            low, high = low >> 1, high >> 1
        return self._final(self._loaded(left, right, call), frames, call)

    def _room(self, size: int) -> int:
        """Return for how many states the guest's memory has room, twice."""
        return max(self.program.limits.max_memory_bytes // 4 // size, 1)

    def _merged(self, states: np.ndarray, others: np.ndarray, call: Call) -> np.ndarray:
        """Return states, uint8 (n, size), after they took in as many others."""
        room, merged = self._room(states.shape[1]), np.empty_like(states, order="C")
        for first in range(0, len(states), room):
            part = slice(first, min(first + room, len(states)))
            at = self._loaded(states[part], others[part], call)
            merged[part] = self._states(at, states[part].size, call).reshape(-1, states.shape[1])
        return merged

    def _loaded(self, states: np.ndarray, others: np.ndarray, call: Call) -> int:
        """Merge states in the guest's memory; return where they lie."""
        size = states.size
        self.reset(call)
        at, other = self._aligned(call, size), self._aligned(call, size)
        memory = self.instance.memory()
        memory[at : at + size] = states.reshape(-1)
        memory[other : other + size] = others.reshape(-1)
        self.ask(f"{self.program.export}_merge", call, at, other, len(states))
        return at

    def _states(self, at: int, size: int, call: Call) -> np.ndarray:
        memory = self.instance.memory()
        if at + size > len(memory):
            raise UdfError(f"function {call.function}: {size} bytes of states at {at} are gone")
        return memory[at : at + size]

    def state_size(self, call: Call) -> int:
        """Return how many bytes the guest says the state of a group takes."""
        export = self.program.export
        size = self.instance.invoke(f"{export}_state_size", call)
        if not 1 <= size <= MAX_STATE_BYTES:
            raise UdfError(
                f"function {call.function}: {export}_state_size gave {size}, "
                f"expected 1..{MAX_STATE_BYTES}"
            )
        return size

    def _groups(
        self, columns: Sequence[Column], offsets: np.ndarray, size: int, call: Call
    ) -> Column:
        """Return the values of groups whose states fit the guest's memory together."""
        groups = len(offsets) - 1
        return self._final(self._stepped(columns, offsets, groups * size, call), groups, call)

    def _stepped(
        self, columns: Sequence[Column], offsets: np.ndarray, size: int, call: Call
    ) -> int:
        """Make states of ``size`` bytes in all and step all rows; return where they lie."""
        export, groups = self.program.export, len(offsets) - 1
        self.reset(call)
        states = self._aligned(call, size)
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
        return states

    def _final(self, states: int, groups: int, call: Call) -> Column:
        layout = BatchLayout((), (self.program.returns,), groups)
        base = layout.write(*self.allocate(call, layout.size))
        self.ask(f"{self.program.export}_final", call, states, groups, base)
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
