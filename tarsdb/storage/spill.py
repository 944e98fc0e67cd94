"""Bulk rows of a write set leave memory for the disk, beside the work on the rows that follow.

Once enough rows wait, they are staged (see `staging`). Outside of `Spill.behind` that happens at
once; inside of it a thread ends the staging transaction, most of which is waiting for the disk,
while the caller converts what comes next. One transaction is under way at a time, and until it has
ended its rows are read from memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tarsdb.storage import bulk, staging
from tarsdb.storage.own_rows import OwnBlock, OwnRows

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tarsdb.storage.writes import WriteSet

T = TypeVar("T")

_POLL_S = 0.0004


class _UnderWay(NamedTuple):
    own: OwnRows
    batch: Sequence[OwnBlock]
    outcome: Future[list[OwnBlock]]


class Spill:
    """The way to disk of one write set; used by one thread at a time."""

    def __init__(self, writes: WriteSet) -> None:
        self._writes = writes
        self._is_behind = False
        self._worker: _Worker | None = None
        self._loaded: list[OwnRows] = []
        self._under_way: _UnderWay | None = None

    @contextlib.contextmanager
    def behind(self) -> Iterator[None]:
        """Stage in a thread what is added in here; at the end nothing is under way.

        Columns added in here stay as they are until the end. Meant for one thread and not nested.
        """
        self._is_behind = True
        try:
            yield
            self._settle()
            for own in self._loaded:
                bulk.keep_in_memory(own)
        finally:
            worker = self._worker
            self._is_behind, self._worker = False, None
            self._loaded, self._under_way = [], None
            if worker is not None:
                worker.stop()

    def added(self, own: OwnRows) -> None:
        """Stage the rows of a table that wait once there are enough; keep the others.

        Raises
        ------
        StorageFullError, LockError, OperationalError
            This or the staging before it failed; the rows of both are still in memory.
        """
        gone = {id(block.columns) for block in self._under_way.batch} if self._under_way else set()
        waiting = [
            block
            for block in own.all_blocks()
            if block.columns is not None and id(block.columns) not in gone and block.live_count()
        ]
        if sum(block.nbytes for block in waiting) >= staging.STAGE_BYTES:
            for batch in bulk.batches(waiting):
                self._settle()
                self._stage(own, batch)
        if not self._is_behind:
            bulk.keep_in_memory(own)
        elif own not in self._loaded:
            self._loaded.append(own)

    def _stage(self, own: OwnRows, batch: Sequence[OwnBlock]) -> None:
        writes = self._writes
        env, table, lease = writes.env, own.table, writes.lease()

        def work(is_written: Callable[[], None]) -> list[OwnBlock]:
            return staging.stage_blocks(env, table, batch, lease, writes.staged_reader, is_written)

        if self._is_behind:
            self._worker = self._worker or _Worker()
            with contextlib.suppress(RuntimeError):  # no more threads, or the interpreter ends
                self._under_way = _UnderWay(own, batch, self._worker.start(work))
                return
            self._worker = None
        self._swap(own, batch, work(lambda: None))

    def _settle(self) -> None:
        """Wait for the staging under way, if any; its rows are on disk from then on."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            self._swap(under_way.own, under_way.batch, under_way.outcome.result())

    def _swap(self, own: OwnRows, batch: Sequence[OwnBlock], done: Sequence[OwnBlock]) -> None:
        swap = {id(block.columns): staged for block, staged in zip(batch, done, strict=True)}
        # rows and visibility stay the same, so this needs no undo
        own.blocks = tuple(_staged(block, swap.get(id(block.columns))) for block in own.blocks)
        for run in own.runs:
            if run.block is not None:
                run.block = _staged(run.block, swap.get(id(run.block.columns)))
        own.touch()
        self._writes.has_staged()


def _staged(block: OwnBlock, staged: OwnBlock | None) -> OwnBlock:
    """Return a block as it was staged, less the rows that died meanwhile."""
    return block if staged is None else dataclasses.replace(staged, dead=block.dead)


class _Worker:
    """A thread for one piece of work at a time; always the same, as its memory is warm."""

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(1, "tarsdb-stage")

    def start(self, work: Callable[[Callable[[], None]], T]) -> Future[T]:
        """Start work and return its outcome to come, once it waits for the disk or is done.

        Work calls its argument when only a commit is left. Before that it is Python's as the
        caller's work is, and while LMDB copies pages it needs a core: beside either the caller
        would gain nothing.
        """
        is_written = threading.Event()
        thread: list[int] = []

        def run() -> T:
            thread.append(threading.get_ident())
            try:
                return work(is_written.set)
            finally:
                is_written.set()

        outcome = self._pool.submit(run)
        is_written.wait()
        _wait_until_blocked(thread[0], outcome)
        return outcome

    def stop(self) -> None:
        """Wait for the work under way, Ctrl-C or not, and end the thread."""
        try:
            self._pool.shutdown()
        except BaseException:
            self._pool.shutdown()
            raise


def _wait_until_blocked(thread: int, outcome: Future[T]) -> None:
    """Return when a thread has used no time of a core for a while, or its work is done."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return
    clock, before = time.pthread_getcpuclockid(thread), -1.0
    while not outcome.done():
        now = time.clock_gettime(clock)
        if now == before:
            return
        before = now
        time.sleep(_POLL_S)
