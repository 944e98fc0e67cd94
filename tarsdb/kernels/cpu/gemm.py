"""Matrix products with packed weights: the loops around the micro-kernels, for every kind.

Weights lie in tiles of 16 columns, line by line (``kernels/packing.py``). A micro-kernel keeps the
sums of some rows and tiles in registers; ``gemm_forms`` says what it does with a line. An element
of the result is one chain over the lines in order, however many rows and tiles a kernel takes at a
time, so a row's result does not depend on its batch. Arguments are addresses, counts and byte
strides.

Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.activations import dequantize, make_quantize
from tarsdb.kernels.cpu.emit import I64, load, store
from tarsdb.kernels.cpu.epilogue import GATED, finish
from tarsdb.kernels.cpu.gemm_forms import AMX, AVX2, AVX512, FORMS, TILE_KINDS, Form, form_of
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import emit_prefetch, keep_apart, put_real
from tarsdb.kernels.cpu.tile_registers import close_tiles, multiply_tiles, open_tiles

__all__ = ["AVX2", "AVX512", "SCRATCH", "SIGNATURE", "SIGNATURES", "make_gemm", "make_kernels",
           "make_multiply", "scratch_bytes"]  # fmt: skip

SIGNATURE = types.void(*[types.int64] * 12)
SIGNATURES = {"gemm": SIGNATURE}
ROWS_AT_ONCE = 96
"""Rows whose sums of two tiles wait in scratch memory."""
_TILE_BYTES = 24576
"""Bytes of a tile that stay in the L1 cache while the rows pass by."""
_FAR, _SOON = 262144, 8192
"""Most bytes that memory is asked for ahead: they wait in the L2 cache, beside as many in use; and
how many instead where tiles are longer."""
NOT_AT_ALL, BY_TILE, IN_A_ROW = range(3)
_SUMS = 128  # places in the scratch memory: a line of zeros, sums, scales and codes of rows
_SCALES = _SUMS + 128 * ROWS_AT_ONCE
_CODES = _SCALES + 4 * ROWS_AT_ONCE
SCRATCH = _SCALES
"""Bytes of scratch memory of a float32 product."""


def scratch_bytes(kind: str, variant: str, depth: int) -> int:
    """Return how much scratch memory a product needs, rows and columns as many as there may be."""
    form = form_of(kind, variant)
    if form.quantized is None:
        return SCRATCH
    return _CODES + ROWS_AT_ONCE * form.row_bytes(depth)


def _emit_products(b: Any, form: Form, count: int, width: int, asks: int, args: Any) -> None:
    """Emit the micro-kernel of ``count`` rows and ``width`` tiles."""
    a, a_stride, weights, line, tile, depth, sums, sums_stride, fresh, ahead, pace = args
    is_fresh = b.icmp_signed("!=", fresh, ir.Constant(I64, 0))
    places = [b.add(sums, b.mul(sums_stride, ir.Constant(I64, r))) for r in range(count)]
    chains = [
        [
            [[cgutils.alloca_once(b, kind) for kind in form.sums] for _ in range(width)]
            for _ in range(count)
        ]
        for _ in range(form.chains if count == width == 1 else 1)
    ]
    size = 64 // len(form.sums)
    registers = [
        (t, part, place, [chain[r][t][part] for chain in chains])
        for r, place in enumerate(places)
        for t in range(width)
        for part in range(len(form.sums))
    ]
    for t, part, place, (first, *others) in registers:
        kind = first.type.pointee
        known = load(b, place, kind, 64 * t + size * part)
        b.store(b.select(is_fresh, ir.Constant(kind, None), known), first)
        for each in others:
            b.store(ir.Constant(kind, None), each)
    starts = [b.add(a, b.mul(a_stride, ir.Constant(I64, r))) for r in range(count)]
    columns = [b.add(weights, b.mul(tile, ir.Constant(I64, t))) for t in range(width)]

    def step(number: Any, totals: Any) -> None:
        down, along = b.mul(number, line), b.mul(number, ir.Constant(I64, form.row_step))
        wanted, size = ([], columns, columns[:1])[asks], form.line_bytes
        if asks == IN_A_ROW:
            size *= width
        for column in wanted:
            soon = b.add(b.add(column, ahead), b.mul(number, pace))
            for offset in range(0, size, 64):
                emit_prefetch(b, b.add(soon, ir.Constant(I64, offset)), cache=2)
        form.step(
            b, totals, [b.add(column, down) for column in columns],
            [b.add(start, along) for start in starts],
        )  # fmt: skip

    # A line a turn: LLVM fetches the words of several lines before it multiplies, which takes more
    # registers than there are. Unrolled by four, AVX-512 ran at half the speed.
    a_turn = ir.Constant(I64, form.per_line * len(chains))
    rest = ir.Constant(I64, form.per_line * (len(chains) - 1))
    with cgutils.for_range(b, b.udiv(b.add(depth, rest), a_turn)) as loop:
        number = b.mul(loop.index, ir.Constant(I64, len(chains)))
        for place, chain in enumerate(chains):
            step(b.add(number, ir.Constant(I64, place)), chain)
    for t, part, place, (first, *others) in registers:
        total = b.load(first)
        for each in others:
            total = b.add(total, b.load(each))
        store(b, total, place, 64 * t + size * part)


@intrinsic(prefer_literal=True)
def accumulate(  # type: ignore[no-untyped-def]
    typingctx, form, most, tiles, asks, rows, a, a_stride, weights, line, tile, depth, sums,
    sums_stride, fresh, ahead, pace,
):  # fmt: skip
    """Add the products of ``rows`` rows, 1 to the literal ``most``, and some tiles, a literal.

    Line i of tile t lies at ``weights + t * tile + i * line``; the sums of row r are numbers of
    32 bits at ``sums + r * sums_stride``, tile after tile. They start at zero if ``fresh`` is not
    0. ``form`` is a literal number of FORMS. ``asks`` is a literal: NOT_AT_ALL; BY_TILE, with line
    i memory is asked for a line ``ahead`` + i * ``pace`` bytes behind a tile's first; IN_A_ROW, for
    as much as all tiles' lines, one after another, as far behind the first tile's.
    """
    chosen, width, way = FORMS[form.literal_value], tiles.literal_value, asks.literal_value
    counts = range(1, most.literal_value + 1)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        for count in counts:
            with b.if_then(b.icmp_signed("==", args[4], ir.Constant(I64, count))):
                _emit_products(b, chosen, count, width, way, args[5:])
        return context.get_dummy_value()

    return types.void(form, most, tiles, asks, *[types.int64] * 12), codegen


def _make_tile_multiply(kind: str, size: int, few: Any) -> Any:
    """Return ``make_multiply``'s product by tile registers, for packed weights.

    It reads and writes whole blocks of 16 rows, a step of k in ``size`` bytes. ``few`` multiplies
    up to three rows, where it gives the same sums.
    """
    has_few = few is not None

    @linked
    def multiply(  # type: ignore[no-untyped-def]
        a, a_stride, rows, weights, line, tile, tiles, depth, sums, sums_stride, fresh, ahead,
    ):  # fmt: skip
        if has_few and rows < 4:
            few(a, a_stride, rows, weights, line, tile, tiles, depth, sums, sums_stride, fresh,
                ahead)  # fmt: skip
            return
        turns = (depth * size + 63) // 64
        step, block = 64, 16 * a_stride
        for t in range(0, tiles, 2):
            for first in range(0, rows, 32):
                row, columns = a + first * a_stride, weights + t * tile
                place = sums + first * sums_stride + 64 * t
                if rows - first > 16 and t + 1 < tiles:
                    multiply_tiles(kind, 2, 2, row, a_stride, step, block, columns, tile, turns,
                                   place, sums_stride, fresh)  # fmt: skip
                elif rows - first > 16:
                    multiply_tiles(kind, 2, 1, row, a_stride, step, block, columns, tile, turns,
                                   place, sums_stride, fresh)  # fmt: skip
                elif t + 1 < tiles:
                    multiply_tiles(kind, 1, 2, row, a_stride, step, block, columns, tile, turns,
                                   place, sums_stride, fresh)  # fmt: skip
                else:
                    multiply_tiles(kind, 1, 1, row, a_stride, step, block, columns, tile, turns,
                                   place, sums_stride, fresh)  # fmt: skip

    return multiply


def make_multiply(variant: str, kind: str = "f32", asks: bool = False) -> Any:
    """Return the product of some rows and some tiles, to be called by other kernels.

    Parameters
    ----------
    variant, kind : str
    asks : bool
        Whether memory is asked ahead for up to three rows, too. What they read of weights the
        processor foresees, unless the form says otherwise of one row.

    Parameters of the kernel
    ------------------------
    a, a_stride, rows : address, bytes, int
        float32 (rows, depth); of quantised kinds codes, padded to whole lines.
    weights, line, tile, tiles, depth : address, bytes, bytes, int, int
        Line i of tile t lies at ``weights + t * tile + i * line``: for packed weights a form's
        line and tile; for a row-major float32 matrix (K, 16 * tiles) its stride, and 64.
    sums, sums_stride : address, bytes
        float32 or int32 (rows, 16 * tiles), the result.
    fresh : int
        0 adds to what ``sums`` holds.
    ahead : bytes
        From a line to one that is wanted soon, where lines pass by once; 0: that of the tiles that
        come next.
    """
    form = form_of(kind, variant)
    number, (most, width), per_line = FORMS.index(form), form.shape(variant), form.per_line
    streams, tail, few = form.streams, form.tail_bytes, 2 if variant == AVX2 else 4
    few_ask = BY_TILE if asks else NOT_AT_ALL
    one_asks, side = (IN_A_ROW, streams) if form.asks else (few_ask, 1)

    @linked
    def multiply(  # type: ignore[no-untyped-def]
        a, a_stride, rows, weights, line, tile, tiles, depth, sums, sums_stride, fresh, ahead,
    ):  # fmt: skip
        keep_apart()
        done = 0
        while rows == 1 and done + streams <= tiles:
            soon = ahead if ahead else streams * tile
            accumulate(number, 1, streams, one_asks, 1, a, a_stride, weights + done * tile, line,
                       tile, depth, sums + 64 * done, sums_stride, fresh, soon,
                       side * line)  # fmt: skip
            done += streams
        while rows < 4 and done + few <= tiles:
            accumulate(number, 3, few, few_ask, rows, a, a_stride, weights + done * tile, line,
                       tile, depth, sums + 64 * done, sums_stride, fresh, ahead, line)  # fmt: skip
            done += few
        blocks = (rows + most - 1) // most
        reach = depth // per_line * line
        jump = width * tile if reach + tail >= tile else reach  # to what comes after these lines
        once = ahead if ahead else jump if jump <= _FAR else _SOON
        while done < tiles:
            here = min(width, tiles - done)
            at, to = weights + done * tile, sums + 64 * done
            for block in range(blocks):
                first = rows * block // blocks
                count = rows * (block + 1) // blocks - first
                row, place = a + first * a_stride, to + first * sums_stride
                # the rows together ask for the lines that follow, each block for its share
                soon, pace = jump + reach * block // blocks, line // blocks
                if blocks == 1:
                    soon, pace = once, line
                if here == width:
                    accumulate(number, most, width, BY_TILE, count, row, a_stride, at, line, tile,
                               depth, place, sums_stride, fresh, soon, pace)  # fmt: skip
                else:
                    accumulate(number, most, 1, BY_TILE, count, row, a_stride, at, line, tile,
                               depth, place, sums_stride, fresh, soon, pace)  # fmt: skip
            done += here

    return multiply


def make_gemm(variant: str, kind: str = "f32") -> Any:
    """Return the (not yet compiled) product of a kind and a variant, for SIGNATURE.

    Parameters of the kernel
    ------------------------
    a, a_stride, rows : address, bytes, int
        float32 (rows, depth).
    weights, depth, columns : address, int, int
        Packed weights; where gated, tiles of gate and up in turn, ``columns`` of each.
    epilogue, bias : int, address
        See ``epilogue.finish``; float32 (16 * tiles,), or 0 for none.
    residual, out, out_stride : addresses, bytes
        float32 (rows, columns); of one stride, and they may be the same.
    scratch : address
        :func:`scratch_bytes` bytes.
    """
    form, has_tiles = form_of(kind, variant), variant == AMX and kind in TILE_KINDS
    multiply, quantize = make_multiply(variant, kind), make_quantize(form.quantized)
    if has_tiles:
        few = multiply if kind == "int8" else None
        multiply = _make_tile_multiply(kind, form.row_step // form.per_line, few)
    line, per_line, row_step = form.line_bytes, form.per_line, form.row_step
    padding, tail, quantized = form.padding, form.tail_bytes, form.quantized is not None
    offset, has_scales, (most, width) = form.offset, form.tail_bytes > 0, form.shape(variant)
    at_once = _TILE_BYTES // line * per_line

    @linked
    def gemm(  # type: ignore[no-untyped-def]
        a, a_stride, rows, weights, depth, columns, epilogue, bias, residual, out, out_stride,
        scratch,
    ):  # fmt: skip
        keep_apart()
        for i in range(32):
            put_real(scratch, i, 0.0)
        if has_tiles:
            open_tiles(scratch + _SUMS)
        sums, lines = scratch + _SUMS, (depth + padding - 1) // padding * padding // per_line
        codes_stride, lines_bytes = lines * row_step, lines * line
        tile = lines_bytes + tail
        paired = 2 if epilogue >= GATED else 1
        tiles = (columns + 15) // 16 * paired
        for top in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - top)
            row, stride, reach = a + top * a_stride, a_stride, depth
            if quantized:
                quantize(row, stride, count, depth, scratch + _CODES, codes_stride,
                         scratch + _SCALES)  # fmt: skip
                row, stride = scratch + _CODES, codes_stride
                reach = (depth + per_line - 1) // per_line * per_line
            part_depth = at_once if count > most else reach + 1
            group = 4 if count < 4 else 2
            for t in range(0, tiles, group):
                here, here_at = min(group, tiles - t), weights + t * tile
                step = here if count < 4 else width
                for part in range(0, here, step):
                    for k in range(0, max(reach, 1), part_depth):
                        multiply(row + k // per_line * row_step, stride, count,
                                 here_at + part * tile + k // per_line * line, line, tile,
                                 min(step, here - part), min(part_depth, reach - k),
                                 sums + 64 * part, 64 * group, int(k == 0), 0)  # fmt: skip
                if has_scales:
                    for part in range(here):
                        dequantize(offset, sums + 64 * part, 64 * group, count, scratch + _SCALES,
                                   here_at + part * tile + lines_bytes)  # fmt: skip
                for part in range(0, here, paired):
                    column = (t + part) // paired * 16
                    at = top * out_stride + 4 * column
                    added = bias + 64 * (t + part) if bias else scratch
                    finish(epilogue, sums + 64 * part, 64 * group, count, added, residual + at,
                           out + at, out_stride, columns - column)  # fmt: skip
        if has_tiles:
            close_tiles()

    return gemm


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the kernels of SIGNATURES, not yet compiled; ``variant`` is KIND/VARIANT."""
    kind, form = variant.split("/")
    return {"gemm": njit(nogil=True)(make_gemm(form, kind).py_func)}
