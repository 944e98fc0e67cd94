"""Single-row inserts, updates and deletes inside a write set.

Checks UNIQUE as of the end of the statement, so an UPDATE may move keys among its rows. Knows the
snapshot through a TableView and changes only :class:`OwnRows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.errors import InternalError
from tarsdb.schema import ColumnDef
from tarsdb.storage import keys
from tarsdb.storage.index_keys import null_rows
from tarsdb.storage.own_rows import OwnRows
from tarsdb.storage.unique import IndexPlan, index_plans, require_unique

if TYPE_CHECKING:
    from tarsdb.storage.view import TableView


def insert(own: OwnRows, view: TableView, rows: Sequence[tuple[Any, ...]]) -> list[int]:
    """Insert rows; return their provisional rowids."""
    table = view.table
    ids = [column.id for column in table.columns]
    plans = [(plan, own.index(plan.index.id)) for plan in index_plans(view, table)]
    first = own.next_rowid
    own.journal.append(own.undo_insert(first, len(rows)))
    own.live_change += len(rows)
    rowid = first
    for row in rows:
        for plan, entries in plans:
            entry = plan.entry(row)
            if entry[1]:
                require_unique(view, own, plan, entry[0], row)
            entries.add(rowid, entry)
        own.rows[rowid] = dict(zip(ids, row, strict=True))
        rowid += 1
        own.next_rowid = rowid
    own.touch()
    return list(range(first, rowid))


def update(
    own: OwnRows, view: TableView, rowids: Sequence[int], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Replace rows by full new rows."""
    plans = index_plans(view, view.table)
    wanted = [int(rowid) for rowid in rowids]
    _hide_base(own, view, np.array(wanted, dtype=np.int64), plans, whole=False)
    for rowid, row in zip(wanted, rows, strict=True):
        own.journal.append(own.save_row(rowid))
        _replace(own, view, rowid, row)
    for rowid, row in zip(wanted, rows, strict=True):
        for plan in plans:
            entry = plan.entry(row)
            if entry[1]:
                require_unique(view, own, plan, entry[0], row)
            own.index(plan.index.id).add(rowid, entry)
    own.touch()


def _replace(own: OwnRows, view: TableView, rowid: int, row: tuple[Any, ...]) -> None:
    """Put new values of one row in place and take its own index entries out."""
    for entries in own.indexes.values():
        entries.remove(rowid)
    table = view.table
    if rowid >= keys.PROVISIONAL:
        if rowid not in own.rows:
            own.end_block_rows(np.array([rowid], dtype=np.int64))
        own.rows[rowid] = dict(zip((c.id for c in table.columns), row, strict=True))
        return
    values = {c.id: row[table.ordinals[c.id]] for c in table.scalar_columns}
    known, groups = own.rows.get(rowid, {}), dict(own.hidden[rowid])
    for column in table.vector_columns:
        value = row[table.ordinals[column.id]]
        if column.id in known:
            values[column.id] = value
        elif _vector_changed(view, rowid, column, value):
            values[column.id] = value
            created = _version(view, rowid, column)
            if created:
                groups[column.id] = created
    own.hidden[rowid] = groups
    own.rows[rowid] = values


def _vector_changed(view: TableView, rowid: int, column: ColumnDef, value: Any) -> bool:
    group = view.vector_group(column)
    hit = group.find(view.txn, rowid)
    if hit is None:
        return value is not None
    if value is None:
        return True
    segment, position = hit
    if segment is None:
        before = group.delta.vectors(group.count)[position]
    else:
        before = segment.column(view.txn, column, group.name).values[position]
    return bool(before.tobytes() != np.ascontiguousarray(value, dtype=before.dtype).tobytes())


def _version(view: TableView, rowid: int, column: ColumnDef) -> int:
    """Return the creating commit of a row's vector, 0 when it has none."""
    group = view.vector_group(column)
    hit = group.find(view.txn, rowid)
    return 0 if hit is None else group.created_one(view.txn, *hit)


def delete(own: OwnRows, view: TableView, rowids: np.ndarray) -> int:
    """Delete rows; return how many were live."""
    wanted = np.unique(np.asarray(rowids, dtype=np.int64))
    plans = index_plans(view, view.table)
    mine = wanted[own.covers_many(wanted)]
    base = wanted[~own.covers_many(wanted)]
    gone = _hide_base(own, view, base, plans, whole=True)
    singles = [rowid for rowid in mine.tolist() if rowid in own.rows]
    for rowid in singles:
        own.journal.append(own.save_row(rowid))
        _forget(own, view, rowid)
    in_rows = set(singles)
    block_rows = [r for r in mine.tolist() if r not in in_rows and own.is_live(r)]
    if block_rows:
        own.end_block_rows(np.array(block_rows, dtype=np.int64))
    total = gone + len(singles) + len(block_rows)
    own.change_live(-total)
    own.touch()
    return total


def _forget(own: OwnRows, view: TableView, rowid: int) -> None:
    """Delete a row this transaction inserted or updated."""
    del own.rows[rowid]
    for entries in own.indexes.values():
        entries.remove(rowid)
    if rowid >= keys.PROVISIONAL:
        return
    groups = dict(own.hidden[rowid])
    for column in view.table.vector_columns:
        if column.id not in groups:
            created = _version(view, rowid, column)
            if created:
                groups[column.id] = created
    own.hidden[rowid] = groups


def _hide_base(
    own: OwnRows, view: TableView, rowids: np.ndarray, plans: list[IndexPlan], whole: bool
) -> int:
    """Hide committed rows not hidden yet: note their versions and old index keys.

    With ``whole`` every column group ends (DELETE), else only the scalars (UPDATE adds vectors).
    Returns the number of rows hidden.
    """
    fresh = rowids[rowids < keys.PROVISIONAL]
    if own.hidden:
        fresh = fresh[~np.isin(fresh, own.hidden_rowids())]
    if not len(fresh):
        return 0
    group = view.scalars()
    sources, positions = group.locate(view.txn, fresh)
    if not whole and bool((sources < 0).any()):
        raise InternalError(f"table {view.table.name}: UPDATE of a row that is not live")
    fresh, positions, sources = fresh[sources >= 0], positions[sources >= 0], sources[sources >= 0]
    versions = [{0: made} for made in group.created(view.txn, sources, positions).tolist()]
    for column in view.table.vector_columns if whole else ():
        _add_versions(view, column, fresh, versions)
    old_keys = _old_entries(view, plans, fresh)
    found = fresh.tolist()
    own.journal.append(_unhide(own, found))
    for plan, entries in zip(plans, old_keys, strict=True):
        own.index(plan.index.id).old.update(zip(found, entries, strict=True))
    own.hidden.update(zip(found, versions, strict=True))
    own.touch()
    return len(found)


def _add_versions(
    view: TableView, column: ColumnDef, rowids: np.ndarray, versions: list[dict[int, int]]
) -> None:
    group = view.vector_group(column)
    created = group.created(view.txn, *group.locate(view.txn, rowids))
    for row in np.flatnonzero(created).tolist():
        versions[row][column.id] = int(created[row])


def _old_entries(
    view: TableView, plans: list[IndexPlan], rowids: np.ndarray
) -> list[list[tuple[bytes, bool]]]:
    """Return the stored index entries of committed rows, per plan."""
    out = []
    for plan in plans:
        columns = view.base_rows(rowids, plan.index.column_ids)
        nulls = null_rows(columns)
        stored = np.full(len(rowids), plan.index.unique)
        if nulls is not None:
            stored &= ~nulls
        out.append(list(zip(plan.codec.encode_columns(columns), stored.tolist(), strict=True)))
    return out


def _unhide(own: OwnRows, rowids: list[int]) -> Any:
    def undo() -> None:
        for rowid in rowids:
            own.hidden.pop(rowid, None)
            for entries in own.indexes.values():
                entries.old.pop(rowid, None)
        own.touch()

    return undo
