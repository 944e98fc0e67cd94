"""tarsdb's FlatIndex on vectors in memory: the search itself, without SQL."""

from __future__ import annotations

import numpy as np

from tarsdb.columns import VectorBlock
from tarsdb.index.basis import SEARCHES
from tarsdb.index.coded import CodeCache
from tarsdb.index.flat import FlatIndex
from tarsdb.kernels import dispatch
from tarsdb.metrics import METRICS
from tarsdb.types import parse_type

PACKAGE = "tarsdb"
OPERATORS = {"l2": "<->", "ip": "<#>"}
BLOCK_ROWS = 20_000


class TarsdbFlat:
    """Exact search over blocks as storage makes them."""

    def __init__(self, base: np.ndarray, metric: str, threads: int = 1) -> None:
        dispatch.warmup()
        blocks = [
            VectorBlock(np.arange(at, min(at + BLOCK_ROWS, len(base))), base[at : at + BLOCK_ROWS])
            for at in range(0, len(base), BLOCK_ROWS)
        ]
        self._index = FlatIndex(blocks, parse_type(f"VECTOR({base.shape[1]})"), CodeCache())
        self._op, self._threads = OPERATORS[metric], threads
        many = SEARCHES * base.shape[1] + 1
        for count in (1, 1, many, 1):  # codes are made at the second search, turned after many
            self.search(base[:count], 1)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return row numbers (q, k)."""
        return self._index.search(queries, k, self._op, threads=self._threads)[0]

    @staticmethod
    def counted() -> tuple[float, ...]:
        """Return how many searches of this process codes answered, and how many fell back."""
        found = METRICS.snapshot()
        return tuple(found.get(f"index.exact_{name}", 0.0) for name in ("certified", "fallbacks"))

    def close(self) -> None:
        """Free the index."""
        del self._index
