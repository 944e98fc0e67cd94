"""The commit log: what each commit changed, kept from the first commit on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tarsdb.records import dataclass
from tarsdb.storage.transaction import ReadTxn
from tarsdb.storage.values import ValueType, unpack


@dataclass(frozen=True)
class LogEntry:
    """One commit: its number, its time, and what changed, one dict per table or object."""

    number: int
    timestamp_us: int
    changes: list[dict[str, Any]]


def commit_log(txn: ReadTxn) -> Iterator[LogEntry]:
    """Yield the commits a read transaction sees, oldest first.

    Raises
    ------
    CorruptionError
        An entry's checksum does not match.
    """
    for key, value in txn.range("commits", b"", None):
        number = int.from_bytes(key, "big")
        payload, _, _ = unpack(ValueType.COMMIT, bytes(key), value, f"log entry of commit {number}")
        entry = json.loads(bytes(payload))
        yield LogEntry(number, entry["time"], entry["changes"])
