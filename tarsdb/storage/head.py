"""The record that says which commit is the latest: meta/head.

Commit number, time and catalog version, sealed by a checksum. The numbers are ours, not LMDB's
transaction ids: a compacting copy keeps them.
"""

from __future__ import annotations

import struct

import xxhash

from tarsdb.errors import CorruptionError

KEY = b"head"
_RECORD = struct.Struct("<QqQ")
_SEALED = struct.Struct("<QqQQ")

Head = tuple[int, int, int]
"""Commit number, timestamp in microseconds since 1970, catalog version."""


def encode(head: Head) -> bytes:
    """Return the 32 stored bytes."""
    fields = _RECORD.pack(*head)
    return fields + xxhash.xxh3_64_digest(KEY + fields)[::-1]


def decode(raw: bytes | None, where: str) -> Head:
    """Return the head of the stored bytes, or raise CorruptionError."""
    if raw is None or len(raw) != _SEALED.size:
        found = "missing" if raw is None else f"{len(raw)} bytes long, expected {_SEALED.size}"
        raise CorruptionError(f"{where}: the commit record is {found}")
    commit, timestamp, catalog, digest = _SEALED.unpack(raw)
    if xxhash.xxh3_64_intdigest(KEY + raw[: _RECORD.size]) != digest:
        raise CorruptionError(f"{where}: the commit record fails its checksum")
    return commit, timestamp, catalog
