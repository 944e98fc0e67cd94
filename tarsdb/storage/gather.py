"""Collecting columns of row versions out of the segments and the delta of a column group.

Works on one :class:`GroupState` and its read transaction; knows no uncommitted rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tarsdb.columns import Column, concat, from_list
from tarsdb.schema import ColumnDef
from tarsdb.storage.segments import Segment
from tarsdb.storage.state import GroupState
from tarsdb.storage.transaction import ReadTxn
from tarsdb.types import Physical

FEW = 64
NUMBERS = frozenset({
    Physical.INT16, Physical.INT32, Physical.INT64, Physical.FLOAT32, Physical.FLOAT64,
})  # fmt: skip
"""What is stored as a reader sees it."""


def gather_scalars(
    txn: ReadTxn, group: GroupState, rowids: np.ndarray, columns: list[ColumnDef]
) -> list[Column]:
    """Return scalar columns of live rows in the order of ``rowids``; missing rows are NULL."""
    if len(rowids) <= FEW:
        found = few_values(txn, group, rowids.tolist(), columns)
        return [from_list(c.type, values) for c, values in zip(columns, found, strict=True)]
    return at_places(txn, group, group.locate(txn, rowids), columns)


def at_places(
    txn: ReadTxn,
    group: GroupState,
    places: tuple[np.ndarray, np.ndarray],
    columns: Sequence[ColumnDef],
) -> list[Column]:
    """Return columns of versions from ``locate`` in their order; missing ones are NULL."""
    parts = _parts(*places)
    return [_gather(txn, group, parts, column) for column in columns]


def few_values(
    txn: ReadTxn, group: GroupState, rowids: list[int], columns: Sequence[ColumnDef]
) -> list[list[Any]]:
    """Return storage values of a few rows, a list for each scalar column; None where no row is."""
    together = group.find_together(rowids)
    if together is not None:
        segment, positions = together
        getters = [_getter(txn, group, segment, column) for column in columns]
        return [[getter(position) for position in positions] for getter in getters]
    return values_at(txn, group, group.find_each(txn, rowids), columns)


def plain_runs(
    txn: ReadTxn, group: GroupState, columns: Sequence[ColumnDef], most: int, asked: int
) -> list[tuple[int, np.ndarray | None, list[np.ndarray]]] | None:
    """Return the segments of a group as runs of row ids, where they have nearly all of it.

    Of each the first row id, which rows are live in it, and the values of columns, views of the
    map; rows of the delta are in no run or not live in theirs. None where there are more than
    ``most``, so many rows elsewhere that every other answer of ``asked`` rows may have one of
    them, NULLs, or columns whose values are not numbers as a reader sees them.
    """
    segments = group.segments
    if group.overlapping or not columns or not 0 < len(segments) <= most:
        return None
    if 2 * asked * group.count > segments[-1].high - segments[0].low + 1:
        return None
    if any(segment.base is None for segment in segments):
        return None
    runs = []
    for segment in segments:
        found = [segment.column(txn, column, group.name) for column in columns]
        if any(c.validity is not None or c.type.physical not in NUMBERS for c in found):
            return None
        runs.append((segment.low, segment.live(group.commit), [c.values for c in found]))
    return runs


def values_at(
    txn: ReadTxn,
    group: GroupState,
    places: Sequence[tuple[Segment | None, int]],
    columns: Sequence[ColumnDef],
) -> list[list[Any]]:
    """Return storage values at places from ``find_each``, a list for each scalar column."""
    try:  # mostly all lie in segments that were read before
        return [[s.getters[c.id](at) for s, at in places] for c in columns]  # type: ignore[union-attr]
    except (AttributeError, KeyError):
        pass
    out = []
    for column in columns:
        values, column_id = [], column.id
        for segment, position in places:
            if segment is not None:
                getter = segment.getters.get(column_id) or _getter(txn, group, segment, column)
                values.append(getter(position))
            elif position >= 0:
                values.append(group.delta.value(position, column))
            else:
                values.append(None)
        out.append(values)
    return out


def _getter(txn: ReadTxn, group: GroupState, segment: Segment, column: ColumnDef) -> Any:
    found = segment.getters.get(column.id)
    return segment.getter(txn, column, group.name) if found is None else found


_Part = tuple[int, np.ndarray, np.ndarray]
"""A source, the rows that lie in it, and their positions there."""


def _parts(sources: np.ndarray, positions: np.ndarray) -> list[_Part]:
    order = np.argsort(sources, kind="stable")
    found, starts = np.unique(sources[order], return_index=True)
    bounds = [*starts.tolist(), len(order)]
    parts = []
    for at, source in enumerate(found.tolist()):
        rows = order[bounds[at] : bounds[at + 1]]
        parts.append((source, rows, positions[rows]))
    return parts


def _gather(txn: ReadTxn, group: GroupState, parts: list[_Part], column: ColumnDef) -> Column:
    held = [None if s < 0 else _source_column(txn, group, s, column) for s, _, _ in parts]
    if len(held) == 1 and held[0] is not None:
        return held[0].take(parts[0][2])
    count = sum(len(rows) for _, rows, _ in parts)
    if held and all(c is not None and c.offsets is None and c.validity is None for c in held):
        known = [c.values for c in held if c is not None]
        values = np.empty((count, *known[0].shape[1:]), dtype=known[0].dtype)
        for each, (_, rows, positions) in zip(known, parts, strict=True):
            values[rows] = each[positions]
        return Column(column.type, values)
    taken = [
        from_list(column.type, [None] * len(rows)) if c is None else c.take(positions)
        for c, (_, rows, positions) in zip(held, parts, strict=True)
    ]
    back = np.empty(count, dtype=np.int64)
    if parts:
        back[np.concatenate([rows for _, rows, _ in parts])] = np.arange(count)
    return concat(column.type, taken).take(back)


def _source_column(txn: ReadTxn, group: GroupState, source: int, column: ColumnDef) -> Column:
    if source == len(group.segments):
        if column.type.is_vector:
            return Column(column.type, group.delta.vectors(group.count))
        return group.delta.column(column, group.count)
    return group.segments[source].column(txn, column, group.name)


def gather_vectors(
    txn: ReadTxn, group: GroupState, rowids: np.ndarray, column: ColumnDef
) -> Column:
    """Return the vectors of rows in order; rows without one have validity False."""
    n, width = len(rowids), column.type.width
    whole = _aligned_segment(txn, group, rowids, column)
    if whole is not None:
        return whole
    values = np.zeros((n, width), dtype=column.type.dtype)
    sources, positions = _locate(txn, group, rowids)
    for at in np.unique(sources).tolist():
        if at >= 0:
            mask = sources == at
            values[mask] = _source_column(txn, group, at, column).values[positions[mask]]
    valid = sources >= 0
    return Column(column.type, values, None, None if valid.all() else valid)


def _locate(txn: ReadTxn, group: GroupState, rowids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(rowids) > FEW:
        return group.locate(txn, rowids)
    order = {id(segment): at for at, segment in enumerate(group.segments)}
    sources = np.full(len(rowids), -1, dtype=np.int64)
    positions = np.zeros(len(rowids), dtype=np.int64)
    for i, rowid in enumerate(rowids.tolist()):
        hit = group.find(txn, rowid)
        if hit is not None:
            sources[i] = len(group.segments) if hit[0] is None else order[id(hit[0])]
            positions[i] = hit[1]
    return sources, positions


def _aligned_segment(
    txn: ReadTxn, group: GroupState, rowids: np.ndarray, column: ColumnDef
) -> Column | None:
    """Return a zero-copy slice when consecutive rows lie in one segment that is all live."""
    n = len(rowids)
    if n < 2 or rowids[-1] - rowids[0] != n - 1:
        return None
    hit = group.find(txn, int(rowids[0]))
    if hit is None:
        return None
    segment, start = hit
    if segment is None or segment.base is None or start + n > segment.rows:
        return None
    if segment.live(group.commit) is not None or bool((np.diff(rowids) != 1).any()):
        return None
    return segment.column(txn, column, group.name).slice(start, start + n)
