"""WriteSet: what one transaction wants to write, private and in memory until it commits.

No lock is held; rows and catalog objects are seen by the transaction's own views at once. Bulk rows
may already lie on disk, unreferenced. Knows no SQL: rows come as storage values, checked by type.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from tarsdb.columns import Column
from tarsdb.errors import OperationalError
from tarsdb.options import Durability
from tarsdb.schema import CatalogObject, IndexDef, TableDef
from tarsdb.storage import blobs, bulk, column_changes, leases, object_ids, row_changes, staging
from tarsdb.storage.apply import CommitChange
from tarsdb.storage.catalog import CatalogView
from tarsdb.storage.committer import CommitInfo
from tarsdb.storage.environment import Environment
from tarsdb.storage.index_parts import IndexPart
from tarsdb.storage.keys import PROVISIONAL
from tarsdb.storage.merge import after_commit, before_commit
from tarsdb.storage.own_rows import OwnRows
from tarsdb.storage.spill import Spill
from tarsdb.storage.state import table_cache
from tarsdb.storage.stopping import CheckStop, never
from tarsdb.storage.transaction import ReadTxn
from tarsdb.storage.view import TableView

T = TypeVar("T")


class WriteSet:
    """The private writes of one transaction; used by one thread at a time.

    Parameters
    ----------
    env : Environment
    base_commit : int
        The commit of the snapshot the transaction reads.
    """

    def __init__(self, env: Environment, base_commit: int) -> None:
        self.env = env
        self.base_commit = base_commit
        self.journal: list[Callable[[], None]] = []
        self.tables: dict[int, OwnRows] = {}
        self.objects: dict[tuple[str, str], CatalogObject | None] = {}
        self.dropped: dict[int, TableDef] = {}
        self.parts: dict[int, tuple[IndexPart, ...]] = {}
        self.dependencies: dict[tuple[str, str], int] = {}
        self.whole: dict[int, tuple[TableDef, str]] = {}
        self.blobs: list[str] = []
        self._lease: leases.Lease | None = None
        self._readers: list[ReadTxn] = []
        self._overlays: tuple[CatalogView, int, CatalogView] | None = None
        self._change: CommitChange | None = None
        self._spill = Spill(self)

    # --- rows ---

    def own_rows(self, table_id: int) -> OwnRows | None:
        """Return this transaction's rows of a table, or None."""
        return self.tables.get(table_id)

    def rows_of(self, table: TableDef) -> OwnRows:
        """Return this transaction's rows of a table, made on first use."""
        own = self.tables.get(table.id)
        if own is None:
            own = self.tables[table.id] = OwnRows(table, self.journal)
            if ("table", table.name.lower()) not in self.objects:
                self.depend("table", table.name, table.version)
        own.table = table
        return own

    def insert(
        self, table: TableDef, view: TableView, rows: Sequence[tuple[Any, ...]]
    ) -> list[int]:
        """Insert rows of storage values in column order; return provisional rowids.

        Raises
        ------
        IntegrityError
            A key of a unique index exists already; nothing was inserted.
        """
        own = self.rows_of(table)
        return self._atomically(lambda: row_changes.insert(own, view, rows))

    def insert_columns(
        self, table: TableDef, view: TableView, columns: Sequence[Column]
    ) -> np.ndarray:
        """Insert many rows given as columns in table order; return provisional rowids.

        Large loads go to disk at once as unreferenced segments.

        Raises
        ------
        IntegrityError
            A key of a unique index exists already; nothing was inserted.
        """
        own = self.rows_of(table)

        def load() -> np.ndarray:
            rowids = bulk.insert(own, view, columns, self.env.options)
            self._spill.added(own)
            return rowids

        return self._atomically(load)

    def update(
        self,
        table: TableDef,
        view: TableView,
        rowids: Sequence[int],
        changed: Mapping[int, Sequence[Any]],
    ) -> None:
        """Give columns of live rows new storage values, by column id one for each row.

        Vectors that are not named are not read, those that stay the same not written again.

        Raises
        ------
        IntegrityError
        """
        own = self.rows_of(table)
        self._atomically(lambda: row_changes.update(own, view, rowids, changed))

    def update_row(
        self, table: TableDef, view: TableView, rowid: int, changed: Mapping[int, Any]
    ) -> None:
        """Give columns of one live row new storage values, as :meth:`update` does.

        Raises
        ------
        IntegrityError
        """
        own = self.rows_of(table)
        self._atomically(lambda: row_changes.update_row(own, view, rowid, changed))

    def update_columns(
        self, table: TableDef, view: TableView, rowids: np.ndarray, changed: Mapping[int, Column]
    ) -> None:
        """Give columns of live rows new values, as :meth:`update` does; fast for many rows.

        Many new values go to disk at once as unreferenced segments.

        Raises
        ------
        IntegrityError
            Two rows would share a key of a unique index; nothing was changed.
        """
        own = self.rows_of(table)

        def change() -> None:
            found = np.asarray(rowids, dtype=np.int64)
            column_changes.update(own, view, found, changed, self.env.options.segment_rows)
            self._spill.added(own)

        self._atomically(change)

    def delete(self, table: TableDef, view: TableView, rowids: np.ndarray) -> int:
        """Delete rows; return how many were live."""
        own = self.rows_of(table)
        return self._atomically(lambda: column_changes.delete(own, view, rowids))

    def delete_row(self, table: TableDef, view: TableView, rowid: int) -> None:
        """Delete one live row."""
        own = self.rows_of(table)
        self._atomically(lambda: row_changes.delete_row(own, view, rowid))

    def rebuild_index(
        self, table: TableDef, index: IndexDef, view: TableView, check_stop: CheckStop = never
    ) -> None:
        """Fill an index anew from all live rows when this commits (CREATE INDEX, repair).

        ``check_stop`` is asked now and while the commit writes the entries; what it raises undoes
        the one or the other.

        Raises
        ------
        IntegrityError
            The index is unique and two rows share a key.
        """
        own = self.rows_of(table)
        self._atomically(lambda: bulk.rebuild_index(own, view, index, check_stop))
        self.depend_on_rows(table, "an index was built")

    def depend_on_rows(self, table: TableDef, what: str) -> None:
        """Make the commit conflict when another one changed any row of a table meanwhile.

        For what has to hold of every row, and was made of those this transaction reads.
        """
        if table.id not in self.whole:
            self.whole[table.id] = table, what
            self.journal.append(lambda: self.whole.__delitem__(table.id))

    def _atomically(self, work: Callable[[], T]) -> T:
        mark = len(self.journal)
        try:
            return work()
        except BaseException:
            self.rollback_to(mark)
            raise

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Let `insert_columns` in here stage beside the caller's work; an error undoes all of it.

        The columns given in here must not change until the end.
        """
        mark = len(self.journal)
        try:
            with self._spill.behind():
                yield
        except BaseException:
            self.rollback_to(mark)
            raise

    _fresh_reader = False

    def staged_reader(self) -> ReadTxn:
        """Return a read transaction that sees everything staged; ended with this write set."""
        if self._fresh_reader or not self._readers:
            self._readers.append(self.env.read())
            self._fresh_reader = False
        return self._readers[-1]

    def has_staged(self) -> None:
        """Note that more was staged than the last reader sees."""
        self._fresh_reader = True

    def lease(self) -> leases.Lease:
        """Return the lease that protects what this transaction staged."""
        if self._lease is None:
            self._lease = leases.Lease(self.env)
        return self._lease

    # --- catalog, blobs ---

    def put_object(self, kind: str, name: str, definition: CatalogObject) -> None:
        """Create or replace a catalog object when this commits; its version becomes the commit."""
        self._set_object((kind, name.lower()), definition)

    def delete_object(self, kind: str, name: str) -> None:
        """Remove a catalog object when this commits."""
        self._set_object((kind, name.lower()), None)

    def _set_object(self, key: tuple[str, str], definition: CatalogObject | None) -> None:
        had, before = key in self.objects, self.objects.get(key)

        def undo() -> None:
            if had:
                self.objects[key] = before
            else:
                del self.objects[key]

        self.objects[key] = definition
        self.journal.append(undo)

    def drop_table_data(self, table: TableDef) -> None:
        """Remove a table's rows and indexes when this commits."""
        own = self.tables.pop(table.id, None)
        self.dropped[table.id] = table

        def undo() -> None:
            self.dropped.pop(table.id, None)
            if own is not None:
                self.tables[table.id] = own

        self.journal.append(undo)

    def new_id(self) -> int:
        """Return an object id never given out before in this file."""
        return object_ids.new_id(self.env)

    def set_parts(self, index: int, parts: Sequence[IndexPart] | None) -> None:
        """Replace the parts of a vector index when this commits; None: it is dropped again."""
        before = self.parts.pop(index, None)

        def undo() -> None:
            self.parts.pop(index, None)
            if before is not None:
                self.parts[index] = before

        if parts is not None:
            self.parts[index] = tuple(parts)
        self.journal.append(undo)

    def put_blob(self, data: Iterable[bytes] | bytes) -> str:
        """Store a content-addressed value at once, leased; return its SHA-256 in hex."""
        digest = blobs.put_blob(self.env, data, self.lease())
        self.blobs.append(digest)
        return digest

    def read_blob(self, digest: str) -> bytes:
        """Return a blob this transaction stored."""
        with self.env.read() as txn:
            return blobs.read_blob(txn, digest)

    def depend(self, kind: str, name: str, version: int) -> None:
        """Make the commit conflict when an object changed since it had this version."""
        self.dependencies[kind, name.lower()] = version

    def overlay(self, base: CatalogView) -> CatalogView:
        """Return a catalog with this transaction's objects on top."""
        if not self.objects:
            return base
        known = self._overlays
        if known is None or known[0] is not base or known[1] != len(self.journal):
            known = self._overlays = (base, len(self.journal), base.overlaid(self.objects))
        return known[2]

    # --- savepoints and the end ---

    def savepoint(self) -> int:
        """Return a mark for :meth:`rollback_to`."""
        return len(self.journal)

    def rollback_to(self, mark: int) -> None:
        """Undo everything since a mark."""
        if len(self.journal) > mark:
            self._overlays = None
        while len(self.journal) > mark:
            self.journal.pop()()
        for own in self.tables.values():
            own.touch()

    @property
    def is_empty(self) -> bool:
        """True when a commit would write nothing."""
        return (
            not self.objects
            and not self.parts
            and not self.dropped
            and all(own.is_untouched for own in self.tables.values())
        )

    def commit(
        self, durability: Durability | None = None, timeout_s: float | None = None
    ) -> CommitInfo:
        """Commit; the write set is spent afterwards.

        Raises
        ------
        ConflictError
            Another transaction committed a change to the same rows or objects first.
        IntegrityError
        """
        before_commit(self.env, list(self.tables))
        token = None if self._lease is None else self._lease.token
        change = CommitChange(self, token)
        info = self.env.commit(change, durability, timeout_s)
        self._change = change
        self._close_readers()
        self._lease = None
        for table_id, fresh in change.fresh.items():
            table_cache(self.env.caches, table_id).fresh = fresh
        after_commit(self.env, change.counters)
        return info

    def final_rowids(self, table: TableDef, rowids: Sequence[int]) -> list[int]:
        """Return the rowids after commit of rowids seen inside the transaction."""
        shift = 0 if self._change is None else self._change.shifts.get(table.id, 0)
        return [rowid + shift if rowid >= PROVISIONAL else rowid for rowid in rowids]

    def discard(self) -> None:
        """Roll back: forget everything and delete what was staged."""
        self._close_readers()
        self.tables.clear()
        self.objects.clear()
        self.journal.clear()
        lease, self._lease = self._lease, None
        if lease is not None:
            token = lease.token
            try:
                self.env.stage(lambda txn: staging.release_staged(txn, token), frees_space=True)
            except BaseException as error:
                self.env.abandoned.add(token)
                if not isinstance(error, OperationalError):  # what failed before says it better
                    raise

    def _close_readers(self) -> None:
        for txn in self._readers:
            txn.close()
        self._readers.clear()
