"""Read and write transactions over the named databases of one file.

A `ReadTxn` is a snapshot: the commit number it shows never changes. Views it returns point into the
memory map and are valid only while it lives. A `WriteTxn` exists only inside
``Environment.commit`` and ``Environment.stage``. Knows keys and bytes, not tables.
"""

from __future__ import annotations

import operator
import time
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NoReturn

import lmdb
import numpy as np

from tarsdb.errors import InterfaceError, SnapshotExpiredError
from tarsdb.storage import head as head_record
from tarsdb.storage.key_order import key_order
from tarsdb.storage.lmdb_errors import convert
from tarsdb.storage.reader_watch import IDLE_LIMIT_S

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

# A value above this may sit on overflow pages (LMDB 0.9, 4 KiB pages: about 2 KB).
_LARGE = 1000
# Entries in the first list of ReadTxn.keys, and in the largest.
_FIRST_BLOCK = 32
_LARGEST_BLOCK = 2048


class ReaderSlot:
    """What the environment knows of one live read transaction.

    The environment holds ``ref`` only, so that a transaction that is dropped ends without a Python
    destructor: the interpreter would swallow a Ctrl-C that arrives in one.
    """

    __slots__ = ("__weakref__", "born", "expired", "parked", "ref", "txn")

    def __init__(self, forget: Callable[[weakref.ref[ReaderSlot]], None]) -> None:
        self.txn: Any = None
        self.ref = weakref.ref(self, forget)
        hash(self.ref)  # a reference that is hashed for the first time must be alive
        self.born = 0.0
        self.parked: float | None = None  # since when
        self.expired = False


def _closed(*_: object) -> NoReturn:
    raise InterfaceError("the read transaction is closed")


class ReadTxn:
    """A snapshot of the file; a context manager. Made by ``Environment.read``.

    One thread uses it at a time. It is *active* until `park` says that nobody uses it or a view of
    it; only a parked transaction can be ended from outside. An active one that outlives
    ``max_read_age_s``, where that is given, fails at its next use.

    Attributes
    ----------
    commit_number, timestamp_us, catalog_version : int
        The commit this snapshot shows.
    epoch : int
        Addresses from another epoch are dead.
    """

    __slots__ = (
        "_databases",
        "_env",
        "_get",
        "_slot",
        "_txn",
        "catalog_version",
        "commit_number",
        "epoch",
        "timestamp_us",
    )

    def __init__(
        self, env: Environment, txn: Any, slot: ReaderSlot, head: head_record.Head, epoch: int
    ) -> None:
        self._env = env
        self._txn = txn
        self._slot = slot
        self._databases = env.databases
        self._get: Callable[..., Any] = txn.get
        self.commit_number, self.timestamp_us, self.catalog_version = head
        self.epoch = epoch

    def file_state(self) -> tuple[int, int]:
        """Return what is the same in two transactions that see the same of the file, to the byte.

        LMDB's number of the transaction and the epoch; it means nothing to another process.

        Raises
        ------
        SnapshotExpiredError
        """
        if self._slot.expired:
            self._refuse()
        return self._txn.id(), self.epoch

    def get(self, db: str, key: bytes) -> memoryview | None:
        """Return the value of a key as a view valid while the transaction lives, or None."""
        if self._slot.expired:
            self._refuse()
        try:
            return self._get(key, None, self._databases[db])  # type: ignore[no-any-return]
        except lmdb.Error as error:
            raise convert(error, self._env.path) from error

    def range(
        self, db: str, start: bytes, stop: bytes | None
    ) -> Iterator[tuple[bytes, memoryview]]:
        """Yield (key, view) for start <= key < stop in key order; None means no upper end."""
        slot = self._slot
        if slot.expired:
            self._refuse()
        try:
            cursor = self._cursor(db)
            if not cursor.set_range(start):
                return
            for view, value in cursor.iternext():
                key = bytes(view)
                if stop is not None and key >= stop:
                    return
                yield key, value
                if slot.expired:
                    self._refuse()
        except lmdb.Error as error:
            raise convert(error, self._env.path) from error

    def values(self, db: str, keys: list[bytes], size: int) -> bytes:
        """Return all values of keys, each of ``size`` bytes, joined in order of the keys.

        For databases whose keys hold several values. About 0.01 us a value.
        """
        if self._slot.expired:
            self._refuse()
        parts = []
        try:
            for width, group in groupby(
                keys, len
            ):  # one width at a time: a plain buffer comes back
                found = self._cursor(db).getmulti(
                    list(group), dupdata=True, dupfixed_bytes=size, keyfixed=True
                )
                rows = np.frombuffer(found, dtype=np.uint8).reshape(-1, width + size)
                parts.append(rows[:, width:].tobytes())
        except lmdb.Error as error:
            raise convert(error, self._env.path) from error
        return b"".join(parts)

    def each(self, db: str, keys: list[bytes], none: bytes) -> bytes:
        """Return the one value of each key, joined; ``none`` where there is none.

        For databases whose keys can hold several values, all of the size of ``none``.
        """
        if len(set(map(len, keys))) == 1:  # else `values` is no faster
            found = self.values(db, keys, len(none))
            if len(found) == len(keys) * len(none):
                return found
        return b"".join([none if raw is None else raw for raw in [self.get(db, k) for k in keys]])

    def keys(self, db: str, start: bytes, stop: bytes) -> Iterator[list[bytes]]:
        """Yield the keys with start <= key < stop, each once, in growing lists."""
        if self._slot.expired:
            self._refuse()
        try:
            cursor = self._cursor(db)
            if not cursor.set_range(start):
                return
            entries, size = cursor.iternext_nodup(keys=True, values=False), _FIRST_BLOCK
            while block := [bytes(key) for key in islice(entries, size)]:
                if block[-1] >= stop:
                    yield block[: bisect_left(block, stop)]
                    return
                yield block
                size = min(size * 2, _LARGEST_BLOCK)
                if self._slot.expired:
                    self._refuse()
        except lmdb.Error as error:
            raise convert(error, self._env.path) from error

    def entries(
        self, db: str, start: bytes, stop: bytes
    ) -> Iterator[list[tuple[memoryview, memoryview]]]:
        """Yield (key view, value view) for start <= key < stop in growing lists.

        Faster than :meth:`range`: the end is looked for once in a list.
        """
        if self._slot.expired:
            self._refuse()
        try:
            cursor = self._cursor(db)
            if not cursor.set_range(start):
                return
            pairs, size = cursor.iternext(), _FIRST_BLOCK
            while block := list(islice(pairs, size)):
                if bytes(block[-1][0]) >= stop:
                    yield block[: bisect_left(block, stop, key=lambda pair: bytes(pair[0]))]
                    return
                yield block
                size = min(size * 2, _LARGEST_BLOCK)
                if self._slot.expired:
                    self._refuse()
        except lmdb.Error as error:
            raise convert(error, self._env.path) from error

    def last(self, db: str, start: bytes, stop: bytes) -> tuple[bytes, memoryview] | None:
        """Return the entry with the greatest key in [start, stop), or None."""
        if self._slot.expired:
            self._refuse()
        try:
            cursor = self._cursor(db)
            found = cursor.prev() if cursor.set_range(stop) else cursor.last()
            if not found:
                return None
            key = bytes(cursor.key())
            return (key, cursor.value()) if key >= start else None
        except lmdb.Error as error:
            raise convert(error, self._env.path) from error

    def tail(self, db: str, start: bytes, stop: bytes, most: int) -> list[bytes]:
        """Return the values of the greatest keys in [start, stop), from the greatest down."""
        if self._slot.expired:
            self._refuse()
        try:
            cursor = self._cursor(db)
            if not (cursor.prev() if cursor.set_range(stop) else cursor.last()):
                return []
            found = []
            for key, value in islice(cursor.iterprev(), most):
                if bytes(key) < start:
                    break
                found.append(bytes(value))
        except lmdb.Error as error:
            raise convert(error, self._env.path) from error
        return found

    def has(self, db: str) -> bool:
        """Return whether the file has a database; those of later releases may be missing."""
        return db in self._databases

    def count(self, db: str) -> int:
        """Return the number of entries of a database."""
        return self.stat(db)["entries"]

    def stat(self, db: str) -> dict[str, int]:
        """Return LMDB's figures of a database: entries, depth, pages of each kind."""
        found: dict[str, int] = self._txn.stat(self._databases[db])
        return found

    def _cursor(self, db: str) -> Any:
        if self._txn is None:
            _closed()
        return self._txn.cursor(db=self._databases[db])

    def _refuse(self) -> NoReturn:
        age, limit = time.monotonic() - self._slot.born, self._env.options.max_read_age_s
        self.close()
        allowed = f"{IDLE_LIMIT_S:g} s without use" if limit is None else f"{limit:g} s"
        raise SnapshotExpiredError(
            f"{self._env.path}: the snapshot of commit {self.commit_number} is {age:.0f} s old, "
            f"the limit is {allowed}",
            hint="run the transaction again, or raise max_read_age_s",
        )

    def park(self) -> None:
        """Say that until `resume` no thread uses this transaction or a view it returned."""
        with self._env.parking:
            self._slot.parked = time.monotonic()

    def resume(self) -> None:
        """Use a parked transaction again.

        Raises
        ------
        SnapshotExpiredError
            It was ended meanwhile because of its age.
        """
        with self._env.parking:
            self._slot.parked = None
        if self._slot.expired:
            self._refuse()

    def close(self) -> None:
        """End the transaction; its views must not be used any more. Idempotent."""
        txn, self._txn = self._txn, None
        if txn is not None:
            self._get = _closed
            try:
                self._env.leave(self._slot)
            except BaseException:  # Ctrl-C in between: a slot left behind would never be cleared
                self._env.leave(self._slot)
                raise

    def __enter__(self) -> ReadTxn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WriteTxn(ReadTxn):
    """The one write transaction, handed to ``Change.validate``/``apply`` and ``stage`` functions.

    Attributes
    ----------
    commit_number : int
        The commit being made; in ``stage`` the latest one.
    """

    __slots__ = ("_delete", "_large", "_put", "frees_space", "is_staging")

    def __init__(
        self, env: Environment, txn: Any, slot: ReaderSlot, head: head_record.Head, epoch: int
    ) -> None:
        super().__init__(env, txn, slot, head, epoch)
        self._put: Callable[..., Any] = txn.put
        self._delete: Callable[..., Any] = txn.delete
        self._large: set[tuple[str, bytes]] = set()
        self.is_staging = False
        self.frees_space = False

    @property
    def head(self) -> head_record.Head:
        """Commit number, time and catalog version as they stand in this transaction."""
        return self.commit_number, self.timestamp_us, self.catalog_version

    @head.setter
    def head(self, head: head_record.Head) -> None:
        self.commit_number, self.timestamp_us, self.catalog_version = head

    def put(self, db: str, key: bytes, value: Any, append: bool = False) -> None:
        """Store a value.

        Parameters
        ----------
        db, key
        value : buffer
            Bytes-like, C-contiguous.
        append : bool
            The key is greater than all others of `db` (packs pages tighter); a key that is not is
            stored as usual.
        """
        if len(value) > _LARGE or self._large:
            self._before_large_put(db, key, value)
        try:
            database = self._databases[db]
            # dupdata and overwrite keep their defaults; append falls back for an unordered key
            if append and self._put(key, value, True, True, True, database):
                return
            self._put(key, value, True, True, False, database)
        except lmdb.Error as error:
            raise convert_write(error, self._env.path) from error

    def _before_large_put(self, db: str, key: bytes, value: Any) -> None:
        # A value that shrinks within one transaction keeps its larger page extent; the structural
        # verifier calls that damage. Deleting first avoids it.
        entry = (db, key)
        if entry in self._large:
            self._large.discard(entry)
            self.delete(db, key)
        if len(value) > _LARGE:
            self._large.add(entry)

    def put_pairs(self, db: str, found: list[bytes], values: list[bytes]) -> None:
        """Store many values in key order; small ones faster than `put` in a loop."""
        if len(found) < 2:  # without a cursor
            for key, value in zip(found, values, strict=True):
                self.put(db, key, value)
            return
        order = key_order(found)
        if order is not None:
            chosen = operator.itemgetter(*order)
            found, values = chosen(found), chosen(values)
        try:
            if self._large or max(map(len, values)) > _LARGE:
                put, database = self._put, self._databases[db]
                for key, value in zip(found, values, strict=True):
                    self._before_large_put(db, key, value)
                    put(key, value, True, True, False, database)
                return
            self._cursor(db).putmulti(zip(found, values, strict=True))
        except lmdb.Error as error:
            raise convert_write(error, self._env.path) from error

    def delete_pairs(self, db: str, found: list[bytes], values: list[bytes]) -> None:
        """Delete one value each of many keys that have several, in key order."""
        if not found:
            return
        order = key_order(found)
        database, delete = self._databases[db], self._delete
        try:
            for at in range(len(found)) if order is None else order:
                delete(found[at], values[at], database)
        except lmdb.Error as error:
            raise convert_write(error, self._env.path) from error

    def delete(self, db: str, key: bytes, value: bytes = b"") -> bool:
        """Delete a key, or one value of it where keys have several; return whether it was there."""
        try:
            return bool(self._delete(key, value, self._databases[db]))
        except lmdb.Error as error:
            raise convert_write(error, self._env.path) from error

    def bump_catalog(self) -> None:
        """Record that the catalog changes in this commit: its version becomes the commit number."""
        if self.is_staging:
            raise InterfaceError("a staging transaction cannot change the catalog")
        self.catalog_version = self.commit_number

    def close(self) -> None:
        """Do nothing: the environment ends a write transaction."""

    def retire(self) -> None:
        """Make every use fail from now on: the transaction is over."""
        self._txn = None
        self._get = self._put = self._delete = _closed


class EngineFailure(Exception):
    """An lmdb error inside a write transaction, carried to the environment, which may recover."""

    def __init__(self, error: lmdb.Error) -> None:
        super().__init__(str(error))
        self.error = error


def convert_write(error: lmdb.Error, where: str) -> Exception:
    """Return the error to raise inside a write transaction.

    A full map and errors that need the environment reopened travel as `EngineFailure` so that
    nothing in between mistakes them for an outcome.
    """
    recoverable = (lmdb.MapFullError, lmdb.PanicError, lmdb.MapResizedError, lmdb.BadTxnError)
    return EngineFailure(error) if isinstance(error, recoverable) else convert(error, where)
