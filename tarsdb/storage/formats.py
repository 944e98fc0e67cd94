"""The counters kept for each table: what every statement reads first.

Knows no transactions.
"""

from __future__ import annotations

import dataclasses
import operator
import struct
from collections.abc import Collection

import xxhash

from tarsdb.errors import CorruptionError
from tarsdb.records import dataclass

_COUNTERS = struct.Struct("<14Q")
_TOMBSTONE_DIGEST = struct.Struct("<Q")
DIGEST_MASK = (1 << 64) - 1


@dataclass(slots=True)
class TableCounters:
    """What ``meta`` keeps for one table; read first by every statement that touches it.

    Attributes
    ----------
    next_rowid, next_segment : int
    last_commit : int
        Last commit that changed rows.
    layout : int
        Rises when the set of segments changes.
    delta_generation : int
        Rises when delta records are removed (merge, vacuum); between, the delta only grows.
    tomb_generation : int
        Rises when tombstones are removed (vacuum).
    purged : int
        Greatest deleting commit whose tombstones may be gone: older transactions cannot tell
        whether their rows were changed.
    live_rows, delta_rows, delta_records, segments, tombstones : int
        Counts, of group 0 where named rows, of all groups otherwise.
    segment_digest : int
        Sum of all segments' digests modulo 2**64, so that a lost segment is noticed.
    delta_bytes : int
        Stored bytes of the delta.
    tombstone_digest : int, optional
        :func:`key_digest` of all tombstones, so that a changed one is noticed. None where some were
        made before files had this field, until these are gone.
    """

    next_rowid: int = 1
    next_segment: int = 1
    last_commit: int = 0
    layout: int = 0
    delta_generation: int = 0
    tomb_generation: int = 0
    purged: int = 0
    live_rows: int = 0
    delta_rows: int = 0
    delta_records: int = 0
    segments: int = 0
    tombstones: int = 0
    segment_digest: int = 0
    delta_bytes: int = 0
    tombstone_digest: int | None = 0

    def encode(self) -> bytes:
        """Return the payload; :meth:`decode` reads it back."""
        payload = _COUNTERS.pack(*_packed(self))
        if self.tombstone_digest is None:
            return payload
        return payload + _TOMBSTONE_DIGEST.pack(self.tombstone_digest)

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> TableCounters:
        """Return the counters of a payload."""
        size = _COUNTERS.size + _TOMBSTONE_DIGEST.size
        if len(payload) not in (size, _COUNTERS.size):
            raise CorruptionError(f"table counters are {len(payload)} bytes long, not {size}")
        counters = cls(*_COUNTERS.unpack_from(payload))
        if len(payload) == size:
            (counters.tombstone_digest,) = _TOMBSTONE_DIGEST.unpack_from(payload, _COUNTERS.size)
        elif counters.tombstones:
            counters.tombstone_digest = None
        return counters

    def add_segment(self, digest: int) -> None:
        """Count one more segment."""
        self.segments += 1
        self.segment_digest = (self.segment_digest + digest) & DIGEST_MASK

    def remove_segment(self, digest: int) -> None:
        """Count one segment less."""
        self.segments -= 1
        self.segment_digest = (self.segment_digest - digest) & DIGEST_MASK

    def add_tombstones(self, keys: Collection[bytes]) -> None:
        """Count more tombstones."""
        self.tombstones += len(keys)
        if self.tombstone_digest is not None:
            self.tombstone_digest = (self.tombstone_digest + key_digest(keys)) & DIGEST_MASK

    def remove_tombstones(self, keys: Collection[bytes]) -> None:
        """Count tombstones less."""
        self.tombstones -= len(keys)
        if not self.tombstones:
            self.tombstone_digest = 0
        elif self.tombstone_digest is not None:
            self.tombstone_digest = (self.tombstone_digest - key_digest(keys)) & DIGEST_MASK


def key_digest(keys: Collection[bytes]) -> int:
    """Return the sum of the xxh3_64 of keys modulo 2**64: the same in any order."""
    return sum(map(xxhash.xxh3_64_intdigest, keys)) & DIGEST_MASK


_packed = operator.attrgetter(*[field.name for field in dataclasses.fields(TableCounters)][:-1])
