"""Snapshot: everything one statement or transaction reads, over one read transaction.

Knows tables, catalog and blobs by their public views; knows no SQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tarsdb.schema import TableDef
from tarsdb.storage import blobs, keys
from tarsdb.storage.catalog import CatalogView, read_catalog
from tarsdb.storage.environment import Environment
from tarsdb.storage.state import table_cache
from tarsdb.storage.view import TableView

if TYPE_CHECKING:
    from tarsdb.storage.writes import WriteSet


class Snapshot:
    """A consistent view of the whole database; a context manager.

    Parameters
    ----------
    env : Environment

    Attributes
    ----------
    commit : int
        The commit this snapshot shows.
    catalog_version : int
    txn : ReadTxn
        For ``park``/``resume`` between uses.
    """

    __slots__ = ("_catalog", "_views", "catalog_version", "commit", "env", "txn")

    def __init__(self, env: Environment) -> None:
        self.env = env
        txn = self.txn = env.read()
        self.commit = txn.commit_number
        self.catalog_version = txn.catalog_version
        self._catalog: CatalogView | None = None
        self._views: dict[int, TableView] | None = None

    @property
    def timestamp_us(self) -> int:
        """Time of the commit shown, microseconds since 1970."""
        return self.txn.timestamp_us

    @property
    def catalog(self) -> CatalogView:
        """Names to definitions at this commit."""
        catalog = self._catalog
        if catalog is None:
            catalog = self._catalog = read_catalog(self.txn, self.env.caches)
        return catalog

    def table(self, table: TableDef, writes: WriteSet | None = None) -> TableView:
        """Return a table as this snapshot shows it, with a transaction's own writes on top."""
        views = self._views
        if views is None:
            views = self._views = {}
        view = views.get(table.id)
        if view is not None and view.table is table and view.writes is writes:
            return view
        raw = self.txn.get("meta", keys.table_key(table.id))
        cache = table_cache(self.env.caches, table.id)
        state = cache.state(b"" if raw is None else bytes(raw), table.name)
        view = views[table.id] = TableView(self.txn, table, state, writes)
        return view

    def read_blob(self, digest: str) -> bytes:
        """Return a content-addressed value."""
        return blobs.read_blob(self.txn, digest)

    def blob_chunks(self, digest: str) -> Iterator[bytes]:
        """Yield a content-addressed value in chunks."""
        return blobs.blob_chunks(self.txn, digest)

    def close(self) -> None:
        """End the read transaction; views made from it must not be used any more."""
        self._views = None
        self.txn.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
