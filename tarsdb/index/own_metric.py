"""Nearest neighbours by a distance of the caller's own: exact, over blocks of rows.

Knows neither storage nor what the function computes; it checks what the function returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from tarsdb.errors import DataError, Error
from tarsdb.index.base import Found
from tarsdb.kernels import reference

Distance = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""``distance(query float32 (dim,), rows float32 (n, dim)) -> float32 (n,)``, n >= 1. The rows may
be a read-only view of the blocks, for the time of the call; the answer must not depend on which
rows come together."""

BLOCK_BYTES = 1 << 23
"""Rows handed over at a time, in bytes: handing over costs about as much as reading 1 MiB."""


def nearest(
    distance: Distance,
    query: np.ndarray,
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
    k: int,
) -> Found:
    """Return the k nearest rows of all parts.

    Parameters
    ----------
    distance : callable
        See :data:`Distance`.
    query : float32 (dim,)
    parts : iterable of (int64 (n,), float32 (n, dim))
        Row ids and rows.
    k : int

    Returns
    -------
    rowids : int64 (k',)
    distances : float32 (k',)
        Ordered by distance, then row id; k' is the smaller of k and the number of rows.

    Raises
    ------
    DataError
        The function failed, or returned something else than float32 (n,), or NaN for a row.
    """
    ids, values = np.empty(0, np.int64), np.empty(0, np.float32)
    if k <= 0:
        return ids, values
    for rowids, rows in parts:
        found = _asked(distance, query, rows)
        if np.isnan(found).any():
            row, name = rowids[np.isnan(found)].min(), getattr(distance, "__name__", "")
            raise DataError(f"the distance function {name} gave NaN for row {row}")
        if len(values) == k:  # most blocks have nothing near enough
            near = np.flatnonzero(found <= values[-1])
            if not len(near):
                continue
            rowids, found = rowids[near], found[near]
        ids = np.concatenate((ids, rowids))
        values = np.concatenate((values, found))
        order = reference.smallest(values, ids, k)
        ids, values = ids[order], values[order]
    return ids, values


def _asked(distance: Distance, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    shape = rows.shape
    try:
        found = distance(query.copy(), rows)
    except Error:
        raise
    except Exception as error:
        raise DataError(
            f"the distance function failed on query {query.shape} and rows {shape}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, np.ndarray):
        raise DataError(
            f"the distance function returned {type(found).__name__} for rows {shape}, "
            f"expected float32 ({shape[0]},)"
        )
    if found.dtype != np.float32 or found.shape != shape[:1]:
        raise DataError(
            f"the distance function returned {found.dtype} {found.shape} for rows {shape}, "
            f"expected float32 ({shape[0]},)"
        )
    return found
