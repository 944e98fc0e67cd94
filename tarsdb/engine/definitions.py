"""What is defined, as the statement that defines it again: the ``sql`` of system tables."""

from __future__ import annotations

from tarsdb.schema import ColumnDef, IndexDef, TableDef, TriggerDef, ViewDef
from tarsdb.sql.names import quoted


def create_table(table: TableDef) -> str:
    """Return ``CREATE TABLE``, with the constraints and without ``CREATE INDEX``."""
    primary = set(table.primary_key)
    parts = [_column(column, column.id in primary) for column in table.columns]
    if table.primary_key:
        parts.append(f"PRIMARY KEY ({_columns(table, table.primary_key)})")
    parts += [
        f"CONSTRAINT {quoted(index.name)} UNIQUE ({_columns(table, index.column_ids)})"
        for index in table.indexes if index.origin == "unique"
    ]  # fmt: skip
    parts += [f"CONSTRAINT {quoted(name)} CHECK ({text})" for name, text in table.checks]
    return f"CREATE TABLE {quoted(table.name)} (\n  " + ",\n  ".join(parts) + "\n);"


def generated(column: ColumnDef) -> str | None:
    """Return what a column's values are computed from, or how they are numbered; else None."""
    return f"{column.identity} AS IDENTITY" if column.identity else column.generated


def create_index(table: TableDef, index: IndexDef) -> str | None:
    """Return ``CREATE INDEX``; None for an index a constraint made."""
    if index.origin != "create index":
        return None
    unique = "UNIQUE " if index.unique else ""
    method = "" if index.method == "btree" else f" USING {index.method}"
    options = ", ".join(f"{name} = {_constant(value)}" for name, value in index.options.items())
    return (
        f"CREATE {unique}INDEX {quoted(index.name)} ON {quoted(table.name)}{method} "
        f"({_columns(table, index.column_ids)}){f' WITH ({options})' if options else ''};"
    )


def create_trigger(table: TableDef, trigger: TriggerDef) -> str:
    """Return ``CREATE TRIGGER``."""
    return (
        f"CREATE TRIGGER {quoted(trigger.name)} {trigger.timing} INSERT ON {quoted(table.name)} "
        f"CALL {quoted(trigger.function)};"
    )


def create_view(view: ViewDef) -> str:
    """Return ``CREATE VIEW``."""
    columns = f" ({', '.join(map(quoted, view.columns))})" if view.columns else ""
    return f"CREATE VIEW {quoted(view.name)}{columns} AS {view.sql};"


def _columns(table: TableDef, ids: tuple[int, ...]) -> str:
    return ", ".join(quoted(table.column_by_id(column).name) for column in ids)


def _column(column: ColumnDef, is_key: bool) -> str:
    text = f"{quoted(column.name)} {column.type}"
    if column.generated:
        text += f" GENERATED ALWAYS AS ({column.generated}) STORED"
    elif column.identity:
        return f"{text} GENERATED {generated(column)}"
    elif column.default is not None:
        text += f" DEFAULT {column.default}"
    return text + " NOT NULL" if column.not_null and not is_key else text


def _constant(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower() if isinstance(value, bool) else str(value)
