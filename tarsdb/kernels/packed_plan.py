"""Where the packed weights of a model lie in one region of memory.

A plan follows from names, shapes and layouts alone, so memory that was filled elsewhere is read
without believing anything it says about itself. Knows no model and no file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.kernels import packing
from tarsdb.kernels.packing import ALIGNMENT, LAYOUTS, TILE, PackedMatrix
from tarsdb.records import dataclass

U8 = npt.NDArray[np.uint8]
Weight = PackedMatrix | npt.NDArray[Any]

VERSION = 1
"""Grows when the same weights are packed to other bytes."""


@dataclass(frozen=True)
class Slot:
    """One array of a plan.

    Parameters
    ----------
    layout : str
        A name of ``packing.LAYOUTS``, or of a NumPy type.
    shape : tuple of int
        Of a packed matrix (outputs, inputs).
    gated : bool
        Of a packed matrix: tiles of gate and up lie in turn.
    """

    layout: str
    shape: tuple[int, ...]
    gated: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        layout = LAYOUTS.get(self.layout)
        if layout is None:
            return math.prod(self.shape) * np.dtype(self.layout).itemsize
        columns, depth = self.shape
        return layout.tile_bytes(depth) * -(-columns // TILE) * (2 if self.gated else 1)

    @property
    def dense_bytes(self) -> int:
        """Bytes it takes as elements that are not packed, of a matrix float32."""
        if self.layout not in LAYOUTS:
            return self.nbytes
        return 4 * math.prod(self.shape) * (2 if self.gated else 1)

    def view(self, data: U8) -> Weight:
        """Return its bytes as what they are."""
        layout = LAYOUTS.get(self.layout)
        if layout is None:
            return data.view(self.layout).reshape(self.shape)
        columns, depth = self.shape
        return PackedMatrix(layout, columns, depth, self.gated, data)


class Plan:
    """Slots one after another, each at a multiple of 64 bytes.

    Attributes
    ----------
    name : str
        Stands for all names, shapes and layouts, and how weights are packed.
    nbytes : int
        Of the whole.
    array_bytes, dense_bytes : int
        Of all arrays, without what lies between them; packed, and with matrices as float32.
    """

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        self._slots = dict(slots)
        self._starts: dict[str, int] = {}
        self.nbytes = 0
        for name, slot in self._slots.items():
            self._starts[name] = self.nbytes
            self.nbytes += -(-slot.nbytes // ALIGNMENT) * ALIGNMENT
        self.array_bytes = sum(slot.nbytes for slot in self._slots.values())
        self.dense_bytes = sum(slot.dense_bytes for slot in self._slots.values())
        said = repr([VERSION, [(name, *vars(slot).values()) for name, slot in slots.items()]])
        self.name = hashlib.sha256(said.encode()).hexdigest()

    def views(self, memory: U8) -> dict[str, Weight]:
        """Return the arrays in ``nbytes`` bytes of memory, which begin at a multiple of 64."""
        return {
            name: slot.view(memory[self._starts[name] : self._starts[name] + slot.nbytes])
            for name, slot in self._slots.items()
        }


def matrix_slot(kind: str, variant: str, shape: tuple[int, int], gated: bool = False) -> Slot:
    """Return the slot of a matrix (outputs, inputs) packed for kernels of a variant."""
    return Slot(packing.layout_of(kind, variant), shape, gated)


def bias_slot(columns: int, parts: int = 1) -> Slot:
    """Return the slot of what ``packing.pack_bias`` makes."""
    return Slot("float32", (-(-columns // TILE) * TILE * parts,))


def store(view: Weight, *parts: npt.NDArray[Any]) -> None:
    """Write weights into a view: a matrix (gate and up of a gated one), or the array itself."""
    if isinstance(view, PackedMatrix):
        packing.fill(view, *parts)
    else:
        np.copyto(view, parts[0], casting="no")
