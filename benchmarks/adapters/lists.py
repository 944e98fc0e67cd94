"""Inverted lists, one query a call: tarsdb at its index and through SQL, faiss IVF-PQ refined.

Each contender has ``name``, ``settings`` (series of growing effort),
``build_seconds`` (CPU), ``bytes_per_vector`` (None where it is not known) and ``use(setting)``,
after which ``search(query, k)`` returns row numbers. All use one thread.
"""

from __future__ import annotations

import pathlib
import time
from typing import Any

import numpy as np

import tarsdb
from tarsdb.columns import VectorBlock
from tarsdb.index.flat import FlatIndex
from tarsdb.index.ivf import IvfOptions, build_ivf
from tarsdb.kernels import dispatch
from tarsdb.kernels import ivf as kernels
from tarsdb.types import parse_type

BLOCK_ROWS = 2048
PROBES = (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 112, 128, 160, 192, 256, 384, 512)
REFINED = (4, 8, 12, 16, 24)
"""Candidates faiss compares by their full vectors, times k."""
SAMPLE = 64
"""Rows a list that k-means learns from, for all."""
SQL = "SELECT id FROM docs ORDER BY emb <-> ? LIMIT "


def options(lists: int, codes: str) -> dict[str, Any]:
    """Return the options of lists by a name of codes: ``int8``, or ``bits+2`` for further bits."""
    kind, _, further = codes.partition("+")
    return {"lists": lists, "codes": kind, **({"refine_bits": int(further)} if further else {})}


class TarsdbLists:
    """The lists with the product's number of candidates, compared by their full vectors."""

    settings = (tuple((probes,) for probes in PROBES),)

    def __init__(self, base: np.ndarray, lists: int, codes: str) -> None:
        self.name = f"tarsdb_{codes}_{lists}"
        dispatch.warmup()
        kernels.wait()
        given = IvfOptions(**options(lists, codes))
        start = time.process_time()
        self._ivf = build_ivf(base, np.arange(len(base)), "<->", given)
        self.build_seconds = time.process_time() - start
        blocks = [
            VectorBlock(np.arange(at, min(at + BLOCK_ROWS, len(base))), base[at : at + BLOCK_ROWS])
            for at in range(0, len(base), BLOCK_ROWS)
        ]
        self._flat = FlatIndex(blocks, parse_type(f"VECTOR({base.shape[1]})"))
        self._positions = self._flat.positions(self._ivf.rowids)
        self.bytes_per_vector: float | None = self._ivf.nbytes / len(base)
        self._probes = 0

    def use(self, setting: tuple[int, ...]) -> None:
        """Look at so many lists."""
        (self._probes,) = setting

    def candidates(self, k: int) -> int:
        """Return how many vectors a search reads."""
        return self._ivf.candidates(k)

    def search(self, query: np.ndarray, k: int) -> np.ndarray:
        """Return row numbers."""
        wanted = self.candidates(k)
        at = self._ivf.search(query, wanted, self._probes, places=self._positions)
        return self._flat.search(query[np.newaxis], k, "<->", positions=at)[0][0]


class TarsdbListsSql:
    """A table with lists in a file, asked by SQL."""

    settings = TarsdbLists.settings
    bytes_per_vector = None

    def __init__(self, base: np.ndarray, lists: int, codes: str, path: pathlib.Path) -> None:
        self.name = f"tarsdb_sql_{codes}_{lists}"
        self._db = tarsdb.connect(path)
        self._db.execute(f"CREATE TABLE docs (id BIGINT PRIMARY KEY, emb VECTOR({base.shape[1]}))")
        start = time.process_time()
        self._db.table("docs").insert({"id": np.arange(len(base)), "emb": base})
        given = ", ".join(f"{name} = {value!r}" for name, value in options(lists, codes).items())
        self._db.execute(f"CREATE INDEX docs_emb ON docs USING ivf (emb) WITH ({given})")
        self.build_seconds = time.process_time() - start

    def use(self, setting: tuple[int, ...]) -> None:
        """Look at so many lists."""
        self._db.execute(f"SET probes = {setting[0]}")

    def search(self, query: np.ndarray, k: int) -> np.ndarray:
        """Return ids."""
        return np.array([row[0] for row in self._db.execute(f"{SQL}{k}", (query,)).fetchall()])

    def close(self) -> None:
        """Close."""
        self._db.close()


class Faiss:
    """An inverted file of a product quantiser, refined by the full vectors."""

    settings = tuple(tuple((probes, refined) for probes in PROBES) for refined in REFINED)

    def __init__(self, base: np.ndarray, lists: int, code: str) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self.name = f"faiss_{code}_{lists}"
        self._index: Any = faiss.index_factory(base.shape[1], f"IVF{lists},{code},RFlat")
        self._lists: Any = faiss.downcast_index(self._index.base_index)
        self._lists.cp.max_points_per_centroid = SAMPLE
        self._lists.cp.niter = IvfOptions().iterations
        start = time.process_time()
        self._index.train(base)
        self._index.add(base)
        self.build_seconds = time.process_time() - start
        self.bytes_per_vector: float | None = float(self._lists.code_size + 8)

    def use(self, setting: tuple[int, ...]) -> None:
        """Look at so many lists, and compare so many times k vectors."""
        self._lists.nprobe, self._index.k_factor = setting

    def search(self, query: np.ndarray, k: int) -> np.ndarray:
        """Return row numbers."""
        return np.asarray(self._index.search(query[np.newaxis], k)[1][0])
