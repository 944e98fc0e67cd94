"""sqlite-vec: a vec0 table on disk, WAL with full synchronisation."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from benchmarks.adapters import sqlite_vec

PACKAGE = "sqlite-vec"
COLUMNS = (
    "id integer primary key, emb float[{dim}], sel integer, +label text, +score float, +body text"
)


class SqliteVecStore:
    """Bulk insert by ``executemany`` in one transaction; ``sel`` is a metadata column."""

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        self.path = folder / "vec.db"
        self._db = sqlite_vec.connect(str(self.path))
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        for name in ("warm", "docs"):
            self._db.execute(f"CREATE VIRTUAL TABLE {name} USING vec0({COLUMNS.format(dim=dim)})")

    def warm(self, columns: dict[str, Any], base: np.ndarray) -> None:
        """Load what is loaded on first use."""
        self._add("warm", {name: values[:100] for name, values in columns.items()}, base[:100])

    def insert(self, columns: dict[str, Any], base: np.ndarray) -> None:
        """Insert all rows."""
        self._add("docs", columns, base)

    def _add(self, name: str, columns: dict[str, Any], base: np.ndarray) -> None:
        rows = zip(
            columns["id"].tolist(), (row.tobytes() for row in base), columns["sel"].tolist(),
            columns["label"], columns["score"].tolist(), columns["body"], strict=True,
        )  # fmt: skip
        with self._db:
            self._db.executemany(
                f"INSERT INTO {name}(id, emb, sel, label, score, body) VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )

    def disk_bytes(self) -> int:
        """Return the size of database and log."""
        return sum(f.stat().st_size for f in self.path.parent.glob("vec.db*"))

    def close(self) -> None:
        """Close."""
        self._db.close()
