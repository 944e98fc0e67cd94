"""sqlite-vec: exact search in a SQLite extension (vec0 table in memory, L2 only here)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

PACKAGE = "sqlite-vec"


class SqliteVec:
    """Exact search by a vec0 virtual table."""

    def __init__(self, base: np.ndarray, metric: str) -> None:
        if metric != "l2":
            raise ValueError(f"vec0 has no metric {metric!r}")
        self._db = connect()
        self._db.execute(f"CREATE VIRTUAL TABLE v USING vec0(e float[{base.shape[1]}])")
        rows = ((number, row.tobytes()) for number, row in enumerate(base))
        self._db.executemany("INSERT INTO v(rowid, e) VALUES (?, ?)", rows)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return row numbers (q, k)."""
        sql = "SELECT rowid FROM v WHERE e MATCH ? ORDER BY distance LIMIT ?"
        found = [self._db.execute(sql, (query.tobytes(), k)).fetchall() for query in queries]
        return np.array(found)[:, :, 0]

    def close(self) -> None:
        """Free the table."""
        self._db.close()


def connect(path: str = ":memory:") -> Any:
    """Open a database with the extension; some interpreters' sqlite3 cannot load extensions."""
    extension = importlib.import_module("sqlite_vec")
    for name in ("sqlite3", "pysqlite3"):
        try:
            db = importlib.import_module(name).connect(path)
            db.enable_load_extension(True)
        except (ImportError, AttributeError):
            continue
        extension.load(db)
        return db
    raise ImportError("neither sqlite3 nor pysqlite3 can load extensions")
