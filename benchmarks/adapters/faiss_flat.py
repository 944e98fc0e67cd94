"""faiss IndexFlat: exact search in C++, vectors copied into its own memory."""

from __future__ import annotations

import numpy as np

PACKAGE = "faiss-cpu"


class FaissFlat:
    """Exact search by faiss; metric ``l2`` or ``ip``."""

    def __init__(self, base: np.ndarray, metric: str) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        # The default sends mid-sized batches down a slow path; this is faiss at its best here.
        faiss.cvar.distance_compute_blas_threshold = 16
        kind = faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP
        self._index = kind(base.shape[1])
        self._index.add(base)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return row numbers (q, k)."""
        return np.asarray(self._index.search(queries, k)[1])

    def close(self) -> None:
        """Free the index."""
        del self._index
