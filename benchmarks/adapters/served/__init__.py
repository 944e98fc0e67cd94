"""Databases with an index over vectors in durable files, each served by a process of its own.

A module here has ``PACKAGE``, ``IMPORTS`` (what must be importable), ``ENVIRONMENT`` (variables its
process gets), ``SHARE`` (of the rows, below 1 where loading takes too long, in its favour) and
``Store``: ``Store(folder, dim)`` makes or opens, ``load(rows)`` inserts and indexes, durable when
it returns, ``tune(size)`` sets how far a search goes, ``sizes`` are the values worth trying,
ascending (``(0,)`` for exact search), ``search(query, k, kind)`` returns ids, and ``close()``. A
search reads the column ``sel`` of each row it finds, as an application would, except for the kind
``ids``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np

NAMES = (
    "tarsdb", "hnswlib_sqlite", "zvec", "lancedb", "chroma", "milvus_lite", "sqlite_vec", "duckdb",
    "qdrant",
)  # fmt: skip
FILTERS: dict[str, tuple[str, str, int] | None] = {
    "ids": None, "unfiltered": None, "one_percent": ("sel", "<", 10),
    "ten_percent": ("sel", "<", 100), "half": ("sel", "<", 500), "label": ("label", "=", 0),
}  # fmt: skip
"""Kinds of searches: column, operator and value of the filter. Label 0 is the rare one."""
SIZES = (10, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512)


@dataclass(frozen=True)
class Rows:
    """What is loaded: id int64, sel int32 (uniform in 0..999), label int32, vectors float32."""

    ids: np.ndarray
    sel: np.ndarray
    label: np.ndarray
    vectors: np.ndarray

    def first(self, count: int) -> Rows:
        """Return the first rows."""
        parts = (self.ids, self.sel, self.label, self.vectors)
        return Rows(*(part[:count] for part in parts))

    def allowed(self, kind: str) -> np.ndarray:
        """Return which rows a kind of search may find, bool (rows,)."""
        found = FILTERS[kind]
        if found is None:
            return np.ones(len(self.ids), dtype=bool)
        column, sign, value = found
        values = getattr(self, column)
        return np.asarray(values < value if sign == "<" else values == value)


def condition(kind: str, equals: str = "=") -> str:
    """Return a kind's filter as an SQL condition, empty for none."""
    found = FILTERS[kind]
    return "" if found is None else f"{found[0]} {found[1].replace('=', equals)} {found[2]}"


def adapter(name: str) -> ModuleType:
    """Return a module of this package; what it adapts is imported by its ``Store`` only."""
    return importlib.import_module(f"{__name__}.{name}")
