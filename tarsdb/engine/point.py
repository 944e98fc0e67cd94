"""Point reads: one row by a unique key, in as little Python as it takes.

What the plan alone decides (columns to fetch, how to show them) is worked out once and kept with
the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tarsdb.engine.context import Context
from tarsdb.engine.reading import access, project
from tarsdb.engine.reading.key_lookup import KeyLookup
from tarsdb.engine.result import Result
from tarsdb.engine.search import vector_search
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import PointLookup
from tarsdb.storage import TableView
from tarsdb.types import presenter


class _Shape:
    """What a point plan needs at run time; ``shows`` is None where outputs are expressions."""

    def __init__(self, plan: PointLookup) -> None:
        self.names, self.types = project.header(plan.outputs)
        self.lookup = KeyLookup(plan.table, plan.index, plan.key)
        self.columns: list[int] = []
        self.shows: list[tuple[int, Callable[[Any], Any] | None]] | None = []
        for output in plan.outputs:
            node = output.expr
            if not isinstance(node, ex.ColumnRef) or plan.predicate is not None:
                self.shows = None
                return
            if node.column.id not in self.columns:
                self.columns.append(node.column.id)
            place = self.columns.index(node.column.id)
            self.shows.append((place, presenter(node.column.type)))


def lookup(context: Context, plan: PointLookup) -> Result:
    """Run a point read."""
    shape: _Shape | None = plan.memo.get("shape")
    if shape is None:
        shape = plan.memo["shape"] = _Shape(plan)
    view = context.view(plan.table)
    rowids = _rowids(context, shape.lookup, view)
    if shape.shows is None:
        found = np.array(rowids, dtype=np.int64)
        columns = project.project(context, view, found, plan.predicate, plan.outputs)
        return Result(shape.names, shape.types, columns=columns)
    rows = []
    stored: list[list[Any]] = [[] for _ in shape.shows]
    for rowid in rowids:
        row = view.row(rowid, shape.columns)
        if row is not None:
            rows.append(
                tuple([row[i] if show is None else show(row[i]) for i, show in shape.shows])
            )
            for values, (i, _) in zip(stored, shape.shows, strict=True):
                values.append(row[i])
    return Result.short(shape.names, shape.types, rows, stored)


def _rowids(context: Context, lookup: KeyLookup, view: TableView) -> list[int]:
    try:
        rowid = lookup.rowid(context, view)
    except access.NoKey:
        found = vector_search.filtered_rowids(context, view, lookup.terms())
        return [] if found is None else found.tolist()
    return [] if rowid < 0 else [rowid]
