"""How DuckDB reads our relations: a pyarrow Dataset whose batches come straight from a generator.

A pyarrow Scanner would read ahead in a background thread, also after the snapshot ended; a
RecordBatchReader over a generator is pulled batch by batch. Projection reaches the scan, so
vectors are read only when asked for; filters are applied to each batch here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.dataset

from tarsdb.errors import InternalError


class Scan(Protocol):
    """What the executor provides for one relation.

    ``table()``, where a scan has it, returns the whole relation as a ``pyarrow.Table`` or None;
    with ``is_kept`` the same object while the data is unchanged, registered between statements.
    """

    is_kept: bool

    @property
    def schema(self) -> pa.Schema:
        """Arrow names and types of all columns of the relation."""

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the named columns, in that order; buffers may view the memory map."""


class ScanDataset(pyarrow.dataset.Dataset):  # type: ignore[misc] # pyarrow has no types
    """One relation of one running statement, as DuckDB's Arrow scan sees it.

    ``alone`` makes a context in which one thread at a time reads. ``end()`` cuts it off from the
    snapshot: a later pull is an error, not a read.
    """

    def __init__(self, scan: Scan, alone: Callable[[], Any]) -> None:
        # the base class takes no arguments and forbids being initialised
        self._scan: Scan | None = scan
        self._schema = scan.schema
        self._alone = alone

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._schema

    def scanner(self, columns: Any = None, filter: Any = None, **_: Any) -> ScanReader:
        """Return what DuckDB asks for a reader; called once per scan of the relation."""
        return ScanReader(self, columns, filter)

    def end(self) -> None:
        """Forget the scan: the statement is over."""
        self._scan = None

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield batches, one thread at a time among all that share the read transaction."""
        batches: Iterator[pa.RecordBatch] | None = None
        while True:
            with self._alone():
                if self._scan is None:
                    raise InternalError("a relation was read after its statement ended")
                if batches is None:
                    batches = iter(self._scan.batches(columns))
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class ScanReader:
    """The part of a pyarrow Scanner DuckDB uses: ``to_reader``."""

    def __init__(self, dataset: ScanDataset, columns: Sequence[str] | None, filter: Any) -> None:
        schema = dataset.schema
        self._dataset = dataset
        self._columns = list(schema.names if columns is None else columns)
        self._filter = filter
        self.projected_schema = pa.schema([schema.field(name) for name in self._columns])

    def to_reader(self) -> pa.RecordBatchReader:
        """Return a reader that pulls one batch at a time."""
        return pa.RecordBatchReader.from_batches(self.projected_schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if self._filter is None:
            yield from self._dataset.read(self._columns)
            return
        schema = self._dataset.schema
        wanted = self._columns + [
            n for n in schema.names if self._mentions(n) and n not in self._columns
        ]
        for batch in self._dataset.read(wanted):
            kept = batch.filter(self._filter)
            yield kept.select(self._columns) if len(wanted) > len(self._columns) else kept

    def _mentions(self, name: str) -> bool:
        """Return True when the filter's text may use a column (a false yes only reads more)."""
        text = str(self._filter)
        return name in text and bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))
