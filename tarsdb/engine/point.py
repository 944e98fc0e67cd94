"""Point reads: one row by a unique key, in as little Python as it takes.

What the plan alone decides (columns to fetch, how to show them) is worked out once and kept with
the plan.
"""

from __future__ import annotations

import numpy as np

from tarsdb.engine.context import Context
from tarsdb.engine.reading import access, found_rows, project
from tarsdb.engine.reading.key_lookup import KeyLookup
from tarsdb.engine.result import Result
from tarsdb.engine.search import filtered_rows
from tarsdb.sql.plan import PointLookup
from tarsdb.storage import TableView


class _Shape(found_rows.Shape):
    """What a point plan needs at run time."""

    def __init__(self, plan: PointLookup) -> None:
        super().__init__(plan.outputs)
        self.lookup = KeyLookup(plan.table, plan.index, plan.key)
        self.ids = None
        if plan.predicate is None and self.columns is not None:
            self.ids = [column.id for column in self.columns]


def lookup(context: Context, plan: PointLookup) -> Result:
    """Run a point read."""
    shape: _Shape | None = plan.memo.get("shape")
    if shape is None:
        shape = plan.memo["shape"] = _Shape(plan)
    view = context.view(plan.table)
    rowids = _rowids(context, shape.lookup, view)
    if shape.ids is None:
        found = np.array(rowids, dtype=np.int64)
        columns = project.project(context, view, found, plan.predicate, plan.outputs)
        return Result(shape.names, shape.types, columns=columns)
    rows = [row for rowid in rowids if (row := view.row(rowid, shape.ids)) is not None]
    values = map(list, zip(*rows, strict=True)) if rows else ([] for _ in shape.ids)
    return shape.result(list(values))


def _rowids(context: Context, lookup: KeyLookup, view: TableView) -> list[int]:
    try:
        rowid = lookup.rowid(context, view)
    except access.NoKey:
        found = filtered_rows.filtered_rowids(context, view, lookup.terms())
        return [] if found is None else found.tolist()
    return [] if rowid < 0 else [rowid]
