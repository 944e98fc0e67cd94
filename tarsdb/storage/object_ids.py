"""Ids of tables, indexes, models: reserved in blocks, so that most need no transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tarsdb.storage.transaction import WriteTxn

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

_KEY = b"ids"
_BLOCK = 256


def new_id(env: Environment) -> int:
    """Return a number never returned before for this file; gaps are harmless."""
    with env.id_lock:
        free: list[int] = env.caches.setdefault("object ids", [])
        if not free:
            first = env.stage(_reserve)
            free.extend(range(first + _BLOCK - 1, first - 1, -1))
        return free.pop()


def _reserve(txn: WriteTxn) -> int:
    raw = txn.get("meta", _KEY)
    first = 1 if raw is None else int.from_bytes(raw, "little")
    txn.put("meta", _KEY, (first + _BLOCK).to_bytes(8, "little"))
    return first
