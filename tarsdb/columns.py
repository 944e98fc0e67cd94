"""Column: one typed column of values in memory, in the layout storage and Arrow share.

Knows no files and no SQL. Buffers may be read-only views into the memory map; whoever holds a
column inside the engine holds the read transaction too, and ``take``/``concat`` copy.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from tarsdb.records import dataclass
from tarsdb.types import Physical, SqlType


@dataclass(slots=True)
class Column:
    """Values of one column.

    Attributes
    ----------
    type : SqlType
    values : ndarray
        Fixed-width types: ``(n,)`` of ``type.dtype``; vectors: ``(n, type.width)``;
        variable types: ``(total_bytes,)`` uint8. Invalid rows hold zeros (or empty bytes).
    offsets : int32 (n + 1,), optional
        Variable types only; row i is ``values[offsets[i]:offsets[i + 1]]``.
    validity : bool (n,), optional
        False where NULL; absent when every row is valid.
    """

    type: SqlType
    values: np.ndarray
    offsets: np.ndarray | None = None
    validity: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def get(self, row: int) -> Any:
        """Return one storage value; vectors are copied."""
        if self.validity is not None and not self.validity[row]:
            return None
        if self.offsets is not None:
            raw = self.values[self.offsets[row] : self.offsets[row + 1]].tobytes()
            return raw.decode() if self.type.physical is Physical.UTF8 else raw
        if self.type.is_vector:
            return self.values[row].copy()
        if self.type.physical is Physical.FIXED16:
            return self.values[row].tobytes()
        value = self.values[row].item()
        return bool(value) if self.type.physical is Physical.BOOL else value

    def to_list(self) -> list[Any]:
        """Return all storage values as a list (vectors as copies)."""
        if self.offsets is not None:
            items = self._split()
        elif self.type.is_vector:
            items = list(np.array(self.values))
        elif self.type.physical is Physical.FIXED16:
            raw = np.ascontiguousarray(self.values).tobytes()
            items = [raw[i : i + 16] for i in range(0, len(raw), 16)]
        elif self.type.physical is Physical.BOOL:
            items = self.values.astype(bool).tolist()
        else:
            items = self.values.tolist()
        if self.validity is not None:
            for row in np.flatnonzero(~self.validity).tolist():
                items[row] = None
        return items

    def _split(self) -> list[Any]:
        assert self.offsets is not None
        raw = self.values.tobytes()
        bounds = self.offsets.tolist()
        pieces = [raw[a:b] for a, b in pairwise(bounds)]
        if self.type.physical is Physical.UTF8:
            return [piece.decode() for piece in pieces]
        return pieces

    def take(self, rows: np.ndarray) -> Column:
        """Return the given rows (integer positions or a bool mask), copied."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        validity = None if self.validity is None else self.validity[rows]
        if self.offsets is None:
            return Column(self.type, self.values[rows], None, validity)
        starts = self.offsets[rows].astype(np.int64)
        lengths = self.offsets[rows + 1] - starts
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        source = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Column(self.type, self.values[source], _int32_offsets(offsets), validity)

    def owned(self) -> Column:
        """Return the column with value buffers of its own, no views of the memory map."""
        if self.offsets is None and self.validity is None and self.values.flags.owndata:
            return self
        parts = (self.values, self.offsets, self.validity)
        values, offsets, validity = (
            part if part is None or part.flags.owndata else part.copy() for part in parts
        )
        assert values is not None
        return Column(self.type, values, offsets, validity)

    def slice(self, start: int, stop: int) -> Column:
        """Return rows ``start:stop`` as views of the same buffers."""
        validity = None if self.validity is None else self.validity[start:stop]
        if self.offsets is None:
            return Column(self.type, self.values[start:stop], None, validity)
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        return Column(self.type, self.values[low:high], offsets, validity)

    def parts(self) -> list[Column]:
        """Return the columns this is made of: itself."""
        return [self]

    def copy_rows(self, start: int, stop: int, out: np.ndarray) -> None:
        """Write the values of rows ``start:stop`` to an array of as many; not of variable types."""
        out[:] = self.values[start:stop]

    @property
    def nbytes(self) -> int:
        """Bytes of the value and offset buffers."""
        return self.values.nbytes + (0 if self.offsets is None else self.offsets.nbytes)


def _int32_offsets(offsets: np.ndarray) -> np.ndarray:
    if len(offsets) and offsets[-1] > np.iinfo(np.int32).max:
        raise OverflowError("more than 2 GiB of text in one column batch")
    return offsets.astype(np.int32)


def from_list(sql_type: SqlType, items: Sequence[Any]) -> Column:
    """Build a column from storage values (``None`` for NULL)."""
    missing = [i for i, item in enumerate(items) if item is None]
    validity = None
    if missing:
        validity = np.ones(len(items), dtype=bool)
        validity[missing] = False
    if sql_type.is_variable:
        encoded = [
            b"" if item is None else item.encode() if isinstance(item, str) else bytes(item)
            for item in items
        ]
        offsets = np.zeros(len(items) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in encoded], out=offsets[1:])
        values = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return Column(sql_type, values, _int32_offsets(offsets), validity)
    if sql_type.is_vector:
        values = np.zeros((len(items), sql_type.width), dtype=sql_type.dtype)
        for row, item in enumerate(items):
            if item is not None:
                values[row] = item
        return Column(sql_type, values, None, validity)
    if sql_type.physical is Physical.FIXED16:
        raw = b"".join(bytes(16) if item is None else item for item in items)
        return Column(sql_type, np.frombuffer(raw, dtype="V16"), None, validity)
    filled = [0 if item is None else item for item in items] if missing else items
    return Column(sql_type, np.array(filled, dtype=sql_type.dtype), None, validity)


def empty(sql_type: SqlType) -> Column:
    """Return a column of no rows."""
    return from_list(sql_type, [])


def concat(sql_type: SqlType, columns: Iterable[Column]) -> Column:
    """Concatenate columns of one type; always copies."""
    parts = [part for column in columns for part in column.parts()]
    if not parts:
        return empty(sql_type)
    validity = None
    if any(part.validity is not None for part in parts):
        validity = np.concatenate(
            [np.ones(len(p), bool) if p.validity is None else p.validity for p in parts]
        )
    values = np.concatenate([part.values for part in parts])
    if not sql_type.is_variable:
        return Column(sql_type, values, None, validity)
    lengths = [np.diff(part.offsets) for part in parts if part.offsets is not None]
    offsets = np.zeros(sum(map(len, lengths)) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    return Column(sql_type, values, _int32_offsets(offsets), validity)


def joined(columns: Sequence[Column]) -> Column:
    """Return columns of one type as one; copied only where somebody asks for it as a whole."""
    return columns[0] if len(columns) == 1 else Joined(columns)


class Joined(Column):
    """Columns of one type, one behind the other, put together once somebody asks for the whole.

    Who copies the rows elsewhere spares that. Until then the parts are what they were: views of the
    memory map, maybe.
    """

    __slots__ = ("_bounds", "_parts", "_whole")

    def __init__(self, parts: Sequence[Column]) -> None:
        self.type = parts[0].type
        self._parts = list(parts)
        self._bounds = list(accumulate(map(len, parts), initial=0))
        self._whole: Column | None = None

    def parts(self) -> list[Column]:
        """Return the columns this is made of."""
        return self._parts

    def _joined(self) -> Column:
        if self._whole is None:
            self._whole = concat(self.type, self._parts)
            self._parts = [self._whole]
            self._bounds = [0, len(self._whole)]
        return self._whole

    @property
    def values(self) -> np.ndarray:  # type: ignore[override] # read only: of what was read
        """All values, one array."""
        return self._joined().values

    @property
    def offsets(self) -> np.ndarray | None:  # type: ignore[override] # likewise
        """Where values of variable types begin."""
        return self._joined().offsets if self.type.is_variable else None

    @property
    def validity(self) -> np.ndarray | None:  # type: ignore[override] # likewise
        """False where NULL."""
        if all(part.validity is None for part in self._parts):
            return None
        return self._joined().validity

    def __len__(self) -> int:
        return self._bounds[-1]

    def copy_rows(self, start: int, stop: int, out: np.ndarray) -> None:
        """Write the values of rows ``start:stop`` to an array of as many; not of variable types."""
        first = bisect_right(self._bounds, start) - 1
        last = bisect_left(self._bounds, stop)
        parts = [part.values for part in self._parts[first:last]]
        if parts:
            parts[-1] = parts[-1][: stop - self._bounds[last - 1]]
            parts[0] = parts[0][start - self._bounds[first] :]
            np.concatenate(parts, out=out)

    @property
    def nbytes(self) -> int:
        """Bytes of the value and offset buffers that the whole has."""
        spare = 4 * (len(self._parts) - 1) if self.type.is_variable else 0
        return sum(part.nbytes for part in self._parts) - spare


UNCOMMITTED = 1 << 62
"""Creating commit of rows that have none yet: greater than every number of a commit."""


@dataclass(slots=True)
class VectorBlock:
    """A run of stored vectors for exact search.

    Attributes
    ----------
    rowids : int64 (n,)
    data : (n, width), C-contiguous, of the type's dtype; often a view into the memory map
    live : bool (n,), optional
        False where deleted or superseded; absent when all are live.
    created : int64 (n,) or int
        Creating commits; ``UNCOMMITTED`` for what the transaction itself wrote.
    origin : object, optional
        What the rows come from: blocks of one origin hold the same vectors at the same offsets, the
        longer one more behind them.
    placed : object, optional
        What an index keeps of the block for the next one over it.
    """

    rowids: np.ndarray
    data: np.ndarray
    live: np.ndarray | None = None
    created: np.ndarray | int = 0
    origin: object = None
    placed: object = None
