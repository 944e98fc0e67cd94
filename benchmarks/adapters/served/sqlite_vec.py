"""sqlite-vec: a vec0 table on disk with metadata columns; exact search."""

from __future__ import annotations

import pathlib

import numpy as np

from benchmarks.adapters.served import Rows, condition
from benchmarks.adapters.sqlite_vec import connect

PACKAGE = "sqlite-vec"
IMPORTS = ("sqlite_vec",)
ENVIRONMENT: dict[str, str] = {}
SHARE = 1.0


class Store:
    """One virtual table, WAL with full synchronisation."""

    sizes = (0,)

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        is_new = not (folder / "vec.db").exists()
        self._db = connect(str(folder / "vec.db"))
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        if is_new:
            columns = f"id integer primary key, emb float[{dim}], sel integer, label integer"
            self._db.execute(f"CREATE VIRTUAL TABLE docs USING vec0({columns})")

    def load(self, rows: Rows) -> None:
        """Insert in one transaction."""
        values = zip(
            rows.ids.tolist(), map(np.ndarray.tobytes, rows.vectors), rows.sel.tolist(),
            rows.label.tolist(), strict=True,
        )  # fmt: skip
        with self._db:
            self._db.executemany("INSERT INTO docs(id, emb, sel, label) VALUES (?,?,?,?)", values)

    def tune(self, size: int) -> None:
        """Search is exact."""

    def search(self, query: np.ndarray, k: int, kind: str) -> list[int]:
        """Return ids."""
        where = f" AND {condition(kind)}" if condition(kind) else ""
        what = "id" if kind == "ids" else "id, sel"
        sql = f"SELECT {what} FROM docs WHERE emb MATCH ? AND k = {k}{where} ORDER BY distance"
        return [row[0] for row in self._db.execute(sql, (query.tobytes(),))]

    def close(self) -> None:
        """Close."""
        self._db.close()
