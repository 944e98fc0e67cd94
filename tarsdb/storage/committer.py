"""One writer at a time: the queue of commits of this process, and group commit.

Every commit and every staging transaction takes a ticket. Tickets are served in order; the one
served leads: it takes the file's writer lock and runs its LMDB transaction in its own thread. A
leader with durability GROUP also applies the GROUP changes queued behind it, in the same LMDB
transaction and with one sync; each keeps its own commit number and log entry. A change whose
``validate`` raises fails alone. When an ``apply`` raises the transaction is aborted and the others
are done again one by one, so ``validate`` and ``apply`` can be called more than once.

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

from tarsdb.errors import InternalError, LockError, OperationalError
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
MAX_GROUP = 256


class CommitInfo(NamedTuple):
    """What an acknowledged commit is known by."""

    number: int
    timestamp_us: int


class Change(Protocol):
    """What a transaction wants to write. Both methods can be called again after a rollback."""

    def validate(self, txn: WriteTxn) -> None:
        """Raise when the change cannot be applied to the state `txn` shows; write nothing."""

    def apply(self, txn: WriteTxn) -> None:
        """Write; ``txn.commit_number`` is the number being made."""

    def log(self) -> list[dict[str, Any]]:
        """Return what changed, JSON values, for the commit log."""


class _Ticket:
    __slots__ = ("change", "durability", "error", "info", "is_leading", "is_taken", "wake")

    def __init__(self, change: Change | None, durability: Durability) -> None:
        self.change = change
        self.durability = durability
        self.wake = _thread.allocate_lock()
        self.wake.acquire()
        self.is_leading = False
        self.is_taken = False
        self.info: CommitInfo | None = None
        self.error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self.info is not None or self.error is not None


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
            self._wait_turn(ticket, started, timeout_s)
            if ticket.is_leading:
                self._lead(ticket, started, timeout_s)
        finally:
            self._pass_on(ticket)
        if ticket.error is not None:
            raise ticket.error
        if ticket.info is None:
            raise InternalError(f"{self._env.path}: a commit ended without an outcome")
        return ticket.info

    def stage(self, work: Callable[[WriteTxn], T], timeout_s: float) -> T:
        """Run `work` in a write transaction of its own that makes no commit number."""
        ticket = _Ticket(None, Durability.RELAXED)
        started = time.monotonic()
        locks = self._env.locks
        try:
            self._wait_turn(ticket, started, timeout_s)
            try:
                locks.acquire_writer(timeout_s, started)
                return self._env.run_write(lambda txn: self._stage_once(txn, work))
            finally:
                locks.release_writer()
        finally:
            self._pass_on(ticket)

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
        with self._mutex:
            if self._leader is None:
                self._leader = ticket
                ticket.is_leading = True
                return
            self._queue.append(ticket)
        try:
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
        except KeyboardInterrupt as interrupt:
            self._withdraw(ticket, interrupt)
            raise

    def _withdraw(self, ticket: _Ticket, interrupt: KeyboardInterrupt) -> None:
        """Leave the queue; when a leader has already taken the change, wait for its outcome."""
        with self._mutex:
            if ticket in self._queue:
                self._queue.remove(ticket)
                return
            if ticket.is_leading or ticket.is_done:
                return
        ticket.wake.acquire()
        if ticket.info is not None:
            interrupt.args = (f"commit {ticket.info.number} was made before the interrupt",)

    def _pass_on(self, ticket: _Ticket) -> None:
        with self._mutex:
            if self._leader is not ticket:
                return
            self._leader = self._queue.popleft() if self._queue else None
            if self._leader is not None:
                self._leader.is_leading = True
                self._leader.wake.release()

    def _take_group(self, leader: _Ticket) -> list[_Ticket]:
        if leader.durability is not Durability.GROUP:
            return [leader]
        with self._mutex:
            group = [t for t in self._queue if t.durability is Durability.GROUP and t.change]
            del group[MAX_GROUP - 1 :]
            for ticket in group:
                ticket.is_taken = True
                self._queue.remove(ticket)
        return [leader, *group]

    # --- the leader ---

    def _lead(self, leader: _Ticket, started: float, timeout_s: float) -> None:
        locks = self._env.locks
        group = [leader]
        try:
            locks.acquire_writer(timeout_s, started)
            group = self._take_group(leader)
            self._run_group(group)
        except Exception as error:  # each ticket gets its outcome; the leader raises its own
            self._fail(group, outcome(error, self._env.path))
        except BaseException as interrupt:
            self._give_back(group[1:])
            self._env.note_interrupt(interrupt, leader.info)
            raise
        finally:
            locks.release_writer()
            for ticket in group[1:]:
                if ticket.is_done:
                    ticket.wake.release()

    def _fail(self, group: list[_Ticket], error: BaseException) -> None:
        for ticket in group:
            if not ticket.is_done:
                ticket.error = error

    def _give_back(self, group: list[_Ticket]) -> None:
        with self._mutex:
            for ticket in reversed(group):
                if not ticket.is_done:
                    ticket.is_taken = False
                    self._queue.appendleft(ticket)

    def _run_group(self, group: list[_Ticket]) -> None:
        try:
            self._run(group)
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
        made = self._env.run_write(lambda txn: self._apply(txn, group))
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
            payload = json.dumps(entry, separators=(",", ":")).encode()
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
