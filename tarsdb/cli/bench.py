"""``tarsdb bench``: recall and speed of a column's indexes, measured on rows of the table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from tarsdb.cli import render
from tarsdb.cli.running import interruptibly
from tarsdb.database import connect
from tarsdb.engine.context import Context
from tarsdb.engine.search import recall, vector_index
from tarsdb.errors import CatalogError, DataError, NotSupportedError, OperationalError
from tarsdb.kernels import dispatch, graph, ivf
from tarsdb.schema import ColumnDef, IndexDef, TableDef
from tarsdb.types import Kind

HEADER = ("search", "operator", "effort", "recall", "p50_us", "p99_us", "qps", "note")
_Row = tuple[Any, ...]


def bench(arguments: argparse.Namespace) -> int:
    """Print recall and times of each effort, and of exact search; the file is only read."""
    if not os.path.exists(arguments.file):
        raise OperationalError(f"{arguments.file!r} does not exist", hint="check the path")
    for name in ("k", "queries"):
        if getattr(arguments, name) < 1:
            raise DataError(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    size = arguments.queries, arguments.k
    with connect(arguments.file, read_only=True) as db:
        session = db._require_session()

        def work(context: Context) -> list[_Row]:
            _compile(context)
            table, column = _column(context, arguments.table, arguments.column)
            return list(_rows(context, table, column, size))

        rows = interruptibly(db, lambda: session.inspect(work))
    render.WRITERS[arguments.format](HEADER, rows, sys.stdout)
    return 0


def _compile(context: Context) -> None:
    """Have the kernels ready: what is measured is the searching."""
    for kind in ("f32", "f16", "i8", "bit", *dispatch.CODED):
        dispatch.prepare(kind)
    dispatch.wait()
    context.engines.interrupt.check()
    graph.wait()
    ivf.wait()


def _column(context: Context, table_name: str, name: str | None) -> tuple[TableDef, ColumnDef]:
    table = context.catalog.table(table_name)
    if table is None:
        known = ", ".join(t.name for t in context.catalog.tables()) or "none"
        raise CatalogError(f"table {table_name!r} does not exist", hint=f"tables: {known}")
    vectors = table.vector_columns
    listed = ", ".join(column.name for column in vectors) or "none"
    if name is None:
        if len(vectors) != 1:
            raise CatalogError(
                f"table {table.name} has {len(vectors)} vector columns: {listed}",
                hint="name one with --column" if vectors else "",
            )
        return table, vectors[0]
    column = table.column(name)
    if column is None:
        raise CatalogError(
            f"table {table.name} has no column {name!r}", hint=f"vector columns: {listed}"
        )
    if not column.type.is_vector:
        raise NotSupportedError(
            f"column {table.name}.{column.name} is {column.type}, not a vector",
            hint=f"vector columns: {listed}",
        )
    return table, column


def _rows(
    context: Context, table: TableDef, column: ColumnDef, size: tuple[int, int]
) -> Iterator[_Row]:
    indexes = [i for i in table.indexes if i.method != "btree" and i.column_ids == (column.id,)]
    operators = sorted({vector_index.operator(index) for index in indexes})
    for op in operators or ["<~>" if column.type.kind is Kind.BIT else "<->"]:
        sample = recall.draw(context, table, column, op, size)
        if sample is None:
            raise DataError(f"{table.name}.{column.name}: {recall.TOO_FEW}")
        yield ("exact", op, None, 1.0, *_times(sample.exact_us), f"{len(sample.queries)} queries")
        for index in indexes:
            if vector_index.operator(index) == op:
                yield from _index_rows(context, index, sample)


def _index_rows(context: Context, index: IndexDef, sample: recall.Sample) -> Iterator[_Row]:
    """Yield the row of what the settings choose, and one of each effort worth showing."""
    placed = vector_index.place(context, index, sample.flat)
    settled: dict[int, None] = {}
    if placed is not None:
        parts = [each.part for each in placed.parts]
        shown = placed.method.shown
        settled = dict.fromkeys(placed.method.settled(n, sample.k + 1, parts) for n in shown)
    for effort in (0, *settled):
        found = recall.measure(context, index, sample, effort)
        note = found.reason
        if not effort:
            target = context.engines.settings["target_recall"]
            note = f"by target_recall {max(target, index.options.get('target_recall', 0))}: {note}"
        if found.us is None:
            yield (index.name, sample.op, effort or None, *[None] * 4, note)
        else:
            yield (index.name, sample.op, found.effort, found.recall, *_times(found.us), note)


def _times(us: np.ndarray) -> tuple[float, float, float]:
    """Return median and 99th percentile in microseconds, and queries a second."""
    p50, p99 = np.percentile(us, (50, 99)).tolist()
    return round(p50, 1), round(p99, 1), round(1e6 * len(us) / float(us.sum()), 1)
