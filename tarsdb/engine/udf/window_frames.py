"""Rows that aggregate functions of ours see through window frames: collected once, by their place.

The text hands every row's place and arguments over before it asks about frames, which are places
from one to another (``sql.frames``). A function that merges states answers from a tree of them; for
another one the rows of some frames at a time are put side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import Column, concat, empty
from tarsdb.engine.arrow import from_arrow
from tarsdb.errors import InternalError
from tarsdb.schema import FunctionDef

if TYPE_CHECKING:
    from tarsdb.engine.by_duckdb.relational import Inputs

FRAMED_ROWS = 1 << 18
"""Rows of frames put side by side at a time, where one frame does not have more."""


class PlacedRows:
    """The arguments of one windowed function, for every row.

    Parameters
    ----------
    function : FunctionDef
    inputs : Inputs
        Runs it.
    """

    def __init__(self, function: FunctionDef, inputs: Inputs) -> None:
        self._function = function
        self._inputs = inputs
        self._places: list[np.ndarray] = []
        self._kept: list[np.ndarray] = []
        self._arguments: list[list[Column]] = []
        self._columns: list[Column] | None = None  # of the rows that count, once all are there
        self._before = np.zeros(1, np.int64)  # how many rows count before each place
        self._tree: Any = None

    def add(self, places: Any, kept: Any, arguments: Sequence[Column]) -> Any:
        """Take rows in: their places from 1 on, and whether FILTER lets them count."""
        if self._columns is not None:
            raise InternalError(f"{self._function.name}: a row comes after the first frame")
        keep = np.asarray(kept).astype(bool)
        if self._function.strict:
            for column in arguments:
                if column.validity is not None:
                    keep = keep & column.validity
        self._places.append(np.asarray(places, dtype=np.int64))
        self._kept.append(keep)
        self._arguments.append([column.owned() for column in arguments])
        return places

    def frames(self, first: Any, last: Any) -> Column:
        """Return the value of frames, which go from one place to another; NULL to NULL is empty."""
        columns = self._complete()
        low = np.asarray(first.fill_null(1), dtype=np.int64)
        high = np.asarray(last.fill_null(0), dtype=np.int64)
        if len(low) and (low.min() < 1 or high.max() >= len(self._before)):
            raise InternalError(f"{self._function.name}: a frame ends outside of its rows")
        starts, stops = self._before[low - 1], self._before[high]
        if self._tree is not None:
            return self._inputs.call_frames(self._function, self._tree, starts, stops)
        parts = [
            self._side_by_side(columns, starts[p], stops[p]) for p in _portions(stops - starts)
        ]
        return concat(self._function.returns, parts) if parts else empty(self._function.returns)

    def _side_by_side(self, columns: list[Column], starts: np.ndarray, stops: np.ndarray) -> Column:
        offsets = np.concatenate(([0], np.cumsum(stops - starts)))
        rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], stops - starts)
        return self._inputs.call_aggregate(
            self._function, [column.take(rows) for column in columns], offsets
        )

    def _complete(self) -> list[Column]:
        """Put the rows in their order; once."""
        if self._columns is not None:
            return self._columns
        places, keep = np.concatenate(self._places), np.concatenate(self._kept)
        order = np.argsort(places, kind="stable")
        if not np.array_equal(places[order], np.arange(1, len(places) + 1)):
            raise InternalError(f"{self._function.name}: rows of a window are missing or doubled")
        keep = keep[order]
        self._before = np.concatenate(([0], np.cumsum(keep)))
        chosen = order[keep]
        self._columns = [
            concat(sql_type, parts).take(chosen)
            for (_, sql_type), parts in zip(
                self._function.arguments, zip(*self._arguments, strict=True), strict=True
            )
        ]
        self._arguments.clear()
        self._tree = self._inputs.aggregate_tree(self._function, self._columns)
        return self._columns


def _portions(lengths: np.ndarray) -> Iterator[slice]:
    """Yield runs of frames that have at most ``FRAMED_ROWS`` rows together, or are one frame."""
    start, ends = 0, np.cumsum(lengths)
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + FRAMED_ROWS, side="right"))
        stop = max(stop, start + 1)
        yield slice(start, stop)
        start = stop


def place(running: Any, function: FunctionDef, arrays: Sequence[Any]) -> Any:
    """Answer ``__placed_f(number, place, kept, arguments...)``: the place."""
    number, places, kept, *given = arrays
    arguments = [
        from_arrow(array, sql_type, f"{function.name}({name})")
        for array, (name, sql_type) in zip(given, function.arguments, strict=True)
    ]
    rows = running.placed.get(key := number[0].as_py())
    if rows is None:
        rows = running.placed[key] = PlacedRows(function, running.inputs)
    return rows.add(places, kept, arguments)


def frame(running: Any, function: FunctionDef, arrays: Sequence[Any]) -> Column:
    """Answer ``__framed_f(number, first place, last place)``."""
    number, first, last = arrays
    answer: Column = running.placed[number[0].as_py()].frames(first, last)
    return answer
