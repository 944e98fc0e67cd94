"""Search of inverted lists by a device, for batches: the nodes the processor's search names.

The lists lie on the device as long as their part lives and there is room. Which lists a query looks
at, and the keys of their rows, are the same numbers as the processor's; of nodes with equal keys at
the end of an answer another may be named.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from tarsdb.errors import DeviceError
from tarsdb.index.ivf.index import Ivf
from tarsdb.index.ivf.kmeans import coded, tile_starts
from tarsdb.kernels import ivf as kernels
from tarsdb.kernels.gpu import lists
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.lists import DeviceTiles
from tarsdb.kernels.ivf import TILE
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass

MIN_QUERIES = 16
"""Queries of a batch from which a device is asked: not measured yet."""


@dataclass(frozen=True)
class _There:
    """An index on a device: its rows and its centroids, both in tiles."""

    rows: DeviceTiles
    centroids: DeviceTiles


def search(
    device: Device, ivf: Ivf, queries: np.ndarray, wanted: int, effort: int,
    allowed: np.ndarray | None = None,
) -> list[np.ndarray | None] | None:  # fmt: skip
    """Return the nodes nearest to each query by their codes, nearest first, as ``Ivf.search``.

    Parameters
    ----------
    device : Device
    ivf : Ivf
    queries : float32 (q, dim)
    wanted, effort : int
        Nodes to return at most, and lists to look at.
    allowed : uint8 (n,), optional
        Return nodes with a 1 here only.

    Returns
    -------
    list of int64 (wanted,) or None
        A query is None where its lists do not hold ``wanted`` nodes; all is None where the
        processor must search: few queries, lists of other codes than int8, more nodes or lists
        wanted than a device keeps in order, no room, numbers that are not finite, a device that
        failed.
    """
    compiled, effort = kernels.current(), max(1, min(effort, ivf.lists))
    wanted = min(wanted, len(ivf))
    fitting = len(queries) >= MIN_QUERIES and max(wanted, effort) <= lists.MOST and wanted > 0
    if compiled is None or not fitting or ivf.codes.dtype != np.uint8:
        return None
    moved = _moved(ivf, queries)
    if not np.isfinite(moved).all():
        return None
    own = coded(moved, compiled)
    asked = own.codes, own.constants[:, 1] * np.float32(2)
    try:
        with device.working(lambda: f"{len(queries)} queries in lists of {_bytes(ivf)} bytes"):
            found = _nearest(device, ivf, asked, (wanted, effort), allowed)
    except DeviceError:  # out of memory, mostly
        METRICS.add("index.device_failures")
        return None
    return None if found is None else _named(ivf, *found, wanted)


def _nearest(
    device: Device, ivf: Ivf, asked: tuple[np.ndarray, np.ndarray], sizes: tuple[int, int],
    allowed: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:  # fmt: skip
    """Return the tiles each coded query looks at, and the smallest keys and their slots there."""
    there = device.arrays.get(ivf.constants, _bytes(ivf), partial(_brought, device, ivf))
    if there is None:
        return None
    dead = None
    if allowed is not None:
        dead = device.xp.asarray(_by_tile(ivf, np.asarray(allowed) == 0))
    wanted, effort = sizes
    shape = (len(asked[0]), len(ivf.shapes))
    every = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    keys, probes = lists.smallest(device, there.centroids, asked, every, effort)
    looked = _tiles_of(ivf, _first(keys, probes, effort))
    return looked, *lists.smallest(device, there.rows, asked, looked, wanted, dead)


def _moved(ivf: Ivf, queries: np.ndarray) -> np.ndarray:
    """Bring queries into the index's space, step by step as the processor's search does."""
    moved = np.array(queries, np.float32)
    if ivf.space.op != "<->":
        with np.errstate(all="ignore"):
            squares = np.cumsum(moved * moved, axis=1, dtype=np.float32)[:, -1]  # one by one
            factors = ivf.space.norm / np.sqrt(squares)
        moved *= np.where(squares > 0, factors, 0).astype(np.float32)[:, None]
    if ivf.space.op == "<#>":
        moved = np.concatenate([moved, np.zeros((len(moved), 1), np.float32)], axis=1)
    moved -= ivf.space.mean
    return moved


def _bytes(ivf: Ivf) -> int:
    """Return the bytes an index takes on a device."""
    return int(ivf.codes.nbytes + ivf.constants.nbytes + ivf.centroids.nbytes + ivf.shapes.nbytes)


def _brought(device: Device, ivf: Ivf) -> _There:
    flat = ivf.centroids.reshape(-1)
    return _There(
        lists.bring(device, ivf.codes.shape, _runs(ivf), ivf.constants),
        lists.bring(device, ivf.centroids.shape, [flat], ivf.shapes),
    )


def _runs(ivf: Ivf) -> Iterable[np.ndarray]:
    return [ivf.codes.reshape(-1)] if isinstance(ivf.codes, np.ndarray) else ivf.codes.runs


def _first(keys: np.ndarray, names: np.ndarray, wanted: int) -> np.ndarray:
    """Return the names of the smallest keys of each row, by (key, name)."""
    order = np.lexsort((names, keys), axis=1)[:, :wanted]
    return np.take_along_axis(names, order, 1)


def _tiles_of(ivf: Ivf, probes: np.ndarray) -> np.ndarray:
    """Return the tiles of lists, int32 (q, t), -1 at the end of rows with fewer."""
    bounds = tile_starts(ivf.starts)
    counts = (bounds[1:] - bounds[:-1])[probes]
    totals = counts.sum(axis=1)
    looked = np.full((len(probes), max(1, int(totals.max()))), -1, np.int32)
    flat = counts.ravel()
    ends = np.cumsum(flat)
    tiles = np.arange(ends[-1]) - np.repeat(ends - flat, flat) + np.repeat(
        bounds[:-1][probes].ravel(), flat
    )  # fmt: skip
    looked[np.arange(looked.shape[1]) < totals[:, None]] = tiles
    return looked


def _nodes(ivf: Ivf) -> np.ndarray:
    """Return the first node of each tile, int64 (tiles,)."""
    bounds = tile_starts(ivf.starts)
    counts = np.diff(bounds)
    within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], counts)
    nodes: np.ndarray = np.repeat(ivf.starts[:-1], counts) + TILE * within
    return nodes


def _by_tile(ivf: Ivf, marks: np.ndarray) -> np.ndarray:
    """Spread marks of nodes over the rows of tiles; those without a node have any."""
    places = _nodes(ivf)[:, None] + np.arange(TILE)
    return marks[np.minimum(places, len(marks) - 1)]


def _named(
    ivf: Ivf, looked: np.ndarray, keys: np.ndarray, slots: np.ndarray, wanted: int
) -> list[np.ndarray | None]:
    """Return the nodes of the smallest keys; None for a query that has fewer."""
    slots = np.maximum(slots, 0)
    nodes = _nodes(ivf)[np.take_along_axis(looked, slots // TILE, 1)] + slots % TILE
    enough = (keys < np.inf).sum(axis=1) >= wanted
    named = _first(keys, nodes, wanted)
    METRICS.add("index.device_lists", int(enough.sum()))
    return [row if is_enough else None for row, is_enough in zip(named, enough, strict=True)]
