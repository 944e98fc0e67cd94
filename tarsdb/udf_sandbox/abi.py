"""The columnar ABI, version 1: how a batch of columns lies in a guest's memory.

Works on a NumPy view of the memory; knows no wasmtime. Nothing read back from the guest is
trusted: pointers, offsets and text are checked before use. docs/sandbox.md has the byte tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tarsdb.columns import Column
from tarsdb.errors import UdfError
from tarsdb.types import SqlType

ALIGNMENT = 64
DESCRIPTOR_BYTES = 32
NULLABLE = 1  # descriptor flag: the validity bitmap has cleared bits

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


class BatchLayout:
    """Places of a batch's descriptors and buffers in one region of guest memory.

    Parameters
    ----------
    columns : sequence of Column
        Arguments, all of ``rows`` rows.
    returns : SqlType
    rows : int

    Attributes
    ----------
    size : int
        Bytes to ask of ``tars_alloc``; includes the slack to align the start.
    """

    def __init__(self, columns: Sequence[Column], returns: SqlType, rows: int) -> None:
        self.columns = columns
        self.returns = returns
        self.rows = rows
        self._end = _align(DESCRIPTOR_BYTES * (len(columns) + 1))
        self._slots = [self._argument(column) for column in columns]
        self._output = self._place(row_bytes(returns) * rows, True, returns.is_variable)
        self.size = self._end + ALIGNMENT

    def _argument(self, column: Column) -> _Slot:
        data_bytes = _values(column).nbytes
        return self._place(data_bytes, column.validity is not None, column.offsets is not None)

    def _place(self, data_bytes: int, validity: bool, offsets: bool) -> _Slot:
        data = self._take(data_bytes)
        return _Slot(
            data,
            data_bytes,
            self._take((self.rows + 7) // 8) if validity else -1,
            self._take(4 * (self.rows + 1)) if offsets else -1,
        )

    def _take(self, size: int) -> int:
        at = self._end
        self._end += _align(size)
        return at

    @property
    def output_at(self) -> int:
        """Where arguments end and the output begins, relative to the region's start."""
        return self._output.data

    @property
    def validity_at(self) -> int:
        """Where the output's validity bitmap begins; its bits are set before the call."""
        return self._output.validity

    def write(self, memory: np.ndarray, region: int) -> int:
        """Copy descriptors and arguments into the guest; return the address of descriptor 0."""
        base = _align(region)
        count = len(self.columns)
        descriptors = np.zeros(count + 1, dtype=DESCRIPTOR)
        for number, (column, slot) in enumerate(zip(self.columns, self._slots, strict=True)):
            descriptors[number] = self._descriptor(column.type, slot, base)
            _write_column(memory, base, column, slot)
            if slot.validity >= 0:
                descriptors[number]["flags"] = NULLABLE
        descriptors[count] = self._descriptor(self.returns, self._output, base)
        self._clear_output(memory, base)
        _put(memory, base, descriptors.view(np.uint8))
        return base

    def _descriptor(self, sql_type: SqlType, slot: _Slot, base: int) -> tuple[int, ...]:
        parameter = sql_type.dim or sql_type.scale or 0
        return (
            int(sql_type.physical), 0, base + slot.data, slot.data_bytes,
            base + slot.validity if slot.validity >= 0 else 0,
            base + slot.offsets if slot.offsets >= 0 else 0,
            row_bytes(sql_type), parameter,
        )  # fmt: skip

    def _clear_output(self, memory: np.ndarray, base: int) -> None:
        slot = self._output
        memory[base + slot.data : base + slot.data + slot.data_bytes] = 0
        start = base + slot.validity
        memory[start : start + (self.rows + 7) // 8] = 0xFF
        if slot.offsets >= 0:
            memory[base + slot.offsets : base + slot.offsets + 4 * (self.rows + 1)] = 0

    def read(self, memory: Memory, base: int, function: str) -> Column:
        """Return the output column, copied out of the guest's memory.

        Values are in range of the buffers only; :mod:`tarsdb.udf_sandbox.outputs` checks what
        they hold.

        Raises
        ------
        UdfError
            A pointer or offset the guest left lies outside its memory, or offsets decrease.
        """
        at = base + DESCRIPTOR_BYTES * len(self.columns)
        fields = _region(memory, at, DESCRIPTOR_BYTES, function, "output descriptor")
        found = fields.view(DESCRIPTOR)[0]
        validity = self._validity(memory, int(found["validity"]), function)
        if self.returns.is_variable:
            return self._variable(memory, found, validity, function)
        size = row_bytes(self.returns) * self.rows
        raw = _region(memory, int(found["data"]), size, function, "output values").copy()
        values = raw.view(self.returns.dtype)
        if self.returns.is_vector:
            values = values.reshape(self.rows, self.returns.width)
        if validity is not None:
            values[~validity] = np.zeros(1, dtype=values.dtype)[0]
        return Column(self.returns, values, None, validity)

    def _validity(self, memory: Memory, at: int, function: str) -> np.ndarray | None:
        if at == 0:
            return None
        size = (self.rows + 7) // 8
        bits = _region(memory, at, size, function, "output validity")
        valid = np.unpackbits(bits, count=self.rows, bitorder="little").astype(bool)
        return None if valid.all() else valid

    def _variable(
        self, memory: Memory, found: np.void, validity: np.ndarray | None, function: str
    ) -> Column:
        size = 4 * (self.rows + 1)
        raw = _region(memory, int(found["offsets"]), size, function, "output offsets")
        offsets = raw.copy().view("<i4").astype(np.int64)
        if offsets[0] < 0 or (np.diff(offsets) < 0).any():
            row = int(np.argmax(np.diff(offsets) < 0))
            raise UdfError(
                f"function {function}: output offsets decrease at row {row} "
                f"({offsets[row]} then {offsets[row + 1]})"
            )
        start, size = int(offsets[0]), int(offsets[-1] - offsets[0])
        data = _region(memory, int(found["data"]) + start, size, function, "output bytes").copy()
        column = Column(self.returns, data, (offsets - start).astype(np.int32), validity)
        return column if validity is None else _without_hidden_bytes(column, validity)


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


def _write_column(memory: np.ndarray, base: int, column: Column, slot: _Slot) -> None:
    _put(memory, base + slot.data, _values(column).reshape(-1).view(np.uint8))
    if column.offsets is not None:
        offsets = (column.offsets - column.offsets[0]).astype("<i4")
        _put(memory, base + slot.offsets, offsets.view(np.uint8))
    if column.validity is not None:
        _put(memory, base + slot.validity, np.packbits(column.validity, bitorder="little"))


def _put(memory: np.ndarray, at: int, data: np.ndarray) -> None:
    memory[at : at + len(data)] = data


def _region(memory: Memory, at: int, size: int, function: str, what: str) -> np.ndarray:
    if at + size > len(memory):
        raise UdfError(
            f"function {function}: {what} at {at}..{at + size} lie outside its memory "
            f"of {len(memory)} bytes"
        )
    return memory[at : at + size]
