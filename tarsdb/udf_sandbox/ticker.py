"""The clock of running guests: one daemon thread that ticks only while calls are active."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

INTERVAL_S = 0.005
_LINGER_TICKS = 10


class Ticker:
    """Calls ``tick`` every 5 ms while any ``with ticker:`` block is open, in its own thread.

    The thread lingers for 50 ms after the last block, so that a series of short calls does not
    wake it each time, then sleeps until the next one.
    """

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._active = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def __enter__(self) -> Ticker:
        with self._lock:
            self._active += 1
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="tarsdb-sandbox-ticker", daemon=True
                )
                self._thread.start()
            elif not self._wake.is_set():
                self._wake.set()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._active -= 1

    def stop(self) -> None:
        """End the thread; for interpreter shutdown."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def _run(self) -> None:
        self._wake.set()
        idle = 0
        while not self._stopped:
            time.sleep(INTERVAL_S)
            self._tick()
            idle = 0 if self._active else idle + 1
            if idle >= _LINGER_TICKS:
                with self._lock:
                    parked = self._active == 0
                    if parked:
                        self._wake.clear()
                if parked and not self._stopped:
                    self._wake.wait()
                idle = 0
