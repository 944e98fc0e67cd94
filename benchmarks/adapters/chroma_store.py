"""Chroma: an embedded collection on disk with its default HNSW index."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

PACKAGE = "chromadb"
BATCH = 5000
"""Its largest batch is 5,461 rows."""


class ChromaStore:
    """Bulk insert in batches; scalar columns are metadata, the vector index is made on the way."""

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        import chromadb
        from chromadb.config import Settings

        self.path = folder / "chroma"
        settings = Settings(anonymized_telemetry=False)
        self._client = chromadb.PersistentClient(path=str(self.path), settings=settings)
        self._collections = {
            name: self._client.create_collection(name, embedding_function=None)
            for name in ("warm", "docs")
        }

    def warm(self, columns: dict[str, Any], base: np.ndarray) -> None:
        """Load what is loaded on first use."""
        self._add("warm", {name: values[:100] for name, values in columns.items()}, base[:100])

    def insert(self, columns: dict[str, Any], base: np.ndarray) -> None:
        """Insert all rows."""
        self._add("docs", columns, base)

    def _add(self, name: str, columns: dict[str, Any], base: np.ndarray) -> None:
        ids = [str(i) for i in columns["id"].tolist()]
        others = [key for key in columns if key != "id"]
        values = zip(*(columns[key].tolist() for key in others), strict=True)
        metadata = [dict(zip(others, row, strict=True)) for row in values]
        for at in range(0, len(ids), BATCH):
            part = slice(at, at + BATCH)
            self._collections[name].add(
                ids=ids[part], embeddings=base[part], metadatas=metadata[part]
            )

    def disk_bytes(self) -> int:
        """Return the size of all files."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())

    def close(self) -> None:
        """Chroma has no close; the process ends."""
