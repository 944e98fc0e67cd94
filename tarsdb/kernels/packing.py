"""Weights as matrix products read them: tiles of 16 columns, the same bytes wherever they are kept.

A layout has a name (``int8/16x4``) that says the kind, and columns and steps of k of a line; a
matrix packed under one name is read by every kernel of it. What lies past the last column or the
last k is zero. Knows no model and no file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.kernels.native import address
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

TILE = 16
"""Columns of a tile."""
ALIGNMENT = 64
KINDS = ("f32", "bf16", "int8", "int4")
GROUP = 32
"""Steps of k that share a scale of int4 weights."""
PAIRED_VARIANTS = ("avx2", "avx512")
"""Variants that multiply int8 two by two; the others do four by four."""


@dataclass(frozen=True)
class Layout:
    """The form of a tile: lines of ``step`` k of 16 columns, then constants of the columns.

    Attributes
    ----------
    name, kind : str
    step : int
        Steps of k in a line.
    padding : int
        The depth is padded to a multiple of it.
    dtype : str
        Of an element.
    constants : int
        Bytes behind all lines: float32 scales, and where there are 128, 128 times the sum of a
        column's codes, int32. In tiles of int4 16 scales, float16, follow each group of 32 k, and a
        byte holds code + 8 of an even line in its low bits and of the next line in its high bits.
    """

    name: str
    kind: str
    step: int
    padding: int
    dtype: str
    constants: int = 0

    def padded(self, depth: int) -> int:
        """Return the depth as it is packed."""
        return -(-depth // self.padding) * self.padding

    def tile_bytes(self, depth: int) -> int:
        """Return the bytes of a tile."""
        if self.kind == "int4":
            return self.padded(depth) // GROUP * _GROUP_BYTES
        return self.padded(depth) * TILE * np.dtype(self.dtype).itemsize + self.constants


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("f32/16", "f32", 1, 1, "f4"),
        Layout("bf16/16x2", "bf16", 2, 32, "u2"),
        Layout("int8/16x2", "int8", 2, 16, "i1", 64),
        Layout("int8/16x4", "int8", 4, 64, "i1", 128),
        Layout("int4/16x4", "int4", 4, 32, "i1"),
    )
}
_ENDS = (-8.0, -8.6, -7.4, -6.8, 7.4)
"""Codes that the largest weight of an int4 group may get: beyond -8 and 7 it is cut, so that the
others are nearer to theirs."""
_CODE_BYTES, _GROUP_BYTES = TILE * GROUP // 2, TILE * GROUP // 2 + 2 * TILE


def layout_of(kind: str, variant: str) -> str:
    """Return the name of the layout that kernels of a variant (``gemm.variant``) read."""
    if kind == "int8":
        return "int8/16x2" if variant in PAIRED_VARIANTS else "int8/16x4"
    return {"f32": "f32/16", "bf16": "bf16/16x2", "int4": "int4/16x4"}[kind]


@dataclass(frozen=True)
class PackedMatrix:
    """A weight matrix in tiles.

    Attributes
    ----------
    layout : Layout
    columns, depth : int
        N outputs and K inputs; of a gated matrix, columns of the gate.
    gated : bool
        Tiles of gate and up lie in turn.
    data : uint8 (bytes,), 64-byte aligned
        Tiles, each (lines, 16, step) elements and its constants.
    """

    layout: Layout
    columns: int
    depth: int
    gated: bool
    data: U8

    @property
    def kind(self) -> str:
        """``f32``, ``bf16``, ``int8``, ``int4``."""
        return self.layout.kind

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return -(-self.columns // TILE) * (2 if self.gated else 1)

    @property
    def address(self) -> int:
        """Where the first tile lies."""
        return address(self.data)

    def elements(self, part: int = 0) -> Array:
        """Return what the tiles hold, (N, K) of the layout's dtype; ``part`` 1 is up."""
        layout, tiles = self.layout, self._tiles(part)
        lines = tiles[:, : tiles.shape[1] - layout.constants]
        if self.kind == "int4":
            lines = _unpaired(tiles)
        shape = (len(tiles), layout.padded(self.depth) // layout.step, TILE, layout.step)
        rows = np.ascontiguousarray(lines).view(layout.dtype).reshape(shape).transpose(0, 2, 1, 3)
        whole = rows.reshape(len(tiles) * TILE, layout.padded(self.depth))
        return np.ascontiguousarray(whole[: self.columns, : self.depth])

    def scales(self, part: int = 0) -> F32:
        """Return what a column's codes are multiplied by, float32 (N,); (N, groups) of int4."""
        layout, tiles = self.layout, self._tiles(part)
        if self.kind == "int4":
            groups = tiles.reshape(len(tiles), -1, _GROUP_BYTES)[:, :, _CODE_BYTES:]
            halves = np.ascontiguousarray(groups).view(np.float16).transpose(0, 2, 1)
            return halves.reshape(len(tiles) * TILE, -1)[: self.columns].astype(np.float32)
        start = tiles.shape[1] - layout.constants
        found = np.ascontiguousarray(tiles[:, start : start + 4 * TILE]).view(np.float32)
        return found.reshape(-1)[: self.columns]

    def unpack(self) -> F32:
        """Return the weights the tiles stand for, float32 (N, K); gate and up (2, N, K)."""
        found = np.stack([self._floats(part) for part in range(2 if self.gated else 1)])
        return found if self.gated else found[0]

    def _floats(self, part: int) -> F32:
        elements = self.elements(part)
        if self.kind == "bf16":
            return from_bfloat16(elements)
        if self.kind == "int8":
            return elements.astype(np.float32) * self.scales(part)[:, None]
        if self.kind == "int4":
            scales = np.repeat(self.scales(part), GROUP, axis=1)[:, : self.depth]
            return elements.astype(np.float32) * scales
        return elements

    def _tiles(self, part: int) -> U8:
        count = 2 if self.gated else 1
        return self.data.reshape(self.tiles, self.layout.tile_bytes(self.depth))[part::count]


def pack(weight: F32, kind: str = "f32", variant: str = "avx2") -> PackedMatrix:
    """Pack a matrix (N, K), as models keep it: outputs by inputs.

    Raises
    ------
    ValueError
        For an unknown kind; for an integer kind also where a weight is NaN or infinite.
    """
    return _packed((weight,), kind, variant)


def pack_gated(gate: F32, up: F32, kind: str = "f32", variant: str = "avx2") -> PackedMatrix:
    """Pack two matrices of one shape (N, K) for a gated product."""
    return _packed((gate, up), kind, variant)


def pack_bias(*parts: F32) -> F32:
    """Return the bias of a packed matrix, float32 (16 * tiles,), aligned; of gate and up, two."""
    count = -(-len(parts[0]) // TILE)
    found = aligned(4 * TILE * count * len(parts)).view(np.float32)
    lines = found.reshape(count, len(parts), TILE)
    for number, part in enumerate(parts):
        whole = np.zeros(count * TILE, np.float32)
        whole[: len(part)] = part
        lines[:, number] = whole.reshape(count, TILE)
    return found


def aligned(size: int) -> U8:
    """Return ``size`` zero bytes that begin at a multiple of 64."""
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -address(memory) % ALIGNMENT
    return memory[start : start + size]


def to_bfloat16(values: F32) -> npt.NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16, ties to even; NaN stays NaN, below 2^-50 is 0.

    So no product of two and no sum of products is subnormal: processors with instructions for
    bfloat16 take such for 0.
    """
    bits = values.view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
    nearest = np.where(np.abs(values) < np.float32(2.0**-50), 0, nearest)
    return (np.where(np.isnan(values), bits | 0x400000, nearest) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> F32:
    """Return the floats of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def fill(matrix: PackedMatrix, *parts: F32) -> None:
    """Pack a matrix (N, K), or gate and up, into memory of zeros; raises as :func:`pack`."""
    if len(parts) != (2 if matrix.gated else 1):
        raise ValueError(f"{len(parts)} matrices for one that is {matrix.gated=}")
    size = matrix.layout.tile_bytes(matrix.depth)
    for number, part in enumerate(parts):
        if part.shape != (matrix.columns, matrix.depth):
            raise ValueError(f"shape {part.shape}, packed ({matrix.columns}, {matrix.depth})")
        for tile in range(matrix.tiles // len(parts)):
            rows = np.ascontiguousarray(part[tile * TILE : (tile + 1) * TILE], np.float32)
            at = (tile * len(parts) + number) * size
            _pack_tile(rows, matrix.layout, matrix.data[at : at + size])


def _packed(parts: tuple[F32, ...], kind: str, variant: str) -> PackedMatrix:
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of packed weights; known: {', '.join(KINDS)}")
    layout = LAYOUTS[layout_of(kind, variant)]
    columns, depth = parts[0].shape
    data = aligned(layout.tile_bytes(depth) * -(-columns // TILE) * len(parts))
    matrix = PackedMatrix(layout, columns, depth, len(parts) == 2, data)
    fill(matrix, *parts)
    return matrix


def _pack_tile(rows: F32, layout: Layout, tile: U8) -> None:
    """Write up to 16 columns, (columns, K)."""
    elements: Array = rows
    if layout.kind == "int4":
        _pack_groups(rows, layout, tile)
        return
    if layout.kind == "bf16":
        elements = to_bfloat16(rows)
    elif layout.kind == "int8":
        elements, scales = _quantized(rows)
        constants = tile[len(tile) - layout.constants :]
        constants[: 4 * TILE].view(np.float32)[: len(rows)] = scales
        if layout.constants > 4 * TILE:
            sums = elements.sum(axis=1, dtype=np.int32) * 128
            constants[4 * TILE :].view(np.int32)[: len(rows)] = sums
    whole = np.zeros((TILE, layout.padded(rows.shape[1])), layout.dtype)
    whole[: len(rows), : rows.shape[1]] = elements
    lines = tile[: len(tile) - layout.constants].view(layout.dtype)
    lines.reshape(-1, TILE, layout.step)[:] = whole.reshape(TILE, -1, layout.step).swapaxes(0, 1)


def _pack_groups(rows: F32, layout: Layout, tile: U8) -> None:
    """Write up to 16 columns, (columns, K), in groups."""
    whole = np.zeros((TILE, layout.padded(rows.shape[1]) // GROUP, GROUP), np.float32)
    whole.reshape(TILE, -1)[: len(rows), : rows.shape[1]] = rows
    _check_finite(rows)
    codes, scales = _coded_groups(whole)
    words = (codes + 8).astype(np.uint8).reshape(TILE, -1, 4, 2, 4)  # pairs of words of four
    groups = tile.reshape(-1, _GROUP_BYTES)
    pairs = (words[:, :, :, 0] | words[:, :, :, 1] << 4).transpose(1, 2, 0, 3)
    groups[:, :_CODE_BYTES] = pairs.reshape(-1, _CODE_BYTES)
    groups[:, _CODE_BYTES:] = np.ascontiguousarray(scales[:, :, 0].T).view(np.uint8)


def _coded_groups(groups: F32) -> tuple[F32, npt.NDArray[np.float16]]:
    """Return codes of -8 to 7 and a scale of each group, (..., size) and (..., 1).

    Of the scales that give the largest weight a code of _ENDS, one with the smallest squared error.
    """
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)
    if np.abs(largest).max(initial=0) > 8 * 65504:
        raise ValueError(f"a weight is {np.abs(largest).max():g}, int4 reaches {8 * 65504}")
    least: F32 = np.full(largest.shape, np.inf, np.float32)
    best, chosen = np.zeros_like(groups), np.zeros(largest.shape, np.float16)
    for end in _ENDS:
        with np.errstate(over="ignore", invalid="ignore"):  # a scale may be too large for 16 bits
            scales = (largest / np.float32(end)).astype(np.float16)
            exact = scales.astype(np.float32)
            codes = np.rint(groups / np.where(exact == 0, 1, exact)).clip(-8, 7)
            error = np.square(codes * exact - groups).sum(axis=2, keepdims=True)
        better = error < least
        np.copyto(least, error, where=better)
        np.copyto(best, codes, where=better)
        np.copyto(chosen, scales, where=better)
    return best, chosen


def _unpaired(tiles: U8) -> U8:
    """Return the codes of int4 tiles as lines of int8."""
    pairs = tiles.reshape(len(tiles), -1, _GROUP_BYTES)[:, :, :_CODE_BYTES]
    pairs = pairs.reshape(len(tiles), -1, 1, TILE * 4)
    both = np.concatenate([pairs & 15, pairs >> 4], axis=2)
    return (both.astype(np.int8) - np.int8(8)).view(np.uint8).reshape(len(tiles), -1)


def _check_finite(rows: F32) -> None:
    if not np.isfinite(rows).all():
        raise ValueError("a weight is NaN or infinite, which no integer stands for")


def _quantized(rows: F32) -> tuple[npt.NDArray[np.int8], F32]:
    """Return codes of -127 to 127, the nearest to a row / its scale, and scales."""
    _check_finite(rows)
    largest = np.abs(rows).max(axis=1, initial=0)
    scales = (largest / np.float32(127)).astype(np.float32)
    divisor = np.where(scales > 0, scales, 1)[:, None]
    return np.rint(rows / divisor).clip(-127, 127).astype(np.int8), scales
