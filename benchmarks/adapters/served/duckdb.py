"""DuckDB: a table on disk and ``array_distance``; exact search, an index on each scalar column."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from benchmarks.adapters.served import Rows, condition

PACKAGE = "duckdb"
IMPORTS = ("duckdb", "pyarrow")
ENVIRONMENT: dict[str, str] = {}
SHARE = 1.0


class Store:
    """One table; its vector index is an extension that is fetched from a network, so not used."""

    sizes = (0,)

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        import duckdb

        is_new = not (folder / "docs.duckdb").exists()
        self._db: Any = duckdb.connect(str(folder / "docs.duckdb"), config={"threads": 1})
        self._dim = dim
        if is_new:
            self._db.execute(f"CREATE TABLE docs (id BIGINT, sel INT, label INT, emb FLOAT[{dim}])")

    def load(self, rows: Rows) -> None:
        """Insert and index."""
        import pyarrow as pa

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.reshape(-1)), self._dim)
        given = pa.table({"id": rows.ids, "sel": rows.sel, "label": rows.label, "emb": vectors})
        self._db.register("given", given)
        self._db.execute("INSERT INTO docs SELECT * FROM given")
        self._db.execute("CREATE INDEX docs_sel ON docs (sel)")
        self._db.execute("CREATE INDEX docs_label ON docs (label)")
        self._db.execute("CHECKPOINT")

    def tune(self, size: int) -> None:
        """Search is exact."""

    def search(self, query: np.ndarray, k: int, kind: str) -> list[int]:
        """Return ids."""
        where = f"WHERE {condition(kind)} " if condition(kind) else ""
        what = "id" if kind == "ids" else "id, sel"
        sql = (
            f"SELECT {what} FROM docs {where}"
            f"ORDER BY array_distance(emb, $1::FLOAT[{self._dim}]) LIMIT {k}"
        )
        return [row[0] for row in self._db.execute(sql, [query.tolist()]).fetchall()]

    def close(self) -> None:
        """Close."""
        self._db.close()
