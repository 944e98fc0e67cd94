"""Inverted lists: coding of rows, assignment to centroids, sums of clusters, search of lists.

Rows lie in tiles (``tiles.py``), each list from a tile of its own. As in
``kernels/cpu/graph.py`` the key of a coded query and a row is ``square - 2 t s dot``, their squared
distance less the query's squared norm; integers are exact, and float steps are the same on every
level, so all levels give the same answers. Arguments are addresses and counts. Knows no index.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from tarsdb.kernels.cpu.heap import key_bits, offer, pack, sort, top
from tarsdb.kernels.cpu.memory import (
    float_of,
    put_byte,
    put_int,
    put_long,
    put_real,
    read_byte,
    read_int,
    read_long,
    read_real,
    read_signed,
)
from tarsdb.kernels.cpu.tiles import (
    PLANES,
    bit_passing,
    float_dots,
    float_passing,
    improve,
    passing,
    rotate,
    tile_dots,
)

VARIANTS = ("vnni", "avx2", "plain")
"""How inner products are made: 512-bit VNNI, 256-bit multiply-add, a plain loop."""
TILE = 16
SEVERAL = {"vnni": 8, "avx2": 2, "plain": 1}
"""Rows that are assigned at once."""
_NUMBERS, _DOTS, _BEST, _NAMES = 96, 128, 640, 1152
SCRATCH = 1664
"""Bytes of scratch memory of a search or an assignment."""
(
    PLACES, CENTROIDS, CENTROID_CONSTANTS, RADII, MEAN, LISTS, PADDED, WIDTH, KIND, FORM, ROTATION,
    NORM,
) = range(12)  # fmt: skip
"""Places in a search's plan; see :func:`make_kernels`."""
PLAN = 12
BYTES, FLOATS, BITS, SETS = range(4)
"""Forms of rows: int8 codes, float32, sign bits of rotated residuals, bits themselves."""


@njit(nogil=True)
def _plain_dots(tile, query, padded, out):  # type: ignore[no-untyped-def]
    for row in range(TILE):
        total = np.int64(0)
        for at in range(padded):
            code = read_byte(tile, (at >> 2) * 4 * TILE + 4 * row + (at & 3))
            total += code * read_signed(query, at)
        put_int(out, row, total)


@njit(nogil=True)
def _sum_of(code, padded):  # type: ignore[no-untyped-def]
    """Return what codes + 128 add to every inner product with a query."""
    total = np.int64(0)
    for at in range(padded):
        total += read_signed(code, at)
    return 128 * total


@njit(nogil=True)
def _code(row, width, padded, code):  # type: ignore[no-untyped-def]
    """Code float32 (width,); return scale and sum of squared codes."""
    top = np.float32(0)
    for at in range(width):
        top = max(top, abs(read_real(row, at)))
    scale = top / np.float32(127) if top > 0 else np.float32(1)
    inverse = np.float32(1) / scale
    squares = np.int64(0)
    for at in range(width):
        value = np.rint(read_real(row, at) * inverse)
        number = np.int64(max(min(value, np.float32(127)), np.float32(-127)))
        squares += number * number
        put_byte(code, at, number)
    for at in range(width, padded):
        put_byte(code, at, 0)
    return scale, squares


@njit(nogil=True)
def _move(query, width, mean, kind, norm, moved):  # type: ignore[no-untyped-def]
    """Bring a query into the index's space, as ``index/hnsw/codes.py`` says."""
    given = width - 1 if kind == 1 else width
    factor = np.float32(1)
    if kind:
        square = np.float32(0)
        for at in range(given):
            square += read_real(query, at) * read_real(query, at)
        factor = norm / np.sqrt(square) if square > 0 else np.float32(0)
    for at in range(width):
        value = read_real(query, at) * factor if at < given else np.float32(0)
        put_real(moved, at, value - read_real(mean, at))


@njit(nogil=True)
def _plane(row, width, planes, numbers):  # type: ignore[no-untyped-def]
    """Cut a rotated query, float32 (width,), into bit planes, uint64 (words, PLANES)."""
    low, high = read_real(row, 0), read_real(row, 0)
    for at in range(width):
        low, high = min(low, read_real(row, at)), max(high, read_real(row, at))
    most = (1 << PLANES) - 1
    step = (high - low) / np.float32(most)
    inverse = np.float32(1) / step if step > 0 else np.float32(0)
    total = np.int64(0)
    for word in range(width // 64):
        for plane in range(PLANES):
            put_long(planes, word * PLANES + plane, 0)
        for bit in range(64):
            value = (read_real(row, 64 * word + bit) - low) * inverse
            number = min(max(np.int64(value + np.float32(0.5)), 0), most)
            total += number
            for plane in range(PLANES):
                place = word * PLANES + plane
                put_long(planes, place, read_long(planes, place) | ((number >> plane & 1) << bit))
    put_real(numbers, 0, step)
    put_real(numbers, 1, low)
    half = np.float32(-0.5) * (np.float32(width) * low + step * np.float32(total))
    put_real(numbers, 2, half)


_LONG = types.int64
_CODES, _CONSTANTS = types.int8[:, ::1], types.float32[:, ::1]
SIGNATURES = {
    "encode": types.void(*[_LONG] * 6),
    "assign": types.void(*[_LONG] * 11),
    "add": types.void(
        _CODES, _CONSTANTS, types.int32[::1], types.float64[:, ::1], types.int64[::1]
    ),
    "search": types.int64(*[_LONG] * 9),
}  # fmt: skip


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the (not yet compiled) kernels of a variant by name; ``SIGNATURES`` has their types.

    encode(rows, count, width, padded, codes, constants)
        float32 (count, width) to int8 (count, padded) and float32 (count, 2).
    assign(rows, constants, start, stop, padded, centroids, shapes, lists, labels, distances,
           scratch)
        For coded rows start..stop the nearest of coded centroids (tiles), the first of equals, to
        ``labels`` int32 (n,), and their squared distance to ``distances`` float32 (n,).
    add(rows, constants, labels, sums, numbers)
        Adds decoded rows to the sums of their clusters, float64 (k, width), and counts them.
    search(plan, query, wanted, effort, allowed, moved, probes, heap, scratch)
        ``plan`` int64 (PLAN,), as the names above say: addresses; lists, bytes of a code, d', 0..2
        for the operator, form of the rows, address of the rotation, bits of the norm (float32) that
        queries are brought to unless by the first operator. The first address is of int64
        (lists + 1, 3): first node of each list, addresses of its codes and of its constants.
        Writes (key, node) to ``heap`` int64 (wanted,), ascending by key, then node; returns how
        many. ``allowed`` uint8 (n,) or 0; scratch: ``probes`` int64 (effort,), then holding the
        lists looked at; ``moved`` float32 (d',), int8 (padded,), float32 (padded,) and uint64
        (padded / 64, PLANES).
    """
    number, several = VARIANTS.index(variant), SEVERAL[variant]
    one_dots = _plain_dots if variant == "plain" else _make_dots(number, 1)
    many_dots = one_dots if several == 1 else _make_dots(number, several)

    @njit(nogil=True)
    def encode(rows, count, width, padded, codes, constants):  # type: ignore[no-untyped-def]
        for row in range(count):
            scale, squares = _code(rows + 4 * width * row, width, padded, codes + padded * row)
            put_real(constants, 2 * row, np.float32(squares * np.float64(scale) ** 2))
            put_real(constants, 2 * row + 1, scale)

    @njit(nogil=True)
    def assign(  # type: ignore[no-untyped-def]
        rows, constants, start, stop, padded, centroids, shapes, lists, labels, distances, scratch
    ):  # fmt: skip
        dots, best, names = scratch + _DOTS, scratch + _BEST, scratch + _NAMES
        at = start
        while at < stop:
            taken = several if stop - at >= several else 1
            for lane in range(taken * TILE):
                put_real(best, lane, np.float32(np.inf))
                put_int(names, lane, 0)
            for j in range(taken):
                put_long(scratch, j, _sum_of(rows + padded * (at + j), padded))
            for tile in range((lists + TILE - 1) // TILE):
                line = centroids + tile * TILE * padded
                if taken == 1:
                    one_dots(line, rows + padded * at, padded, dots)
                else:
                    many_dots(line, rows + padded * at, padded, dots)
                for j in range(taken):
                    factor = np.float32(2) * read_real(constants, 2 * (at + j) + 1)
                    improve(dots + 64 * j, shapes + 128 * tile, factor, read_long(scratch, j), tile,
                             best + 64 * j, names + 64 * j)  # fmt: skip
            for j in range(taken):
                low, name = np.float32(np.inf), np.int64(0)
                for lane in range(TILE):
                    key = read_real(best + 64 * j, lane)
                    found = read_int(names + 64 * j, lane) * TILE + lane
                    if key < low or (key == low and found < name):
                        low, name = key, found
                put_int(labels, at + j, name)
                put_real(distances, at + j, low + read_real(constants, 2 * (at + j)))
            at += taken

    @njit(nogil=True)
    def search(plan, query, wanted, effort, allowed, moved, probes, heap, scratch):  # type: ignore[no-untyped-def]
        padded, width, lists = (
            read_long(plan, PADDED),
            read_long(plan, WIDTH),
            read_long(plan, LISTS),
        )
        code, dots = moved + 4 * width, scratch + _DOTS
        norm = float_of(read_long(plan, NORM))
        _move(query, width, read_long(plan, MEAN), read_long(plan, KIND), norm, moved)
        scale, squares = _code(moved, width, padded, code)
        factor, correction = np.float32(2) * scale, _sum_of(code, padded)
        square = np.float32(squares * np.float64(scale) ** 2)
        form, turned = read_long(plan, FORM), code + padded
        if form == BITS:
            rotate(moved, read_long(plan, ROTATION), width, padded, turned)
        elif form == SETS:
            for at in range(padded):
                put_real(turned, at, read_real(moved, at) if at < width else np.float32(0))
        if form >= BITS:
            _plane(turned, padded, turned + 4 * padded, scratch + _NUMBERS)
        count, limit = 0, np.float32(np.inf)
        line, shapes = read_long(plan, CENTROIDS), read_long(plan, CENTROID_CONSTANTS)
        for tile in range((lists + TILE - 1) // TILE):
            one_dots(line + tile * TILE * padded, code, padded, dots)
            bits = passing(dots, shapes + 128 * tile, factor, correction, limit, scratch)
            if bits:
                count = _keep(bits, scratch, tile * TILE, 0, lists, probes, count, effort)
                limit = top(probes, count, effort)
        sort(probes, count)
        size, limit = 0, np.float32(np.inf)
        for probe in range(count):
            at = read_long(probes, probe) & 0xFFFFFFFF
            if size == wanted:
                key = float_of(key_bits(read_long(probes, probe)))
                apart = np.sqrt(max(key + square, np.float32(0)))
                gap = apart - read_real(read_long(plan, RADII), at)
                if gap > 0 and gap * gap * np.float32(0.9999) > limit + square:
                    continue  # by the triangle inequality no row of the list is near enough
            put_int(scratch + _NUMBERS, 3, key_bits(read_long(probes, probe)))
            if form == SETS:  # what counts is neither half the bits nor the centroid
                put_real(scratch + _NUMBERS, 2, np.float32(0))
                put_real(scratch + _NUMBERS, 3, np.float32(0))
            size = scan(plan, at, moved, factor, correction, wanted, allowed, heap, size, scratch)
            limit = top(heap, size, wanted)
        sort(heap, size)
        return size

    @njit(nogil=True)
    def scan(plan, number, moved, factor, correction, wanted, allowed, heap, size, scratch):  # type: ignore[no-untyped-def]
        """Offer the rows of a list to the heap; returns its size."""
        padded, width, form = read_long(plan, PADDED), read_long(plan, WIDTH), read_long(plan, FORM)
        dots = scratch + _DOTS
        places = read_long(plan, PLACES)
        first, stop = read_long(places, 3 * number), read_long(places, 3 * number + 3)
        line, constants = read_long(places, 3 * number + 1), read_long(places, 3 * number + 2)
        pitch, lines = TILE * padded, 128
        if form == FLOATS:
            pitch = 4 * TILE * width
        elif form >= BITS:
            pitch, lines = TILE * padded // 8, 192
        planes = moved + 4 * width + 5 * padded
        limit = top(heap, size, wanted)
        while first < stop:
            if allowed == 0 or _any(allowed + first, min(stop - first, TILE)):
                if form >= BITS:
                    bits = bit_passing(line, constants, planes, padded // 64, scratch + _NUMBERS,
                                        limit, scratch)  # fmt: skip
                elif form == FLOATS:
                    float_dots(line, moved, width, dots)
                    bits = float_passing(dots, constants, limit, scratch)
                else:
                    one_dots(line, moved + 4 * width, padded, dots)
                    bits = passing(dots, constants, factor, correction, limit, scratch)
                if bits:
                    size = _keep(bits, scratch, first, allowed, stop, heap, size, wanted)
                    limit = top(heap, size, wanted)
            first += TILE
            line += pitch
            constants += lines
        return size

    @njit(nogil=True)
    def add(rows, constants, labels, sums, numbers):  # type: ignore[no-untyped-def]
        for row in range(labels.shape[0]):
            label, scale = labels[row], np.float64(constants[row, 1])
            numbers[label] += 1
            for at in range(sums.shape[1]):
                sums[label, at] += scale * rows[row, at]

    return {"encode": encode, "assign": assign, "add": add, "search": search}


def _make_dots(number: int, several: int) -> Any:
    @njit(nogil=True)
    def dots(tile, queries, padded, out):  # type: ignore[no-untyped-def]
        tile_dots(number, several, tile, queries, padded, out)

    return dots


@njit(nogil=True)
def _any(allowed, count):  # type: ignore[no-untyped-def]
    """Tell whether one of some bytes is not 0."""
    if count == TILE:
        return (read_long(allowed, 0) | read_long(allowed, 1)) != 0
    found = np.int64(0)
    for at in range(count):
        found |= read_byte(allowed, at)
    return found != 0


@njit(nogil=True)
def _keep(bits, keys, first, allowed, stop, heap, size, limit):  # type: ignore[no-untyped-def]
    """Offer the marked rows of a tile that exist and are allowed; returns the heap's size."""
    lane = 0
    while bits:
        number = first + lane
        if bits & 1 and number < stop and (allowed == 0 or read_byte(allowed, number)):
            size = offer(heap, size, limit, pack(read_int(keys, lane), number))
        bits >>= 1
        lane += 1
    return size
