"""The open file: one environment per inode and process, shared by all connections.

LMDB forbids opening a file twice in one process, so `Environment.open` hands out one reference-
counted object per (device, inode). LMDB runs with ``metasync=False``: a commit syncs the data
before it writes the meta page, and the committer adds a second sync for the durabilities that
promise one. Never ``sync=False``, never ``writemap``.

Knows transactions, locks and recovery of the environment; what the keys mean is the business of the
layers above.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import lmdb

from tarsdb.errors import (
    ForkedProcessError,
    InterfaceError,
    OperationalError,
    ReadOnlyError,
    StorageFullError,
)
from tarsdb.metrics import METRICS
from tarsdb.options import Durability, OpenOptions
from tarsdb.storage import failpoints, filesystems, forking, opening, space, verify
from tarsdb.storage import head as head_record
from tarsdb.storage.committer import Change, CommitInfo, Committer
from tarsdb.storage.leases import Lease
from tarsdb.storage.lmdb_errors import convert
from tarsdb.storage.locks import FileLocks
from tarsdb.storage.reader_watch import ReaderWatch
from tarsdb.storage.transaction import EngineFailure, ReaderSlot, ReadTxn, WriteTxn

T = TypeVar("T")
_QUIESCE_S = 2.0
_RETRIES = 6

_registry: dict[tuple[int, int], Environment] = {}
_inherited: dict[tuple[int, int], Environment] = {}
_registry_lock = threading.RLock()


class Environment:
    """One open data file; thread-safe. Use `Environment.open` and `release`.

    Attributes
    ----------
    options : OpenOptions
    path : str
    read_only : bool
    file_id : bytes
        16 random bytes given at creation.
    page_size : int
        Of the file, in bytes.
    epoch : int
        Grows whenever the map moves: cached addresses of an older epoch are dead.
    caches : dict
        Process-wide caches of the layers above; cleared when the epoch grows and on close.
    retry_gate : Lock
        Held by whoever runs again after a conflict; others let it through first.
    merging, id_lock : Lock
        For the layers above: one merge at a time, one reservation of object ids at a time.
    abandoned : set of bytes
        Tokens of leases that could not be released; the next vacuum does it.
    """

    def __init__(self, path: str, options: OpenOptions, opened: opening.Opened) -> None:
        self.path = path
        self.options = options
        self.read_only = options.read_only
        self.epoch = 1
        self.caches: dict[str, Any] = {}
        self.retry_gate = threading.Lock()
        self.parking = threading.RLock()  # a collected transaction may end under it
        self.merging = threading.Lock()
        self.id_lock = threading.Lock()
        self.abandoned: set[bytes] = set()
        self._references = 1
        self._is_closed = False
        self._pid = os.getpid()
        self.is_detached = False
        self._key = opened.inode
        self._fd = opened.fd
        self.locks: FileLocks = opened.locks
        self.file_id = opened.file_id
        self._committer = Committer(self)
        self._live: set[weakref.ref[ReaderSlot]] = set()
        self.forget: Callable[[weakref.ref[ReaderSlot]], None] = self._live.discard
        self._writing: set[object] = set()
        self._moving = threading.RLock()
        self._gate: threading.Event | None = None
        self._seen: tuple[bytes, head_record.Head] = (b"", (0, 0, 0))
        self._use(opened.lmdb_env, opened.databases)
        self._watch = ReaderWatch(self)

    def _use(self, lmdb_env: Any, databases: dict[str, Any]) -> None:
        self._lmdb = lmdb_env
        self._begin: Callable[..., Any] = lmdb_env.begin
        self._map_size: int = lmdb_env.info()["map_size"]
        self.page_size: int = lmdb_env.stat()["psize"]
        self.databases = databases

    # --- opening and closing ---

    @classmethod
    def open(cls, path: str | os.PathLike[str], options: OpenOptions | None = None) -> Environment:
        """Open a data file, or share it when this process has it open already.

        Raises
        ------
        OperationalError
            The file is missing and must not be created, is on a remote filesystem, or is open in
            another process namespace.
        DatabaseError
            It is not a tarsdb file; `FormatVersionError` and `CorruptionError` say more.
        """
        options = options or OpenOptions()
        path = os.path.realpath(os.fspath(path))  # LMDB names its lock file after the path
        with _registry_lock:
            shared = cls._shared(path)
            if shared is not None:
                return shared._join(options)
            _require_detached(path)
            opened = opening.open_file(path, options)
            env = cls(path, options, opened)
            _registry[env._key] = env
        return env

    @staticmethod
    def _shared(path: str) -> Environment | None:
        inode = _inode(path)
        return None if inode is None else _registry.get(inode)

    def _join(self, options: OpenOptions) -> Environment:
        if self.read_only and not options.read_only:
            self._reopen(options)
        self._begin = self._lmdb.begin
        self._references += 1
        if options.check:
            try:
                self.check_structure()
            except BaseException:
                self._references -= 1
                raise
        return self

    def retain(self) -> bool:
        """Take one more reference, for a thread that outlives its caller; False when closed."""
        with _registry_lock:
            if self._references == 0 or self._pid != os.getpid():
                return False
            self._references += 1
            return True

    def release(self) -> None:
        """Give back one reference.

        The last one closes the file, or, while transactions are still open, leaves that to the last
        of them: closing unmaps the pages their views show.
        """
        with _registry_lock:
            if self._pid != os.getpid() or self._references == 0:
                return
            self._references -= 1
            self._close_if_unused()

    def close_if_dropped(self) -> None:
        """Close when the last reader of a released environment was dropped unclosed."""
        # not waiting: whoever holds the lock may be waiting for this thread to end
        if self._references == 0 and _registry_lock.acquire(blocking=False):
            try:
                self._close_if_unused()
            finally:
                _registry_lock.release()

    def _close_if_unused(self) -> None:
        with _registry_lock:
            if self._references or self._is_closed:
                return
            # first: a thread about to begin either is among the live ones below, or is refused
            self._begin = _refuse_closed
            if self._live or self._writing:
                return
            self._is_closed = True
            _registry.pop(self._key, None)
            self._watch.stop()
            self.caches.clear()
            with self._moving:
                self._lmdb.close()
            os.close(self._fd)

    # --- reading ---

    def read(self) -> ReadTxn:
        """Begin a read transaction on the latest commit."""
        slot = ReaderSlot(self.forget)
        try:
            txn = self.enter(slot)
            raw = txn.get(head_record.KEY, None, self.databases["meta"])
            seen = self._seen
            head = seen[1] if raw == seen[0] else self._read_head(raw)
            return ReadTxn(self, txn, slot, head, self.epoch)
        except BaseException as error:
            self.leave(slot)
            return self._read_again(error)

    def enter(self, slot: ReaderSlot) -> Any:
        """Begin LMDB's transaction of a slot, which `leave` ends, also where this failed."""
        if self._pid != os.getpid():
            self._refuse_fork()
        slot.born = time.monotonic()
        self._live.add(slot.ref)
        if self._gate is not None:
            self._pass_gate(slot.ref)
        txn = slot.txn = self._begin(None, None, False, True)
        return txn

    def _read_head(self, raw: memoryview | None) -> head_record.Head:
        copy = None if raw is None else bytes(raw)
        head = head_record.decode(copy, self.path)
        self._seen = (copy or b"", head)
        return head

    def _read_again(self, error: BaseException) -> ReadTxn:
        if isinstance(error, (lmdb.MapResizedError, lmdb.PanicError, lmdb.ReadersFullError)):
            self._recover(error)
            return self.read()
        if isinstance(error, lmdb.Error):
            raise convert(error, self.path) from error
        raise error

    def leave(self, slot: ReaderSlot) -> None:
        """End the transaction of a slot, if there is one."""
        if self._pid != os.getpid():
            return  # the parent's transaction: not ours to end
        if slot.expired or slot.parked is not None:
            with self.parking:
                txn, slot.txn = slot.txn, None
        else:
            txn, slot.txn = slot.txn, None
        if txn is not None:
            txn.abort()
        self._live.discard(slot.ref)
        if self._references == 0:
            self._close_if_unused()

    def _pass_gate(self, ref: weakref.ref[ReaderSlot]) -> None:
        while (gate := self._gate) is not None:
            self._live.discard(ref)
            gate.wait()
            self._live.add(ref)

    def forget_reader(self, slot: ReaderSlot) -> None:
        """Take note that a transaction was ended from outside."""
        self._live.discard(slot.ref)

    def live_readers(self) -> list[ReaderSlot]:
        """Return the slots of this process's read transactions."""
        return [slot for ref in list(self._live) if (slot := ref()) is not None]

    # --- writing ---

    def commit(
        self,
        change: Change,
        durability: Durability | None = None,
        timeout_s: float | None = None,
    ) -> CommitInfo:
        """Make one commit; returns when it is as durable as asked.

        Parameters
        ----------
        change : Change
        durability : Durability, optional
            The environment's by default.
        timeout_s : float, optional
            How long to wait for other writers; ``lock_timeout_s`` by default.

        Raises
        ------
        LockError
            Another thread or process wrote for longer than the timeout.
        StorageFullError
            Disk or quota; nothing was written.
        """
        self._require_writable()
        timeout_s = self.options.lock_timeout_s if timeout_s is None else timeout_s
        token = object()  # keeps the file open, whoever gives back the last reference
        try:
            self._writing.add(token)
            self._require_open()
            return self._committer.commit(change, durability or self.options.durability, timeout_s)
        finally:
            self._writing.discard(token)
            if self._references == 0:
                self._close_if_unused()

    def stage(
        self,
        work: Callable[[WriteTxn], T],
        timeout_s: float | None = None,
        *,
        frees_space: bool = False,
    ) -> T:
        """Run `work` in a write transaction without a commit number; return its result.

        For data no commit refers to yet, merges and collections. It is as durable as the next
        commit. `work` may be called again after a rollback; it should write at most 32 MB. With
        ``frees_space`` it may use the part of the quota kept for that.
        """
        self._require_writable()
        timeout_s = self.options.lock_timeout_s if timeout_s is None else timeout_s
        token = object()
        try:
            self._writing.add(token)
            self._require_open()
            return self._committer.stage(work, timeout_s, frees_space)
        finally:
            self._writing.discard(token)
            if self._references == 0:
                self._close_if_unused()

    def _require_open(self) -> None:
        if self._begin is _refuse_closed:
            _refuse_closed()

    def run_write(self, run: Callable[[WriteTxn], T], frees_space: bool = False) -> T:
        """Run one LMDB write transaction; the committer calls this with the writer lock held."""
        turned = False
        for _ in range(_RETRIES):
            try:
                return self._write_once(run, frees_space)
            except (EngineFailure, StorageFullError) as failure:
                error = failure.error if isinstance(failure, EngineFailure) else failure
                if not self._is_out_of_space(error):
                    self._recover(error)
                elif turned:
                    raise convert(error, self.path) from failure
                else:
                    turned = True
                    self._turn_over()
        raise OperationalError(f"{self.path}: recovered {_RETRIES} times without success")

    def _is_out_of_space(self, error: BaseException) -> bool:
        if isinstance(error, lmdb.MapFullError):
            return opening.larger_map(self._map_size, self.options) is None
        return isinstance(error, StorageFullError)

    def _turn_over(self) -> None:
        """Make an LMDB commit that changes nothing: pages freed by the last one become usable."""
        with contextlib.suppress(lmdb.Error), self._begin(None, None, True, True) as txn:
            raw = bytes(txn.get(head_record.KEY, b"", self.databases["meta"]))
            txn.put(head_record.KEY, raw, True, True, False, self.databases["meta"])

    def _write_once(self, run: Callable[[WriteTxn], T], frees_space: bool) -> T:
        try:
            raw_txn = self._begin(None, None, True, True)
        except lmdb.Error as error:
            raise EngineFailure(error) from error
        try:
            raw = raw_txn.get(head_record.KEY, None, self.databases["meta"])
            head = head_record.decode(None if raw is None else bytes(raw), self.path)
            txn = WriteTxn(self, raw_txn, ReaderSlot(self.forget), head, self.epoch)
            txn.frees_space = frees_space
            try:
                return run(txn)
            finally:
                txn.retire()
        finally:
            raw_txn.abort()  # does nothing after a commit
            if self._map_size < self.options.map_size_bytes:
                self._grow_early()

    def commit_lmdb(self, txn: WriteTxn) -> None:
        """Commit the LMDB transaction: its data is synced, then its meta page is written."""
        if not txn.frees_space:
            self._require_space(txn)
        try:
            txn._txn.commit()
        except lmdb.Error as error:
            if isinstance(error, (lmdb.MapFullError, lmdb.PanicError)):
                raise EngineFailure(error) from error
            if space.looks_full(self._fd):
                raise StorageFullError(
                    f"{self.path}: the disk is full ({error})",
                    hint="free disk space and run it again; nothing was written",
                ) from error
            raise

    def _require_space(self, txn: WriteTxn) -> None:
        is_low = space.is_nearly_full(self._fd)
        if self.options.max_size_bytes is None and not is_low:
            return
        stats = [self._lmdb.stat(), *(txn.stat(name) for name in self.databases)]
        used = space.used_bytes(stats)
        space.require_quota(self.path, self.options, used)
        if is_low:
            space.require_room(self.path, self.size_bytes(), used)

    def sync(self) -> None:
        """Make the meta page of the last commit durable."""
        filesystems.sync_data(self._fd)

    def _require_writable(self) -> None:
        if self._pid != os.getpid():
            self._refuse_fork()
        if self.read_only:
            raise ReadOnlyError(f"{self.path}: opened read-only")

    def _refuse_fork(self) -> None:
        found = f"opened by process {self._pid}, used in its fork {os.getpid()}"
        raise ForkedProcessError(f"{self.path}: {found}", hint="open it again in the child process")

    @property
    def is_inherited(self) -> bool:
        """Whether another process opened this, and this one is its fork."""
        return self._pid != os.getpid()

    @property
    def is_writing(self) -> bool:
        """Whether a thread of this process holds or awaits the writer."""
        return self._committer.is_busy

    # --- recovery ---

    def _recover(self, error: BaseException) -> None:
        """Make the environment usable after `error`, or raise its tarsdb error."""
        if isinstance(error, lmdb.ReadersFullError):
            if self._lmdb.reader_check() == 0:
                raise OperationalError(
                    f"{self.path}: all {opening.MAX_READERS} reader slots are in use"
                ) from error
        elif isinstance(error, lmdb.MapResizedError):
            quota = self.options.max_size_bytes
            self._remap(0 if quota is None else opening.first_map_size(self.path, self.options))
        elif isinstance(error, lmdb.PanicError):
            self._reopen(self.options)
        elif isinstance(error, lmdb.MapFullError):
            self._grow(error)
        else:
            raise convert(error, self.path) from error

    def _remap(self, size: int, wait_s: float = _QUIESCE_S) -> None:
        with self._quiesced("remap", wait_s):
            try:
                self._lmdb.set_mapsize(size)
            except lmdb.Error as error:
                raise convert(error, self.path) from error
            self._moved()
            self._map_size = self._lmdb.info()["map_size"]

    def _grow_early(self) -> None:
        """Enlarge a map that is half full while nobody reads: later a reader may be in the way."""
        info = self._lmdb.info()
        size = opening.larger_map(self._map_size, self.options)
        used = info["last_pgno"] * self.page_size
        if size is None or self._live or used * 2 < self._map_size:
            return
        with contextlib.suppress(OperationalError):
            self._remap(size, wait_s=0.0)

    def _grow(self, error: BaseException) -> None:
        size = opening.larger_map(self._lmdb.info()["map_size"], self.options)
        if size is None:
            raise convert(error, self.path) from error
        try:
            self._remap(size)
        except OperationalError:
            raise convert(error, self.path) from error

    def _reopen(self, options: OpenOptions) -> None:
        with self._quiesced("reopen", _QUIESCE_S):
            METRICS.add("storage.reopens")
            self.caches.clear()
            self._lmdb.close()
            failpoints.hit("reopen.before_open")
            if _inode(self.path) != self._key:
                raise OperationalError(f"{self.path}: the file was replaced while it was open")
            self._use(*opening.open_lmdb(self.path, options))
            self.options, self.read_only = options, options.read_only
            self._moved()

    def _moved(self) -> None:
        self.epoch += 1
        self.caches.clear()

    @contextlib.contextmanager
    def _quiesced(self, purpose: str, timeout_s: float) -> Iterator[None]:
        """Hold new read transactions back and wait until none is live."""
        with self._moving:
            gate = self._gate = threading.Event()
            try:
                deadline = time.monotonic() + timeout_s
                while self._live:
                    if time.monotonic() >= deadline:
                        raise OperationalError(
                            f"{self.path}: cannot {purpose} while {len(self._live)} read "
                            f"transactions are open; waited {timeout_s:g} s",
                            hint="close cursors and transactions, then try again",
                        )
                    time.sleep(0.001)
                yield
            finally:
                self._gate = None
                gate.set()

    # --- care ---

    def lease(self) -> Lease:
        """Return a new claim of this process on staged data; see `leases.Lease`."""
        self._require_writable()
        return Lease(self)

    def copy(self, path: str | os.PathLike[str]) -> None:
        """Write a consistent copy, free pages included; `path` must not exist."""
        with self.read():
            opening.copy_file(self._lmdb, self.path, os.path.abspath(os.fspath(path)))

    def open_again(self) -> int:
        """Return another descriptor of the data file, the caller's to close; OSError."""
        return filesystems.open_again(self._fd, self.path)

    def size_bytes(self) -> int:
        """Return the size of the data file."""
        return os.fstat(self._fd).st_size

    def reader_check(self) -> int:
        """Clear reader slots of dead processes; return how many there were."""
        with self._moving:
            return 0 if self._is_closed else int(self._lmdb.reader_check())

    def check_structure(self) -> None:
        """Verify pages and trees of the file, with the writer held; raise CorruptionError."""
        if self.read_only:
            opening.check_beside_others(self.path, self.locks, self.options.lock_timeout_s, None)
        else:
            self.stage(lambda _: verify.check_structure(self.path, limit_s=None))

    def stat(self) -> dict[str, int]:
        """Return sizes and counts: map, file, pages in use, readers, entries per database."""
        info = self._lmdb.info()
        found = {
            "map_size": info["map_size"],
            "file_size": self.size_bytes(),
            "used_bytes": (info["last_pgno"] + 1) * self.page_size,
            "readers": info["num_readers"],
            "live_readers": len(self._live),
        }
        with self.read() as txn:
            for name in self.databases:
                found[f"entries_{name}"] = txn.count(name)
        return found


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _after_fork_in_child() -> None:
    """Disown what the parent has open, before anything can touch it."""
    global _registry_lock
    _registry_lock = threading.RLock()  # another thread of the parent may have held the old one
    if not _registry:
        return
    are_apart = forking.tell_files_apart()
    for env in _registry.values():
        env.is_detached = forking.detach_lock_file(env.path) and are_apart
        forking.keep_for_ever(env._lmdb)
        forking.close_quietly(env._fd)
    _inherited.update(_registry)
    _registry.clear()


def _require_detached(path: str) -> None:
    """Raise when the parent's environment keeps this child from opening the file."""
    env = _inherited.get(_inode(path) or (0, 0))
    if env is not None and not env.is_detached:
        raise ForkedProcessError(f"{path}: {forking.IS_OPEN}", hint=forking.INSTEAD)


os.register_at_fork(after_in_child=_after_fork_in_child)


def _refuse_closed(*_: object) -> NoReturn:
    raise InterfaceError("the database is closed")
