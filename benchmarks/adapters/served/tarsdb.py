"""tarsdb through SQL: one file, full durability, a graph over the vectors, ordered indexes."""

from __future__ import annotations

import pathlib
import threading
import time

import numpy as np

from benchmarks.adapters.served import SIZES, Rows, condition

PACKAGE = "tarsdb"
IMPORTS = ("tarsdb",)
ENVIRONMENT: dict[str, str] = {}
SHARE = 1.0
FILE = "bench.tars"
TABLE = "CREATE TABLE docs (id BIGINT PRIMARY KEY, sel INT, label INT, emb VECTOR({dim}))"
INDEXES = (
    "CREATE INDEX docs_sel ON docs (sel)", "CREATE INDEX docs_label ON docs (label)",
    "CREATE INDEX docs_emb ON docs USING hnsw (emb)",
)  # fmt: skip
BACKGROUND = ("tarsdb-merge", "tarsdb-indexer")
"""Names of the threads behind writers."""


class Store:
    """A table with an index; each search is one statement."""

    sizes = SIZES

    def __init__(self, folder: pathlib.Path, dim: int) -> None:
        import tarsdb
        from tarsdb.kernels import dispatch
        from tarsdb.kernels import graph as kernels

        dispatch.warmup()
        kernels.wait()
        is_new = not (folder / FILE).exists()
        self.db = tarsdb.connect(folder / FILE)
        if is_new:
            self.db.execute(TABLE.format(dim=dim))

    def load(self, rows: Rows) -> None:
        """Insert and index."""
        columns = {"id": rows.ids, "sel": rows.sel, "label": rows.label, "emb": rows.vectors}
        self.db.table("docs").insert(columns)
        for statement in INDEXES:
            self.db.execute(statement)

    def tune(self, size: int) -> None:
        """Set the list size."""
        self.db.execute(f"SET ef_search = {size}")

    def search(self, query: np.ndarray, k: int, kind: str) -> list[int]:
        """Return ids."""
        return [row[0] for row in self.db.execute(statement(k, kind), (query,)).fetchall()]

    def settle(self, seconds: float = 120) -> None:
        """Wait, so long at most, until nothing works behind the writers of this process."""
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            if not any(thread.name in BACKGROUND for thread in threading.enumerate()):
                return
            time.sleep(0.05)

    def close(self) -> None:
        """Close."""
        self.db.close()


def statement(k: int, kind: str) -> str:
    """Return the SQL of a kind of search."""
    what = "id" if kind == "ids" else "id, sel"
    where = f"WHERE {condition(kind)} " if condition(kind) else ""
    return f"SELECT {what} FROM docs {where}ORDER BY emb <-> ? LIMIT {k}"
