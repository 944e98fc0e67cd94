"""Indexes at their Python interfaces, one query a call: tarsdb's graph and its rivals.

Each contender takes the vectors and a metric (``l2``, ``ip``), and has ``name``, ``sizes`` (search
list sizes; of ScaNN the leaves that are looked at), ``build_seconds`` (CPU), ``bytes_per_vector``
(None where it does not say), and ``search(query, k, size)``, which returns row numbers. All use one
thread.
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
OPERATORS = {"l2": "<->", "ip": "<#>"}


class TarsdbGraph:
    """The graph with the product's defaults; candidates compared by their full vectors."""

    name = "tarsdb"
    sizes = (10, 16, 24, 32, 48, 64, 96, 128, 192)

    def __init__(
        self, base: np.ndarray, metric: str = "l2", options: GraphOptions | None = None
    ) -> None:
        self._operator = OPERATORS[metric]
        dispatch.warmup()
        kernels.wait()
        start = time.process_time()
        made = build_graph(base, np.arange(len(base)), self._operator, options)
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
            known = self._searches[k, size] = Nearest([look], none, self._flat, self._operator, k)
        return known


class TarsdbFastBuild(TarsdbGraph):
    """The graph as docs/tuning-index.md says who wants it built fast."""

    name = "tarsdb_fast_build"

    def __init__(self, base: np.ndarray, metric: str = "l2") -> None:
        super().__init__(base, metric, GraphOptions(ef_construction=64))


class Hnswlib:
    """hnswlib with its usual parameters."""

    name = "hnswlib"
    sizes = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    bytes_per_vector = None

    def __init__(self, base: np.ndarray, metric: str = "l2") -> None:
        import hnswlib

        self._index: Any = hnswlib.Index(metric, base.shape[1])
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

    def __init__(self, base: np.ndarray, metric: str = "l2") -> None:
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
            kind = svs.DistanceType.L2 if metric == "l2" else svs.DistanceType.MIP
            self._index: Any = svs.Vamana.build(how, coded, kind, num_threads=1)
            self.build_seconds = time.process_time() - start

    def search(self, query: np.ndarray, k: int, size: int) -> np.ndarray:
        """Return row numbers."""
        if self._index.search_window_size != size:
            self._index.search_window_size = size
        return np.asarray(self._index.search(query[np.newaxis], k)[0][0])


class Faiss:
    """faiss's graph over float32, as many neighbours as hnswlib's."""

    name = "faiss"
    sizes = Hnswlib.sizes
    bytes_per_vector = None

    def __init__(self, base: np.ndarray, metric: str = "l2") -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        self._index: Any = faiss.IndexHNSWFlat(base.shape[1], 16, kind)
        self._index.hnsw.efConstruction = 200
        start = time.process_time()
        self._index.add(base)
        self.build_seconds = time.process_time() - start

    def search(self, query: np.ndarray, k: int, size: int) -> np.ndarray:
        """Return row numbers."""
        self._index.hnsw.efSearch = size
        return np.asarray(self._index.search(query[np.newaxis], k)[1][0])


class Usearch:
    """usearch over float32; its int8 codes are compared by nothing else and end near 0.95."""

    name = "usearch"
    sizes = Hnswlib.sizes
    bytes_per_vector = None

    def __init__(self, base: np.ndarray, metric: str = "l2") -> None:
        from usearch.index import Index

        self._index: Any = Index(
            ndim=base.shape[1], metric="l2sq" if metric == "l2" else "ip", dtype="f32",
            connectivity=16, expansion_add=200,
        )  # fmt: skip
        start = time.process_time()
        self._index.add(np.arange(len(base)), base, threads=1)
        self.build_seconds = time.process_time() - start

    def search(self, query: np.ndarray, k: int, size: int) -> np.ndarray:
        """Return row numbers."""
        self._index.expansion_search = size
        return np.asarray(self._index.search(query, k, threads=1).keys)


class Scann:
    """ScaNN: leaves of a tree, their vectors by product codes, the best 100 by float32."""

    name = "scann"
    sizes = (2, 4, 8, 12, 20, 32, 48, 80, 128, 200)
    bytes_per_vector = None

    def __init__(self, base: np.ndarray, metric: str = "l2") -> None:
        from scann import scann_ops_pybind as scann

        kind = "squared_l2" if metric == "l2" else "dot_product"
        start = time.process_time()
        made = scann.builder(base, 10, kind).set_n_training_threads(1)
        made = made.tree(num_leaves=int(2 * len(base) ** 0.5), num_leaves_to_search=10,
                         training_sample_size=len(base))  # fmt: skip
        made = made.score_ah(2, anisotropic_quantization_threshold=0.2)
        self._index: Any = made.reorder(100).build()
        self.build_seconds = time.process_time() - start

    def search(self, query: np.ndarray, k: int, size: int) -> np.ndarray:
        """Return row numbers."""
        return np.asarray(self._index.search(query, k, leaves_to_search=size)[0])


RIVALS: tuple[Any, ...] = (Hnswlib, SvsLvq, Faiss, Usearch, Scann)
