"""One writer at a time: the queue of commits of this process, and group commit.

Every commit and every staging transaction takes a ticket. Tickets are served in order; the one
served leads: it takes the file's writer lock and runs its LMDB transaction in its own thread. It
also applies the changes queued behind it, in the same LMDB transaction and with one sync; each
keeps its own commit number and log entry. RELAXED commits are made alone, since a power loss may
take the last of them and no more. A change whose ``validate`` raises fails alone. When an ``apply``
raises, or space runs out, the transaction is aborted and all are done again one by one, so
``validate`` and ``apply`` can be called more than once.

A signal may raise in a leader between any two steps. Whether its transaction was committed is then
read from the file, so that no follower's change is made twice; steps in ``finally`` blocks can be
repeated, and are when a signal cut them short.

Knows nothing about what a change writes.
"""

from __future__ import annotations

import _thread
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import lmdb

from tarsdb.errors import InternalError, LockError, OperationalError, StorageFullError
from tarsdb.metrics import METRICS
from tarsdb.options import Durability
from tarsdb.storage import failpoints
from tarsdb.storage import head as head_record
from tarsdb.storage.lmdb_errors import convert
from tarsdb.storage.transaction import EngineFailure, WriteTxn
from tarsdb.storage.values import ValueType, pack

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

T = TypeVar("T")
_TO_JSON = json.JSONEncoder(separators=(",", ":")).encode
GROUP_ROWS = 1000
"""Rows of the commits that share a transaction: the writer is held some 10 ms for so many."""


class CommitInfo(NamedTuple):
    """What an acknowledged commit is known by."""

    number: int
    timestamp_us: int


class Change(Protocol):
    """What a transaction wants to write. Both methods can be called again after a rollback.

    A true attribute ``frees_space`` says that it removes more than it adds: it may use the part of
    the quota kept for that. ``rows``, 1 where absent, is how many rows it changes, about.
    """

    def validate(self, txn: WriteTxn) -> None:
        """Raise when the change cannot be applied to the state `txn` shows; write nothing."""

    def apply(self, txn: WriteTxn) -> None:
        """Write; ``txn.commit_number`` is the number being made."""

    def log(self) -> list[dict[str, Any]]:
        """Return what changed, JSON values, for the commit log."""


class _Ticket:
    __slots__ = (
        "attempt",
        "change",
        "durability",
        "error",
        "info",
        "is_leading",
        "is_queued",
        "wake",
    )

    def __init__(self, change: Change | None, durability: Durability) -> None:
        self.change = change
        self.durability = durability
        self.wake = _thread.allocate_lock()
        self.wake.acquire()
        self.is_leading = False
        self.is_queued = False
        self.attempt: CommitInfo | None = None  # its outcome if the transaction gets committed
        self.info: CommitInfo | None = None
        self.error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self.info is not None or self.error is not None

    @property
    def is_sharing(self) -> bool:
        return self.change is not None and self.durability is not Durability.RELAXED

    @property
    def rows(self) -> int:
        return getattr(self.change, "rows", 1)


class _ApplyFailed(Exception):
    """One change of several failed while writing; the transaction must be done again."""


class Committer:
    """The writer queue of one environment."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._mutex = threading.Lock()
        self._leader: _Ticket | None = None
        self._queue: deque[_Ticket] = deque()

    @property
    def is_busy(self) -> bool:
        """Whether a ticket is being served."""
        return self._leader is not None

    def commit(self, change: Change, durability: Durability, timeout_s: float) -> CommitInfo:
        """Validate and apply one change; return when it is as durable as asked."""
        ticket = _Ticket(change, durability)
        started = time.monotonic()
        try:
            self._serve(ticket, started, timeout_s)
        except BaseException as interrupt:
            if ticket.info is not None and not isinstance(interrupt, Exception):
                interrupt.args = (f"commit {ticket.info.number} was made before the interrupt",)
            raise
        if ticket.error is not None:
            raise ticket.error
        if ticket.info is None:
            raise InternalError(f"{self._env.path}: a commit ended without an outcome")
        return ticket.info

    def _serve(self, ticket: _Ticket, started: float, timeout_s: float) -> None:
        """See that a ticket gets its outcome, from this thread or from another leader."""
        try:
            self._wait_turn(ticket, started, timeout_s)
            if ticket.is_leading:
                self._lead(ticket, started, timeout_s)
        finally:
            try:
                self._pass_on(ticket)
            except BaseException:
                self._pass_on(ticket)
                raise

    def stage(self, work: Callable[[WriteTxn], T], timeout_s: float, frees_space: bool) -> T:
        """Run `work` in a write transaction of its own that makes no commit number."""
        ticket = _Ticket(None, Durability.RELAXED)
        started = time.monotonic()
        locks = self._env.locks
        try:
            self._wait_turn(ticket, started, timeout_s)
            try:
                locks.acquire_writer(timeout_s, started)
                return self._env.run_write(lambda txn: self._stage_once(txn, work), frees_space)
            except (EngineFailure, lmdb.Error, OSError) as error:
                raise outcome(error, self._env.path) from error
            finally:
                try:
                    locks.release_writer()
                except BaseException:
                    locks.release_writer()
                    raise
        finally:
            try:
                self._pass_on(ticket)
            except BaseException:
                self._pass_on(ticket)
                raise

    def _stage_once(self, txn: WriteTxn, work: Callable[[WriteTxn], T]) -> T:
        txn.is_staging = True
        result = work(txn)
        failpoints.hit("stage.before_commit")
        self._env.commit_lmdb(txn)
        failpoints.hit("stage.after_commit")
        METRICS.add("storage.stages")
        return result

    # --- the queue ---

    def _wait_turn(self, ticket: _Ticket, started: float, timeout_s: float) -> None:
        try:
            with self._mutex:
                if self._leader is None:
                    self._leader = ticket
                    ticket.is_leading = True
                    return
                ticket.is_queued = True
                self._queue.append(ticket)
            left = max(timeout_s - (time.monotonic() - started), 0.0)
            if ticket.wake.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                return
            with self._mutex:
                if ticket in self._queue:
                    self._queue.remove(ticket)
                    waited = time.monotonic() - started
                    raise LockError(
                        f"{self._env.path}: {len(self._queue) + 1} other threads of this process "
                        f"are writing; waited {waited:.1f} s",
                        hint="run the transaction again, or raise lock_timeout_s",
                    )
            ticket.wake.acquire()  # taken or leading by now: the outcome is near
        except Exception:
            raise
        except BaseException:  # Ctrl-C, or what another signal's handler raises
            self._withdraw(ticket)
            raise

    def _withdraw(self, ticket: _Ticket) -> None:
        """Leave the queue; when a leader has already taken the change, wait for its outcome."""
        with self._mutex:
            if ticket in self._queue:
                self._queue.remove(ticket)
                return
            if ticket.is_done or ticket is self._leader or not ticket.is_queued:
                return
        ticket.wake.acquire()

    def _pass_on(self, ticket: _Ticket) -> None:
        """Make the next in the queue the leader; called again it completes what was cut short."""
        with self._mutex:
            if self._leader is ticket:
                self._leader = self._queue[0] if self._queue else None
            leader = self._leader
            if leader is None or leader.is_leading:
                return
            if self._queue and self._queue[0] is leader:
                self._queue.popleft()
            leader.is_leading = True
            leader.wake.release()

    def _take_group(self, group: list[_Ticket]) -> None:
        """Move the tickets that may share the leader's transaction from the queue to its group."""
        if not group[0].is_sharing:
            return
        with self._mutex:
            room = GROUP_ROWS - group[0].rows
            for ticket in [each for each in self._queue if each.is_sharing]:
                if ticket.rows > room:
                    continue  # it leads when its turn comes
                room -= ticket.rows
                group.append(ticket)  # first: in both lists it is not lost, in neither it is
                self._queue.remove(ticket)

    # --- the leader ---

    def _lead(self, leader: _Ticket, started: float, timeout_s: float) -> None:
        locks = self._env.locks
        group = [leader]
        try:
            locks.acquire_writer(timeout_s, started)
            failpoints.hit("writer.taken")
            self._take_group(group)
            self._run_group(group)
        except Exception as error:  # each ticket gets its outcome; the leader raises its own
            self._fail(group, outcome(error, self._env.path))
        except BaseException:
            self._settle(group)
            raise
        finally:
            try:
                locks.release_writer()
                self._let_go(group)
            except BaseException:
                locks.release_writer()
                self._let_go(group)
                raise

    def _fail(self, group: list[_Ticket], error: BaseException) -> None:
        for ticket in group:
            if not ticket.is_done:
                ticket.error = error

    def _settle(self, group: list[_Ticket]) -> None:
        """After an interrupt, with the writer still held: give its outcome to what was committed.

        The number of an attempt is above the file's last commit unless the attempt made it.
        """
        tried = [ticket for ticket in group if ticket.attempt is not None and not ticket.is_done]
        if not tried:
            return
        with self._env.read() as txn:
            last = txn.commit_number
        made = [t for t in tried if t.attempt is not None and t.attempt.number <= last]
        try:
            if made and group[0].durability is not Durability.RELAXED:
                self._env.sync()
        except (OSError, lmdb.Error) as error:
            self._fail(made, unknown_outcome(self._env.path, last, error))
        for ticket in tried:
            if ticket.error is None and ticket in made:
                ticket.info = ticket.attempt
            ticket.attempt = None

    def _let_go(self, group: list[_Ticket]) -> None:
        """Wake followers that have an outcome; the others go back to the head of the queue."""
        with self._mutex:
            while len(group) > 1:
                ticket = group[-1]
                if not ticket.is_done and ticket.attempt is not None:  # interrupted twice
                    interrupt = KeyboardInterrupt("interrupted")
                    ticket.error = unknown_outcome(self._env.path, ticket.attempt.number, interrupt)
                if not ticket.is_done and ticket not in self._queue:
                    self._queue.appendleft(ticket)
                elif ticket.is_done and ticket.wake.locked():
                    ticket.wake.release()
                group.pop()

    def _run_group(self, group: list[_Ticket]) -> None:
        try:
            try:
                self._run(group)
            except StorageFullError as error:  # one too big for the space must not stop the others
                if len(group) == 1:
                    raise
                raise _ApplyFailed from error
        except _ApplyFailed:
            METRICS.add("storage.group_redone")
            for ticket in group:
                if not ticket.is_done:
                    self._run_alone(ticket)

    def _run_alone(self, ticket: _Ticket) -> None:
        try:
            self._run([ticket])
        except Exception as error:
            ticket.error = outcome(error, self._env.path)

    def _run(self, group: list[_Ticket]) -> None:
        """Apply tickets in one LMDB transaction; on return each has an outcome."""
        frees_space = all(getattr(ticket.change, "frees_space", False) for ticket in group)
        made = self._env.run_write(lambda txn: self._apply(txn, group), frees_space)
        if not made:
            return
        if group[0].durability is not Durability.RELAXED:
            try:
                self._env.sync()
            except (OSError, lmdb.Error) as error:
                raise unknown_outcome(self._env.path, made[-1][1].number, error) from error
        failpoints.hit("commit.after_sync")
        METRICS.add("storage.commits", len(made))
        for ticket, info in made:
            ticket.info = info

    def _apply(self, txn: WriteTxn, group: list[_Ticket]) -> list[tuple[_Ticket, CommitInfo]]:
        made: list[tuple[_Ticket, CommitInfo]] = []
        refused: list[tuple[_Ticket, Exception]] = []
        head = txn.head
        for ticket in group:
            ticket.attempt = None
            if ticket.is_done or ticket.change is None:
                continue
            txn.head = (head[0] + 1, max(time.time_ns() // 1000, head[1] + 1), head[2])
            try:
                ticket.change.validate(txn)
            except EngineFailure:
                raise
            except Exception as error:
                txn.head = head
                refused.append((ticket, error))
                continue
            info = CommitInfo(txn.commit_number, txn.timestamp_us)
            self._write_one(txn, ticket.change, info, alone=len(group) == 1)
            made.append((ticket, info))
            head = txn.head
        if made:
            txn.put("meta", head_record.KEY, head_record.encode(head))
            failpoints.hit("commit.before_sync")
            for ticket, info in made:
                ticket.attempt = info
            self._env.commit_lmdb(txn)
            failpoints.hit("commit.after_write")
        for ticket, reason in refused:
            ticket.error = reason
        return made

    def _write_one(self, txn: WriteTxn, change: Change, info: CommitInfo, alone: bool) -> None:
        try:
            failpoints.hit("commit.before_apply")
            change.apply(txn)
            entry = {"time": info.timestamp_us, "changes": change.log()}
            key = info.number.to_bytes(8, "big")
            payload = _TO_JSON(entry).encode()
            value = pack(ValueType.COMMIT, key, payload, 1, info.number)
            txn.put("commits", key, value, append=True)
            failpoints.hit("commit.after_apply")
        except EngineFailure:
            raise
        except Exception as error:
            if alone:
                raise
            raise _ApplyFailed from error


def outcome(error: Exception, path: str) -> Exception:
    """Return what the committer's caller sees: foreign errors converted, a change's own kept."""
    if isinstance(error, EngineFailure):
        return convert(error.error, path)
    return convert(error, path) if isinstance(error, (lmdb.Error, OSError)) else error


def unknown_outcome(path: str, number: int, error: BaseException) -> OperationalError:
    """Return the error of a commit that may or may not be there after a restart."""
    return OperationalError(
        f"{path}: commit {number} was written but could not be made durable: {error}",
        hint="its outcome is unknown: read the rows back before doing it again",
    )
