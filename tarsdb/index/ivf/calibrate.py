"""How many lists a search must look at for a recall, measured on rows of the data."""

from __future__ import annotations

import numpy as np

from tarsdb.columns import VectorBlock
from tarsdb.index.flat import FlatIndex
from tarsdb.index.ivf.index import Ivf
from tarsdb.types import parse_type

SAMPLE, K = 64, 10
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
ENOUGH = 0.9995


def calibrate(ivf: Ivf, vectors: np.ndarray, rowids: np.ndarray) -> np.ndarray:
    """Return the recall@10 of efforts; float64 (steps, 2) of effort, recall.

    Parameters
    ----------
    ivf : Ivf
        Over these rows.
    vectors : (n, dim)
    rowids : int64 (n,)

    Notes
    -----
    The queries are rows of the data, each less itself: they are found more easily than others.
    """
    rows, dim = vectors.shape
    data = np.ascontiguousarray(vectors, np.float32)
    flat = FlatIndex([VectorBlock(rowids, data)], parse_type(f"VECTOR({dim})"))
    sample = np.sort(np.random.default_rng(rows).choice(rows, min(SAMPLE, rows), replace=False))
    k = min(K + 1, rows)
    truth, _ = flat.search(data[sample], k, ivf.space.op)
    places = flat.positions(ivf.rowids)
    steps: list[tuple[int, float]] = []
    for effort in (e for e in (*LADDER, ivf.lists) if e <= ivf.lists):
        hits = total = 0
        for row, wanted in zip(sample.tolist(), truth, strict=True):
            near = np.sort(places[ivf.search(data[row], ivf.candidates(k), effort)])
            found, _ = flat.search(data[row : row + 1], k, ivf.space.op, positions=near)
            right = set(wanted.tolist()) - {int(rowids[row])}
            hits += len(right & set(found[0].tolist()))
            total += len(right)
        steps.append((effort, hits / total if total else 1.0))
        if steps[-1][1] >= ENOUGH:
            break
    return np.array(steps, dtype=np.float64)
