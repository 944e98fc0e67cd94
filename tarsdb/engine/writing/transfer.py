"""COPY: tables and queries to files and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tarsdb.engine import executor
from tarsdb.engine.context import Context
from tarsdb.engine.result import Result
from tarsdb.engine.writing import derive, triggers
from tarsdb.engine.writing.mutate import arrow_batches
from tarsdb.errors import DataError
from tarsdb.schema import ColumnDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Copy, Relational, Scan
from tarsdb.types import Kind, bytes_of

if TYPE_CHECKING:
    import pyarrow as pa


def copy_to(context: Context, plan: Copy) -> Result:
    """Write a table or a query's answer to a file; returns the number of rows as ``changed``."""
    from tarsdb.engine.writing import files

    query = plan.query
    if query is None:
        assert plan.table is not None
        columns = plan.columns or plan.table.columns
        outputs = tuple(ex.Output(c.name, ex.ColumnRef(c), c.type) for c in columns)
        query = Scan(plan.table, outputs)
    result = executor.run(context, query)
    files.write(result.arrow(), plan.path, plan.options, context.engines.interrupt.check)
    return Result(changed=len(result))


def copy_from(context: Context, plan: Copy) -> Result:
    """Append a file's rows to a table; the columns are matched by position."""
    from tarsdb.engine.writing import files

    table = plan.table
    assert table is not None
    wanted = plan.columns or tuple(c for c in table.columns if not c.is_derived)
    written = before = 0
    for part in files.read(plan.path, plan.options):
        _require_width(part.num_columns, wanted, plan.path)
        first, before = before, before + part.num_rows
        for columns, rows in _batches(part, wanted, f"COPY FROM {plan.path}, row", first):
            context.engines.interrupt.check()
            derive.fill_defaults(context, table, columns, rows, _defaults(context, plan, wanted))
            derive.generate(context, table, columns, rows)
            columns, rows = triggers.before_insert(context, table, columns, rows)
            derive.check(context, table, columns, rows)
            ordered = [columns[column.id] for column in table.columns]
            context.require_writes().insert_columns(table, context.view(table), ordered)
            triggers.after_insert(context, table, columns, rows)
            written += rows
    return Result(changed=written)


def _batches(
    part: pa.Table, wanted: tuple[ColumnDef, ...], where: str, before: int
) -> Iterator[tuple[derive.Columns, int]]:
    """Yield a part of a file as batches; an error names the first row that is no row of these."""
    part = _with_bytes(part, wanted)
    try:
        yield from arrow_batches(part, wanted)
    except DataError as error:
        low, high = 0, part.num_rows
        while high - low > 1:  # rows before low are fine, those before high are not
            middle = (low + high) // 2
            try:
                for _ in arrow_batches(part.slice(low, middle - low), wanted):
                    pass
                low = middle
            except DataError:
                high = middle
        error.message = f"{where} {before + low + 1}: {error.message}"
        raise


def _with_bytes(part: pa.Table, wanted: tuple[ColumnDef, ...]) -> pa.Table:
    """Return CSV or JSON text of BLOB columns as the bytes it stands for."""
    import pyarrow as pa

    for position, column in enumerate(wanted):
        field = part.schema.field(position)
        if column.type.kind is not Kind.BLOB or not pa.types.is_string(field.type):
            continue
        values = [None if t is None else bytes_of(t) for t in part.column(position).to_pylist()]
        part = part.set_column(position, field.name, pa.array(values, pa.binary()))
    return part


def _require_width(width: int, wanted: tuple[ColumnDef, ...], path: str) -> None:
    if width != len(wanted):
        names = ", ".join(column.name for column in wanted)
        raise DataError(
            f"COPY FROM {path}: the file has {width} columns, {len(wanted)} are wanted ({names})",
            hint="name the columns: COPY table (a, b) FROM ...",
        )


def _defaults(
    context: Context, plan: Copy, wanted: tuple[ColumnDef, ...]
) -> tuple[tuple[ColumnDef, ex.Expr | Relational], ...]:
    assert plan.table is not None
    given = {column.id for column in wanted}
    return tuple(
        (column, derive.bound(context, plan.table, column.default))
        for column in plan.table.columns
        if column.default is not None and column.id not in given
    )
