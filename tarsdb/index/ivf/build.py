"""Building inverted lists: centroids by k-means, rows in the order of their lists, codes.

Deterministic: the same vectors and options give the same index, whatever the number of threads
and with a device or without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tarsdb.errors import NotSupportedError
from tarsdb.index.arrays import private
from tarsdb.index.course import UNWATCHED, Course, State
from tarsdb.index.hnsw.codes import FAR, Space
from tarsdb.index.ivf.index import Ivf
from tarsdb.index.ivf.kmeans import (
    Rows,
    Work,
    assign,
    coded,
    kmeans,
    padded_width,
    tile_starts,
    tiled,
)
from tarsdb.index.ivf.options import IvfOptions
from tarsdb.index.ivf.products import SAMPLE, Products, packed, parts_of
from tarsdb.index.ivf.refining import further, row_bytes
from tarsdb.index.quantization.rabitq import RaBitQ
from tarsdb.index.resources import Resources
from tarsdb.kernels import ivf as kernels
from tarsdb.kernels import reference
from tarsdb.kernels.ivf import BLOCK, ROUNDS, TILE
from tarsdb.records import dataclass

_AT_ONCE, _FILLED_AT_ONCE = 1 << 14, 1 << 11
_EMPTY_TILE = 0.47
"""Share of a tile a list leaves empty, about."""
_ALONG = 0.1
"""Share of a row that its code must tell for the rest to be made up for."""
_STREAM = 0x7369676E  # apart from what k-means draws from the plain seed
Progress = Callable[[int, int], None]


def estimated_bytes(
    rows: int, width: int, stored: int, op: str, options: IvfOptions
) -> tuple[int, int]:
    """Return memory held at the peak of a build and bytes of its lists, from shapes alone.

    Parameters
    ----------
    rows, width : int
        Shape of the vectors as numbers.
    stored : int
        Bytes of a vector as it is stored.
    op : str
    options : IvfOptions

    Returns
    -------
    memory : int
        The largest of three moments: vectors are coded, k-means learns from a sample, and the lists
        are filled.
    disk : int
        What :meth:`Ivf.to_arrays` holds.
    """
    is_bits = 8 * stored == width
    codes = options.codes_for(is_bits)
    width += op == "<#>"
    padded, lists = padded_width(width), options.lists_for(rows)
    sample = min(rows, lists * options.sample)
    parts, part_width = parts_of(width)
    axes = parts * part_width
    lane = {
        "none": 4 * width + 8, "int8": padded + 8, "bits": padded // 8 + 12, "pq": parts // 2 + 12,
    }[codes]  # fmt: skip
    filled = round(TILE * (rows / TILE + _EMPTY_TILE * lists)) * lane
    centroids = lists * (padded + 8 + 12)
    coded = rows * (padded + 8)
    means = lists * width * 28  # sums, and centroids as they were and are
    training = sample * (padded + 8) * (sample < rows) + means
    temporary = min(rows, _FILLED_AT_ONCE) * padded * 4 * 8  # rows and what is coded of them
    turning = 4 * padded * (width + 2 * lists)  # a matrix, centroids decoded and rotated
    learning = SAMPLE * (width + axes) * 8 + 24 * width**2  # rows turned, and axes looked for
    rest = {
        "none": temporary, "int8": coded, "bits": temporary + turning,
        "pq": temporary + 4 * axes * (width + 2 * lists) + learning,
    }  # fmt: skip
    more = rows * row_bytes(padded) if options.refine_bits else 0
    filling = filled + more + rest[codes]
    coder = {"bits": 0 if is_bits else 4 * ROUNDS * padded, "pq": axes * (padded + 8 + 64)}
    coding = min(rows, _AT_ONCE) * width * 2 * 4  # float32 rows, and moved ones
    memory = rows * (stored + 3 * 8) + coded + max(coding, training, filling)
    return memory, filled + more + centroids + coder.get(codes, 0) + 8 * rows


class _Told:
    """Tells rows done of all: assignments take most of the time, and filling the lists some."""

    def __init__(self, rows: int, trained: int, progress: Progress) -> None:
        self._rows, self._trained, self._progress = rows, trained, progress
        self._done = 0

    def advance(self, count: int) -> None:
        """Tell of more rows assigned, or laid out."""
        self._done += count
        share = self._done / (self._trained + 2 * self._rows)
        self._progress(min(int(share * self._rows), self._rows), self._rows)

    def trained(self) -> None:
        """Tell of the end of training, which may be early."""
        self._done = max(self._done, self._trained)


def build_ivf(
    vectors: np.ndarray,
    rowids: np.ndarray,
    op: str,
    options: IvfOptions | None = None,
    *,
    resources: Resources | None = None,
    course: Course = UNWATCHED,
) -> Ivf:
    """Build inverted lists over vectors.

    Parameters
    ----------
    vectors : (n, width), n >= 1
        As :func:`~tarsdb.index.navigation.as_numbers` takes them.
    rowids : int64 (n,)
    op : str
        The operator it will answer: ``<->``, ``<#>`` or ``<=>``.
    options : IvfOptions, optional
    resources : Resources, optional
        One thread unless given.
    course : Course
        Its state is the centroids, once they are trained; others are passed over.

    Returns
    -------
    Ivf

    Raises
    ------
    NotSupportedError
        There is no compiler on this machine, or further bits are asked for of rows of bits.

    Notes
    -----
    Inverted lists as in Sivic & Zisserman 2003 and Jegou et al. 2011 (IVFADC).
    """
    found = kernels.wait()
    if found is None:
        raise NotSupportedError(
            "inverted lists are built by compiled kernels, and Numba is not usable here"
        )
    options, resources = options or IvfOptions(), resources or Resources()
    if options.refine_bits and vectors.dtype == np.uint8:
        raise NotSupportedError("rows of bits have no further bits: their codes are exact")
    is_bits, lists = vectors.dtype == np.uint8, options.lists_for(len(vectors))
    space = _space(vectors, op)
    sample = min(len(vectors), lists * options.sample)
    told = _Told(len(vectors), options.iterations * sample, course.progress)
    work = Work(found, resources.threads, told.advance, resources.device)
    rows = Rows.empty(len(vectors), len(space.mean))
    for at in range(0, len(vectors), _AT_ONCE):
        told.advance(0)
        rows.put(found, at, space.moved(vectors[at : at + _AT_ONCE]))
    means = _taken_up(course.resume(), (min(lists, len(rows)), rows.width))
    if means is None:
        means = _trained(rows, lists, options, work)
        course.offer(lambda: {"centroids": means})
    centroids = coded(means, found)
    told.trained()
    labels, distances = assign(rows, centroids, work)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(lists + 1)).astype(np.int64)
    radii, rotation = np.zeros(lists, np.float32), np.empty((0, 0), np.float32)
    np.maximum.at(radii, labels, np.sqrt(distances))
    products: Products | None = None
    more: np.ndarray | None = None
    chosen = options.codes_for(is_bits)
    if chosen == "none":
        radii[:] = np.inf  # of rows, not of their codes
        codes, constants = _floats(vectors, space, _Places.of(order, starts), told)
    elif chosen == "pq":
        places, decoded = _Places.of(order, starts), centroids.decoded()
        lacking = _lacking(vectors, space, places, decoded, options.seed)
        products = Products.train(lacking, options.seed, found, lambda: told.advance(0))
        trained = decoded, products, found
        codes, constants = _product_codes(vectors, space, places, trained, told)
    elif chosen == "bits" and is_bits:
        codes, constants = _sets(vectors, space, _Places.of(order, starts), told)
    elif chosen == "bits":
        rotation = _signs(padded_width(rows.width), options.seed)
        coder = centroids.decoded(), _coder(rotation, rows.width)
        places, is_refined = _Places.of(order, starts), options.refine_bits > 0
        codes, constants, more = _bits(vectors, space, places, coder, told, is_refined)
    else:
        codes, constants = tiled(rows.take(order), starts)
    head, shapes = tiled(centroids, np.array([0, lists]))
    ordered = rowids[order].astype(np.int64)
    return Ivf(
        ordered, codes, constants, starts, head, shapes, radii, space, rotation, products, more
    )


def _signs(padded: int, seed: int) -> np.ndarray:
    """Return the random signs of a rotation, float32 (3, padded), scaled so that it keeps norms."""
    drawn = np.random.default_rng([seed, _STREAM]).integers(0, 2, (ROUNDS, padded))
    signs: np.ndarray = (2 * drawn - 1).astype(np.float32) / np.float32(BLOCK**0.5)
    return signs


def rotation_matrix(signs: np.ndarray, width: int) -> np.ndarray:
    """Return what a search's rotation multiplies by, float32 (width, padded), orthonormal rows.

    Each round multiplies by signs, then each block of 64 elements by a Hadamard matrix, and deals
    the elements of a block out to all blocks.
    """
    hadamard = np.ones((1, 1))
    while len(hadamard) < BLOCK:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    turned = np.eye(width, signs.shape[1])
    for line in signs:
        blocks = (turned * line).reshape(width, -1, BLOCK) @ hadamard
        turned = blocks.swapaxes(1, 2).reshape(width, -1)
    return np.ascontiguousarray(turned, np.float32)


def _coder(signs: np.ndarray, width: int) -> RaBitQ:
    matrix, none = rotation_matrix(signs, width), np.zeros(signs.shape[1], np.float32)
    return RaBitQ(matrix, none[:width], none, reference.L2, bits=1)


def _space(vectors: np.ndarray, op: str) -> Space:
    """Return the space of the rows; that of bits is around zero, where a bit says all."""
    if vectors.dtype == np.uint8:
        return Space(op, np.zeros(8 * vectors.shape[1], np.float32), 0.0)
    return Space.of(vectors, op)


def _taken_up(state: State | None, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the centroids of an earlier build, None for others."""
    known = (state or {}).get("centroids")
    if known is None or known.dtype != np.float32 or known.shape != shape:
        return None
    return known if np.isfinite(known).all() else None


def _trained(rows: Rows, lists: int, options: IvfOptions, work: Work) -> np.ndarray:
    if lists * options.sample >= len(rows):
        return kmeans(rows, lists, options.iterations, options.seed, work)
    rng = np.random.default_rng(options.seed)
    chosen = np.sort(rng.choice(len(rows), lists * options.sample, replace=False))
    return kmeans(rows.take(chosen), lists, options.iterations, options.seed, work)


@dataclass(frozen=True)
class _Places:
    """Where rows go: their order, the list of each in that order, its tile and its lane there."""

    order: np.ndarray
    lists: np.ndarray
    tiles: np.ndarray
    lanes: np.ndarray
    count: int  # of tiles

    @staticmethod
    def of(order: np.ndarray, starts: np.ndarray) -> _Places:
        """Return the places of rows whose lists begin at ``starts`` in an order."""
        bounds = tile_starts(starts)
        lists = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        tiles, lanes = np.divmod(np.arange(len(order)) - starts[lists], TILE)
        return _Places(order, lists, bounds[lists] + tiles, lanes, int(bounds[-1]))

    def parts(self) -> Iterator[_Places]:
        """Yield the places of some rows after the other."""
        for at in range(0, len(self.order), _FILLED_AT_ONCE):
            some = slice(at, at + _FILLED_AT_ONCE)
            yield _Places(
                self.order[some], self.lists[some], self.tiles[some], self.lanes[some], self.count
            )


def _floats(
    vectors: np.ndarray, space: Space, places: _Places, told: _Told
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows themselves in tiles, and their squared norms."""
    tiles = private(np.zeros((places.count, len(space.mean), TILE), np.float32))
    constants = np.zeros((places.count, 2, TILE), np.float32)
    constants[:, 0] = np.inf
    for part in places.parts():
        rows = space.moved(vectors[part.order])
        tiles[part.tiles, :, part.lanes] = rows
        constants[part.tiles, 0, part.lanes] = np.einsum("ij,ij->i", rows, rows)
        told.advance(len(rows))
    return tiles, constants


def _bits(
    vectors: np.ndarray,
    space: Space,
    places: _Places,
    trained: tuple[np.ndarray, RaBitQ],
    told: _Told,
    is_refined: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return sign bits of rows in tiles, their constants, and further bits where wanted.

    RaBitQ (Gao & Long 2024) estimates |q - x|**2 of a row x of centroid c as base + |q - c|**2 +
    slope <y, q' - c'>, y the signs halved and ' the rotation. <y, c'> does not depend on the query
    and goes into the base, so a query is rotated and cut into bits once, not for each list.
    """
    means, coder = trained
    turned, width = coder.rotate(means), coder.width
    tiles = private(np.zeros((places.count, width // 32, TILE), np.uint32))
    constants = np.zeros((places.count, 3, TILE), np.float32)
    constants[:, 0] = np.inf
    shape, done = (len(places.order), row_bytes(width)), 0
    more = private(np.zeros(shape, np.uint8)) if is_refined else None
    for part in places.parts():
        rows = space.moved(vectors[part.order])
        coded_rows = coder.encode(rows, means[part.lists])
        signs = np.ascontiguousarray(coded_rows[:, : width // 8])
        factors = np.ascontiguousarray(coded_rows[:, width // 8 :]).view(np.float32)
        y = np.unpackbits(signs, axis=1, bitorder="little") - np.float32(0.5)
        along = np.einsum("ij,ij->i", y, turned[part.lists])
        tiles[part.tiles, :, part.lanes] = signs.view(np.uint32)
        own = np.stack([factors[:, 0] - factors[:, 1] * along, *factors[:, [1, 3]].T], axis=1)
        constants[part.tiles, :, part.lanes] = own
        if more is not None:
            rotated = coder.rotate(rows - means[part.lists])
            more[done : done + len(rows)] = further(rotated, turned[part.lists], y > 0, own)
        done += len(rows)
        told.advance(len(rows))
    return tiles, constants, more


def _lacking(
    vectors: np.ndarray, space: Space, places: _Places, means: np.ndarray, seed: int
) -> np.ndarray:
    """Return what some rows lack to their centroids, float32 (n, d')."""
    rng = np.random.default_rng([seed, _STREAM])
    count = len(places.order)
    chosen = np.sort(rng.choice(count, min(SAMPLE, count), replace=False))
    rows: np.ndarray = space.moved(vectors[places.order[chosen]]) - means[places.lists[chosen]]
    return rows


def _product_codes(
    vectors: np.ndarray,
    space: Space,
    places: _Places,
    trained: tuple[np.ndarray, Products, kernels.IvfKernels],
    told: _Told,
) -> tuple[np.ndarray, np.ndarray]:
    """Return product codes of rows in tiles, and their constants.

    With r a row less its centroid c, y what r is coded as and ' the turning, |q - x|**2 is about
    |q - c|**2 + |r|**2 - 2 f <q' - c', y>; the factor f makes that exact for q - c along r, as
    RaBitQ's does. A query's tables hold <q', y> of each part, once for all lists.
    """
    means, products, found = trained
    turned_means = products.turned(means)
    tiles = private(np.zeros((places.count, products.parts // 8, TILE), np.uint32))
    constants = np.zeros((places.count, 3, TILE), np.float32)
    constants[:, 0] = np.inf
    for part in places.parts():
        rows = space.moved(vectors[part.order]) - means[part.lists]
        turned = products.turned(rows)
        names = products.names(turned, found)
        y = products.named(names)
        squares, along = np.einsum("ij,ij->i", rows, rows), np.einsum("ij,ij->i", turned, y)
        factors = np.ones_like(squares)
        np.divide(squares, along, out=factors, where=along > _ALONG * squares)
        base = squares + 2 * factors * np.einsum("ij,ij->i", y, turned_means[part.lists])
        tiles[part.tiles, :, part.lanes] = packed(names)
        constants[part.tiles, 0, part.lanes] = base
        constants[part.tiles, 1, part.lanes] = -2 * factors
        told.advance(len(rows))
    return tiles, constants


def _sets(
    vectors: np.ndarray, space: Space, places: _Places, told: _Told
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of bits in tiles, and their constants.

    Of numbers 0 and 1 (``<=>``: 0 and 1 / norm) |q - x|**2 - |q|**2 is base + slope <bits, q>.
    """
    width = padded_width(len(space.mean))
    tiles = private(np.zeros((places.count, width // 32, TILE), np.uint32))
    constants = np.zeros((places.count, 3, TILE), np.float32)
    constants[:, 0] = np.inf
    for part in places.parts():
        rows = vectors[part.order]
        bits = np.zeros((len(rows), width // 8), np.uint8)
        bits[:, : rows.shape[1]] = np.packbits(
            np.unpackbits(rows, axis=1), axis=1, bitorder="little"
        )
        ones = np.bitwise_count(rows).sum(axis=1, dtype=np.int64).astype(np.float32)
        squares, norms = ones, np.ones_like(ones)
        if space.op == "<=>":
            squares, norms = np.where(ones, 1, FAR**2), np.sqrt(np.maximum(ones, 1))
        tiles[part.tiles, :, part.lanes] = bits.view(np.uint32)
        constants[part.tiles, 0, part.lanes] = squares
        constants[part.tiles, 1, part.lanes] = -2 / norms
        constants[part.tiles, 2, part.lanes] = ones
        told.advance(len(rows))
    return tiles, constants
