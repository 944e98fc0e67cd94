"""Threads that run one compiled kernel together, kept for the next call.

Knows no kernel: a call gets the number of its part and how many there are.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Callable

Call = Callable[[int, int], None]


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def yielding() -> int:
    """Return the address of ``sched_yield``, 0 where there is none."""
    try:
        function = ctypes.CDLL(None).sched_yield
    except (OSError, AttributeError, TypeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Team:
    """Some threads; the caller's is the first. One call at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._process = os.getpid()

    def run(self, call: Call, parts: int) -> None:
        """Run ``call(part, parts)`` for every part, each on a thread of its own.

        The call must release the GIL and must not raise.
        """
        with self._lock:
            if self._process != os.getpid():  # threads do not survive fork
                self._workers, self._process = [], os.getpid()
            while len(self._workers) < parts - 1:
                self._workers.append(_Worker())
            helpers = self._workers[: parts - 1]
            for part, worker in enumerate(helpers, start=1):
                worker.calls.put((call, part, parts))
            call(0, parts)
            for worker in helpers:
                worker.done.get()

    def __del__(self) -> None:
        for worker in self._workers:
            worker.calls.put(None)


class _Worker:
    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[Call, int, int] | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[None] = queue.SimpleQueue()
        thread = threading.Thread(
            target=_serve, args=(self.calls, self.done), name="tarsdb-team", daemon=True
        )
        thread.start()


def _serve(
    calls: queue.SimpleQueue[tuple[Call, int, int] | None], done: queue.SimpleQueue[None]
) -> None:
    while (work := calls.get()) is not None:
        call, part, parts = work
        del work
        call(part, parts)
        del call
        done.put(None)
