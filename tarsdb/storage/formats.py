"""The counters kept for each table: what every statement reads first.

Knows no transactions.
"""

from __future__ import annotations

import dataclasses
import struct

from tarsdb.errors import CorruptionError
from tarsdb.records import dataclass

_COUNTERS = struct.Struct("<14Q")
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

    def encode(self) -> bytes:
        """Return the payload; :meth:`decode` reads it back."""
        return _COUNTERS.pack(*[getattr(self, name) for name in _NAMES])

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> TableCounters:
        """Return the counters of a payload."""
        if len(payload) != _COUNTERS.size:
            raise CorruptionError(
                f"table counters are {len(payload)} bytes long, not {_COUNTERS.size}"
            )
        return cls(*_COUNTERS.unpack(payload))

    def add_segment(self, digest: int) -> None:
        """Count one more segment."""
        self.segments += 1
        self.segment_digest = (self.segment_digest + digest) & DIGEST_MASK

    def remove_segment(self, digest: int) -> None:
        """Count one segment less."""
        self.segments -= 1
        self.segment_digest = (self.segment_digest - digest) & DIGEST_MASK


_NAMES = [field.name for field in dataclasses.fields(TableCounters)]
