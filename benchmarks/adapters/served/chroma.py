"""Chroma: a persistent collection, HNSW with the parameters hnswlib gets, metadata filters.

Its list size is fixed when a collection is made or modified, so each size is a modification.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from benchmarks.adapters.served import FILTERS, SIZES, Rows

PACKAGE = "chromadb"
IMPORTS = ("chromadb",)
ENVIRONMENT: dict[str, str] = {}
SHARE = 1.0
BATCH = 5000
"""Its largest batch is 5,461 rows."""
_SIGNS = {"<": "$lt", "=": "$eq"}


class Store:
    """One collection."""

    sizes = SIZES[7:]

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        import chromadb
        from chromadb.config import Settings

        settings = Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(path=str(folder / "chroma"), settings=settings)
        graph = {"space": "l2", "max_neighbors": 16, "ef_construction": 200, "ef_search": 100,
                 "num_threads": 1}  # fmt: skip
        self._docs: Any = client.get_or_create_collection(
            "docs", embedding_function=None, configuration={"hnsw": graph}
        )

    def load(self, rows: Rows) -> None:
        """Insert; the graph is made on the way."""
        for at in range(0, len(rows.ids), BATCH):
            part = slice(at, at + BATCH)
            values = zip(rows.sel[part].tolist(), rows.label[part].tolist(), strict=True)
            self._docs.add(
                ids=[str(i) for i in rows.ids[part].tolist()], embeddings=rows.vectors[part],
                metadatas=[{"sel": sel, "label": label} for sel, label in values],
            )  # fmt: skip

    def tune(self, size: int) -> None:
        """Set the list size."""
        self._docs.modify(configuration={"hnsw": {"ef_search": size}})

    def search(self, query: np.ndarray, k: int, kind: str) -> list[int]:
        """Return ids."""
        found = FILTERS[kind]
        where = None if found is None else {found[0]: {_SIGNS[found[1]]: found[2]}}
        include: list[Any] = [] if kind == "ids" else ["metadatas"]
        answer = self._docs.query(
            query_embeddings=[query], n_results=k, where=where, include=include
        )
        return [int(i) for i in answer["ids"][0]]

    def close(self) -> None:
        """Chroma has no close; the process ends."""
