"""Parts of vector indexes: immutable arrays, each over the row versions of a range of commits.

A part covers what was live when it was made: the versions that commits after ``after`` and up to
``upto`` had created. Their ids never change meaning, so a version is in the index exactly when its
creating commit lies in the range of a part; everything else is fresh. The arrays of a part are
a blob. The parts of an index are listed in ``meta`` under ``parts/`` + index id. Parts are derived
data: losing one loses no row. Knows no algorithm.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tarsdb.errors import CorruptionError
from tarsdb.records import dataclass
from tarsdb.storage import blobs, keys, leases
from tarsdb.storage.transaction import ReadTxn, WriteTxn
from tarsdb.storage.values import ValueType, pack, unpack

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

_PREFIX = b"parts/"
_OWN_PAGES = 1 << 16
"""A value of so many bytes has pages of its own, which no change of others moves."""


@dataclass(frozen=True, slots=True)
class IndexPart:
    """One part.

    Attributes
    ----------
    digest : str
        Blob of its arrays; empty where its rows are left to exact search.
    rows, nbytes : int
    after, upto : int
        It covers the live versions created by commits in ``(after, upto]``.
    method, reason : str
        Of an index whose method is chosen: what this part was made by, and why, in words.
    asked : tuple of float
        The searches it was chosen by, as the engine sums them up; empty for none.
    """

    digest: str
    rows: int
    nbytes: int
    after: int
    upto: int
    method: str = ""
    reason: str = ""
    asked: tuple[float, ...] = ()


def read_parts(txn: ReadTxn, index: int) -> tuple[IndexPart, ...]:
    """Return the parts of an index as a snapshot shows them, by commits; none when not built."""
    raw = txn.get("meta", parts_key(index))
    return () if raw is None else _decode(parts_key(index), bytes(raw))


def parts_key(index: int) -> bytes:
    """Return the ``meta`` key of the list of parts of an index."""
    return _PREFIX + keys.index_prefix(index)


@functools.lru_cache(256)  # every search asks
def _decode(key: bytes, raw: bytes) -> tuple[IndexPart, ...]:
    payload, _, _ = unpack(ValueType.META, key, raw, "parts of a vector index")
    try:
        listed = json.loads(bytes(payload))
        return tuple(IndexPart(*fields[:7], *map(tuple, fields[7:])) for fields in listed)
    except (ValueError, TypeError) as error:
        raise CorruptionError(f"the list of parts of a vector index does not read: {error}") from (
            error
        )


def known_parts(txn: ReadTxn, index: int) -> tuple[IndexPart, ...]:
    """Return the parts of an index, none when their list is damaged: for whoever builds anew."""
    try:
        return read_parts(txn, index)
    except CorruptionError:
        return ()


def write_parts(txn: WriteTxn, index: int, parts: Sequence[IndexPart]) -> None:
    """Store the list of parts."""
    key = parts_key(index)
    fields = [
        [p.digest, p.rows, p.nbytes, p.after, p.upto,
         *((p.method, p.reason) if p.method else ()), *((p.asked,) if p.asked else ())]
        for p in parts
    ]  # fmt: skip
    payload = json.dumps(fields, separators=(",", ":")).encode()
    txn.put("meta", key, pack(ValueType.META, key, payload, len(fields), txn.commit_number))


def forget_parts(txn: WriteTxn, index: int) -> None:
    """Remove the list of parts; VACUUM takes their arrays."""
    txn.delete("meta", parts_key(index))


def replace_parts(
    env: Environment,
    index: int,
    expected: tuple[IndexPart, ...],
    parts: Sequence[IndexPart],
    lease: leases.Lease,
) -> bool:
    """Publish other parts unless somebody else did first; return whether it was done."""

    def work(txn: WriteTxn) -> bool:
        # gone: the index was dropped; other parts: somebody else built some
        done = txn.get("meta", parts_key(index)) is not None and known_parts(txn, index) == expected
        if done:
            write_parts(txn, index, parts)
        lease.drop_all(txn)
        return done

    return env.stage(work)


def all_digests(txn: ReadTxn) -> set[str]:
    """Return the blobs of all parts."""
    found: set[str] = set()
    for key, raw in txn.range("meta", _PREFIX, keys.successor(_PREFIX)):
        with contextlib.suppress(CorruptionError):  # what cannot be read is rebuilt, not kept
            found.update(part.digest for part in _decode(key, bytes(raw)) if part.digest)
    return found


def part_runs(txn: ReadTxn, part: IndexPart) -> list[memoryview]:
    """Return the bytes of a part's arrays, checked, in runs of the map.

    Runs are valid while the transaction lives, and in every transaction for which
    :func:`part_places` returns the same. What is too short to have pages of its own is copied.

    Raises
    ------
    CorruptionError
    """
    views = blobs.blob_views(txn, part.digest)
    return [view if len(view) >= _OWN_PAGES else memoryview(bytes(view)) for view in views]


def part_places(txn: ReadTxn, part: IndexPart) -> tuple[int, ...]:
    """Return where in memory the runs of a part lie that are not copied."""
    views = blobs.blob_views(txn, part.digest, check=False)
    return tuple(
        np.frombuffer(view, np.uint8).__array_interface__["data"][0]
        for view in views
        if len(view) >= _OWN_PAGES
    )
