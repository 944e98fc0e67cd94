"""Qdrant's local mode: a collection in files, exact search in NumPy.

It commits each row by itself, so it gets a quarter of the rows.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from benchmarks.adapters.served import FILTERS, Rows

PACKAGE = "qdrant-client"
IMPORTS = ("qdrant_client",)
ENVIRONMENT: dict[str, str] = {}
SHARE = 0.25


class Store:
    """One collection."""

    sizes = (0,)

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        from qdrant_client import QdrantClient, models

        self._models: Any = models
        self._client = QdrantClient(path=str(folder / "qdrant"))
        if not self._client.collection_exists("docs"):
            shape = models.VectorParams(size=dim, distance=models.Distance.EUCLID)
            self._client.create_collection("docs", vectors_config=shape)

    def load(self, rows: Rows) -> None:
        """Insert."""
        values = zip(rows.sel.tolist(), rows.label.tolist(), strict=True)
        self._client.upload_collection(
            "docs", vectors=rows.vectors, ids=rows.ids.tolist(),
            payload=[{"sel": sel, "label": label} for sel, label in values],
        )  # fmt: skip

    def tune(self, size: int) -> None:
        """Search is exact."""

    def search(self, query: np.ndarray, k: int, kind: str) -> list[int]:
        """Return ids."""
        answer = self._client.query_points(
            "docs", query=query, limit=k, query_filter=self._filter(kind),
            with_payload=False if kind == "ids" else ["sel"],
        )  # fmt: skip
        return [int(point.id) for point in answer.points]

    def _filter(self, kind: str) -> Any:
        found = FILTERS[kind]
        if found is None:
            return None
        column, sign, value = found
        if sign == "<":
            how = {"range": self._models.Range(lt=value)}
        else:
            how = {"match": self._models.MatchValue(value=value)}
        return self._models.Filter(must=[self._models.FieldCondition(key=column, **how)])

    def close(self) -> None:
        """Close."""
        self._client.close()
