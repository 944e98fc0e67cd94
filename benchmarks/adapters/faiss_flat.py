"""faiss IndexFlat: exact search in C++, vectors copied into its own memory."""

from __future__ import annotations

import numpy as np

PACKAGE = "faiss-cpu"
SINGLE, BATCHED = 128_000, 16
"""Settings of ``distance_compute_blas_threshold``: faiss 1.15's default, and one for batches."""


class FaissFlat:
    """Exact search by faiss; metric ``l2`` or ``ip``."""

    def __init__(self, base: np.ndarray, metric: str) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self._settings = faiss.cvar
        kind = faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP
        self._index = kind(base.shape[1])
        self._index.add(base)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return row numbers (q, k)."""
        # faiss at its best on the machines tried: the default threshold keeps batches from BLAS,
        # a low one makes single queries twice as slow.
        alone = len(queries) == 1
        self._settings.distance_compute_blas_threshold = SINGLE if alone else BATCHED
        return np.asarray(self._index.search(queries, k)[1])

    def close(self) -> None:
        """Free the index."""
        del self._index
