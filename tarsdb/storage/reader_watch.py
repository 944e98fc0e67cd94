"""Ends read transactions that outlive their limit, and clears those of dead processes.

A forgotten snapshot keeps every page that changed since, so the file grows with each commit. Once a
transaction is too old the watch marks it: the next use raises SnapshotExpiredError in the thread
that owns it. Only a *parked* transaction (nobody uses it or a view of it, `ReadTxn.park`) is ended
here, because ending one under a running kernel would let it read pages that are being reused.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from tarsdb.metrics import METRICS

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

_READER_CHECK_S = 30.0


class ReaderWatch:
    """A daemon thread beside one environment."""

    def __init__(self, env: Environment) -> None:
        self._stop = threading.Event()
        age = env.options.max_read_age_s
        self._interval = min(max(age / 8, 0.02), 5.0)
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
    now = time.monotonic()
    ended = 0
    for slot in env.live_readers():
        if now - slot.born <= env.options.max_read_age_s:
            continue
        with env.parking:
            slot.expired = True
            if slot.parked and slot.txn is not None:
                txn, slot.txn = slot.txn, None
                txn.abort()
                env.forget_reader(slot)
                ended += 1
    METRICS.add("storage.readers_ended", ended)
    return ended
