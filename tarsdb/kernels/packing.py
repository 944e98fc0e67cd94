"""Weights as matrix products read them: tiles of 16 columns, the same bytes wherever they are kept.

A layout has a name (``f32/16``) that says kind and shape of a tile; a matrix packed under one name
is read by every kernel of it. Columns past the last are zero. Knows no model and no file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tarsdb.kernels.native import address

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

TILE = 16
"""Columns of a tile."""
ALIGNMENT = 64
KINDS = ("f32",)


@dataclass(frozen=True)
class PackedMatrix:
    """A weight matrix in tiles.

    Attributes
    ----------
    kind : str
        Of KINDS.
    layout : str
        Name of the tiles' form; what is kept under it can be read by kernels of the same name.
    columns, depth : int
        N outputs and K inputs; of a gated matrix, columns of the gate.
    gated : bool
        Tiles of gate and up lie in turn.
    data : uint8 (bytes,), 64-byte aligned
        ``f32/16``: float32 (tiles, K, 16).
    """

    kind: str
    layout: str
    columns: int
    depth: int
    gated: bool
    data: U8

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return -(-self.columns // TILE) * (2 if self.gated else 1)

    @property
    def address(self) -> int:
        """Where the first tile lies."""
        return address(self.data)

    def unpack(self) -> F32:
        """Return the weights the tiles stand for, float32 (N, K); gate and up (2, N, K)."""
        tiles = self.data.view(np.float32).reshape(self.tiles, self.depth, TILE)
        count = 2 if self.gated else 1
        pairs = tiles.reshape(self.tiles // count, count, self.depth, TILE)
        rows = self.tiles // count * TILE
        whole = pairs.transpose(1, 0, 3, 2).reshape(count, rows, self.depth)
        found = np.ascontiguousarray(whole[:, : self.columns])
        return found if self.gated else found[0]


def pack(weight: F32, kind: str = "f32") -> PackedMatrix:
    """Pack a matrix (N, K), as models keep it: outputs by inputs."""
    return _packed(weight[None], kind)


def pack_gated(gate: F32, up: F32, kind: str = "f32") -> PackedMatrix:
    """Pack two matrices of one shape (N, K) for a gated product."""
    return _packed(np.stack([gate, up]), kind)


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


def _packed(parts: npt.NDArray[np.float32], kind: str) -> PackedMatrix:
    """Pack (1 or 2, N, K)."""
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of packed weights; known: {', '.join(KINDS)}")
    count, columns, depth = parts.shape
    tiles = -(-columns // TILE)
    data = aligned(4 * TILE * depth * tiles * count)
    lines = data.view(np.float32).reshape(tiles, count, depth, TILE)
    for number, part in enumerate(parts):
        for tile in range(tiles):
            rows = part[tile * TILE : (tile + 1) * TILE]
            lines[tile, number, :, : len(rows)] = rows.T
    return PackedMatrix(kind, f"{kind}/{TILE}", columns, depth, count == 2, data)
