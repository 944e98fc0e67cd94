"""Committing a write set: conflict checks against the latest state, then the writes.

Runs under the writer lock inside one LMDB transaction, possibly after other write sets of the
same group, and possibly twice; so it reads only through the transaction, never through caches, and
leaves the write set as it was. First committer wins: a row ended by a commit after our base, or a
key taken by one, is a ConflictError.
"""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.errors import ConflictError
from tarsdb.schema import CatalogObject, TableDef
from tarsdb.storage import failpoints, garbage, keys, staging
from tarsdb.storage.apply_rows import write_rows
from tarsdb.storage.catalog import read_object, remove_object, write_object
from tarsdb.storage.formats import TableCounters
from tarsdb.storage.fresh import FreshVersions
from tarsdb.storage.index_parts import write_parts
from tarsdb.storage.own_rows import OwnRows
from tarsdb.storage.own_runs import OwnRun, RunKeys
from tarsdb.storage.scalar_index import entry
from tarsdb.storage.stopping import heeding
from tarsdb.storage.table_meta import read_counters, write_counters
from tarsdb.storage.transaction import WriteTxn

if TYPE_CHECKING:
    from tarsdb.storage.writes import WriteSet

_AGAIN = "run the transaction again"


class CommitChange:
    """The change of one write set (the ``Change`` of ``Environment.commit``).

    Attributes
    ----------
    counters : dict
        Table id -> counters after the commit.
    shifts : dict
        Table id -> what to add to a provisional rowid.
    fresh : dict
        Table id -> what went to its delta, where that is worth keeping.
    """

    def __init__(self, writes: WriteSet, token: bytes | None) -> None:
        self._writes = writes
        self._token = token
        self.counters: dict[int, TableCounters] = {}
        self.shifts: dict[int, int] = {}
        self.fresh: dict[int, FreshVersions] = {}
        self._log: list[dict[str, Any]] = []
        self._before: dict[int, TableCounters] = {}

    @property
    def frees_space(self) -> bool:
        """True when nothing is written but ends of rows and removals of objects."""
        writes = self._writes
        return all(each is None for each in writes.objects.values()) and not any(
            own.rows or own.all_blocks() for own in writes.tables.values()
        )

    @property
    def rows(self) -> int:
        """Rows that are written and versions that end."""
        return sum(
            len(own.rows)
            + len(own.hidden)
            + len(own.run_of)
            + sum(block.count for block in own.all_blocks())
            for own in self._writes.tables.values()
        )

    # --- checks ---

    def validate(self, txn: WriteTxn) -> None:
        """Raise ConflictError or IntegrityError; write nothing."""
        writes = self._writes
        self._before = {}
        if txn.catalog_version > writes.base_commit:
            self._check_catalog(txn)
        for table_id, (table, what) in writes.whole.items():
            if table_id not in writes.dropped:
                self._check_whole(txn, table, what)
        for table_id, own in writes.tables.items():
            if own.is_untouched:
                continue
            counters = self._before[table_id] = read_counters(txn, table_id, own.table.name)
            if counters.last_commit > writes.base_commit:
                self._check_rows(txn, own, counters)
            elif (own.hidden or own.run_of) and counters.purged > writes.base_commit:
                raise self._purged(own.table)

    def _check_catalog(self, txn: WriteTxn) -> None:
        writes = self._writes
        for (kind, name), version in writes.dependencies.items():
            if (kind, name) in writes.objects:
                continue
            found = read_object(txn, kind, name)
            now = 0 if found is None else found.version
            if now != version:
                raise _changed(kind, name, version, now)
        for (kind, name), definition in writes.objects.items():
            found = read_object(txn, kind, name)
            if found is not None and found.version > writes.base_commit:
                raise _changed(kind, name, writes.base_commit, found.version)
            if found is None and definition is not None and self._vanished(definition):
                raise _changed(kind, name, definition.version, 0)

    def _vanished(self, definition: CatalogObject) -> bool:
        """Return True when a definition replaces one that another commit removed."""
        renamed = any(
            other is None for other in self._writes.objects.values()
        )  # its old name is deleted in this transaction and checked there
        return definition.version != 0 and not renamed

    def _check_whole(self, txn: WriteTxn, table: TableDef, what: str) -> None:
        last, base = read_counters(txn, table.id, table.name).last_commit, self._writes.base_commit
        if last > base:
            raise ConflictError(
                f"table {table.name}: commit {last} changed rows while {what} on commit {base}",
                hint=_AGAIN,
            )

    def _check_rows(self, txn: WriteTxn, own: OwnRows, counters: TableCounters) -> None:
        base, table = self._writes.base_commit, own.table
        if own.hidden or own.run_of:
            if counters.purged > base:
                raise self._purged(table)
            start, stop = keys.commits_after(table.id, 0, base)
            for key, _ in txn.range("tombs", start, stop):
                _, _, commit, rowid, _ = keys.read_tomb_key(key)
                if own.covers(rowid):
                    raise ConflictError(
                        f"table {table.name}: row {rowid} was changed by commit {commit}, "
                        f"this transaction reads commit {base}",
                        hint=_AGAIN,
                    )
        self._check_keys(txn, own)

    def _purged(self, table: TableDef) -> ConflictError:
        return ConflictError(
            f"table {table.name}: VACUUM ran after commit {self._writes.base_commit}, which this "
            "transaction reads",
            hint=_AGAIN,
        )

    def _check_keys(self, txn: WriteTxn, own: OwnRows) -> None:
        """Check own unique keys against entries other commits made since the base."""
        for index in own.table.indexes:
            if not index.unique or index.method != "btree":
                continue
            entries = own.indexes.get(index.id)
            freed = {} if entries is None else {e[0]: r for r, e in entries.old.items()}
            own_keys = [] if entries is None else [e[0] for e in entries.new.values() if e[1]]
            for block in own.blocks:
                own_keys += _block_unique_keys(block, index.id)
            for run in own.runs:
                found = run.keys.get(index.id)
                if found is not None:
                    chosen = _kept(own, run)
                    freed |= {found.old[at]: int(run.rowids[at]) for at in chosen}
                    own_keys += _run_unique_keys(found, chosen)
            for key in own_keys:
                raw = txn.get("index", keys.index_prefix(index.id) + key)
                if raw is not None and keys.read_rowid(raw) != freed.get(key):
                    raise ConflictError(
                        f"table {own.table.name}: another transaction committed the same key of "
                        f"{index.name} as row {keys.read_rowid(raw)} first",
                        hint=_AGAIN,
                    )

    # --- writing ---

    def apply(self, txn: WriteTxn) -> None:
        """Write everything; ``txn.commit_number`` is the commit being made."""
        writes = self._writes
        self.counters, self.shifts, self._log, self.fresh = {}, {}, [], {}
        definitions = {d.id: d for d in writes.objects.values() if isinstance(d, TableDef)}
        for (kind, name), definition in writes.objects.items():
            self._apply_object(txn, kind, name, definition)
        if writes.objects:
            txn.bump_catalog()
        for table in writes.dropped.values():
            garbage.drop_table(txn, table)
            self._log.append({"drop": table.name})
        for index, parts in writes.parts.items():
            write_parts(txn, index, parts)
        for table_id, own in writes.tables.items():
            if own.is_untouched or table_id in writes.dropped:
                continue
            table = definitions.get(table_id, own.table)
            counters = self._before.pop(table_id)  # nothing was written since they were read
            self.shifts[table_id] = counters.next_rowid - keys.PROVISIONAL
            # entries first: many small values go in faster before large ones
            _write_index_entries(txn, table, own, self.shifts[table_id])
            changed, fresh = write_rows(txn, table, own, counters, self.shifts[table_id])
            if fresh.is_small:
                self.fresh[table_id] = fresh
            write_counters(txn, table_id, counters)
            self.counters[table_id] = counters
            self._log.append({"table": table.name, **changed})
        if self._token is not None:
            staging.release_staged(txn, self._token)
        failpoints.hit("apply.after_writes")

    def _apply_object(
        self, txn: WriteTxn, kind: str, name: str, definition: CatalogObject | None
    ) -> None:
        before = read_object(txn, kind, name)
        if isinstance(before, TableDef):
            after = self._same_table(before)
            kept = {index.id for index in after.indexes} if after is not None else set()
            if after is not None:
                for index in before.indexes:
                    if index.id not in kept:
                        garbage.drop_index(txn, index.id)
        if definition is None:
            remove_object(txn, kind, name)
            self._log.append({"delete": f"{kind}/{name}"})
        else:
            write_object(txn, kind, name, definition)
            self._log.append({"put": f"{kind}/{name}"})

    def _same_table(self, before: TableDef) -> TableDef | None:
        return next(
            (
                d
                for d in self._writes.objects.values()
                if isinstance(d, TableDef) and d.id == before.id
            ),
            None,
        )

    def log(self) -> list[dict[str, Any]]:
        """Return what changed, for the commit log."""
        return self._log


def _changed(kind: str, name: str, expected: int, found: int) -> ConflictError:
    now = "was removed" if found == 0 else f"was changed by commit {found}"
    return ConflictError(
        f"{kind} {name} {now}; this transaction used its version of commit {expected}", hint=_AGAIN
    )


def _block_unique_keys(block: Any, index_id: int) -> list[bytes]:
    found, nulls = block.index_keys.get(index_id, ([], None))
    return [
        key
        for position, key in enumerate(found)
        if (nulls is None or not nulls[position])
        and (block.dead is None or not block.dead[position])
    ]


def _write_index_entries(txn: WriteTxn, table: TableDef, own: OwnRows, shift: int) -> None:
    for index in table.indexes:
        if index.method != "btree":
            continue
        entries = own.indexes.get(index.id)
        items: list[tuple[bytes, bytes]] = []
        if entries is not None and entries.rebuilt is not None:
            garbage.delete_range(txn, "index", *keys.table_range(index.id))
            items += [
                entry(index.id, key, rowid)
                for key, rowid, _ in heeding(entries.rebuilt, entries.check_stop)
                if not own.ends_entry(index.id, rowid)
            ]
        if entries is not None:
            items += _single_items(txn, index.id, entries, shift)
        # two plain lists: bulk rows as pairs would keep the garbage collector busy
        found, rowids = [key for key, _ in items], [rowid for _, rowid in items]
        for block in own.blocks:
            for known, more in zip(
                (found, rowids), _block_entries(block, index.id, shift), strict=True
            ):
                known += more
        gone = _add_run_entries(own, index.id, (found, rowids))
        if entries is None or entries.rebuilt is None:
            txn.delete_pairs("index", *gone)
        txn.put_pairs("index", found, rowids)


def _single_items(
    txn: WriteTxn, index_id: int, entries: Any, shift: int
) -> list[tuple[bytes, bytes]]:
    if entries.rebuilt is None:
        for rowid, old in entries.old.items():
            if entries.new.get(rowid) != old:
                txn.delete("index", *entry(index_id, old[0], rowid))
    items = []
    for rowid, new in entries.new.items():
        if entries.rebuilt is not None or entries.old.get(rowid) != new:
            final = rowid + shift if rowid >= keys.PROVISIONAL else rowid
            items.append(entry(index_id, new[0], final))
    return items


def _kept(own: OwnRows, run: OwnRun) -> list[int]:
    """Return the positions of the rows a run still knows."""
    kept = own.kept(run)
    return list(range(len(run))) if kept is None else np.flatnonzero(kept).tolist()


def _run_unique_keys(found: RunKeys, chosen: list[int]) -> list[bytes]:
    if not found.new:
        return []
    nulls = found.nulls
    return [found.new[at] for at in chosen if nulls is None or not nulls[at]]


_Pairs = tuple[list[bytes], list[bytes]]


def _add_run_entries(own: OwnRows, index_id: int, items: _Pairs) -> _Pairs:
    """Add the new entries of all runs to some; return the ones that end."""
    gone: _Pairs = ([], [])
    for run in own.runs:
        if index_id in run.keys:
            ends, fresh = _run_entries(own, run, index_id)
            for known, more in zip((*gone, *items), (*ends, *fresh), strict=True):
                known += more
    return gone


def _run_entries(own: OwnRows, run: OwnRun, index_id: int) -> tuple[_Pairs, _Pairs]:
    """Return stored keys and values of a run's entries that end, and of those that come."""
    found, chosen = run.keys[index_id], _kept(own, run)
    if found.new:
        chosen = [at for at in chosen if found.old[at] != found.new[at]]
    rowids = run.rowids[chosen].astype(">u8").view("V8").tolist()
    prefix = keys.index_prefix(index_id)
    gone = _prefixed(prefix, [found.old[at] for at in chosen])
    fresh = _prefixed(prefix, [found.new[at] for at in chosen]) if found.new else []
    return (gone, rowids), (fresh, rowids if found.new else [])


def _block_entries(block: Any, index_id: int, shift: int) -> tuple[list[bytes], list[bytes]]:
    """Return stored keys and values of a block's live rows."""
    found, _ = block.index_keys.get(index_id, ([], None))
    if not found:
        return [], []
    first = block.base + shift
    rowids = np.arange(first, first + len(found), dtype=">u8").view("V8").tolist()
    stored = _prefixed(keys.index_prefix(index_id), found)
    if block.dead is None:
        return stored, rowids
    live = (~block.dead).tolist()
    return list(compress(stored, live)), list(compress(rowids, live))


def _prefixed(prefix: bytes, found: list[bytes]) -> list[bytes]:
    """Put a prefix before every key; keys of one width at once."""
    widths = set(map(len, found))
    if len(widths) != 1:
        return [prefix + key for key in found]
    (width,) = widths
    whole = np.empty((len(found), len(prefix) + width), dtype=np.uint8)
    whole[:, : len(prefix)] = np.frombuffer(prefix, dtype=np.uint8)
    whole[:, len(prefix) :] = np.frombuffer(b"".join(found), np.uint8).reshape(-1, width)
    prefixed: list[bytes] = whole.view(f"V{whole.shape[1]}")[:, 0].tolist()
    return prefixed
