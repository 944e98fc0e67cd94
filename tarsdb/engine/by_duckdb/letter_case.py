"""Letters in lower, upper or any case as DuckDB has them, whose version of Unicode no other has."""

from __future__ import annotations

import os
from functools import cache

import duckdb
import numpy as np
import pyarrow as pa

from tarsdb.columns import Column
from tarsdb.engine.arrow import from_arrow, to_arrow


def in_case(name: str, texts: Column) -> Column:
    """Return ``lower`` or ``upper`` of a TEXT column; may run inside a running query."""
    return from_arrow(_asked(f"{name}(t)", texts), texts.type, name)


def ilike(texts: Column, pattern: str) -> np.ndarray:
    """Return which texts match a pattern whatever the case, bool (rows,); False where NULL."""
    found = _asked("coalesce(t ILIKE $1, false)", texts, pattern)
    return np.asarray(found.to_numpy(zero_copy_only=False))


def _asked(expression: str, texts: Column, *parameters: str) -> pa.ChunkedArray:
    with _database(os.getpid()).cursor() as cursor:
        cursor.register("texts", pa.table({"t": to_arrow(texts)}))
        found = cursor.sql(f"SELECT {expression} FROM texts", params=parameters or None)
        return found.to_arrow_table().column(0)


@cache
def _database(process: int) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB of this process: what a fork inherits is not its own."""
    return duckdb.connect(":memory:", config={"threads": 1})
