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

from tarsdb.kernels.cpu.heap import offer, sort
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import (
    bits_of,
    float_of,
    lowest_bit,
    prefetch,
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
from tarsdb.kernels.cpu.product_codes import make_name, tabulate_products
from tarsdb.kernels.cpu.refining import PLACE, refine
from tarsdb.kernels.cpu.sign_bits import (
    PLANES_OF_QUERY,
    bit_passing,
    cut,
    number,
    rotate,
    tables_way_of,
    tabulate,
    way_of,
)
from tarsdb.kernels.cpu.sorted_list import insert_into, key_of, node_of, pack, start_list
from tarsdb.kernels.cpu.tiles import float_dots, float_passing, improve, passing, tile_dots

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
    NORM, AXES, SCALES, PRODUCTS, PARTS, PART_WIDTH, FURTHER,
) = range(18)  # fmt: skip
"""Places in a search's plan; see :func:`make_kernels`."""
PLAN = 18
_AHEAD = 4096
_SHORT = 1024
"""Entries up to which moving those behind a new one costs less than a heap."""
BYTES, FLOATS, BITS, SETS, PRODUCT_CODES = range(5)
"""Forms of rows: int8 codes, float32, sign bits of rotated residuals, bits themselves, product
codes of turned residuals."""


@linked
def _plain_dots(tile, query, padded, out, ahead):  # type: ignore[no-untyped-def]
    for row in range(TILE):
        total = np.int64(0)
        for at in range(padded):
            code = read_byte(tile, (at >> 2) * 4 * TILE + 4 * row + (at & 3))
            total += code * read_signed(query, at)
        put_int(out, row, total)


@linked
def _sum_of(code, padded):  # type: ignore[no-untyped-def]
    """Return what codes + 128 add to every inner product with a query."""
    total = np.int64(0)
    for at in range(padded):
        total += read_signed(code, at)
    return 128 * total


@linked
def _code(row, width, padded, code):  # type: ignore[no-untyped-def]
    """Code float32 (width,); return scale and sum of squared codes."""
    top = np.int64(0)  # as bits: they order as the numbers do
    for at in range(width):
        top = max(top, bits_of(read_real(row, at)) & np.int64(0x7FFFFFFF))
    scale = float_of(top) / np.float32(127) if top > 0 else np.float32(1)
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


@linked
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


_LONG = types.int64
_CODES, _CONSTANTS = types.int8[:, ::1], types.float32[:, ::1]
SIGNATURES = {
    "encode": types.void(*[_LONG] * 6),
    "assign": types.void(*[_LONG] * 11),
    "add": types.void(
        _CODES, _CONSTANTS, types.int32[::1], types.float64[:, ::1], types.int64[::1]
    ),
    "search": types.int64(*[_LONG] * 11),
    "name": types.void(*[_LONG] * 7),
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
    search(plan, query, wanted, pool, effort, allowed, places, moved, probes, best, out)
        ``plan`` int64 (PLAN,), as the names above say: addresses; lists, bytes of a code, d', 0..2
        for the operator, form of the rows, address of the rotation's signs, bits of the norm
        (float32) that queries are brought to unless by the first operator; for product codes axes
        and their constants in tiles, centroids, parts and elements of one; 1 where sign bits have
        further ones. The first address is of int64 (lists + 1, PLACE), see ``refining.py``.
        Writes nodes, or what int64 ``places`` (n,) has for them, to ``out`` int64 (wanted,),
        ascending by key, then node; returns how many. With further bits these are the first by
        their better keys of the ``pool`` first, else ``pool`` is ``wanted``. ``allowed`` uint8 (n,)
        or 0. Scratch: ``moved``, ``SCRATCH`` bytes, float32 (d',), and 10 bytes for each of a code,
        for product codes 2, 4 for each axis and 80 for each part, and 64; with further bits 4 for
        each list; ``probes`` and ``best``, room for lists of the larger of ``effort`` and ``pool``
        and of ``pool`` entries (``sorted_list.py``).
    """
    number_of, several = VARIANTS.index(variant), SEVERAL[variant]
    way, tables_way = way_of(variant), tables_way_of(variant)
    one_dots = _plain_dots if variant == "plain" else _make_dots(number_of, 1)
    many_dots = one_dots if several == 1 else _make_dots(number_of, several)

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
                    one_dots(line, rows + padded * at, padded, dots, _AHEAD)
                else:
                    many_dots(line, rows + padded * at, padded, dots, _AHEAD)
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
    def search(  # type: ignore[no-untyped-def]
        plan, query, wanted, pool, effort, allowed, places, moved, probes, best, out
    ):
        padded, width, lists = (
            read_long(plan, PADDED),
            read_long(plan, WIDTH),
            read_long(plan, LISTS),
        )
        scratch, moved = moved, moved + SCRATCH
        code, dots, numbers = moved + 4 * width, scratch + _DOTS, scratch + _NUMBERS
        norm = float_of(read_long(plan, NORM))
        _move(query, width, read_long(plan, MEAN), read_long(plan, KIND), norm, moved)
        scale, squares = _code(moved, width, padded, code)
        factor, correction = np.float32(2) * scale, _sum_of(code, padded)
        square = np.float32(squares * np.float64(scale) ** 2)
        form = read_long(plan, FORM)
        if form == PRODUCT_CODES:
            small = code + 2 * padded
            turn(plan, code, scale, correction, small, dots, numbers)
        elif form >= BITS:
            bytes_of, small = code + padded, code + 2 * padded
            turned = small + 4 * padded
            for at in range(padded):
                put_real(turned, at, read_real(moved, at) if at < width else np.float32(0))
            if form == BITS:
                rotate(turned, read_long(plan, ROTATION), padded, small)
            number(turned, padded, bytes_of, numbers, dots)
            if form == SETS:  # what counts is neither half the bits nor the centroid
                put_real(numbers, 2, np.float32(0))
            if way != PLANES_OF_QUERY:
                tabulate(bytes_of, padded >> 5, small)
            else:
                cut(bytes_of, padded >> 5, small)
        probes, best = start_list(probes, effort), start_list(best, pool)
        count, limit = 0, np.float32(np.inf)
        line, shapes = read_long(plan, CENTROIDS), read_long(plan, CENTROID_CONSTANTS)
        for tile in range((lists + TILE - 1) // TILE):
            one_dots(line + tile * TILE * padded, code, padded, dots, _AHEAD)
            bits = passing(dots, shapes + 128 * tile, factor, correction, limit, scratch)
            if bits:
                count = _keep(bits, scratch, tile * TILE, 0, lists, probes, count, effort)
                limit = _limit(probes, count, effort)
        _ordered(probes, count, effort)
        size, limit = 0, np.float32(np.inf)
        has_further, of_lists = read_long(plan, FURTHER), code + 10 * padded
        for probe in range(count):
            entry = read_long(probes, probe)
            at, key = node_of(entry), key_of(entry)
            if size == pool:
                apart = np.sqrt(max(key + square, np.float32(0)))
                gap = apart - read_real(read_long(plan, RADII), at)
                if gap > 0 and gap * gap * np.float32(0.9999) > limit + square:
                    continue  # by the triangle inequality no row of the list is near enough
            put_real(numbers, 3, np.float32(0) if form == SETS else key)
            if has_further:
                put_real(of_lists, at, key)
            following = node_of(read_long(probes, probe + 1)) if probe + 1 < count else at
            size = scan(
                plan, at, following, moved, factor, correction, pool, allowed, best, size, scratch
            )
            limit = _limit(best, size, pool)
        _ordered(best, size, pool)
        if has_further:
            refine(read_long(plan, PLACES), lists, of_lists, padded, code + padded, numbers, best,
                   size, probes)  # fmt: skip
            size = min(size, wanted)
        for at in range(size):
            node = node_of(read_long(best, at))
            put_long(out, at, read_long(places, node) if places else node)
        return size

    @linked
    def turn(plan, code, scale, correction, small, dots, numbers):  # type: ignore[no-untyped-def]
        """Write the tables of a coded query: its inner products with axes, then with centroids."""
        padded, parts = read_long(plan, PADDED), read_long(plan, PARTS)
        part_width, axes, scales = (
            read_long(plan, PART_WIDTH),
            read_long(plan, AXES),
            read_long(plan, SCALES),
        )
        turned = small + 16 * parts
        floats = turned + 4 * parts * part_width
        for tile in range(parts * part_width // TILE):
            one_dots(axes + tile * TILE * padded, code, padded, dots, _AHEAD)
            for lane in range(TILE):
                product = np.float32(read_int(dots, lane) - correction)
                own = read_real(scales + 128 * tile + 64, lane)
                put_real(turned, TILE * tile + lane, product * scale * own)
        tabulate_products(turned, read_long(plan, PRODUCTS), parts, part_width, floats, numbers,
                          small)  # fmt: skip

    @linked
    def scan(  # type: ignore[no-untyped-def]
        plan, list_, following, moved, factor, correction, wanted, allowed, best, size, scratch
    ):
        """Put rows of a list among the best, asking for the following list; return how many."""
        padded, width, form = read_long(plan, PADDED), read_long(plan, WIDTH), read_long(plan, FORM)
        dots = scratch + _DOTS
        table = read_long(plan, PLACES)
        own = table + 8 * PLACE * list_
        first, stop = read_long(own, 0), read_long(own, PLACE)
        line, constants = read_long(own, 1), read_long(own, 2)
        ahead = read_long(table, PLACE * following + 1) - line
        constants_ahead = read_long(table, PLACE * following + 2) - constants
        pitch, lines = TILE * padded, 128
        if form == FLOATS:
            pitch = 4 * TILE * width
        elif form == PRODUCT_CODES:
            pitch, lines = TILE * read_long(plan, PARTS) // 2, 192
        elif form >= BITS:
            pitch, lines = TILE * padded // 8, 192
        small = moved + 4 * width + 2 * padded
        limit = _limit(best, size, wanted)
        while first < stop:
            if allowed == 0 or _any(allowed + first, min(stop - first, TILE)):
                for at in range(0, lines, 64):
                    prefetch(constants + constants_ahead + at)
                if form == PRODUCT_CODES:
                    bits = bit_passing(tables_way, line, constants, small, pitch >> 6,
                                       scratch + _NUMBERS, limit, scratch, ahead)  # fmt: skip
                elif form >= BITS:
                    bits = bit_passing(way, line, constants, small, padded >> 5,
                                       scratch + _NUMBERS, limit, scratch, ahead)  # fmt: skip
                elif form == FLOATS:
                    float_dots(line, moved, width, dots)
                    bits = float_passing(dots, constants, limit, scratch)
                else:
                    one_dots(line, moved + 4 * width, padded, dots, ahead)
                    bits = passing(dots, constants, factor, correction, limit, scratch)
                if bits:
                    size = _keep(bits, scratch, first, allowed, stop, best, size, wanted)
                    limit = _limit(best, size, wanted)
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

    return {"encode": encode, "assign": assign, "add": add, "search": search, "name": make_name()}


def _make_dots(number: int, several: int) -> Any:
    @linked
    def dots(tile, queries, padded, out, ahead):  # type: ignore[no-untyped-def]
        tile_dots(number, several, tile, queries, padded, out, ahead)

    return dots


@linked
def _any(allowed, count):  # type: ignore[no-untyped-def]
    """Tell whether one of some bytes is not 0."""
    if count == TILE:
        return (read_long(allowed, 0) | read_long(allowed, 1)) != 0
    found = np.int64(0)
    for at in range(count):
        found |= read_byte(allowed, at)
    return found != 0


@linked
def _limit(entries, size, limit):  # type: ignore[no-untyped-def]
    """Return the key above which nothing enters a list, or a heap if it is longer than short."""
    if size < limit:
        return np.float32(np.inf)
    return key_of(read_long(entries, size - 1 if limit <= _SHORT else 0))


@linked
def _ordered(entries, size, limit):  # type: ignore[no-untyped-def]
    """Make entries ascend."""
    if limit > _SHORT:
        sort(entries, size)


@linked
def _keep(bits, keys, first, allowed, stop, entries, size, limit):  # type: ignore[no-untyped-def]
    """Put the marked rows of a tile that exist and are allowed into a list; returns its size."""
    while bits:
        lane = lowest_bit(bits)
        bits &= bits - 1
        row = first + lane
        if row < stop and (allowed == 0 or read_byte(allowed, row)):
            entry = pack(read_real(keys, lane), row)
            if limit > _SHORT:
                size = offer(entries, size, limit, entry)
            else:
                size = min(size + (insert_into(entries, size, limit, entry) < limit), limit)
    return size
