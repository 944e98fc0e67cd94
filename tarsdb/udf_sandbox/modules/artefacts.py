"""Native code of modules in the user's cache directory, so that one process compiles it.

Whoever could write there could run code in this process. So the directory must be private (see
``user_cache``), and every file carries a keyed digest under a random key that lies beside it, never
in a database: what has no valid one is not read further. Files used least recently go first when
there are too many bytes. Knows no wasmtime: native code is bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import pathlib
import tempfile
import threading

from tarsdb.user_cache import is_private, private_folder

MAX_BYTES = 128 << 20
KEY_BYTES = 32
_DIGEST_BYTES = 32


class ArtefactCache:
    """Files of one folder, by name; safe to use from several threads and processes.

    Parameters
    ----------
    folder : pathlib.Path, optional
        None keeps nothing.
    max_bytes : int
    """

    def __init__(self, folder: pathlib.Path | None, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._key = None if folder is None else _key(folder)
        self._lock = threading.Lock()
        self._written = max_bytes  # since the folder was last looked over

    def get(self, name: str) -> bytes | None:
        """Return what was kept under a name, or None: absent, damaged or not written by us."""
        if self._folder is None or self._key is None:
            return None
        path = self._folder / name
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        digest, data = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if not hmac.compare_digest(digest, self._digest(name, data)):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep bytes under a name; where they cannot be kept, nothing happens."""
        if self._folder is None or self._key is None:
            return
        with contextlib.suppress(OSError):
            _write(self._folder / name, self._digest(name, data) + data)
            self._make_room(len(data))

    def _digest(self, name: str, data: bytes) -> bytes:
        assert self._key is not None  # the callers looked
        keyed = hashlib.blake2b(key=self._key, digest_size=_DIGEST_BYTES)
        keyed.update(len(name).to_bytes(4, "little") + name.encode())
        keyed.update(data)
        return keyed.digest()

    def _make_room(self, size: int) -> None:
        with self._lock:
            self._written += size
            if self._written < self._max_bytes // 8:
                return
            self._written = 0
        assert self._folder is not None  # the caller looked
        found = []
        for entry in os.scandir(self._folder):
            if entry.name != "key":
                status = entry.stat()
                found.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(length for _, length, _ in found)
        for _, length, path in sorted(found):
            if total <= self._max_bytes:
                break
            total -= length
            with contextlib.suppress(OSError):
                os.unlink(path)


def _write(path: pathlib.Path, data: bytes) -> None:
    """Make a file that is there whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix="new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _key(folder: pathlib.Path) -> bytes | None:
    """Return the folder's key, made by the first process; None where there is none to trust."""
    path = folder / "key"
    try:
        if not path.exists():
            fresh = folder / f"new-key-{os.getpid()}-{os.urandom(4).hex()}"
            descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(KEY_BYTES))
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)  # unlike a renaming, never over another process's key
            os.unlink(fresh)
        status = path.lstat()
        if not is_private(status) or status.st_mode & 0o077:
            return None
        key = path.read_bytes()
    except OSError:
        return None
    return key if len(key) == KEY_BYTES else None


_cache: ArtefactCache | None = None
_cache_lock = threading.Lock()


def artefacts() -> ArtefactCache:
    """Return the cache of this user."""
    global _cache
    with _cache_lock:
        if _cache is None:
            _cache = ArtefactCache(private_folder("functions"))
        return _cache


def _after_fork() -> None:
    global _cache, _cache_lock
    _cache, _cache_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
