"""Graph indexes at their Python interfaces, one query a call: tarsdb, hnswlib, SVS with LVQ.

Each contender has ``name``, ``sizes`` (search list sizes), ``build_seconds`` (CPU) and
``bytes_per_vector`` (None where it does not say), and ``search(query, k, size)``, which returns row
numbers. All use one thread.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from tarsdb.columns import VectorBlock
from tarsdb.engine.search.index_methods import METHODS
from tarsdb.index.base import Look
from tarsdb.index.flat import FlatIndex
from tarsdb.index.hnsw import Graph, GraphOptions, build_graph
from tarsdb.index.hnsw.nearest import Nearest
from tarsdb.kernels import dispatch
from tarsdb.kernels import graph as kernels
from tarsdb.types import parse_type

BLOCK_ROWS = 2048


class TarsdbGraph:
    """The graph with the product's defaults; candidates compared by their full vectors."""

    name = "tarsdb"
    sizes = (10, 16, 24, 32, 48, 64, 96, 128, 192)

    def __init__(self, base: np.ndarray, options: GraphOptions | None = None) -> None:
        dispatch.warmup()
        kernels.wait()
        start = time.process_time()
        made = build_graph(base, np.arange(len(base)), "<->", options)
        self.build_seconds = time.process_time() - start
        self._graph = Graph.from_arrays(made.to_arrays())
        blocks = [
            VectorBlock(np.arange(at, min(at + BLOCK_ROWS, len(base))), base[at : at + BLOCK_ROWS])
            for at in range(0, len(base), BLOCK_ROWS)
        ]
        self._flat = FlatIndex(blocks, parse_type(f"VECTOR({base.shape[1]})"))
        self._positions = self._flat.positions(self._graph.rowids)
        self._searches: dict[tuple[int, int], Nearest] = {}
        self.bytes_per_vector: float | None = self._graph.nbytes / len(base)

    def search(self, query: np.ndarray, k: int, size: int) -> np.ndarray:
        """Return row numbers."""
        found = self._prepared(k, size).search(query[np.newaxis])
        assert found is not None
        return found[0][0]

    def _prepared(self, k: int, size: int) -> Nearest:
        known = self._searches.get((k, size))
        if known is None:
            taken = METHODS["hnsw"].candidates(self._graph, k, size)
            look = Look(self._graph, self._positions, None, taken, size, size, 0)
            none = np.empty(0, np.int64)
            known = self._searches[k, size] = Nearest([look], none, self._flat, "<->", k)
        return known


class TarsdbFastBuild(TarsdbGraph):
    """The graph as docs/tuning-index.md says who wants it built fast."""

    name = "tarsdb_fast_build"

    def __init__(self, base: np.ndarray) -> None:
        super().__init__(base, GraphOptions(ef_construction=64))


class Hnswlib:
    """hnswlib with its usual parameters."""

    name = "hnswlib"
    sizes = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    bytes_per_vector = None

    def __init__(self, base: np.ndarray) -> None:
        import hnswlib

        self._index: Any = hnswlib.Index("l2", base.shape[1])
        self._index.init_index(len(base), M=16, ef_construction=200)
        self._index.set_num_threads(1)
        start = time.process_time()
        self._index.add_items(base)
        self.build_seconds = time.process_time() - start

    def search(self, query: np.ndarray, k: int, size: int) -> np.ndarray:
        """Return row numbers."""
        self._index.set_ef(size)
        return np.asarray(self._index.knn_query(query, k)[0][0])


class SvsLvq:
    """Intel's scalable vector search with 8-bit LVQ; runs on Intel's processors only."""

    name = "svs-lvq8"
    sizes = (10, 16, 24, 32, 48, 64, 96, 128, 192)
    bytes_per_vector = None

    def __init__(self, base: np.ndarray) -> None:
        import svs

        if "GenuineIntel" not in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8"):
            # the loader would end the process, without an exception
            raise ImportError("LVQ of SVS runs on Intel's processors only")
        with tempfile.TemporaryDirectory() as folder:
            file = str(pathlib.Path(folder) / "base.fvecs")
            svs.write_vecs(base, file)
            loader = svs.VectorDataLoader(file, svs.DataType.float32, dims=base.shape[1])
            coded = svs.LVQLoader(loader, primary=8)
            how = svs.VamanaBuildParameters(graph_max_degree=32, window_size=200, alpha=1.2)
            start = time.process_time()
            self._index: Any = svs.Vamana.build(how, coded, svs.DistanceType.L2, num_threads=1)
            self.build_seconds = time.process_time() - start

    def search(self, query: np.ndarray, k: int, size: int) -> np.ndarray:
        """Return row numbers."""
        if self._index.search_window_size != size:
            self._index.search_window_size = size
        return np.asarray(self._index.search(query[np.newaxis], k)[0][0])


RIVALS: tuple[Any, ...] = (Hnswlib, SvsLvq)
