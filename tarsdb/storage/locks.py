"""Byte-range locks on the data file: who has it open, who writes, who writes next.

The locks are open-file-description locks on descriptors of our own, single bytes far beyond any
data. They are seen by every process on the machine, whatever its process namespace, are released by
the kernel when the process dies, and do not touch LMDB's ``-lock`` file. Where the platform has no
such locks one ``flock`` serves as the writer lock, and exclusive opening cannot be detected.

===========  ==================================================================
open         shared by every opener for its life; exclusive while opening alone
writer       held from before a write transaction begins until it is durable
next         a turnstile: held by the one process whose turn to write is next
namespace    shared; one of many bytes, chosen by the opener's process namespace
use          one of many bytes, chosen by a name: shared by who uses what has that
             name, exclusive for who makes it or takes it away; see `UseLocks`
===========  ==================================================================

Knows nothing about LMDB.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import time

from tarsdb.errors import LockError

_BASE = 1 << 62
_OPEN, _WRITER, _NEXT = _BASE, _BASE + 1, _BASE + 2
_FLOCK = struct.Struct("hhqqi4x")
_BUSY = (errno.EAGAIN, errno.EACCES)
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.0002, 0.002

HAS_OFD = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")


_NAMESPACES, _NAMESPACE_COUNT = _BASE + (1 << 20), 1 << 40
_USES, _USE_COUNT = _BASE + (1 << 41), 1 << 60


def _request(kind: int, byte: int, size: int = 1) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, size, 0)


_TAKE_NEXT = _request(fcntl.F_WRLCK, _NEXT)
_DROP_NEXT = _request(fcntl.F_UNLCK, _NEXT)
_TAKE_WRITER = _request(fcntl.F_WRLCK, _WRITER)
_DROP_WRITER = _request(fcntl.F_UNLCK, _WRITER)
_OPEN_SHARED = _request(fcntl.F_RDLCK, _OPEN)
_OPEN_EXCLUSIVE = _request(fcntl.F_WRLCK, _OPEN)


class FileLocks:
    """The locks of one open data file; owns nothing but the use of `fd`.

    Parameters
    ----------
    fd : int
        Descriptor of the data file, kept open by the caller as long as locks are held.
    path : str
        Named in errors.
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        # the kernel grants an exclusive lock only to a descriptor that may write
        self.is_writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY

    def _try(self, request: bytes) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

    def _poll(self, request: bytes, started: float, timeout_s: float, busy: str) -> None:
        pause = _FIRST_PAUSE_S
        while not self._try(request):
            waited = time.monotonic() - started
            if waited >= timeout_s:
                raise LockError(
                    f"{self._path}: {busy}; waited {waited:.1f} s",
                    hint="run the transaction again, or raise lock_timeout_s",
                )
            time.sleep(min(pause, max(timeout_s - waited, 0.0)))
            pause = min(pause * 1.5, _LAST_PAUSE_S)

    def try_open_exclusive(self) -> bool:
        """Return True when nobody else has the file open; then hold it exclusively."""
        if not HAS_OFD:
            return True
        try:
            return self._try(_OPEN_EXCLUSIVE)
        except OSError as error:
            if error.errno == errno.EBADF:  # a descriptor without write permission
                return False
            raise

    def open_shared(self, timeout_s: float) -> None:
        """Become one of the openers; also turns an exclusive hold into a shared one."""
        if HAS_OFD:
            busy = "another process is opening or checking it"
            self._poll(_OPEN_SHARED, time.monotonic(), timeout_s, busy)

    def is_alone(self) -> bool:
        """Return True when no other descriptor holds the open byte at this moment."""
        if not HAS_OFD:
            return False
        reply = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _OPEN_EXCLUSIVE)
        return bool(_FLOCK.unpack(reply)[0] == fcntl.F_UNLCK)

    def join_namespace(self, namespace: int) -> bool:
        """Say which process namespace this opener is in; return False when another's is open.

        LMDB tells dead readers by process id, which means nothing across namespaces.
        """
        if not HAS_OFD:
            return True
        mine = _NAMESPACES + namespace % _NAMESPACE_COUNT
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _request(fcntl.F_RDLCK, mine))
        below = (_NAMESPACES, mine - _NAMESPACES)
        above = (mine + 1, _NAMESPACES + _NAMESPACE_COUNT - mine - 1)
        for start, size in (below, above):
            if size > 0:
                query = _request(fcntl.F_WRLCK, start, size)
                reply = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, query)
                if _FLOCK.unpack(reply)[0] != fcntl.F_UNLCK:
                    return False
        return True

    def acquire_writer(self, timeout_s: float, started: float | None = None) -> None:
        """Wait for the writer lock, in turn with other processes; Ctrl-C interrupts the wait.

        Parameters
        ----------
        timeout_s : float
        started : float, optional
            ``time.monotonic()`` at which the caller began to wait.

        Raises
        ------
        LockError
            It was not free within the timeout; the message names the seconds waited.
        """
        started = time.monotonic() if started is None else started
        busy = "another process holds the writer lock"
        if not HAS_OFD:
            self._poll_flock(started, timeout_s, busy)
            return
        try:
            self._poll(_TAKE_NEXT, started, timeout_s, busy)
            self._poll(_TAKE_WRITER, started, timeout_s, busy)
        finally:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _DROP_NEXT)

    def release_writer(self) -> None:
        """Release the writer lock; harmless when it is not held."""
        if HAS_OFD:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _DROP_WRITER)
        else:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _poll_flock(self, started: float, timeout_s: float, busy: str) -> None:
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                waited = time.monotonic() - started
                if waited >= timeout_s:
                    raise LockError(f"{self._path}: {busy}; waited {waited:.1f} s") from error
                time.sleep(_LAST_PAUSE_S)


class UseLocks:
    """Which named things in the file this process uses; owns a descriptor, and closes it.

    Names may collide: then one thing counts as used because another is.

    Parameters
    ----------
    fd : int
        Of the data file and of no other user, since locks of one descriptor do not exclude
        each other. Open for writing where `exclude` is called.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def share(self, name: bytes) -> bool:
        """Use a thing, exclusive hold or none before; False when somebody makes or removes it."""
        return self._try(fcntl.F_RDLCK, name)

    def exclude(self, name: bytes) -> bool:
        """Keep others from using a thing; False when one does."""
        return self._try(fcntl.F_WRLCK, name)

    def _try(self, kind: int, name: bytes) -> bool:
        if not HAS_OFD:
            return True
        byte = _USES + int.from_bytes(name[:8], "big") % _USE_COUNT
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _request(kind, byte))
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

    def close(self) -> None:
        """Give up all of it."""
        os.close(self.fd)
