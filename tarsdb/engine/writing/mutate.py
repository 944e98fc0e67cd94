"""INSERT, UPDATE and DELETE: find the rows, derive the values, note them in the write set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from tarsdb.columns import Column
from tarsdb.engine.context import Context, Parameters
from tarsdb.engine.executor import relational_result, run
from tarsdb.engine.reading.compare import Constant
from tarsdb.engine.result import Result
from tarsdb.engine.search import filtered_rows
from tarsdb.engine.writing import derive, row_change, row_insert, triggers, upsert, upsert_many
from tarsdb.engine.writing.changes import (
    Changes,
    answer,
    changes,
    other_columns,
    returning,
    returns,
    write,
)
from tarsdb.errors import BindError, DataError, IntegrityError
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Delete, Insert, Update, VariableScan

BATCH_ROWS = 4096
LARGE_ROWS = 1 << 16
LARGE_BYTES = 26 << 20  # a batch of an Arrow table that is stored as it is
ROW_WISE = 64  # up to this many rows go through the write set one by one


def insert(context: Context, plan: Insert, many: Iterable[Parameters] | None = None) -> Result:
    """Insert the rows of VALUES (once for each parameter set of ``many``) or of a query."""
    if many is None and row_insert.serves(plan):
        return row_insert.insert(context, plan)
    written = 0
    last_id: int | None = None
    returned: list[Result] = []
    with context.require_writes().loading():
        for columns, rows in _source(context, plan, many):
            context.engines.interrupt.check()
            derive.fill_defaults(context, plan.table, columns, rows, plan.defaults)
            derive.generate(context, plan.table, columns, rows)
            columns, rows = triggers.before_insert(context, plan.table, columns, rows)
            derive.check(context, plan.table, columns, rows)
            done = _store(context, plan, columns, rows)
            if plan.on_conflict is None:
                triggers.after_insert(context, plan.table, columns, rows)
            written += done[1]
            if plan.table.identity is not None and done[1]:
                last_id = int(done[0][plan.table.identity.id].values[-1])
            if returns(plan):
                returned.append(returning(context, plan, done[0], done[1]))
    result = answer(context, plan, returned, written)
    result.last_id = last_id
    return result


def _store(
    context: Context, plan: Insert, columns: derive.Columns, rows: int
) -> tuple[derive.Columns, int]:
    """Write one batch; returns the rows as stored (for RETURNING) and their number."""
    table, writes = plan.table, context.require_writes()
    if plan.on_conflict is not None:
        chosen = upsert_many.apply(context, plan, columns, rows)
        if chosen is not None:
            kept = {c: column.take(chosen) for c, column in columns.items()}
            return kept, int(chosen.sum())
        stored = upsert.apply(context, plan, columns)
        return derive.as_columns(table, stored), len(stored)
    if rows <= ROW_WISE:
        writes.insert(table, context.view(table), derive.as_rows(table, columns))
    else:
        ordered = [columns[column.id] for column in table.columns]
        writes.insert_columns(table, context.view(table), ordered)
    return columns, rows


def _source(
    context: Context, plan: Insert, many: Iterable[Parameters] | None
) -> Iterator[tuple[derive.Columns, int]]:
    """Yield batches of given columns, converted to their types."""
    if plan.query is not None:
        yield from _query_sets(context, plan, many)
        return
    sets: Iterator[Parameters] = iter([context.parameters] if many is None else many)
    while block := list(islice(sets, BATCH_ROWS)):
        values = _values(context, plan, block)
        columns = {
            column.id: derive.convert([row[i] for row in values], column)
            for i, column in enumerate(plan.columns)
        }
        if values:
            yield columns, len(values)


def _values(context: Context, plan: Insert, block: list[Parameters]) -> list[Sequence[Any]]:
    positions = _parameter_positions(plan)
    if positions is not None and not isinstance(block[0], dict):
        width = len(plan.columns)
        if positions == list(range(width)) and all(len(item) == width for item in block):
            return block  # type: ignore[return-value] # sequences of just the row's values
    rows: list[Sequence[Any]] = []
    outer = context.parameters
    try:
        for item in block:
            context.parameters = item
            rows.extend([context.constant(node) for node in row] for row in plan.rows)
    finally:
        context.parameters = outer
    return rows


def _parameter_positions(plan: Insert) -> list[int] | None:
    if len(plan.rows) != 1:
        return None
    keys = [node.key for node in plan.rows[0] if isinstance(node, ex.Parameter)]
    if len(keys) != len(plan.columns) or not all(isinstance(key, int) for key in keys):
        return None
    return keys  # type: ignore[return-value] # checked above


def _query_sets(
    context: Context, plan: Insert, many: Iterable[Parameters] | None
) -> Iterator[tuple[derive.Columns, int]]:
    """Run the query, once for each parameter set of ``many``."""
    if many is None:
        yield from _query_batches(context, plan)
        return
    outer = context.parameters
    try:
        for context.parameters in many:
            yield from _query_batches(context, plan)
    finally:
        context.parameters = outer


def _query_batches(context: Context, plan: Insert) -> Iterator[tuple[derive.Columns, int]]:
    assert plan.query is not None
    if isinstance(plan.query, VariableScan):
        table = _variable(context, plan.query)
    else:
        table = run(context, plan.query).arrow()
    if table.num_columns != len(plan.columns):
        raise DataError(
            f"INSERT INTO {plan.table.name} names {len(plan.columns)} columns, "
            f"the query gives {table.num_columns}"
        )
    yield from arrow_batches(table, plan.columns, _batch_rows(plan, table))


def _variable(context: Context, query: VariableScan) -> Any:
    """Return the columns a plan names of a Python variable, as an Arrow table.

    Raises
    ------
    BindError
        The variable is gone, or has no such column, or two.
    """
    from tarsdb.engine.reading.scans import table_of

    variable = context.variables(query.variable) if context.variables else None
    if variable is None:
        raise BindError(f"variable {query.variable!r} is gone")
    table = table_of(query.variable, variable)
    if query.columns is None:
        return table
    positions: dict[str, list[int]] = {}
    for at, name in enumerate(table.column_names):
        positions.setdefault(name.lower(), []).append(at)
    missing = [name for name in query.columns if name.lower() not in positions]
    if missing:
        raise BindError(
            f"variable {query.variable} has no column {', '.join(map(repr, missing))}",
            hint=f"its columns are {', '.join(table.column_names)}",
        )
    chosen = [_only(query, table, name, positions[name.lower()]) for name in query.columns]
    return table.select(chosen)


def _only(query: VariableScan, table: Any, name: str, found: list[int]) -> int:
    exact = [at for at in found if table.column_names[at] == name]
    best = exact or found
    if len(best) > 1:
        raise BindError(f"variable {query.variable} has {len(best)} columns {name!r}")
    return best[0]


def _batch_rows(plan: Insert, table: Any) -> int:
    """Return the rows of a batch: many when nothing is computed for them."""
    derived = plan.defaults or plan.on_conflict or plan.returning or plan.returning_sql
    if (
        derived
        or plan.table.checks
        or plan.table.triggers
        or any(column.generated for column in plan.table.columns)
    ):
        return BATCH_ROWS
    batches = max(-(-table.nbytes // LARGE_BYTES), -(-table.num_rows // LARGE_ROWS), 1)
    return int(max(-(-table.num_rows // batches), BATCH_ROWS))  # batches of one size


def arrow_batches(
    table: Any, columns: Sequence[ColumnDef], rows: int = BATCH_ROWS
) -> Iterator[tuple[derive.Columns, int]]:
    """Yield an Arrow table's columns, by position, as batches of the table's column types."""
    from tarsdb.engine.arrow_input import from_arrow

    for start in range(0, table.num_rows, rows):
        part = table.slice(start, rows)
        converted = {
            column.id: from_arrow(part.column(i), column.type, column.name)
            for i, column in enumerate(columns)
        }
        yield converted, part.num_rows


def update(context: Context, plan: Update) -> Result:
    """Update the rows that match: their new values batch by batch, then the rows, then RETURNING.

    A unique index holds at the end of the statement, so its rows are written at once.
    """
    done = row_change.update(context, plan)
    if done is not None:
        return done
    found: list[Changes] = []
    written = waiting = 0
    for rowids, given, others in _updates(context, plan):
        found.append(changes(context, plan, rowids, given))
        found[-1].columns.update(others)
        written += len(rowids)
        waiting += sum(found[-1].columns[c].nbytes for c in found[-1].changed)
        if (
            waiting >= LARGE_BYTES
            and not returns(plan)
            and not _is_unique(plan.table, found[-1].changed)
        ):
            write(context, plan.table, found)
            found, waiting = [], 0
    write(context, plan.table, found)
    answers = (
        [returning(context, plan, e.columns, len(e.rowids), e.rowids) for e in found]
        if returns(plan)
        else []
    )
    return answer(context, plan, answers, written)


def _is_unique(table: TableDef, changed: Collection[int]) -> bool:
    return any(i.unique and not set(i.column_ids).isdisjoint(changed) for i in table.indexes)


def _updates(
    context: Context, plan: Update
) -> Iterator[tuple[np.ndarray, list[Column | Constant] | None, derive.Columns]]:
    """Yield row ids and, where a query computed them, new values and those of other tables."""
    if plan.source is None:
        for rowids in _matching(context, plan.table, plan.predicate):
            yield rowids, None, {}
        return
    table = relational_result(context, plan.source).arrow()
    from tarsdb.engine.arrow_input import from_arrow

    given = table.num_columns - 1 - len(plan.others)
    if given != len(plan.columns):  # COLUMNS(...) may stand for several
        raise BindError(
            f"UPDATE {plan.table.name}: {len(plan.columns)} columns are set, to {given} values"
        )
    seen = np.asarray(table.column(0).to_numpy()).astype(np.int64)
    if len(np.unique(seen)) != len(seen):
        raise IntegrityError(
            f"UPDATE {plan.table.name} FROM: a row matches more than one source row",
            hint="aggregate or filter the source so that each row matches once",
        )
    for start in range(0, len(seen), BATCH_ROWS):
        part = table.slice(start, BATCH_ROWS)
        values: list[Column | Constant] = [
            from_arrow(part.column(i + 1), column.type, column.name)
            for i, column in enumerate(plan.columns)
        ]
        others = other_columns(plan, part, len(values) + 1)
        yield seen[start : start + BATCH_ROWS], values, others


def _matching(context: Context, table: TableDef, predicate: ex.Expr | None) -> Iterator[np.ndarray]:
    view = context.view(table)
    rowids = filtered_rows.filtered_rowids(context, view, predicate)
    if rowids is None:
        parts = [chunk.rowids for chunk in view.chunks([])]
        rowids = np.concatenate(parts) if parts else np.empty(0, np.int64)
    rowids = np.array(rowids)
    for start in range(0, len(rowids), BATCH_ROWS):
        yield rowids[start : start + BATCH_ROWS]


def delete(context: Context, plan: Delete) -> Result:
    """Delete the rows that match."""
    done = row_change.delete(context, plan)
    if done is not None:
        return done
    table = plan.table
    others: derive.Columns = {}
    if plan.source is None:
        batches = list(_matching(context, table, plan.predicate))
    else:
        found = relational_result(context, plan.source).arrow()
        seen = np.asarray(found.column(0).to_numpy()).astype(np.int64)
        rowids, first = np.unique(seen, return_index=True)  # several rows may name it to go
        batches = [rowids]
        others = {c: v.take(first) for c, v in other_columns(plan, found, 1).items()}
    returned: list[Result] = []
    written = 0
    for rowids in batches:
        context.engines.interrupt.check()
        view = context.view(table)
        if returns(plan):
            ids = [column.id for column in table.columns]
            columns = dict(zip(ids, view.rows(rowids, ids), strict=True)) | others
            returned.append(returning(context, plan, columns, len(rowids), rowids))
        written += context.require_writes().delete(table, view, rowids)
    return answer(context, plan, returned, written)
