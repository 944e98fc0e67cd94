"""zvec: an embedded collection with HNSW and inverted indexes; flushed after loading.

It syncs nothing when a write is acknowledged. It can block for ever where OpenMP is limited to one
thread, so its process may use two; CPU time counts both.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from benchmarks.adapters.served import SIZES, Rows, condition

PACKAGE = "zvec"
IMPORTS = ("zvec",)
ENVIRONMENT = {"OMP_NUM_THREADS": "2"}
SHARE = 1.0
BATCH = 1000


class Store:
    """HNSW with the parameters hnswlib gets, vectors uncompressed."""

    sizes = SIZES

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        import zvec

        self._zvec: Any = zvec
        zvec.init(log_level=zvec.LogLevel.ERROR, query_threads=1, optimize_threads=1)
        path = folder / "zvec"
        if path.exists():
            self._docs = zvec.open(str(path))
        else:
            ordered = zvec.InvertIndexParam(enable_range_optimization=True)
            graph = zvec.HnswIndexParam(zvec.MetricType.L2, m=16, ef_construction=200)
            fields = [
                zvec.FieldSchema(n, zvec.DataType.INT32, False, ordered) for n in ("sel", "label")
            ]
            vector = zvec.VectorSchema("emb", zvec.DataType.VECTOR_FP32, dim, graph)
            schema = zvec.CollectionSchema("docs", fields, vector)
            self._docs = zvec.create_and_open(str(path), schema)
        self._how = zvec.HnswQueryParam(ef=64)

    def load(self, rows: Rows) -> None:
        """Insert, build the graph, flush."""
        for at in range(0, len(rows.ids), BATCH):
            part = slice(at, at + BATCH)
            values = zip(
                rows.ids[part].tolist(), rows.sel[part].tolist(), rows.label[part].tolist(),
                rows.vectors[part], strict=True,
            )  # fmt: skip
            docs = [
                self._zvec.Doc(id=str(i), fields={"sel": s, "label": g}, vectors={"emb": v})
                for i, s, g, v in values
            ]
            failed = [status for status in self._docs.insert(docs) if not status.ok()]
            if failed:
                raise OSError(f"zvec refused {len(failed)} rows: {failed[0]}")
        self._docs.optimize()
        self._docs.flush()

    def tune(self, size: int) -> None:
        """Set ef."""
        self._how = self._zvec.HnswQueryParam(ef=size)

    def search(self, query: np.ndarray, k: int, kind: str) -> list[int]:
        """Return ids."""
        asked = self._zvec.Query("emb", vector=query, param=self._how)
        found = self._docs.query(
            asked, topk=k, filter=condition(kind) or None,
            output_fields=[] if kind == "ids" else ["sel"],
        )  # fmt: skip
        return [int(doc.id) for doc in found]

    def close(self) -> None:
        """Flush."""
        self._docs.flush()
