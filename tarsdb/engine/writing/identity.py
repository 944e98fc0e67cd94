"""Columns in which a table numbers its rows: which ones do, and the numbers of rows to insert."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tarsdb.columns import Column
from tarsdb.engine.context import Context
from tarsdb.errors import CatalogError
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql.plan import ColumnSpec
from tarsdb.storage import identity
from tarsdb.types import Kind


def numbered(spec: ColumnSpec, key: tuple[str, ...]) -> ColumnSpec:
    """Return a column's specification; ``INTEGER PRIMARY KEY`` numbers rows, as in SQLite."""
    is_key = [name.lower() for name in key] == [spec.name.lower()]
    if not is_key or spec.type.upper() != "INTEGER" or spec.default or spec.generated:
        return spec
    return replace(spec, identity=spec.identity or "BY DEFAULT")


def check_identity(table: TableDef) -> None:
    """Raise CatalogError for an identity column that could not number rows."""
    columns = [column for column in table.columns if column.identity]
    if len(columns) > 1:
        raise CatalogError(
            f"table {table.name} has two IDENTITY columns: {columns[0].name}, {columns[1].name}"
        )
    for column in columns:
        if column.type.kind not in (Kind.INT, Kind.BIGINT):
            raise CatalogError(
                f"IDENTITY column {table.name}.{column.name} is {column.type}",
                hint="declare it INT or BIGINT",
            )
        if identity.unique_index(table, column) is None:
            raise CatalogError(
                f"IDENTITY column {table.name}.{column.name} has neither PRIMARY KEY nor UNIQUE",
                hint=f"write {column.name} {column.type} ... PRIMARY KEY",
            )


def number_rows(context: Context, table: TableDef, columns: dict[int, Column], rows: int) -> None:
    """Give rows without a value in the identity column, or with NULL, their numbers.

    Parameters
    ----------
    columns : dict
        By column id; changed.
    rows : int
        Of each column.
    """
    column = table.identity
    if column is None or not rows:
        return
    given = columns.get(column.id)
    missing = np.ones(rows, bool)
    if given is not None:
        missing[:] = False if given.validity is None else ~given.validity
    count = int(missing.sum())
    if not count:
        return
    first = first_number(context, table, column, count)
    values = np.empty(rows, column.type.dtype) if given is None else given.values.copy()
    values[missing] = np.arange(first, first + count)
    columns[column.id] = Column(column.type, values)


def first_number(context: Context, table: TableDef, column: ColumnDef, count: int) -> int:
    """Reserve numbers for some rows; return the first."""
    return identity.next_numbers(context.snapshot.env, context.view(table), column, count)
