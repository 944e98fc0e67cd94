"""Worker processes that wait: one that has just started, and those that served a program before.

A process that has served a program serves no other. Processes are started by one thread that
lives as long as the database's process, because the kernel ends them with the thread that started
them. Knows no columns.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from tarsdb.errors import UdfBackendError
from tarsdb.metrics import METRICS
from tarsdb.udf_sandbox.worker.process import WorkerProcess

MAX_IDLE = 8  # some 25 MB each


class WorkerPool:
    """The idle workers of this process; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # collected functions discard their workers, at any moment
        self._starter = ThreadPoolExecutor(1, "tarsdb-sandbox-starter")
        self._spare: Future[WorkerProcess] | None = None
        self._idle: OrderedDict[WorkerProcess, None] = OrderedDict()
        self._programs = 0

    def attach(self) -> None:
        """Count a program that will take workers."""
        with self._lock:
            self._programs += 1

    def detach(self) -> None:
        """Count one program less; behind the last one, no spare process is kept."""
        with self._lock:
            self._programs -= 1
            spare = None
            if self._programs == 0:
                spare, self._spare = self._spare, None
        if spare is not None:
            spare.add_done_callback(_end)

    def take(self, *, refill: bool = True) -> WorkerProcess:
        """Return a process that serves nothing yet.

        Parameters
        ----------
        refill : bool
            Start another one meanwhile, so that the next caller need not wait.

        Raises
        ------
        UdfBackendError
            None can be started.
        """
        with self._lock:
            spare, self._spare = self._spare, None
        try:
            process = _ready(spare or self._start())
        except UdfBackendError:
            if spare is None:
                raise
            process = _ready(self._start())  # the spare one may have been ended from outside
        if refill:
            with self._lock:
                if self._spare is None:
                    self._spare = self._start()
        return process

    def _start(self) -> Future[WorkerProcess]:
        METRICS.add("udf.workers_started")
        return self._starter.submit(WorkerProcess)

    def rest(self, process: WorkerProcess) -> None:
        """Keep a process for its program; the one that rested longest may have to go for it."""
        if not process.usable():
            process.kill()
            return
        gone = None
        with self._lock:
            self._idle[process] = None
            if len(self._idle) > MAX_IDLE:
                gone, _ = self._idle.popitem(last=False)
        if gone is not None:
            gone.kill()

    def wake(self, process: WorkerProcess) -> bool:
        """Take a resting process back to work; False when it had to go, or died."""
        with self._lock:
            if self._idle.pop(process, False) is False:
                return False
        if process.usable():
            return True
        process.kill()
        return False

    def discard(self, process: WorkerProcess) -> None:
        """End a process, whether it rests or works."""
        with self._lock:
            self._idle.pop(process, None)
        process.kill()

    def close(self) -> None:
        """End every process that waits."""
        with self._lock:
            waiting, self._idle = list(self._idle), OrderedDict()
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.add_done_callback(_end)
        for process in waiting:
            process.kill()


def _end(started: Future[WorkerProcess]) -> None:
    if started.exception() is None:
        started.result().kill()


def _ready(starting: Future[WorkerProcess]) -> WorkerProcess:
    process = starting.result()
    process.wait_until_ready()
    return process


_pool: WorkerPool | None = None
_pool_lock = threading.RLock()


def pool() -> WorkerPool:
    """Return this process's pool, made on first use."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = WorkerPool()
        return _pool


def _after_fork() -> None:
    """Leave the parent its workers; a forked child makes its own."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.RLock()


def _at_exit() -> None:
    if _pool is not None:
        _pool.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
