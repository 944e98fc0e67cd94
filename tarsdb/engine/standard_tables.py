"""The catalog under the names other databases give it, which tools and programs look for.

``sqlite_master`` as SQLite has it, and two views of SQL's information schema.
"""

from __future__ import annotations

import pathlib
from typing import Any

from tarsdb.engine import definitions
from tarsdb.engine.context import Context
from tarsdb.types import BIGINT, TEXT, SqlType

Rows = list[tuple[Any, ...]]
Schema = tuple[tuple[str, SqlType], ...]


def _sqlite_master(context: Context) -> Rows:
    rows: Rows = []
    for table in context.catalog.tables():
        rows.append(("table", table.name, table.name, 0, definitions.create_table(table)))
        rows += [
            ("index", index.name, table.name, 0, definitions.create_index(table, index))
            for index in table.indexes
        ]
        rows += [
            ("trigger", each.name, table.name, 0, definitions.create_trigger(table, each))
            for each in table.triggers
        ]
    for view in context.catalog.views():
        rows.append(("view", view.name, view.name, 0, definitions.create_view(view)))
    return [(*row[:-1], row[-1] and row[-1].removesuffix(";")) for row in rows]


def _database(context: Context) -> str:
    return pathlib.PurePath(context.engines.env.path).stem


def _tables(context: Context) -> Rows:
    place = _database(context), "main"
    rows = [(*place, table.name, "BASE TABLE") for table in context.catalog.tables()]
    return rows + [(*place, view.name, "VIEW") for view in context.catalog.views()]


def _columns(context: Context) -> Rows:
    from tarsdb.engine.views import columns_of

    place, rows = (_database(context), "main"), []
    for table in context.catalog.tables():
        for number, column in enumerate(table.columns, 1):
            nullable = "NO" if column.not_null or column.id in table.primary_key else "YES"
            generated = "NEVER" if column.generated is None else "ALWAYS"
            rows.append(
                (*place, table.name, column.name, number, column.default, nullable,
                 str(column.type), generated, column.generated)
            )  # fmt: skip
    for view in context.catalog.views():
        for number, (name, type_name) in enumerate(columns_of(context, view), 1):
            rows.append(
                (*place, view.name, name, number, None, "YES", type_name, "NEVER", None)
            )  # fmt: skip
    return rows


_MASTER: Schema = (
    ("type", TEXT), ("name", TEXT), ("tbl_name", TEXT), ("rootpage", BIGINT), ("sql", TEXT),
)  # fmt: skip
_PLACE: Schema = (("table_catalog", TEXT), ("table_schema", TEXT), ("table_name", TEXT))
STANDARD_TABLES = {
    "sqlite_master": (_MASTER, _sqlite_master),
    "sqlite_schema": (_MASTER, _sqlite_master),
    "information_schema.tables": ((*_PLACE, ("table_type", TEXT)), _tables),
    "information_schema.columns": (
        (*_PLACE, ("column_name", TEXT), ("ordinal_position", BIGINT), ("column_default", TEXT),
         ("is_nullable", TEXT), ("data_type", TEXT), ("is_generated", TEXT),
         ("generation_expression", TEXT)), _columns),
}  # fmt: skip
