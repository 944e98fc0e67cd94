"""What stands behind the capabilities of sandboxed functions: a table to look up, a model.

A lookup gives one column of one table by a unique key, both TEXT; a model embeds a text. Both in
the statement's snapshot, with its own writes; read only.
"""

from __future__ import annotations

import numpy as np

from tarsdb.columns import from_list
from tarsdb.engine.context import Context
from tarsdb.errors import BindError, CatalogError
from tarsdb.schema import ColumnDef, FunctionDef, IndexDef, ModelDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.types import TEXT, Kind, SqlType


def check(context: Context, function: FunctionDef, granted: tuple[str, ...]) -> None:
    """Raise unless a function says what each of its capabilities is about, and is not IMMUTABLE."""
    for name, about, form in (
        ("lookup", function.lookup, "table(key, value)"), ("embed", function.embed, "model"),
    ):  # fmt: skip
        if (name in granted) != bool(about):
            raise BindError(
                f"function {function.name}: allow = '{name}' and {name} = '{form}' go together"
            )
        if about and function.volatility.upper() == "IMMUTABLE":
            does = "looks up a table" if name == "lookup" else "asks a model"
            raise BindError(
                f"function {function.name} {does} and is IMMUTABLE",
                hint=f"declare it STABLE: its answers change with the {form.partition('(')[0]}",
            )
    if function.lookup:
        _source(context, function)
    if function.embed:
        _model(context, function)


def look_up(context: Context, function: FunctionDef, key: str) -> bytes | None:
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


def embed(context: Context, function: FunctionDef, text: str) -> bytes:
    """Return the vector that the function's model makes of a text: float32, little-endian.

    Raises
    ------
    CatalogError
        The model is gone, or embeds no more.
    """
    model = _model(context, function)
    vector = SqlType(Kind.VECTOR, dim=model.dim)
    call = ex.Call("model", "embed", model.name, (ex.Literal(text),), vector)
    with context.with_snapshot():  # its statement is at work
        column = context.call(call, [from_list(TEXT, [text])], 1)
    return np.ascontiguousarray(column.values[0], "<f4").tobytes()


def _model(context: Context, function: FunctionDef) -> ModelDef:
    model = context.catalog.model(function.embed)
    if model is None or model.task != "embed":
        what = "does not exist" if model is None else f"does {model.task}, not embed"
        raise CatalogError(f"function {function.name}: model {function.embed!r} {what}")
    return model


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
