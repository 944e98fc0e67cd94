"""Milvus Lite: a collection in a file, HNSW, through its client."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from benchmarks.adapters.served import SIZES, Rows, condition

PACKAGE = "milvus-lite"
IMPORTS = ("pymilvus", "milvus_lite")
ENVIRONMENT: dict[str, str] = {}
SHARE = 1.0
BATCH = 2000


class Store:
    """One collection."""

    sizes = SIZES[7:]

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        import pymilvus

        self._client: Any = pymilvus.MilvusClient(str(folder / "milvus.db"))
        self._size = 64
        if not self._client.has_collection("docs"):
            kind = pymilvus.DataType
            schema = self._client.create_schema(auto_id=False)
            schema.add_field("id", kind.INT64, is_primary=True)
            schema.add_field("sel", kind.INT32)
            schema.add_field("label", kind.INT32)
            schema.add_field("emb", kind.FLOAT_VECTOR, dim=dim)
            index = self._client.prepare_index_params()
            graph = {"M": 16, "efConstruction": 200}
            index.add_index("emb", index_type="HNSW", metric_type="L2", params=graph)
            self._client.create_collection("docs", schema=schema, index_params=index)
        self._client.load_collection("docs")

    def load(self, rows: Rows) -> None:
        """Insert and flush, which builds the index."""
        for at in range(0, len(rows.ids), BATCH):
            part = slice(at, at + BATCH)
            values = zip(
                rows.ids[part].tolist(), rows.sel[part].tolist(), rows.label[part].tolist(),
                rows.vectors[part], strict=True,
            )  # fmt: skip
            self._client.insert(
                "docs", [{"id": i, "sel": s, "label": g, "emb": v} for i, s, g, v in values]
            )
        self._client.flush("docs")

    def tune(self, size: int) -> None:
        """Set ef."""
        self._size = size

    def search(self, query: np.ndarray, k: int, kind: str) -> list[int]:
        """Return ids."""
        answer = self._client.search(
            "docs", data=[query], limit=k, filter=condition(kind, "=="), anns_field="emb",
            search_params={"params": {"ef": max(self._size, k)}},
            output_fields=[] if kind == "ids" else ["sel"],
        )  # fmt: skip
        return [hit["id"] for hit in answer[0]]

    def close(self) -> None:
        """Close."""
        self._client.close()
