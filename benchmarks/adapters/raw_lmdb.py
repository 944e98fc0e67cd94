"""LMDB alone: the very blocks a tarsdb file holds, written again with nothing around them.

Same keys, same bytes, as many transactions as tarsdb made, every one synced. ``with_index`` writes
the entries of the primary key too, in key order.
"""

from __future__ import annotations

import pathlib

import lmdb

PACKAGE = "lmdb"


class RawLmdb:
    """Copies blocks of a finished file through memory."""

    def __init__(
        self, folder: pathlib.Path, source: pathlib.Path, transactions: int, *, with_index: bool
    ) -> None:
        self._transactions = max(1, transactions)
        self.path = folder / "raw.lmdb"
        names = ("blocks", "index") if with_index else ("blocks",)
        self._items = {name: _read(source, name) for name in names}
        self._env = lmdb.open(str(self.path), subdir=False, map_size=1 << 34, max_dbs=4)
        self._dbs = {name.encode(): self._env.open_db(name.encode()) for name in names}

    @property
    def nbytes(self) -> int:
        """Return the bytes of all values."""
        return sum(len(value) for items in self._items.values() for _, value in items)

    def insert(self) -> None:
        """Write everything; durable at the end."""
        limit = self.nbytes / self._transactions
        for name, items in self._items.items():
            start, size = 0, 0
            for stop, (_, value) in enumerate(items, 1):
                size += len(value)
                if size >= limit or stop == len(items):
                    with self._env.begin(write=True, db=self._dbs[name.encode()]) as txn:
                        txn.cursor().putmulti(items[start:stop])
                    start, size = stop, 0

    def disk_bytes(self) -> int:
        """Return the size of the file."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Close."""
        self._env.close()


def _read(source: pathlib.Path, name: str) -> list[tuple[bytes, bytes]]:
    env = lmdb.open(str(source), subdir=False, readonly=True, max_dbs=16, map_size=1 << 34)
    try:
        db = env.open_db(name.encode(), create=False)
        with env.begin(db=db) as txn:
            return [(bytes(key), bytes(value)) for key, value in txn.cursor()]
    finally:
        env.close()
