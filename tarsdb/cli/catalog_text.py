"""What a database holds, as text: names for completion, ``CREATE`` statements for ``.schema``.

Reads the ``tars_*`` tables only, so it shows what any user of SQL can see.
"""

from __future__ import annotations

from typing import Any

from tarsdb.database import Connection
from tarsdb.errors import Error, ProgrammingError

_PLAIN_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


def quoted(name: str) -> str:
    """Return a name as SQL writes it: quoted only where it must be."""
    if name and set(name) <= _PLAIN_NAME and not name[0].isdigit():
        return name
    return '"' + name.replace('"', '""') + '"'


def names(db: Connection) -> dict[str, list[str]]:
    """Return table name -> column names; empty when the catalog cannot be read now."""
    found: dict[str, list[str]] = {}
    try:
        rows = db.execute("SELECT table_name, name FROM tars_columns").fetchall()
    except Error:  # completion is a courtesy: inside a failed state it stays silent
        return found
    for table, column in rows:
        found.setdefault(table, []).append(column)
    return found


def schema(db: Connection, table: str | None = None) -> list[str]:
    """Return CREATE statements of one table or of all, their indexes after them.

    Raises
    ------
    ProgrammingError
        No such table.
    """
    columns: dict[str, list[dict[str, Any]]] = {}
    for record in _records(db, "SELECT * FROM tars_columns"):
        columns.setdefault(record["table_name"], []).append(record)
    indexes = _records(db, "SELECT * FROM tars_indexes")
    wanted = [t for t in sorted(columns) if table is None or t.lower() == table.lower()]
    if table is not None and not wanted:
        raise ProgrammingError(f"table {table!r} does not exist", hint=".tables lists them")
    statements = []
    for name in wanted:
        own = [index for index in indexes if index["table_name"] == name]
        statements.append(_create_table(name, columns[name], own))
        statements += [_create_index(i) for i in own if i["origin"] == "create index"]
    return statements


def _records(db: Connection, sql: str) -> list[dict[str, Any]]:
    cursor = db.execute(sql)
    header = [column[0] for column in cursor.description or ()]
    return [dict(zip(header, row, strict=True)) for row in cursor.fetchall()]


def _create_table(name: str, columns: list[dict[str, Any]], indexes: list[dict[str, Any]]) -> str:
    ordered = sorted(columns, key=lambda column: column["position"])
    parts = [_column(column) for column in ordered]
    primary = [quoted(column["name"]) for column in ordered if column["primary_key"]]
    if primary:
        parts.append(f"PRIMARY KEY ({', '.join(primary)})")
    parts += [f"UNIQUE ({i['columns']})" for i in indexes if i["origin"] == "unique"]
    return f"CREATE TABLE {quoted(name)} (\n  " + ",\n  ".join(parts) + "\n);"


def _column(column: dict[str, Any]) -> str:
    text = f"{quoted(column['name'])} {column['type']}"
    if column["generated"]:
        text += f" GENERATED ALWAYS AS ({column['generated']}) STORED"
    elif column["default"]:
        text += f" DEFAULT {column['default']}"
    if not column["nullable"] and not column["primary_key"]:
        text += " NOT NULL"
    return text


def _create_index(index: dict[str, Any]) -> str:
    unique = "UNIQUE " if index["unique"] else ""
    method = "" if index["method"] == "btree" else f" USING {index['method']}"
    return (
        f"CREATE {unique}INDEX {quoted(index['name'])} "
        f"ON {quoted(index['table_name'])}{method} ({index['columns']});"
    )
