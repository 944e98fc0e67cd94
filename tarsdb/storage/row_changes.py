"""Inserts, updates and deletes of rows one by one inside a write set.

Checks UNIQUE as of the end of the statement, so an UPDATE may move keys among its rows. Knows the
snapshot through a TableView and changes only :class:`OwnRows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import from_list
from tarsdb.errors import InternalError
from tarsdb.schema import ColumnDef
from tarsdb.storage import gather, keys
from tarsdb.storage.blocks import missing_value
from tarsdb.storage.index_keys import null_rows
from tarsdb.storage.own_rows import Entry, OwnRows
from tarsdb.storage.unique import IndexPlan, index_plans, is_taken, violation

if TYPE_CHECKING:
    from tarsdb.storage.view import TableView

_FEW = 8
"""Rows up to which keys are encoded one by one: columns of them cost more."""


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
            if entry[1] and is_taken(view, own, plan.index.id, entry[0]):
                raise violation(table, plan.index, [row[at] for at in plan.ordinals])
            entries.add(rowid, entry)
        own.rows[rowid] = dict(zip(ids, row, strict=True))
        rowid += 1
        own.next_rowid = rowid
    own.touch()
    return list(range(first, rowid))


def update(
    own: OwnRows, view: TableView, rowids: Sequence[int], changed: Mapping[int, Sequence[Any]]
) -> None:
    """Give columns of live rows new values, by column id a value for each row.

    A row's scalars are one version and are carried over. Vectors that are not named are neither
    read nor compared; one that is given again as it was stays where it is. So do the entries of
    indexes of which no column is named.
    """
    wanted = [int(rowid) for rowid in rowids]
    _adopt(own, view, wanted)
    touched = _touched(view, changed)
    for plan in touched:
        _end_entries(own, view, plan, wanted)
    scalars = {c.id: changed[c.id] for c in view.table.scalar_columns if c.id in changed}
    for at, rowid in enumerate(wanted):  # new dicts: an undo may put the ones before back
        own.rows[rowid] = {**own.rows[rowid], **{c: new[at] for c, new in scalars.items()}}
    for column in view.table.vector_columns:
        if column.id in changed:
            _set_vectors(own, view, column, wanted, changed[column.id])
    for plan in touched:
        _index_again(own, view, plan, wanted)
    own.touch()


def update_row(own: OwnRows, view: TableView, rowid: int, changed: Mapping[int, Any]) -> None:
    """Give columns of one live row new values by column id: :func:`update`, without lists."""
    if rowid in own.rows:
        own.journal.append(own.save_row(rowid))
    elif own.covers(rowid):
        _adopt(own, view, [rowid])
    else:
        _adopt_base(own, view, rowid)
    before, now = own.rows[rowid], {**own.rows[rowid]}
    for column in view.table.scalar_columns:
        if column.id in changed:
            now[column.id] = changed[column.id]
    own.rows[rowid] = now
    for column in view.table.vector_columns:
        if column.id in changed:
            _set_vectors(own, view, column, [rowid], [changed[column.id]])
    for plan in _touched(view, changed):
        _move_entry(own, view, plan, rowid, before)
    own.touch()


def _touched(view: TableView, changed: Mapping[int, Any]) -> list[IndexPlan]:
    """Return the plans of the indexes that have one of some columns."""
    plans = index_plans(view, view.table)
    return [plan for plan in plans if not changed.keys().isdisjoint(plan.index.column_ids)]


def _adopt_base(own: OwnRows, view: TableView, rowid: int) -> None:
    """Make a committed row the transaction's own, as it is."""
    group, txn = view.scalars(), view.txn
    hit = group.find(txn, rowid)
    if hit is None:
        raise not_live(view)
    columns = view.table.scalar_columns
    found = gather.values_at(txn, group, [hit], columns)
    own.journal.append(_unhide(own, [rowid]))
    own.rows[rowid] = {column.id: items[0] for column, items in zip(columns, found, strict=True)}
    own.hidden[rowid] = {0: group.created_one(txn, *hit)}


def _move_entry(
    own: OwnRows, view: TableView, plan: IndexPlan, rowid: int, before: Mapping[int, Any]
) -> None:
    """Give an own row a new entry in an index, in place of the one of the values before."""
    entries, table = own.index(plan.index.id), view.table
    columns = [table.column_by_id(column_id) for column_id in plan.index.column_ids]
    if rowid < keys.PROVISIONAL and rowid not in entries.old:
        held = [before[c.id] if c.id in before else missing_value(c) for c in columns]
        entries.old[rowid] = plan.entry_of(held)
    entries.remove(rowid)
    values = [own.value(rowid, column) for column in columns]
    entry = plan.entry_of(values)
    if entry[1] and is_taken(view, own, plan.index.id, entry[0]):
        raise violation(table, plan.index, values)
    entries.add(rowid, entry)


def _adopt(own: OwnRows, view: TableView, rowids: list[int]) -> None:
    """Make rows the transaction's own, as they are; undone by what the journal then holds."""
    columns, in_blocks, in_runs = view.table.columns, [], []
    plans = index_plans(view, view.table)
    for rowid in rowids:
        if own.covers(rowid):
            if not own.is_live(rowid):
                raise not_live(view)
            own.journal.append(own.save_row(rowid))
            if rowid in own.run_of:
                in_runs.append(rowid)
            elif rowid not in own.rows:
                in_blocks.append(rowid)
    if in_blocks:
        rows = [{c.id: own.value(rowid, c) for c in columns} for rowid in in_blocks]
        own.end_block_rows(np.array(in_blocks, dtype=np.int64))
        own.rows.update(zip(in_blocks, rows, strict=True))
        for plan in plans:
            own.index(plan.index.id).add_all(in_blocks, _entries(own, view, plan, in_blocks))
    _leave_runs(own, view, in_runs, plans)
    hidden, values = _hide_base(own, view, rowids, plans, whole=False)
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    own.rows.update(zip(hidden, rows or [{} for _ in hidden], strict=True))


def _end_entries(own: OwnRows, view: TableView, plan: IndexPlan, rowids: list[int]) -> None:
    """Take own rows, as they are, out of an index; committed entries end."""
    entries = own.index(plan.index.id)
    ends = [r for r in rowids if r < keys.PROVISIONAL and r not in entries.old]
    if ends:
        entries.old.update(zip(ends, _entries(own, view, plan, ends), strict=True))
    entries.remove_all(rowids)


def _leave_runs(own: OwnRows, view: TableView, rowids: list[int], plans: list[IndexPlan]) -> None:
    """Make rows of runs single rows, as they are; what is known of each is saved before."""
    if not rowids:
        return
    runs = [own.run_of[rowid] for rowid in rowids]
    for rowid in rowids:
        own.leave_run(rowid)
    for plan in plans:
        moved = [at for at, run in enumerate(runs) if plan.index.id in run.keys]
        chosen = [rowids[at] for at in moved]
        if not chosen:
            continue
        entries = own.index(plan.index.id)
        entries.add_all(chosen, _entries(own, view, plan, chosen))
        for at in moved:
            old = runs[at].keys[plan.index.id].old[runs[at].position(rowids[at])]
            entries.old[rowids[at]] = (old, plan.index.unique)
    own.touch()


def not_live(view: TableView) -> InternalError:
    """Return the error of an UPDATE that was given a row it cannot change."""
    return InternalError(f"table {view.table.name}: UPDATE of a row that is not live")


def _entries(own: OwnRows, view: TableView, plan: IndexPlan, rowids: list[int]) -> list[Entry]:
    """Return the index entries of own rows."""
    columns = [view.table.column_by_id(column_id) for column_id in plan.index.column_ids]
    return _encoded(plan, columns, [[own.value(r, c) for r in rowids] for c in columns])


def _encoded(
    plan: IndexPlan, columns: Sequence[ColumnDef], values: Sequence[Sequence[Any]]
) -> list[Entry]:
    if len(values[0]) <= _FEW:
        unique, encode = plan.index.unique, plan.codec.encode
        return [(encode(row), unique and None not in row) for row in zip(*values, strict=True)]
    parts = [from_list(c.type, items) for c, items in zip(columns, values, strict=True)]
    encoded, nulls = plan.codec.encode_columns(parts), null_rows(parts)
    if nulls is None or not plan.index.unique:
        return [(key, plan.index.unique) for key in encoded]
    return list(zip(encoded, (~nulls).tolist(), strict=True))


def _index_again(own: OwnRows, view: TableView, plan: IndexPlan, rowids: list[int]) -> None:
    """Put own rows back into an index, once the old entries of all of them are out."""
    entries = own.index(plan.index.id)
    for rowid, entry in zip(rowids, _entries(own, view, plan, rowids), strict=True):
        if entry[1] and is_taken(view, own, plan.index.id, entry[0]):
            columns = [view.table.column_by_id(c) for c in plan.index.column_ids]
            raise violation(view.table, plan.index, [own.value(rowid, c) for c in columns])
        entries.add(rowid, entry)


def _set_vectors(
    own: OwnRows, view: TableView, column: ColumnDef, rowids: list[int], values: Sequence[Any]
) -> None:
    """Give own rows vectors; a committed one that stays the same is not written again."""
    group, in_base = view.vector_group(column), []
    for rowid, value in zip(rowids, values, strict=True):
        if rowid >= keys.PROVISIONAL or column.id in own.rows[rowid]:
            own.rows[rowid][column.id] = value
        else:
            in_base.append((rowid, value))
    hits = group.find_each(view.txn, [rowid for rowid, _ in in_base])
    made = group.created_each(view.txn, hits)
    for (rowid, value), (segment, position), created in zip(in_base, hits, made, strict=True):
        if position >= 0:
            if segment is None:
                before = group.delta.vectors(group.count)[position]
            else:
                before = segment.column(view.txn, column, group.name).values[position]
            if value is not None and _is_same(before, value):
                continue
            own.hidden[rowid] = {**own.hidden[rowid], column.id: created}
        elif value is None:
            continue
        own.rows[rowid][column.id] = value


def _is_same(before: np.ndarray, value: Any) -> bool:
    given = np.ascontiguousarray(value, dtype=before.dtype)
    if before[:1].tobytes() != given[:1].tobytes():  # mostly
        return False
    return before.tobytes() == given.tobytes()


def delete(own: OwnRows, view: TableView, rowids: np.ndarray) -> int:
    """Delete rows; return how many were live."""
    wanted = np.unique(np.asarray(rowids, dtype=np.int64))
    plans = index_plans(view, view.table)
    covered = own.covers_many(wanted)
    mine, base = wanted[covered], wanted[~covered]
    gone = len(_hide_base(own, view, base.tolist(), plans, whole=True)[0])
    in_runs = [rowid for rowid in mine.tolist() if rowid in own.run_of and own.is_live(rowid)]
    own.journal.extend([own.save_row(rowid) for rowid in in_runs])
    _leave_runs(own, view, in_runs, plans)
    singles = [rowid for rowid in mine.tolist() if rowid in own.rows]
    own.journal.extend([own.save_row(rowid) for rowid in singles])
    for plan in plans if singles else ():
        _end_entries(own, view, plan, singles)
    for rowid in singles:
        _forget(own, view, rowid)
    in_rows = set(singles)
    block_rows = [r for r in mine.tolist() if r not in in_rows and own.is_live(r)]
    if block_rows:
        own.end_block_rows(np.array(block_rows, dtype=np.int64))
    total = gone + len(singles) + len(block_rows)
    own.change_live(-total)
    own.touch()
    return total


def delete_row(own: OwnRows, view: TableView, rowid: int) -> None:
    """Delete one live row."""
    if own.covers(rowid):
        delete(own, view, np.array([rowid], dtype=np.int64))
        return
    _hide_base(own, view, [rowid], index_plans(view, view.table), whole=True)
    own.change_live(-1)


def _forget(own: OwnRows, view: TableView, rowid: int) -> None:
    """Delete a row this transaction inserted or updated; its entries are out already."""
    del own.rows[rowid]
    if rowid >= keys.PROVISIONAL:
        return
    groups = dict(own.hidden[rowid])
    for column in view.table.vector_columns:
        if column.id not in groups:
            group = view.vector_group(column)
            hit = group.find(view.txn, rowid)
            if hit is not None:
                groups[column.id] = group.created_one(view.txn, *hit)
    own.hidden[rowid] = groups


def _hide_base(
    own: OwnRows, view: TableView, rowids: list[int], plans: list[IndexPlan], whole: bool
) -> tuple[list[int], dict[int, list[Any]]]:
    """Hide committed rows not hidden yet: note their versions.

    With ``whole`` every column group and index entry ends (DELETE), else only the scalars: UPDATE
    adds vectors and entries.
    Returns the rows hidden and values of them by column id: of all scalar columns for an UPDATE.
    """
    fresh = [r for r in rowids if r < keys.PROVISIONAL and r not in own.hidden]
    group = view.scalars()
    hits = group.find_each(view.txn, fresh)
    if any(position < 0 for _, position in hits):
        if not whole:
            raise not_live(view)
        live = [at for at, (_, position) in enumerate(hits) if position >= 0]
        fresh, hits = [fresh[at] for at in live], [hits[at] for at in live]
    versions = [{0: created} for created in group.created_each(view.txn, hits)]
    for column in view.table.vector_columns if whole else ():
        _add_versions(view, column, fresh, versions)
    keyed = {column_id for plan in plans for column_id in plan.index.column_ids}
    read = [c for c in view.table.scalar_columns if not whole or c.id in keyed]
    found = gather.values_at(view.txn, group, hits, read)
    values = {c.id: items for c, items in zip(read, found, strict=True)}
    own.journal.append(_unhide(own, fresh))
    for plan in plans if whole else ():
        columns = [view.table.column_by_id(column_id) for column_id in plan.index.column_ids]
        old = _encoded(plan, columns, [values[c.id] for c in columns])
        own.index(plan.index.id).old.update(zip(fresh, old, strict=True))
    own.hidden.update(zip(fresh, versions, strict=True))
    own.touch()
    return fresh, values


def _add_versions(
    view: TableView, column: ColumnDef, rowids: list[int], versions: list[dict[int, int]]
) -> None:
    group = view.vector_group(column)
    for ends, hit in zip(versions, group.find_each(view.txn, rowids), strict=True):
        if hit[1] >= 0:
            ends[column.id] = group.created_one(view.txn, *hit)


def _unhide(own: OwnRows, rowids: list[int]) -> Any:
    """Return a function that gives rows back to the snapshot."""

    def undo() -> None:
        for rowid in rowids:
            own.hidden.pop(rowid, None)
            own.rows.pop(rowid, None)
            for entries in own.indexes.values():
                entries.remove(rowid)
                entries.old.pop(rowid, None)
        own.touch()

    return undo
