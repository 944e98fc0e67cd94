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
from tarsdb.engine.result import Result
from tarsdb.engine.search import vector_search
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import PointLookup
from tarsdb.storage import TableView
from tarsdb.types import Kind, presenter

# Kinds whose Python integers are storage values already: least and greatest.
_PLAIN: dict[Kind, tuple[int, int]] = {
    Kind.INT: (-(2**31), 2**31 - 1),
    Kind.BIGINT: (-(2**63), 2**63 - 1),
}


class _Shape:
    """What a point plan needs at run time; ``shows`` is None where outputs are expressions."""

    def __init__(self, plan: PointLookup) -> None:
        self.names, self.types = project.header(plan.outputs)
        self.keys = [
            (node, ex.ColumnRef(plan.table.column_by_id(column_id)))
            for node, column_id in zip(plan.key, plan.index.column_ids, strict=True)
        ]
        self.plain = [_PLAIN.get(column.column.type.kind) for _, column in self.keys]
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
    rowids = _rowids(context, plan, shape, view)
    if shape.shows is None:
        columns = project.project(context, view, rowids, plan.predicate, plan.outputs)
        return Result(shape.names, shape.types, columns=columns)
    rows = []
    stored: list[list[Any]] = [[] for _ in shape.shows]
    for rowid in rowids.tolist():
        row = view.row(rowid, shape.columns)
        if row is not None:
            rows.append(
                tuple([row[i] if show is None else show(row[i]) for i, show in shape.shows])
            )
            for values, (i, _) in zip(stored, shape.shows, strict=True):
                values.append(row[i])
    return Result.short(shape.names, shape.types, rows, stored)


def _rowids(context: Context, plan: PointLookup, shape: _Shape, view: TableView) -> np.ndarray:
    key = []
    for (node, column), plain in zip(shape.keys, shape.plain, strict=True):
        if isinstance(node, ex.Parameter):
            item = context.parameter(node.key)
        else:
            item = context.constant(node)
        if plain is not None and type(item) is int and plain[0] <= item <= plain[1]:
            key.append(item)
            continue
        try:
            item = access.exact_key(item, column)
        except access.NoKey:
            found = vector_search.filtered_rowids(context, view, _terms(plan))
            return np.empty(0, np.int64) if found is None else found
        if item is None:
            return np.empty(0, np.int64)
        key.append(item)
    return view.find(plan.index, tuple(key))


def _terms(plan: PointLookup) -> ex.Expr:
    """Return the key as a predicate, for a constant that has no exact form in the key's type."""
    terms: list[ex.Expr] = [
        ex.Compare("=", ex.ColumnRef(plan.table.column_by_id(column_id)), node)
        for node, column_id in zip(plan.key, plan.index.column_ids, strict=True)
    ]
    return ex.And(tuple(terms)) if len(terms) > 1 else terms[0]
