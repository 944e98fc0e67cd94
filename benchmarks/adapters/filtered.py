"""Exact nearest neighbours among the rows with ``sel < 10``, in tarsdb and elsewhere.

Each contender has ``name`` and ``search(query, k)``, which returns ids. All use one thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.adapters import sqlite_vec

BELOW = 10


class TarsdbFiltered:
    """One SQL statement; a scalar index on ``sel`` finds the rows."""

    name = "tarsdb"
    sql = (
        f"SELECT id, emb <-> ? AS distance FROM docs WHERE sel < {BELOW} ORDER BY distance LIMIT 10"
    )

    def __init__(self, db: Any) -> None:
        self._db = db

    def search(self, query: np.ndarray, k: int) -> list[int]:
        """Return ids."""
        return [row[0] for row in self._db.execute(self.sql, (query,)).fetchall()]


class NumpyDiff:
    """The straightforward form, on rows filtered beforehand."""

    name = "numpy_diff"

    def __init__(self, columns: dict[str, Any], base: np.ndarray) -> None:
        kept = np.flatnonzero(columns["sel"] < BELOW)
        self._ids, self._rows = columns["id"][kept], base[kept]
        self._norms = np.einsum("ij,ij->i", self._rows, self._rows)

    def keys(self, query: np.ndarray) -> np.ndarray:
        """Return what to sort by."""
        return np.asarray(((self._rows - query) ** 2).sum(axis=1))

    def search(self, query: np.ndarray, k: int) -> list[int]:
        """Return ids."""
        keys = self.keys(query)
        near = np.argpartition(keys, k)[:k]
        found: list[int] = self._ids[near[np.argsort(keys[near])]].tolist()
        return found


class NumpyGemv(NumpyDiff):
    """One matrix-vector product, norms known."""

    name = "numpy_gemv"

    def keys(self, query: np.ndarray) -> np.ndarray:
        """Return what to sort by."""
        return np.asarray(self._norms - 2 * (self._rows @ query))


class SqliteVec0:
    """A vec0 virtual table with ``sel`` as a metadata column: what sqlite-vec is for."""

    name = "sqlite_vec0"

    def __init__(self, columns: dict[str, Any], base: np.ndarray) -> None:
        self._db = sqlite_vec.connect()
        self._db.execute(
            f"CREATE VIRTUAL TABLE v USING vec0(id integer primary key, e float[{base.shape[1]}], "
            "sel integer)"
        )
        rows = zip(columns["id"].tolist(), map(np.ndarray.tobytes, base), columns["sel"].tolist(),
                   strict=True)  # fmt: skip
        self._db.executemany("INSERT INTO v(id, e, sel) VALUES (?, ?, ?)", rows)

    def search(self, query: np.ndarray, k: int) -> list[int]:
        """Return ids."""
        sql = f"SELECT id FROM v WHERE e MATCH ? AND k = ? AND sel < {BELOW} ORDER BY distance"
        return [row[0] for row in self._db.execute(sql, (query.tobytes(), k))]


class SqliteVecFunction:
    """A plain table with an index on ``sel`` and sqlite-vec's distance function on its blobs."""

    name = "sqlite_vec_function"

    def __init__(self, columns: dict[str, Any], base: np.ndarray) -> None:
        self._db = sqlite_vec.connect()
        self._db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, sel INT, e BLOB)")
        rows = zip(columns["id"].tolist(), columns["sel"].tolist(), map(np.ndarray.tobytes, base),
                   strict=True)  # fmt: skip
        self._db.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
        self._db.execute("CREATE INDEX t_sel ON t (sel)")

    def search(self, query: np.ndarray, k: int) -> list[int]:
        """Return ids."""
        sql = f"SELECT id FROM t WHERE sel < {BELOW} ORDER BY vec_distance_L2(e, ?) LIMIT ?"
        return [row[0] for row in self._db.execute(sql, (query.tobytes(), k))]


class DuckDb:
    """A DuckDB table with an index on ``sel`` and ``array_distance``."""

    name = "duckdb"

    def __init__(self, columns: dict[str, Any], base: np.ndarray) -> None:
        import duckdb
        import pyarrow as pa

        self._db = duckdb.connect(config={"threads": 1})
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(base.reshape(-1)), base.shape[1])
        given = pa.table({"id": columns["id"], "sel": columns["sel"], "e": vectors})
        self._db.register("given", given)
        self._db.execute("CREATE TABLE t AS SELECT * FROM given")
        self._db.unregister("given")
        self._db.execute("CREATE INDEX t_sel ON t (sel)")
        self._width = base.shape[1]

    def search(self, query: np.ndarray, k: int) -> list[int]:
        """Return ids."""
        sql = (
            f"SELECT id FROM t WHERE sel < {BELOW} "
            f"ORDER BY array_distance(e, $1::FLOAT[{self._width}]) LIMIT {k}"
        )
        return [row[0] for row in self._db.execute(sql, [query.tolist()]).fetchall()]


RIVALS: tuple[Any, ...] = (NumpyDiff, NumpyGemv, SqliteVec0, SqliteVecFunction, DuckDb)
