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
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from tarsdb.storage import bulk, staging
from tarsdb.storage.own_rows import OwnBlock, OwnRows

if TYPE_CHECKING:
    from tarsdb.storage.writes import WriteSet


class Spill:
    """The way to disk of one write set; used by one thread at a time."""

    def __init__(self, writes: WriteSet) -> None:
        self._writes = writes
        self._is_behind = False
        self._loaded: list[OwnRows] = []
        self._under_way: tuple[OwnRows, Sequence[OwnBlock], _Behind] | None = None

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
            self._is_behind = False
            self._loaded = []
            self.abandon()

    def added(self, own: OwnRows) -> None:
        """Stage the rows of a table that wait once there are enough; keep the others.

        Raises
        ------
        StorageFullError, LockError, OperationalError
            This or the staging before it failed; the rows of both are still in memory.
        """
        gone = {id(block.columns) for block in self._under_way[1]} if self._under_way else set()
        waiting = [
            block
            for block in own.blocks
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

    def abandon(self) -> None:
        """Wait for the staging under way and forget it, whatever its outcome."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way[2].wait()

    def _stage(self, own: OwnRows, batch: Sequence[OwnBlock]) -> None:
        writes = self._writes
        env, table, lease = writes.env, own.table, writes.lease()

        def work(is_written: Callable[[], None]) -> list[OwnBlock]:
            return staging.stage_blocks(env, table, batch, lease, writes.staged_reader, is_written)

        if not self._is_behind:
            self._swap(own, batch, work(lambda: None))
            return
        self._under_way = own, batch, _Behind(work)
        self._under_way[2].start()

    def _settle(self) -> None:
        """Wait for the staging under way, if any; its rows are on disk from then on."""
        if self._under_way is not None:
            own, batch, behind = self._under_way
            done = behind.result()
            self._under_way = None
            self._swap(own, batch, done)

    def _swap(self, own: OwnRows, batch: Sequence[OwnBlock], done: Sequence[OwnBlock]) -> None:
        swap = {id(block.columns): staged for block, staged in zip(batch, done, strict=True)}
        # rows and visibility stay the same, so this needs no undo
        own.blocks = tuple(_staged(block, swap.get(id(block.columns))) for block in own.blocks)
        own.touch()
        self._writes.has_staged()


def _staged(block: OwnBlock, staged: OwnBlock | None) -> OwnBlock:
    """Return a block as it was staged, less the rows that died meanwhile."""
    return block if staged is None else dataclasses.replace(staged, dead=block.dead)


class _Behind:
    """One piece of work in a thread; `start` returns when it says that only the disk is left."""

    def __init__(self, work: Callable[[Callable[[], None]], list[OwnBlock]]) -> None:
        self._work = work
        self._is_written = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tarsdb-stage")
        self._done: list[OwnBlock] = []
        self._error: BaseException | None = None

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self._run()
        # the rest of the work is Python's too: two threads would only wait for each other
        self._is_written.wait()

    def _run(self) -> None:
        try:
            self._done = self._work(self._is_written.set)
        except BaseException as error:
            self._error = error
        finally:
            self._is_written.set()

    def wait(self) -> None:
        """Return when the thread has ended, Ctrl-C or not."""
        if self._thread.ident is None:  # never started, or Ctrl-C came just then: see Lease.hold
            return
        try:
            self._thread.join()
        except BaseException:
            self._thread.join()
            raise

    def result(self) -> list[OwnBlock]:
        self.wait()
        if self._error is not None:
            raise self._error
        return self._done
