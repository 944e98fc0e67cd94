"""Data that workloads share: vectors, the scalar columns beside them, and scratch folders.

Vectors and texts are real where ``../shared/data`` lies beside the repository, otherwise seeded
synthetic ones of the same shape; ``source`` says which and belongs in every record.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "minilm384"
LOGIC = ROOT.parent / "shared" / "data" / "sqllogictest"
DIM = 384
LIMIT = 100_000
FOLDER_VARIABLE = "TARSDB_BENCH_DIR"


@dataclass(frozen=True)
class Vectors:
    """Base and query vectors, float32, rows contiguous."""

    base: np.ndarray
    queries: np.ndarray
    source: str


def vectors(rows: int) -> Vectors:
    """Return the first ``rows`` (at most 100,000) base vectors and 1,000 queries."""
    if DATA.is_dir():
        base = np.load(DATA / "base.f16.npy", mmap_mode="r")[:rows].astype(np.float32)
        queries = np.load(DATA / "query.f16.npy").astype(np.float32)
        return Vectors(base, queries, "minilm384")
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((500, DIM), dtype=np.float32)
    drawn = centres[rng.integers(0, 500, rows + 1000)]
    drawn += 0.7 * rng.standard_normal(drawn.shape, dtype=np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return Vectors(drawn[:rows], drawn[rows:], "synthetic, 500 clusters")


def texts(rows: int) -> list[str]:
    """Return that many paragraphs, repeated when there are fewer."""
    file = DATA / "texts.json.gz"
    if file.is_file():
        found = json.loads(gzip.decompress(file.read_bytes()))["base"]
    else:
        words = "vector table index commit page query model text value row".split()
        rng = np.random.default_rng(11)
        picks = rng.integers(0, len(words), (5000, 12))
        found = [" ".join(words[i] for i in row) for row in picks.tolist()]
    return [found[i % len(found)] for i in range(rows)]


def scalars(rows: int) -> dict[str, Any]:
    """Return a primary key ``id`` and four scalar columns beside it.

    They are ``sel`` INT, ``label`` TEXT, ``score`` DOUBLE and ``body`` TEXT, a paragraph.
    ``sel`` is uniform in 0..999, so ``sel < 10`` keeps one row in a hundred.
    """
    rng = np.random.default_rng(3)
    return {
        "id": np.arange(rows, dtype=np.int64),
        "sel": rng.integers(0, 1000, rows).astype(np.int32),
        "label": np.array([f"label{i}" for i in rng.integers(0, 40, rows).tolist()], dtype=object),
        "score": rng.random(rows),
        "body": np.array(texts(rows), dtype=object),
    }


@contextlib.contextmanager
def scratch() -> Iterator[pathlib.Path]:
    """Give a folder on a disk, removed afterwards; ``TARSDB_BENCH_DIR`` says where.

    ``/var/tmp`` is the default because ``/tmp`` often is memory, where a sync costs nothing.
    """
    parent = os.environ.get(FOLDER_VARIABLE) or ("/var/tmp" if os.path.isdir("/var/tmp") else None)
    with tempfile.TemporaryDirectory(prefix="tarsdb-bench-", dir=parent) as folder:
        yield pathlib.Path(folder)
