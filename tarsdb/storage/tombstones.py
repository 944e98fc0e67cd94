"""Tombstones of one column group: which version ended at which commit, as arrays.

A version is (rowid, created commit), wherever it is stored; its deleting commit never changes. So
one array per segment, shared by all snapshots, answers "live at S" as ``deleted > S``. Knows no
segments: callers hand in rowids and creating commits.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np

from tarsdb.errors import CorruptionError
from tarsdb.storage import keys
from tarsdb.storage.formats import DIGEST_MASK, TableCounters, key_digest

ALIVE = np.iinfo(np.int64).max
"""``deleted`` of a version that nobody deleted."""
_FEW = 8  # tombstones that are matched one by one


class GrowingArray:
    """An append-only array; prefixes handed out stay valid while it grows."""

    def __init__(self, dtype: Any, width: int | None = None) -> None:
        self._width = width
        self._buffer = np.empty(self._shape(64), dtype=dtype)
        self.count = 0

    def _shape(self, capacity: int) -> tuple[int, ...]:
        return (capacity,) if self._width is None else (capacity, self._width)

    def extend(self, values: np.ndarray) -> None:
        """Append rows."""
        needed = self.count + len(values)
        if needed > len(self._buffer):
            grown = np.empty(self._shape(max(needed, 2 * len(self._buffer))), self._buffer.dtype)
            grown[: self.count] = self._buffer[: self.count]
            self._buffer = grown
        self._buffer[self.count : needed] = values
        self.count = needed

    def prefix(self, count: int) -> np.ndarray:
        """Return the first rows as a view."""
        return self._buffer[:count]

    @property
    def data(self) -> np.ndarray:
        """The current buffer; entries beyond ``count`` are undefined."""
        return self._buffer


class TombstoneLog:
    """All tombstones of one column group, in commit order, read incrementally."""

    def __init__(self, table: int, group: int) -> None:
        self._table, self._group = table, group
        self.loaded = 0  # commit number up to which the log is complete
        self._log = GrowingArray(np.int64, 3)  # deleted, rowid, created

    @property
    def count(self) -> int:
        """Number of tombstones read so far."""
        return self._log.count

    def extend(self, txn: Any, commit: int) -> None:
        """Read the tombstones of commits up to ``commit`` that are not here yet."""
        if commit <= self.loaded:
            return
        start, stop = keys.commits_after(self._table, self._group, self.loaded)
        blocks = txn.keys("tombs", start, stop)
        found = b"".join([key for block in blocks for key in block])
        if found:
            self._log.extend(decode_tombstones(found))
        self.loaded = commit

    def first_after(self, commit: int) -> int:
        """Return the position of the first tombstone of a commit after this one."""
        return bisect_right(self._log.prefix(self.count)[:, 0], commit)

    def since(self, position: int) -> np.ndarray:
        """Return ``(n, 3)`` int64 rows (deleted, rowid, created) from a position on."""
        return self._log.prefix(self._log.count)[position:]


def sum_tombstones(txn: Any, table: int) -> tuple[int, int]:
    """Return how many tombstones a table has, of all groups, and their digest."""
    count = digest = 0
    for block in txn.keys("tombs", *keys.table_range(table)):
        count += len(block)
        digest += key_digest(block)
    return count, digest & DIGEST_MASK


def require_tombstones(txn: Any, table: int, name: str, counters: TableCounters) -> None:
    """Raise CorruptionError unless a table's tombstones are those that its commits made.

    They are keys without values, so each has no checksum of its own.
    """
    count, digest = sum_tombstones(txn, table)
    expected = counters.tombstone_digest
    if (count, digest) != (counters.tombstones, digest if expected is None else expected):
        blocks = txn.keys("tombs", *keys.table_range(table))
        rows = [keys.read_tomb_key(key)[3] for block in blocks for key in block]
        raise CorruptionError(
            f"table {name}: {counters.tombstones} ends of rows should be there, found {count}"
            f"{' others' if count == counters.tombstones else ''}"
            f"{f', of rows {min(rows)}..{max(rows)}' if rows else ''}",
            hint="restore from a backup; PRAGMA integrity_check lists all damage",
        )


def decode_tombstones(joined: bytes) -> np.ndarray:
    """Return ``(n, 3)`` int64 (deleted, rowid, created) of concatenated ``tombs`` keys."""
    fields = np.frombuffer(joined, dtype=keys.TOMB_DTYPE)
    out = np.empty((len(fields), 3), dtype=np.int64)
    out[:, 0], out[:, 1], out[:, 2] = fields["deleted"], fields["rowid"], fields["created"]
    return out


def match_versions(
    rowids: np.ndarray, created: np.ndarray | int, tombs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the stored versions that tombstones name.

    Parameters
    ----------
    rowids : int64 (n,)
        Ascending.
    created : int64 (n,) or int
        Creating commit of each row; ascending among rows of one rowid.
    tombs : int64 (m, 3)
        deleted, rowid, created.

    Returns
    -------
    positions, deleted : int64 arrays
        Row positions hit and the deleting commit of each.
    """
    if len(tombs) <= _FEW:
        return _match_each(rowids, created, tombs)
    positions, deleted = [], []
    at = rowids.searchsorted(tombs[:, 1])
    while len(at):  # rows of one rowid are few: one round per version
        there = rowids.take(at, mode="clip") == tombs[:, 1]
        there &= at < len(rowids)
        at, tombs = at[there], tombs[there]
        hit = (created if isinstance(created, int) else created[at]) == tombs[:, 2]
        positions.append(at[hit])
        deleted.append(tombs[hit, 0])
        at, tombs = at[~hit] + 1, tombs[~hit]
    if len(positions) == 1:
        return positions[0], deleted[0]
    return np.concatenate(positions), np.concatenate(deleted)


def match_run(
    base: int, rows: int, created: np.ndarray | int, tombs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the stored versions that tombstones name: :func:`match_versions` of consecutive rowids.

    Parameters
    ----------
    base, rows : int
        The first rowid, and how many there are.
    """
    if len(tombs) > _FEW:
        at = tombs[:, 1] - base
        inside = (at >= 0) & (at < rows)
        at, tombs = at[inside], tombs[inside]
        hit = tombs[:, 2] == (created if isinstance(created, int) else created[at])
        return at[hit], tombs[hit, 0]
    found = [
        (rowid - base, deleted)
        for deleted, rowid, made in tombs.tolist()
        if 0 <= rowid - base < rows
        and made == (created if isinstance(created, int) else created[rowid - base])
    ]
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _match_each(
    rowids: np.ndarray, created: np.ndarray | int, tombs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    positions, found = [], []
    places = rowids.searchsorted(tombs[:, 1]).tolist()
    for (deleted, rowid, made), at in zip(tombs.tolist(), places, strict=True):
        while at < len(rowids) and rowids[at] == rowid:
            if (created if isinstance(created, int) else created[at]) == made:
                positions.append(at)
                found.append(deleted)
            at += 1
    return np.array(positions, dtype=np.int64), np.array(found, dtype=np.int64)
