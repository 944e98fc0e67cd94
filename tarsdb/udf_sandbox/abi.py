"""The columnar ABI, version 1: how a batch of columns lies in a guest's memory.

Works on a NumPy view of the memory; knows no wasmtime. Nothing read back from the guest is
trusted: pointers, offsets and text are checked before use. docs/udf-abi.md has the byte tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from tarsdb.columns import Column
from tarsdb.errors import UdfError
from tarsdb.records import dataclass
from tarsdb.types import SqlType

ALIGNMENT = 64
DESCRIPTOR_BYTES = 32
NULLABLE = 1  # descriptor flag: the validity bitmap has cleared bits
CONSTANT = 2  # descriptor flag: the buffers hold one value, which stands for every row

DESCRIPTOR = np.dtype(
    [
        ("type", "<u4"), ("flags", "<u4"), ("data", "<u4"), ("data_bytes", "<u4"),
        ("validity", "<u4"), ("offsets", "<u4"), ("width", "<u4"), ("parameter", "<u4"),
    ]
)  # fmt: skip


class Memory(Protocol):
    """A guest's memory as its bytes: an array, or what fetches the bytes asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> np.ndarray: ...


class WritableMemory(Memory, Protocol):
    """A guest's memory that can be written: an array, or what sends the bytes there."""

    def __setitem__(self, place: slice, values: Any, /) -> None: ...


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def row_bytes(sql_type: SqlType) -> int:
    """Bytes a row's value takes; 0 for variable types."""
    return 0 if sql_type.is_variable else sql_type.width * sql_type.dtype.itemsize


@dataclass(frozen=True)
class _Slot:
    """Where one column lies, relative to the start of the region; -1 is absent."""

    data: int
    data_bytes: int
    validity: int
    offsets: int


_NOWHERE = _Slot(0, 0, -1, -1)


class BatchLayout:
    """Places of a batch's descriptors and buffers in one region of guest memory.

    Parameters
    ----------
    columns : sequence of Column
        Arguments, of ``rows`` rows, or of one row that stands for all.
    outputs : sequence of SqlType
    rows : int
    prepared : int, optional
        How many of the outputs have ``rows`` rows and get buffers for them: all, when absent. The
        guest provides the buffers of the others.

    Attributes
    ----------
    size : int
        Bytes to ask of ``tars_alloc``; includes the slack to align the start.
    """

    def __init__(
        self, columns: Sequence[Column], outputs: Sequence[SqlType], rows: int,
        prepared: int | None = None,
    ) -> None:  # fmt: skip
        self.columns = columns
        self.outputs = tuple(outputs)
        self.rows = rows
        self._end = _align(DESCRIPTOR_BYTES * (len(columns) + len(outputs)))
        self._slots = [self._argument(column) for column in columns]
        self._cleared = [
            self._place(row_bytes(sql_type) * rows, True, sql_type.is_variable, rows)
            for sql_type in self.outputs[:prepared]
        ]
        self.size = self._end + ALIGNMENT

    def _argument(self, column: Column) -> _Slot:
        has_validity, is_variable = column.validity is not None, column.offsets is not None
        return self._place(_values(column).nbytes, has_validity, is_variable, len(column))

    def _place(self, data_bytes: int, validity: bool, offsets: bool, rows: int) -> _Slot:
        data = self._take(data_bytes)
        return _Slot(
            data,
            data_bytes,
            self._take((rows + 7) // 8) if validity else -1,
            self._take(4 * (rows + 1)) if offsets else -1,
        )

    def _take(self, size: int) -> int:
        at = self._end
        self._end += _align(size)
        return at

    @property
    def output_at(self) -> int:
        """Where arguments end and prepared outputs begin, relative to the region's start."""
        return self._cleared[0].data

    @property
    def validity_at(self) -> int:
        """Where the first output's validity bitmap begins; its bits are set before the call."""
        return self._cleared[0].validity

    def write(self, memory: WritableMemory, region: int) -> int:
        """Copy descriptors and arguments into the guest; return the address of descriptor 0."""
        base = _align(region)
        count = len(self.columns)
        descriptors = np.zeros(count + len(self.outputs), dtype=DESCRIPTOR)
        for number, (column, slot) in enumerate(zip(self.columns, self._slots, strict=True)):
            descriptors[number] = _descriptor(column.type, slot, base)
            _write_column(memory, base, column, slot)
            if slot.validity >= 0:
                descriptors[number]["flags"] = NULLABLE
            if len(column) != self.rows:
                descriptors[number]["flags"] |= CONSTANT
        for number, sql_type in enumerate(self.outputs):
            cleared = number < len(self._cleared)
            slot = self._cleared[number] if cleared else _NOWHERE
            descriptors[count + number] = _descriptor(sql_type, slot, base if cleared else 0)
            if cleared:
                self._clear(memory, base, slot)
        _put(memory, base, descriptors.view(np.uint8))
        return base

    def _clear(self, memory: WritableMemory, base: int, slot: _Slot) -> None:
        memory[base + slot.data : base + slot.data + slot.data_bytes] = 0
        start = base + slot.validity
        memory[start : start + (self.rows + 7) // 8] = 0xFF
        if slot.offsets >= 0:
            memory[base + slot.offsets : base + slot.offsets + 4 * (self.rows + 1)] = 0

    def read(
        self, memory: Memory, base: int, function: str, number: int = 0, rows: int | None = None
    ) -> Column:
        """Return an output column, copied out of the guest's memory.

        Values are in range of the buffers only; :mod:`tarsdb.udf_sandbox.outputs` checks what
        they hold.

        Parameters
        ----------
        number : int
            Which output.
        rows : int, optional
            How many rows it has, where they are not the batch's.

        Raises
        ------
        UdfError
            A pointer or offset the guest left lies outside its memory, or offsets decrease.
        """
        at = base + DESCRIPTOR_BYTES * (len(self.columns) + number)
        fields = _region(memory, at, DESCRIPTOR_BYTES, function, "output descriptor")
        found = fields.copy().view(DESCRIPTOR)[0]  # what is checked is what is used
        return _read_column(
            memory, found, self.outputs[number], self.rows if rows is None else rows, function
        )


def _descriptor(sql_type: SqlType, slot: _Slot, base: int) -> tuple[int, ...]:
    parameter = sql_type.dim or sql_type.scale or 0
    return (
        int(sql_type.physical), 0, base + slot.data, slot.data_bytes,
        base + slot.validity if slot.validity >= 0 else 0,
        base + slot.offsets if slot.offsets >= 0 else 0,
        row_bytes(sql_type), parameter,
    )  # fmt: skip


def _read_column(
    memory: Memory, found: np.void, sql_type: SqlType, rows: int, function: str
) -> Column:
    validity = _read_validity(memory, int(found["validity"]), rows, function)
    if sql_type.is_variable:
        values, offsets = _read_variable(memory, found, rows, function)
        column = Column(sql_type, values, offsets, validity)
        return column if validity is None else _without_hidden_bytes(column, validity)
    size = row_bytes(sql_type) * rows
    raw = _region(memory, int(found["data"]), size, function, "output values").copy()
    values = raw.view(sql_type.dtype)
    if sql_type.is_vector:
        values = values.reshape(rows, sql_type.width)
    if validity is not None:
        values[~validity] = np.zeros(1, dtype=values.dtype)[0]
    return Column(sql_type, values, None, validity)


def _read_validity(memory: Memory, at: int, rows: int, function: str) -> np.ndarray | None:
    if at == 0:
        return None
    bits = _region(memory, at, (rows + 7) // 8, function, "output validity")
    valid = np.unpackbits(bits, count=rows, bitorder="little").astype(bool)
    return None if valid.all() else valid


def _read_variable(
    memory: Memory, found: np.void, rows: int, function: str
) -> tuple[np.ndarray, np.ndarray]:
    raw = _region(memory, int(found["offsets"]), 4 * (rows + 1), function, "output offsets")
    offsets = raw.copy().view("<i4").astype(np.int64)
    if offsets[0] < 0 or (np.diff(offsets) < 0).any():
        row = int(np.argmax(np.diff(offsets) < 0))
        raise UdfError(
            f"function {function}: output offsets decrease at row {row} "
            f"({offsets[row]} then {offsets[row + 1]})"
        )
    start, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    data = _region(memory, int(found["data"]) + start, size, function, "output bytes").copy()
    return data, (offsets - start).astype(np.int32)


def _without_hidden_bytes(column: Column, validity: np.ndarray) -> Column:
    """Drop bytes a guest wrote for NULL rows: a NULL row is empty in tarsdb."""
    assert column.offsets is not None  # variable columns have them
    lengths = np.diff(column.offsets)
    if not lengths[~validity].any():
        return column
    keep = np.repeat(validity, lengths)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(np.where(validity, lengths, 0), out=offsets[1:])
    return Column(column.type, column.values[keep], offsets, validity)


def _values(column: Column) -> np.ndarray:
    """Return the bytes of a column's values, contiguous."""
    if column.offsets is not None:
        return column.values[int(column.offsets[0]) : int(column.offsets[-1])]
    return np.ascontiguousarray(column.values)


def _write_column(memory: WritableMemory, base: int, column: Column, slot: _Slot) -> None:
    _put(memory, base + slot.data, _values(column).reshape(-1).view(np.uint8))
    if column.offsets is not None:
        offsets = (column.offsets - column.offsets[0]).astype("<i4")
        _put(memory, base + slot.offsets, offsets.view(np.uint8))
    if column.validity is not None:
        _put(memory, base + slot.validity, np.packbits(column.validity, bitorder="little"))


def _put(memory: WritableMemory, at: int, data: np.ndarray) -> None:
    memory[at : at + len(data)] = data


def _region(memory: Memory, at: int, size: int, function: str, what: str) -> np.ndarray:
    if at + size > len(memory):
        raise UdfError(
            f"function {function}: {what} at {at}..{at + size} lie outside its memory "
            f"of {len(memory)} bytes"
        )
    return memory[at : at + size]
