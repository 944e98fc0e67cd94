"""k-means over int8 codes: integers make assignments exact, so nothing depends on threads.

Lloyd's algorithm (Lloyd 1982) from random rows. Rows and centroids are compared by their codes,
means are taken of decoded rows in float64. A cluster left empty takes over
half of the one with the largest sum of distances: of equal rows none is worth splitting.
``index/quantization/kmeans.py`` is for few clusters of a few elements, which bytes would coarsen
and padding would lengthen, and needs no compiler. Knows no index and no metric but Euclid's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from tarsdb.errors import DeviceError
from tarsdb.index.arrays import private
from tarsdb.kernels.gpu import assign as on_device
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.ivf import SCRATCH, STEP, TILE, IvfKernels
from tarsdb.kernels.native import address
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass

LINE = 64
_AT_ONCE, _WORK = 1 << 14, 1 << 32
"""Rows a thread assigns between two looks at whether to stop, and products it computes, at most."""
_APART = 1 / 1024


def padded_width(width: int) -> int:
    """Return the bytes of a coded row."""
    return -(-width // LINE) * LINE


@dataclass(frozen=True)
class Rows:
    """Coded rows.

    Attributes
    ----------
    codes : int8 (n, padded)
    constants : float32 (n, 2)
        Squared norm and scale of each.
    width : int
        Elements of a row.
    """

    codes: np.ndarray
    constants: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.codes)

    @staticmethod
    def empty(count: int, width: int) -> Rows:
        """Return room for some rows."""
        codes = np.zeros((count, padded_width(width)), np.int8)
        return Rows(codes, np.zeros((count, 2), np.float32), width)

    def put(self, kernels: IvfKernels, at: int, rows: np.ndarray) -> None:
        """Code float32 (m, width) rows into places from ``at`` on."""
        given = np.ascontiguousarray(rows, np.float32)
        count, padded = len(given), self.codes.shape[1]
        codes, constants = self.codes[at : at + count], self.constants[at : at + count]
        kernels.encode(
            address(given), count, self.width, padded, address(codes), address(constants)
        )

    def take(self, places: np.ndarray) -> Rows:
        """Return copies of some rows."""
        return Rows(self.codes[places], self.constants[places], self.width)

    def decoded(self) -> np.ndarray:
        """Return what the codes stand for, float32 (n, width)."""
        wide: np.ndarray = self.codes[:, : self.width] * self.constants[:, 1:]
        return wide


def tiled(rows: Rows, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows in tiles of 16, each list from a tile of its own.

    Parameters
    ----------
    rows : Rows
        In order of their lists.
    starts : int64 (lists + 1,)
        First row of each list, and the end.

    Returns
    -------
    codes : uint8 (tiles, padded / 4, 16, 4)
        Codes + 128.
    constants : float32 (tiles, 2, 16)
        Squared norms and scales; infinite and 0 where there is no row.
    """
    padded = rows.codes.shape[1]
    bounds = tile_starts(starts)
    codes = private(np.empty((bounds[-1], padded // 4, TILE, 4), np.uint8))
    constants = np.zeros((bounds[-1], 2, TILE), np.float32)
    constants[:, 0] = np.inf
    for number, tile in enumerate(bounds[:-1].tolist()):
        first, stop, end = starts[number], starts[number + 1], bounds[number + 1]
        block = np.full(((end - tile) * TILE, padded), 128, np.uint8)
        block[: stop - first] = rows.codes[first:stop].view(np.uint8) ^ 128
        codes[tile:end] = block.reshape(-1, TILE, padded // 4, 4).transpose(0, 2, 1, 3)
        for line in range(2):
            lanes = np.full((end - tile) * TILE, np.inf if line == 0 else 0, np.float32)
            lanes[: stop - first] = rows.constants[first:stop, line]
            constants[tile:end, line] = lanes.reshape(-1, TILE)
    return codes, constants


def tile_starts(starts: np.ndarray) -> np.ndarray:
    """Return the first tile of each list, and the end; int64 (lists + 1,)."""
    return np.concatenate([[0], np.cumsum(-(-np.diff(starts) // TILE))]).astype(np.int64)


@dataclass(frozen=True)
class Work:
    """What does the work: kernels, threads, a device, and whom to tell of it.

    ``advance`` is told how many more rows were assigned; it may raise to stop.
    """

    kernels: IvfKernels
    threads: int = 1
    advance: Callable[[int], None] = lambda rows: None
    device: Device | None = None


def assign(rows: Rows, centroids: Rows, work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest centroid of each row, and their squared distance, by their codes.

    Returns
    -------
    labels : int32 (n,)
        The first of equals.
    distances : float32 (n,)
    """
    if work.device is not None and _is_finite(rows) and _is_finite(centroids):
        found = _assigned_on(work.device, rows, centroids, work)
        if found is not None:
            return found
    codes, shapes = tiled(centroids, np.array([0, len(centroids)]))
    labels, distances = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)

    def run(start: int, stop: int) -> None:
        scratch = np.empty(SCRATCH, np.uint8)
        work.kernels.assign(
            address(rows.codes), address(rows.constants), start, stop, rows.codes.shape[1],
            address(codes), address(shapes), len(centroids), address(labels), address(distances),
            address(scratch),
        )  # fmt: skip

    most = _WORK // (len(centroids) * rows.codes.shape[1]) // STEP * STEP
    at_once = max(STEP, min(most, _AT_ONCE)) * work.threads
    for at in range(0, len(rows), at_once):
        end = min(len(rows), at + at_once)
        step = -(-(end - at) // (work.threads * STEP)) * STEP
        bounds = range(at, end, step)
        others = [
            threading.Thread(target=run, args=(low, min(low + step, end))) for low in bounds[1:]
        ]
        for other in others:
            other.start()
        run(at, min(at + step, end))
        for other in others:
            other.join()
        work.advance(end - at)
    return labels, np.maximum(distances, 0)


def _is_finite(rows: Rows) -> bool:
    return bool(np.isfinite(rows.constants).all())


def _assigned_on(
    device: Device, rows: Rows, centroids: Rows, work: Work
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what :func:`assign` does, bit by bit; None where the device failed."""
    parts = on_device.assign(
        device, (rows.codes, rows.constants), (centroids.codes, centroids.constants)
    )
    labels, distances = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    at = 0
    while at < len(rows):
        try:
            with device.working():
                names, near = next(parts)
        except DeviceError:  # out of memory, mostly
            METRICS.add("index.device_failures")
            return None
        labels[at : at + len(names)], distances[at : at + len(names)] = names, near
        at += len(names)
        work.advance(len(names))
    return labels, np.maximum(distances, 0)


def kmeans(rows: Rows, clusters: int, iterations: int, seed: int, work: Work) -> np.ndarray:
    """Return centroids of coded rows; float32 (min(clusters, n), width).

    Parameters
    ----------
    rows : Rows
        At least one.
    clusters : int
    iterations : int
        At most; it ends when no row changes its cluster.
    seed : int
        Of the rows it starts from.
    work : Work
    """
    clusters = min(clusters, len(rows))
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(rows), clusters, replace=False))
    centroids = rows.take(chosen).decoded()
    before = None
    for _ in range(iterations):
        labels, distances = assign(rows, coded(centroids, work.kernels), work)
        if before is not None and (labels == before).all():
            break
        before = labels
        centroids = _means(rows, (labels, distances), clusters, work.kernels, rng)
    return centroids


def coded(rows: np.ndarray, kernels: IvfKernels) -> Rows:
    """Return float32 (n, width) rows as codes."""
    made = Rows.empty(*rows.shape)
    made.put(kernels, 0, rows)
    return made


def _means(
    rows: Rows,
    assigned: tuple[np.ndarray, np.ndarray],
    clusters: int,
    kernels: IvfKernels,
    rng: np.random.Generator,
) -> np.ndarray:
    labels, distances = assigned
    sums = np.zeros((clusters, rows.width), np.float64)
    numbers = np.zeros(clusters, np.int64)
    kernels.add(rows.codes, rows.constants, labels, sums, numbers)
    means = sums / np.maximum(numbers, 1)[:, None]
    spread = np.bincount(labels, distances, clusters)
    for empty in np.flatnonzero(numbers == 0).tolist():
        widest = int(spread.argmax())
        apart = _APART if spread[widest] > 0 else 0
        aside = rng.choice([-apart, apart], rows.width)
        means[empty] = means[widest] * (1 + aside)
        means[widest] *= 1 - aside
        spread[empty] = spread[widest] = spread[widest] / 2
    found: np.ndarray = means.astype(np.float32)
    return found
