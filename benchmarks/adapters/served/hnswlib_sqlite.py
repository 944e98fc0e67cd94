"""What one writes without a vector database: hnswlib beside SQLite (WAL, synchronous=FULL).

A filter that keeps few rows is answered exactly over their vectors, found by SQLite's index; else
the graph is asked for more, and SQLite keeps what matches (hnswlib calls a Python function for each
node otherwise, which takes several times as long).
"""

from __future__ import annotations

import os
import pathlib
import sqlite3
from typing import Any

import numpy as np

from benchmarks.adapters.served import SIZES, Rows, condition

PACKAGE = "hnswlib"
IMPORTS = ("hnswlib",)
ENVIRONMENT: dict[str, str] = {}
SHARE = 1.0
FEW = 0.12
"""Share of the rows up to which a filtered search is exact."""


class Store:
    """Labels are primary keys. The index is a file of its own, synced and renamed into place."""

    sizes = SIZES

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        import hnswlib

        self._folder, self._file = folder, folder / "index.bin"
        self._index: Any = hnswlib.Index("l2", dim)
        self._index.set_num_threads(1)
        self._db = sqlite3.connect(folder / "rows.db")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._vectors = np.empty((0, dim), np.float32)
        self._size = 10
        if self._file.exists():
            self._index.load_index(str(self._file))
            self._index.set_num_threads(1)
            self._vectors = np.load(folder / "vectors.npy")
        else:
            self._db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, sel INT, label INT)")
            self._db.execute("CREATE INDEX t_sel ON t (sel)")
            self._db.execute("CREATE INDEX t_label ON t (label)")

    def load(self, rows: Rows) -> None:
        """Insert, index, and save the index."""
        values = zip(rows.ids.tolist(), rows.sel.tolist(), rows.label.tolist(), strict=True)
        with self._db:
            self._db.executemany("INSERT INTO t VALUES (?, ?, ?)", values)
        self._index.init_index(len(rows.ids), M=16, ef_construction=200)
        self._index.set_num_threads(1)
        self._index.add_items(rows.vectors, rows.ids)
        parts = {"new.npy": "vectors.npy", "new.bin": "index.bin"}
        np.save(self._folder / "new.npy", rows.vectors)
        self._index.save_index(str(self._folder / "new.bin"))
        for written, final in parts.items():
            with open(self._folder / written, "rb") as file:
                os.fsync(file.fileno())
            os.replace(self._folder / written, self._folder / final)
        directory = os.open(self._folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        self._vectors = rows.vectors

    def tune(self, size: int) -> None:
        """Set ef."""
        self._size = size
        self._index.set_ef(size)

    def search(self, query: np.ndarray, k: int, kind: str) -> list[int]:
        """Return ids."""
        if condition(kind):
            return self._filtered(query, k, condition(kind))
        labels: list[int] = self._index.knn_query(query, k)[0][0].tolist()
        return labels if kind == "ids" else [row[0] for row in self._rows(labels, "")]

    def _rows(self, labels: list[int], where: str) -> list[tuple[int, int]]:
        marks = ",".join("?" * len(labels))
        sql = f"SELECT id, sel FROM t WHERE id IN ({marks}){where}"
        found = {row[0]: row for row in self._db.execute(sql, labels)}
        return [found[label] for label in labels if label in found]

    def _filtered(self, query: np.ndarray, k: int, where: str) -> list[int]:
        total = len(self._vectors)
        few = int(total * FEW)
        ids = self._db.execute(f"SELECT id, sel FROM t WHERE {where} LIMIT {few + 1}").fetchall()
        if len(ids) <= few:
            at = np.fromiter((row[0] for row in ids), np.int64, len(ids))
            rows = self._vectors[at]
            keys = np.einsum("ij,ij->i", rows, rows) - 2 * (rows @ query)
            near = np.argpartition(keys, min(k, len(at)) - 1)[:k]
            exact: list[int] = at[near[np.argsort(keys[near])]].tolist()
            return exact
        asked = 3 * k
        while True:
            self._index.set_ef(max(self._size, asked))
            labels = self._index.knn_query(query, asked)[0][0].tolist()
            found = self._rows(labels, f" AND {where}")
            if len(found) >= k or asked >= total:
                return [row[0] for row in found[:k]]
            asked *= 2

    def close(self) -> None:
        """Close."""
        self._db.close()
