"""What sandboxed functions may look up: one column of one table by a unique key, both TEXT.

Runs in the statement's snapshot, with its own writes; read only.
"""

from __future__ import annotations

from tarsdb.engine.context import Context
from tarsdb.errors import BindError, CatalogError
from tarsdb.schema import ColumnDef, FunctionDef, IndexDef, TableDef
from tarsdb.types import TEXT


def check(context: Context, function: FunctionDef) -> None:
    """Raise unless a function that is granted lookups says where, and is not IMMUTABLE."""
    granted = "lookup" in str(function.options.get("allow", "")).lower()
    if granted != bool(function.lookup):
        raise BindError(
            f"function {function.name}: allow = 'lookup' and lookup = 'table(key, value)' "
            "go together"
        )
    if not granted:
        return
    if function.volatility.upper() == "IMMUTABLE":
        raise BindError(
            f"function {function.name} looks up a table and is IMMUTABLE",
            hint="declare it STABLE: its answers change with the table",
        )
    _source(context, function)


def value(context: Context, function: FunctionDef, key: str) -> bytes | None:
    """Return what the function's table holds for a key, UTF-8; None for no row and for NULL.

    Raises
    ------
    CatalogError
        The table is gone, or has changed.
    """
    table, index, column = _source(context, function)
    view = context.view(table)
    rowids = view.find(index, (key,))
    if not len(rowids):
        return None
    (values,) = view.rows(rowids[:1], [column.id])
    found = values.get(0)
    return None if found is None else str(found).encode()


def _source(context: Context, function: FunctionDef) -> tuple[TableDef, IndexDef, ColumnDef]:
    name, key_name, value_name = function.lookup
    where = f"function {function.name}: lookup in {name}({key_name}, {value_name})"
    table = context.catalog.table(name)
    if table is None:
        raise CatalogError(f"{where}: table {name!r} does not exist")
    columns = [table.column(key_name), table.column(value_name)]
    for each, column in zip((key_name, value_name), columns, strict=True):
        if column is None or column.type != TEXT:
            found = "there is no such column" if column is None else f"it is {column.type}"
            raise CatalogError(f"{where}: {each} must be TEXT, {found}")
    key, value_column = columns
    assert key is not None  # checked above
    assert value_column is not None
    for index in table.indexes:
        if index.unique and index.method == "btree" and index.column_ids == (key.id,):
            return table, index, value_column
    raise CatalogError(f"{where}: {key.name} is not unique", hint="PRIMARY KEY or UNIQUE")
