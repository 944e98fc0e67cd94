"""Ends read transactions that outlive their limit, and clears those of dead processes.

A forgotten snapshot keeps every page that changed since, so the file grows with each commit. Once a
transaction is too old the watch marks it: the next use raises SnapshotExpiredError in the thread
that owns it. Only a *parked* transaction (nobody uses it or a view of it, `ReadTxn.park`) is ended
here, because ending one under a running kernel would let it read pages that are being reused. One
at work may take as long as it takes, unless ``max_read_age_s`` says otherwise.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from tarsdb.metrics import METRICS

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment
    from tarsdb.storage.transaction import ReaderSlot

IDLE_LIMIT_S = 600.0
"""How long a transaction may lie unused where ``max_read_age_s`` is not given."""

_READER_CHECK_S = 30.0


class ReaderWatch:
    """A daemon thread beside one environment."""

    def __init__(self, env: Environment) -> None:
        self._stop = threading.Event()
        age = env.options.max_read_age_s
        self._interval = min(max((IDLE_LIMIT_S if age is None else age) / 8, 0.02), 5.0)
        self._thread = threading.Thread(
            target=_watch,
            args=(weakref.ref(env), self._stop, self._interval),
            daemon=True,
            name="tarsdb-reader-watch",
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(1.0)


def _watch(reference: weakref.ref[Environment], stop: threading.Event, interval: float) -> None:
    checked = time.monotonic()
    while not stop.wait(interval):
        env = reference()
        if env is None:
            return
        end_old_readers(env)
        env.close_if_dropped()
        if time.monotonic() - checked > _READER_CHECK_S:
            checked = time.monotonic()
            env.reader_check()
        del env


def end_old_readers(env: Environment) -> int:
    """Mark read transactions over the age limit; end the parked ones. Return how many ended."""
    ended = 0
    for slot in env.live_readers():
        with env.parking:
            if not _is_too_old(slot, env.options.max_read_age_s):
                continue
            slot.expired = True
            if slot.parked is not None and slot.txn is not None:
                txn, slot.txn = slot.txn, None
                txn.abort()
                env.forget_reader(slot)
                ended += 1
    METRICS.add("storage.readers_ended", ended)
    return ended


def _is_too_old(slot: ReaderSlot, limit: float | None) -> bool:
    now = time.monotonic()
    if limit is None:
        return slot.parked is not None and now - slot.parked > IDLE_LIMIT_S
    return now - slot.born > limit
