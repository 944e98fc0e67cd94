"""Building inverted lists: centroids by k-means, rows in the order of their lists, codes.

Deterministic: the same vectors and options give the same index, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tarsdb.errors import NotSupportedError
from tarsdb.index.arrays import private
from tarsdb.index.hnsw.codes import Space
from tarsdb.index.ivf.index import Ivf
from tarsdb.index.ivf.kmeans import Rows, Work, assign, coded, kmeans, tile_starts, tiled
from tarsdb.index.ivf.options import IvfOptions
from tarsdb.index.quantization.rabitq import RaBitQ
from tarsdb.kernels import ivf as kernels
from tarsdb.kernels import reference
from tarsdb.kernels.ivf import TILE

_AT_ONCE = 1 << 14
Progress = Callable[[int, int], None]


def build_ivf(
    vectors: np.ndarray,
    rowids: np.ndarray,
    op: str,
    options: IvfOptions | None = None,
    *,
    threads: int = 1,
    progress: Progress = lambda done, total: None,
) -> Ivf:
    """Build inverted lists over vectors.

    Parameters
    ----------
    vectors : (n, dim) of any float or integer dtype, n >= 1
    rowids : int64 (n,)
    op : str
        The operator it will answer: ``<->``, ``<#>`` or ``<=>``.
    options : IvfOptions, optional
    threads : int
    progress : callable
        Told steps done and all steps now and then; may raise to stop the building.

    Returns
    -------
    Ivf

    Raises
    ------
    NotSupportedError
        There is no compiler on this machine.

    Notes
    -----
    Inverted lists as in Sivic & Zisserman 2003 and Jegou et al. 2011 (IVFADC, without its product
    quantizer).
    """
    found = kernels.wait()
    if found is None:
        raise NotSupportedError(
            "inverted lists are built by compiled kernels, and Numba is not usable here"
        )
    options = options or IvfOptions()
    work = Work(found, threads, lambda: progress(0, 1), progress)
    space, lists = Space.of(vectors, op), options.lists_for(len(vectors))
    rows = Rows.empty(len(vectors), len(space.mean))
    for at in range(0, len(vectors), _AT_ONCE):
        work.check()
        rows.put(found, at, space.moved(vectors[at : at + _AT_ONCE]))
    centroids = coded(_trained(rows, lists, options, work), found)
    labels, distances = assign(rows, centroids, work)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(lists + 1)).astype(np.int64)
    radii, rotation = np.zeros(lists, np.float32), np.empty((0, 0), np.float32)
    if options.code == "none":
        radii[:] = np.inf  # of rows, not of their codes
        codes, constants = _floats(vectors, space, order, starts)
    elif options.code == "rabitq":
        np.maximum.at(radii, labels, np.sqrt(distances))
        rotation, codes, constants = _bits(vectors, space, (order, starts), centroids, options.seed)
    else:
        np.maximum.at(radii, labels, np.sqrt(distances))
        codes, constants = tiled(rows.take(order), starts)
    head, shapes = tiled(centroids, np.array([0, lists]))
    ordered = rowids[order].astype(np.int64)
    return Ivf(ordered, codes, constants, starts, head, shapes, radii, space, rotation)


def _trained(rows: Rows, lists: int, options: IvfOptions, work: Work) -> np.ndarray:
    if lists * options.sample >= len(rows):
        return kmeans(rows, lists, options.iterations, options.seed, work)
    rng = np.random.default_rng(options.seed)
    chosen = np.sort(rng.choice(len(rows), lists * options.sample, replace=False))
    return kmeans(rows.take(chosen), lists, options.iterations, options.seed, work)


def _floats(
    vectors: np.ndarray, space: Space, order: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows themselves in tiles, and their squared norms."""
    bounds, width = tile_starts(starts), len(space.mean)
    tiles = private(np.zeros((bounds[-1], width, TILE), np.float32))
    constants = np.zeros((bounds[-1], 2, TILE), np.float32)
    constants[:, 0] = np.inf
    for number, tile in enumerate(bounds[:-1].tolist()):
        first, stop, end = starts[number], starts[number + 1], bounds[number + 1]
        block = np.zeros(((end - tile) * TILE, width), np.float32)
        block[: stop - first] = space.moved(vectors[order[first:stop]])
        squares = np.einsum("ij,ij->i", block, block)
        squares[stop - first :] = np.inf
        tiles[tile:end] = block.reshape(-1, TILE, width).transpose(0, 2, 1)
        constants[tile:end, 0] = squares.reshape(-1, TILE)
    return tiles, constants


def _bits(
    vectors: np.ndarray,
    space: Space,
    lists: tuple[np.ndarray, np.ndarray],
    centroids: Rows,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a rotation, sign bits of rows in tiles, and their constants.

    RaBitQ (Gao & Long 2024) estimates |q - x|**2 of a row x of centroid c as base + |q - c|**2 +
    slope <y, q' - c'>, y the signs halved and ' the rotation. <y, c'> does not depend on the query
    and goes into the base, so a query is rotated and cut into bits once, not for each list.
    """
    order, starts = lists
    means, bounds = centroids.decoded(), tile_starts(starts)
    coder = RaBitQ.train(means, reference.L2, seed=seed)
    turned, width = coder.rotate(means), coder.width
    tiles = private(np.zeros((bounds[-1], width // 64, TILE), np.uint64))
    constants = np.zeros((bounds[-1], 3, TILE), np.float32)
    constants[:, 0] = np.inf
    for number, tile in enumerate(bounds[:-1].tolist()):
        first, stop, end = starts[number], starts[number + 1], bounds[number + 1]
        if first == stop:
            continue
        moved = space.moved(vectors[order[first:stop]])
        coded_rows = coder.encode(moved, means[number])
        signs = coded_rows[:, : width // 8]
        block = np.zeros(((end - tile) * TILE, width // 64), np.uint64)
        block[: stop - first] = np.ascontiguousarray(signs).view(np.uint64)
        tiles[tile:end] = block.reshape(-1, TILE, width // 64).transpose(0, 2, 1)
        factors = np.ascontiguousarray(coded_rows[:, width // 8 :]).view(np.float32)
        along = np.unpackbits(signs, axis=1, bitorder="little") @ turned[number]
        along -= np.float32(0.5) * turned[number].sum()
        lanes = np.zeros(((end - tile) * TILE, 3), np.float32)
        lanes[:, 0] = np.inf
        lanes[: stop - first, 0] = factors[:, 0] - factors[:, 1] * along
        lanes[: stop - first, 1], lanes[: stop - first, 2] = factors[:, 1], factors[:, 3]
        constants[tile:end] = lanes.reshape(-1, TILE, 3).transpose(0, 2, 1)
    return np.ascontiguousarray(coder.rotation), tiles, constants
