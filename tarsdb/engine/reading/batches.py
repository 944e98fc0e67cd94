"""The rows of a table that a predicate keeps, in batches of a size that suits what is computed.

A chunk of a table has some 2,000 rows. Evaluating an expression costs some twenty microseconds a
batch and a call of a function more, so several chunks are one batch, whose columns are put together
when something needs them whole. Where few rows may satisfy a statement the first batches are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tarsdb.columns import joined
from tarsdb.engine.context import Context
from tarsdb.engine.reading import access, evaluate
from tarsdb.schema import ColumnDef
from tarsdb.sql import expressions as ex
from tarsdb.storage import Chunk, TableView

FILTERED_BYTES = 4 << 20
"""Bytes of a batch, about, that a predicate is evaluated for: more gains nothing (measured)."""
WHOLE_BYTES = 64 << 20
"""Bytes of a batch, about, whose rows are all kept."""
FIRST_ROWS = 1 << 10
"""Rows of the first batch where LIMIT may be met early; the next has ``MORE`` times as many."""
MORE = 4
_TEXT_BYTES = 64  # of a value of variable length, a guess


def passing(
    context: Context,
    view: TableView,
    predicate: ex.Expr | None,
    read: Sequence[ex.Expr],
    most: int | None = None,
) -> Iterator[evaluate.Batch]:
    """Yield the rows a predicate keeps, with the columns that some expressions read.

    Parameters
    ----------
    context : Context
    view : TableView
    predicate : Expr or None
        Calls of functions see the rows that all else lets through.
    read : sequence of Expr
    most : int, optional
        How many the consumer needs.
    """
    found = by_index(context, view, predicate, read, most)
    if found is None:
        yield from scanned(context, view, predicate, read, most is not None)
    else:
        yield found


def by_index(
    context: Context,
    view: TableView,
    predicate: ex.Expr | None,
    read: Sequence[ex.Expr],
    most: int | None = None,
) -> evaluate.Batch | None:
    """Return all that :func:`passing` would yield, by row id; None where a scan is better."""
    found = access.choose(view.table, predicate, view, context)
    if found is None:
        return None
    rest = found.probe.rest
    rowids = found.rowids[:most] if rest is None else found.rowids
    ids = list(evaluate.columns_of(rest, *read))
    columns = dict(zip(ids, view.rows(rowids, ids), strict=True)) if ids else {}
    return evaluate.narrowed(evaluate.Batch(len(rowids), columns, context, rowids), rest, *read)


def scanned(
    context: Context,
    view: TableView,
    predicate: ex.Expr | None,
    read: Sequence[ex.Expr],
    stops_early: bool = False,
) -> Iterator[evaluate.Batch]:
    """Yield the rows a predicate keeps, as :func:`passing` does, but from a look at all rows."""
    columns_read = evaluate.columns_of(predicate, *read)
    ids = list(columns_read)
    size = WHOLE_BYTES if predicate is None else FILTERED_BYTES
    most = max(1, size // _row_bytes(columns_read.values()))
    if stops_early and predicate is None and not ex.calls(*read):
        most = 1
    grows = stops_early and predicate is not None
    groups = _sized(view.chunks(ids), most, min(most, FIRST_ROWS) if grows else None)
    asks_rowids = any(isinstance(node, ex.RowidRef) for node in ex.walk(predicate, *read))
    for group in groups:
        context.engines.interrupt.check()
        columns = {key: joined([c.columns[at] for c in group]) for at, key in enumerate(ids)}
        rows = sum(len(chunk.rowids) for chunk in group)
        rowids = np.concatenate([chunk.rowids for chunk in group]) if asks_rowids else None
        batch = evaluate.Batch(rows, columns, context, rowids)
        yield evaluate.narrowed(batch, predicate, *read)


def window(batch: evaluate.Batch, start: int, stop: int, *read: ex.Expr) -> evaluate.Batch:
    """Return the rows of a batch from one position to another, either of which may lie outside."""
    if start <= 0 and stop >= batch.rows:
        return batch
    mask = np.zeros(batch.rows, bool)
    mask[max(start, 0) : max(stop, 0)] = True
    return batch.where(mask, *read)


def _row_bytes(columns: Iterable[ColumnDef]) -> int:
    """Return about how many bytes a row of some columns takes."""
    sizes = [
        _TEXT_BYTES if c.type.is_variable else c.type.width * c.type.dtype.itemsize for c in columns
    ]
    return sum(sizes, 8)


def _sized(chunks: Iterable[Chunk], most: int, first: int | None) -> Iterator[list[Chunk]]:
    """Yield chunks by groups that have ``most`` rows or some more.

    With ``first`` larger ones are cut too, and the pieces grow from that many rows.
    """
    waiting: list[Chunk] = []
    rows, size = 0, most if first is None else first
    for chunk in chunks:
        start, total = 0, len(chunk.rowids)
        if first is None:
            waiting.append(chunk)
            rows, start = rows + total, total
            if rows >= size:
                yield waiting
                waiting, rows = [], 0
        while start < total:
            stop = min(start + size - rows, total)
            waiting.append(_part(chunk, start, stop))
            rows += stop - start
            start = stop
            if rows >= size:
                yield waiting
                waiting, rows = [], 0
                size = min(size * MORE, most)
    if waiting:
        yield waiting


def _part(chunk: Chunk, start: int, stop: int) -> Chunk:
    if stop - start == len(chunk.rowids):
        return chunk
    columns = [column.slice(start, stop) for column in chunk.columns]
    return Chunk(chunk.rowids[start:stop], columns)
