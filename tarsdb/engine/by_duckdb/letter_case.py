"""Texts in lower or upper case as DuckDB makes them, whose version of Unicode no other has."""

from __future__ import annotations

import os
from functools import cache

import duckdb
import pyarrow as pa

from tarsdb.columns import Column
from tarsdb.engine.arrow import from_arrow, to_arrow


def in_case(name: str, texts: Column) -> Column:
    """Return ``lower`` or ``upper`` of a TEXT column; may run inside a running query."""
    with _database(os.getpid()).cursor() as cursor:
        cursor.register("texts", pa.table({"t": to_arrow(texts)}))
        found = cursor.sql(f"SELECT {name}(t) FROM texts").to_arrow_table()
    return from_arrow(found.column(0), texts.type, name)


@cache
def _database(process: int) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB of this process: what a fork inherits is not its own."""
    return duckdb.connect(":memory:", config={"threads": 1})
