"""The order of many keys: short keys of one width are sorted as numbers."""

from __future__ import annotations

import operator
from itertools import islice

import numpy as np

_FEW = 1000
"""Keys up to which comparing them as bytes is as quick."""
_PLACE_BITS, _KEY_BYTES = 24, 5  # a key and its place make one 64-bit number


def key_order(found: list[bytes]) -> list[int] | None:
    """Return the positions of keys in ascending order, equal keys as they come.

    None where they are in order already.
    """
    if all(map(operator.le, found, islice(found, 1, None))):
        return None
    order = _as_numbers(found) if _FEW < len(found) < 1 << _PLACE_BITS else None
    return sorted(range(len(found)), key=found.__getitem__) if order is None else order


def _as_numbers(found: list[bytes]) -> list[int] | None:
    """Sort by the bytes in which keys differ; None where these are too many."""
    width = len(found[0])
    if not width or set(map(len, found)) != {width}:
        return None
    raw = np.frombuffer(b"".join(found), np.uint8).reshape(-1, width)
    differing = np.flatnonzero(raw.min(axis=0) != raw.max(axis=0))
    if width - differing[0] > _KEY_BYTES:
        return None
    numbers = np.zeros(len(found), np.uint64)
    for column in raw.T[differing[0] :]:
        numbers = numbers << np.uint64(8) | column
    numbers = numbers << np.uint64(_PLACE_BITS) | np.arange(len(found), dtype=np.uint64)
    numbers.sort()
    order: list[int] = (numbers & np.uint64((1 << _PLACE_BITS) - 1)).tolist()
    return order
