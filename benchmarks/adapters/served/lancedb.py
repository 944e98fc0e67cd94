"""LanceDB: IVF_HNSW_SQ in one partition (its advice for small tables) and ordered indexes.

Candidates are compared by full vectors (``refine_factor``), else it does not reach the recall.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from benchmarks.adapters.served import SIZES, Rows, condition

PACKAGE = "lancedb"
IMPORTS = ("lancedb",)
ENVIRONMENT = {"LANCE_CPU_THREADS": "1", "TOKIO_WORKER_THREADS": "1"}
SHARE = 1.0
REFINE = 3


class Store:
    """One table."""

    sizes = SIZES[3:]

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        import lancedb

        self._db: Any = lancedb.connect(str(folder / "lance"))
        self._dim, self._size = dim, 64
        self._docs: Any = None
        if (folder / "lance").exists() and "docs" in self._db.table_names():
            self._docs = self._db.open_table("docs")

    def load(self, rows: Rows) -> None:
        """Insert and index."""
        import pyarrow as pa

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.reshape(-1)), self._dim)
        given = pa.table(
            {"id": rows.ids, "sel": rows.sel, "label": rows.label, "emb": vectors}
        )  # fmt: skip
        self._docs = self._db.create_table("docs", given)
        self._docs.create_index(
            metric="l2", num_partitions=1, vector_column_name="emb", index_type="IVF_HNSW_SQ",
            m=16, ef_construction=200,
        )  # fmt: skip
        for column in ("sel", "label"):
            self._docs.create_scalar_index(column)

    def tune(self, size: int) -> None:
        """Set ef."""
        self._size = size

    def search(self, query: np.ndarray, k: int, kind: str) -> list[int]:
        """Return ids."""
        asked = self._docs.search(query, vector_column_name="emb").nprobes(1).ef(self._size)
        asked = asked.refine_factor(REFINE).limit(k)
        asked = asked.select(["id", "_distance"] if kind == "ids" else ["id", "sel", "_distance"])
        if condition(kind):
            asked = asked.where(condition(kind), prefilter=True)
        found: list[int] = asked.to_arrow()["id"].to_pylist()
        return found

    def close(self) -> None:
        """LanceDB has nothing to close."""
