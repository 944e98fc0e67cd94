"""Figures about stored tables, for people and for the planner."""

from __future__ import annotations

from tarsdb.schema import TableDef
from tarsdb.storage import keys
from tarsdb.storage.formats import TableCounters
from tarsdb.storage.segments import Segment
from tarsdb.storage.snapshot import Snapshot
from tarsdb.storage.state import decode_counters


def table_stats(snapshot: Snapshot, table: TableDef) -> dict[str, int]:
    """Return counts of one table in a snapshot.

    Returns
    -------
    dict
        rows, delta_rows, delta_bytes, segments, segment_bytes, tombstones, last_commit.
    """
    raw = snapshot.txn.get("meta", keys.table_key(table.id))
    counters = TableCounters() if raw is None else decode_counters(table.id, raw, table.name)
    stored = sum(
        Segment(key, value, table.name, check=False).nbytes
        for key, value in snapshot.txn.range("segments", *keys.table_range(table.id))
    )
    return {
        "rows": counters.live_rows,
        "delta_rows": counters.delta_rows,
        "delta_bytes": counters.delta_bytes,
        "segments": counters.segments,
        "segment_bytes": stored,
        "tombstones": counters.tombstones,
        "last_commit": counters.last_commit,
    }
