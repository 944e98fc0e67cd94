"""What a database holds, as text: names for completion, ``CREATE`` statements for ``.schema``.

Reads the ``tars_*`` tables only, so it shows what any user of SQL can see.
"""

from __future__ import annotations

from tarsdb.database import Connection
from tarsdb.errors import Error, ProgrammingError

_STATEMENTS = (
    "SELECT name, sql FROM tars_tables ORDER BY name",
    "SELECT table_name, sql FROM tars_indexes WHERE sql IS NOT NULL",
    "SELECT table_name, sql FROM tars_triggers",
    "SELECT name, sql FROM tars_views ORDER BY name",
)


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
    """Return CREATE statements of one table or of all, each followed by what stands on it.

    Raises
    ------
    ProgrammingError
        No such table.
    """
    found: dict[str, list[str]] = {}
    for statement in _STATEMENTS:
        for name, sql in db.execute(statement).fetchall():
            if table is None or name.lower() == table.lower():
                found.setdefault(name, []).append(sql)
    if table is not None and not found:
        raise ProgrammingError(f"table {table!r} does not exist", hint=".tables lists them")
    return [sql for of_table in found.values() for sql in of_table]
