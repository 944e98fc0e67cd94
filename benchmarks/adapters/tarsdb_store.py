"""tarsdb: one table with a primary key, four scalar columns and a vector column."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

import tarsdb
from benchmarks.processes import last_transaction

PACKAGE = "tarsdb"
FILE = "bench.tars"
COLUMNS = "id BIGINT PRIMARY KEY, sel INT, label TEXT, score DOUBLE, body TEXT, emb VECTOR({dim})"


class TarsdbStore:
    """Bulk insert through ``Table.insert``; the commit is durable when it returns."""

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        self.path = folder / FILE
        self.db = tarsdb.connect(self.path)
        for name in ("warm", "docs"):
            self.db.execute(f"CREATE TABLE {name} ({COLUMNS.format(dim=dim)})")

    def warm(self, columns: dict[str, Any], base: np.ndarray) -> None:
        """Load what is loaded on first use, with few rows."""
        self.db.table("warm").insert({**columns, "emb": base})
        self.db.execute("DROP TABLE warm")

    def insert(self, columns: dict[str, Any], base: np.ndarray) -> None:
        """Insert all rows."""
        self.db.table("docs").insert({**columns, "emb": base})

    def transactions(self) -> int:
        """Return the number of the last LMDB transaction."""
        return last_transaction(self.path)

    def disk_bytes(self) -> int:
        """Return the size of the file."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Close."""
        self.db.close()
