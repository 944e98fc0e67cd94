"""Which texts are computed together, and on which thread.

Texts are sorted by length and cut into panels of whole texts with about the same number of tokens;
threads take panels from one queue. Knows no model: the work on a panel is a function.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tarsdb.errors import InterruptError
from tarsdb.records import dataclass

PANEL_TOKENS = 512  # measured: larger leaves the L2 cache, smaller starves the matrix products

# No more panels at a time than cores, whoever asks: the panels of all threads of the process.
_cores = threading.BoundedSemaphore(os.cpu_count() or 1)


@dataclass
class Watch:
    """What the caller wants to hear: progress in texts, and whether to stop."""

    total: int
    progress: Callable[[int, int], None] | None = None
    interrupted: Callable[[], bool] | None = None
    done: int = 0

    def check(self, done: int) -> None:
        """Report progress; InterruptError when asked to stop."""
        self.done = done
        if self.interrupted is not None and self.interrupted():
            raise InterruptError(f"embedding was interrupted after {done} of {self.total} texts")
        if self.progress is not None:
            self.progress(done, self.total)


def cut_panels(
    lengths: npt.NDArray[np.int64], threads: int, limit: int = PANEL_TOKENS
) -> list[npt.NDArray[np.int64]]:
    """Return the text numbers of each panel, longest texts first.

    No panel exceeds ``limit`` tokens unless a single text does, and there are at least ``threads``
    panels of about equal size when there are that many texts.
    """
    if len(lengths) == 1:
        return [np.zeros(1, np.int64)]
    order = np.argsort(-lengths, kind="stable")
    total = int(lengths.sum())
    target = max(1, min(limit, -(-total // max(1, threads))))
    panels, start, used = [], 0, 0
    for place, length in enumerate(lengths[order].tolist()):
        if used and used + length > target:
            panels.append(order[start:place])
            start, used = place, 0
        used += length
    if len(order):
        panels.append(order[start:])
    return panels


def run_panels(
    panels: list[npt.NDArray[np.int64]],
    work: Callable[[npt.NDArray[np.int64]], int],
    threads: int,
    done: Callable[[int], None],
) -> float:
    """Call ``work`` on every panel with up to ``threads`` threads, this one among them.

    Returns the seconds that panels waited for a core, summed over threads.

    ``work`` returns how many texts it finished. ``done`` is called on the calling thread only,
    before each of its panels, with their sum so far; what it raises, or any thread's work, stops
    the rest and is raised here.
    """
    queue = _Queue(panels, work)
    helpers = [
        threading.Thread(target=queue.drain, name="tarsdb-encode", daemon=True)
        for _ in range(min(threads, len(panels)) - 1)
    ]
    for helper in helpers:
        helper.start()
    try:
        queue.drain(done)
    finally:
        queue.stop()
        for helper in helpers:
            helper.join()
    if queue.error is not None:
        raise queue.error
    return queue.waited


class _Queue:
    """The panels not taken yet, shared by the threads of one call."""

    def __init__(
        self,
        panels: list[npt.NDArray[np.int64]],
        work: Callable[[npt.NDArray[np.int64]], int],
    ) -> None:
        self._waiting = panels[::-1]
        self._work = work
        self._lock = threading.Lock()
        self.finished = 0
        self.waited = 0.0
        self.error: BaseException | None = None

    def drain(self, done: Callable[[int], None] | None = None) -> None:
        """Work until no panel is left; errors of helper threads (no ``done``) are kept."""
        try:
            while (panel := self._take()) is not None:
                if done is not None:
                    done(self.finished)
                asked = time.perf_counter()
                with _cores:
                    waited = time.perf_counter() - asked
                    finished = self._work(panel)
                with self._lock:
                    self.finished += finished
                    self.waited += waited
        except BaseException as error:
            self.stop()
            if done is not None:
                raise
            self.error = error

    def stop(self) -> None:
        """Let no thread take another panel."""
        with self._lock:
            self._waiting = []

    def _take(self) -> npt.NDArray[np.int64] | None:
        with self._lock:
            return self._waiting.pop() if self._waiting else None
