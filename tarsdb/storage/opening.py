"""From a path to an open LMDB environment that can be trusted: create, check, open, copy.

Knows the rules of a safe open (nothing in the file is believed before it was checked); knows
nothing about transactions.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from typing import Any, NamedTuple

import lmdb

from tarsdb.errors import (
    CorruptionError,
    DatabaseError,
    FormatVersionError,
    NotSupportedError,
    OperationalError,
)
from tarsdb.metrics import METRICS
from tarsdb.options import OpenOptions
from tarsdb.storage import failpoints, filesystems, verify
from tarsdb.storage import head as head_record
from tarsdb.storage.lmdb_errors import convert
from tarsdb.storage.locks import FileLocks
from tarsdb.storage.values import FORMAT_VERSION

DATABASES = (
    "meta",
    "catalog",
    "commits",
    "delta",
    "blocks",
    "segments",
    "tombs",
    "index",
    "blobs",
)
# Databases that files of older releases lack; made when a process that may write opens one.
ADDED_DATABASES = ("inference", "packed")
# Databases whose keys hold several values, all of one size: one key of an index, many rowids.
MULTI = frozenset({"index"})
_MAX_DATABASES = 16
MAX_READERS = 1024
_FORMAT_KEY = b"format"
_FORMAT_MARK = b"tarsdb"
_SMALLEST_MAP = 1 << 24
_OPEN_TRIES = 50


class Opened(NamedTuple):
    """An open, checked file: what an Environment is made of."""

    fd: int
    inode: tuple[int, int]
    locks: FileLocks
    lmdb_env: Any
    databases: dict[str, Any]
    file_id: bytes


def require_bundled_engine() -> None:
    """Refuse an lmdb module that is not the bundled, hardened build."""
    version = tuple(int(part) for part in lmdb.__version__.split(".")[:2])
    bundled = hasattr(lmdb, "BadChecksumError") and lmdb.version()[:2] == (0, 9)
    if version < (3, 0) or not bundled:
        raise NotSupportedError(
            f"the lmdb module is {lmdb.__version__} with engine {lmdb.version()}, "
            "tarsdb needs lmdb >= 3.0 with its bundled engine",
            hint="pip install --force-reinstall --only-binary lmdb 'lmdb>=3.0'",
        )


def open_file(path: str, options: OpenOptions) -> Opened:
    """Open or create the data file at an absolute path."""
    require_bundled_engine()
    with contextlib.suppress(OSError):  # not there yet
        require_file(path, os.stat(path))  # opening a device can have effects of its own
    filesystems.require_local(path)
    deadline = time.monotonic() + max(options.lock_timeout_s, 1.0)
    for _ in range(_OPEN_TRIES):
        fd = _open_or_create(path, options)
        try:
            opened = _open_locked(fd, path, options, deadline)
        except BaseException:
            os.close(fd)
            raise
        if opened is not None:
            return opened
        os.close(fd)  # another process put a new file in its place meanwhile
    raise OperationalError(f"{path}: the file was replaced {_OPEN_TRIES} times while opening it")


def require_file(path: str, found: os.stat_result) -> None:
    """Raise OperationalError for a directory, a device or a pipe.

    These can have no bytes, as an empty file has, and in its place a database would be put.
    """
    if not stat.S_ISREG(found.st_mode):
        what = "is a directory" if stat.S_ISDIR(found.st_mode) else "is a device or a pipe"
        raise OperationalError(f"{path}: {what}, expected a file")


def _open_or_create(path: str, options: OpenOptions) -> int:
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if options.read_only or not options.create:
                raise OperationalError(
                    f"{path}: no such database file",
                    hint="opened read-only it is not created; check the path"
                    if options.read_only
                    else "OpenOptions(create=True) makes it; check the path",
                ) from error
            _reserve(path)
        except OSError as error:
            if not options.read_only:
                raise convert(error, path) from error
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as denied:
                raise convert(denied, path) from denied


def _reserve(path: str) -> None:
    """Create an empty file; whoever locks it first puts a database in its place."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
    except FileNotFoundError as error:
        raise OperationalError(f"{path}: its directory does not exist") from error
    except OSError as error:
        raise convert(error, path) from error


def _open_locked(fd: int, path: str, options: OpenOptions, deadline: float) -> Opened | None:
    locks = FileLocks(fd, path)
    alone = locks.try_open_exclusive()
    left = max(deadline - time.monotonic(), 0.0)
    if not alone:
        locks.open_shared(left)
    found = os.fstat(fd)
    require_file(path, found)
    if not _is_at(path, found):
        return None
    if found.st_size == 0:
        if options.read_only:
            raise DatabaseError(f"{path}: the file is empty")
        if alone:
            _create(path)
        return None
    _require_one_name(path, found, locks, alone)
    _check_before_open(fd, path, options, locks, alone)
    try:
        if not alone and not options.read_only:
            locks.acquire_writer(left)  # LMDB opens named databases as a writer, and waits blindly
        lmdb_env, databases = open_lmdb(path, options)
    finally:
        locks.release_writer()
    try:
        file_id = read_format(lmdb_env, databases, path)
        locks.open_shared(left)
    except BaseException:
        lmdb_env.close()
        raise
    return Opened(fd, (found.st_dev, found.st_ino), locks, lmdb_env, databases, file_id)


def _require_one_name(path: str, found: os.stat_result, locks: FileLocks, alone: bool) -> None:
    """Refuse what would give two openers two ``-lock`` files or two meanings of a process id."""
    if not alone and found.st_nlink > 1:
        raise OperationalError(
            f"{path}: has {found.st_nlink} names (hard links) and is open elsewhere",
            hint="open it everywhere by the same name, or remove the other links",
        )
    if not locks.join_namespace(_process_namespace()):
        raise OperationalError(
            f"{path}: open in another process namespace (container)",
            hint="run all its processes in one container, or with a shared PID namespace",
        )


def _process_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _is_at(path: str, found: os.stat_result) -> bool:
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino)


def _check_before_open(
    fd: int, path: str, options: OpenOptions, locks: FileLocks, alone: bool
) -> None:
    failpoints.hit("open.before_verify")
    verify.check_start(fd, path)
    if alone:
        verify.check_structure(path, limit_s=None if options.check else verify.LIMIT_S)
    elif options.check:
        check_beside_others(path, locks, options.lock_timeout_s, None)
    elif not locks.is_writable and locks.is_alone():
        check_beside_others(path, locks, options.lock_timeout_s, verify.LIMIT_S)


def check_beside_others(
    path: str, locks: FileLocks, timeout_s: float, limit_s: float | None
) -> None:
    """Verify a file while nobody writes to it; raise CorruptionError.

    The writer is held meanwhile. A process that may only read the file cannot do that: what it
    finds counts when nobody else has the file open afterwards either.
    """
    if locks.is_writable:
        try:
            locks.acquire_writer(timeout_s)
            verify.check_structure(path, limit_s)
        finally:
            locks.release_writer()
        return
    try:
        verify.check_structure(path, limit_s)
    except CorruptionError:
        if locks.is_alone():
            raise
        METRICS.add("storage.verify_skipped")


# --- LMDB ---


def open_lmdb(path: str, options: OpenOptions) -> tuple[Any, dict[str, Any]]:
    """Open the LMDB environment and its named databases."""
    size = first_map_size(path, options)
    while True:
        try:
            env = lmdb.open(
                path,
                map_size=size,
                subdir=False,
                readonly=options.read_only,
                metasync=False,
                create=False,
                mode=0o644,
                readahead=True,
                max_readers=MAX_READERS,
                max_dbs=_MAX_DATABASES,
                max_spare_txns=64,
                lib_version=0,
            )
            break
        except lmdb.MemoryError as error:
            size //= 2
            if size < _SMALLEST_MAP:
                raise convert(error, path) from error
        except lmdb.VersionMismatchError as error:
            raise CorruptionError(f"{path}: written by another LMDB engine: {error}") from error
        except (lmdb.InvalidError, lmdb.CorruptedError) as error:
            raise CorruptionError(f"{path}: {error}", hint="restore from a backup") from error
        except lmdb.ReadonlyError as error:  # of the lock file: the data file is open here
            raise OperationalError(
                f"{path}-lock: permission denied; readers write into it too",
                hint="let this user write that file, or make it in that directory",
            ) from error
        except (lmdb.Error, OSError) as error:
            raise convert(error, path) from error
    try:
        databases = {name: env.open_db(name.encode(), create=False) for name in DATABASES}
        databases.update(_added(env, options))
        if not options.read_only:
            env.reader_check()
    except lmdb.Error as error:
        env.close()
        raise DatabaseError(
            f"{path}: an LMDB file, but not a tarsdb database ({error})",
            hint="open it with the program that made it",
        ) from error
    return env, databases


def _added(env: Any, options: OpenOptions) -> dict[str, Any]:
    """Open the databases an older file lacks, or make them; without (no room) it is usable too."""
    found = {}
    for name in ADDED_DATABASES:
        with contextlib.suppress(lmdb.Error):
            found[name] = env.open_db(name.encode(), create=not options.read_only)
    return found


def _address_space_limit() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def first_map_size(path: str, options: OpenOptions) -> int:
    """Return how much address space to map: the file with room to grow, within quota and system."""
    size = options.map_size_bytes
    limit = _address_space_limit()
    if limit is not None:
        # leave most of a limited address space to the rest of the process; the map grows later
        used = os.path.getsize(path) if os.path.exists(path) else 0
        size = min(size, max(limit // 8, used + used // 4, _SMALLEST_MAP))
    if options.max_size_bytes is not None:
        used = os.path.getsize(path) if os.path.exists(path) else 0
        size = min(size, max(options.max_size_bytes, used + used // 8))
    return max(size // 65536, 1) * 65536


def larger_map(current: int, options: OpenOptions) -> int | None:
    """Return the next map size after the map is full, or None when quota or system forbid it."""
    ceiling = min(options.max_size_bytes or options.map_size_bytes, options.map_size_bytes)
    if current >= ceiling // 65536 * 65536:
        return None
    return min(current * 2, ceiling) // 65536 * 65536


def read_format(env: Any, databases: dict[str, Any], path: str) -> bytes:
    """Check the format record; return the file id."""
    try:
        with env.begin() as txn:
            raw = txn.get(_FORMAT_KEY, None, databases["meta"])
    except lmdb.Error as error:
        raise convert(error, path) from error
    if raw is None or len(raw) != 24 or not raw.startswith(_FORMAT_MARK):
        raise DatabaseError(f"{path}: an LMDB file, but not a tarsdb database")
    version = int.from_bytes(raw[6:8], "little")
    if version != FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: written in format version {version}, this release reads {FORMAT_VERSION}",
            hint="open it with the release that wrote it, or a newer one",
        )
    return bytes(raw[8:24])


# --- creating and copying ---


def _create(path: str) -> None:
    """Replace the empty file at `path`, locked by the caller, by a complete new database.

    It is made beside it and renamed, so a file is empty or born; nothing in between is ever seen.
    """
    temporary = f"{path}.new-{secrets.token_hex(6)}"
    try:
        failpoints.hit("open.before_create")
        env = lmdb.open(
            temporary,
            map_size=1 << 20,
            subdir=False,
            mode=0o644,
            max_dbs=_MAX_DATABASES,
            lib_version=0,
            metasync=False,
        )
        try:
            with env.begin(write=True) as txn:
                handles = {
                    n: env.open_db(n.encode(), txn=txn, dupsort=n in MULTI, dupfixed=n in MULTI)
                    for n in (*DATABASES, *ADDED_DATABASES)
                }
                mark = _FORMAT_MARK + FORMAT_VERSION.to_bytes(2, "little")
                txn.put(_FORMAT_KEY, mark + secrets.token_bytes(16), db=handles["meta"])
                head = (0, time.time_ns() // 1000, 0)
                txn.put(head_record.KEY, head_record.encode(head), db=handles["meta"])
        finally:
            env.close()
        _publish(temporary, path)
    except (OSError, lmdb.Error) as error:
        raise convert(error, path) from error
    finally:
        for leftover in (temporary, f"{temporary}-lock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)


def _publish(temporary: str, path: str) -> None:
    """Sync a finished file and give it its name."""
    fd = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    failpoints.hit("open.before_publish")
    os.replace(temporary, path)
    sync_directory(path)


def sync_directory(path: str) -> None:
    """Make the directory entry of `path` durable."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def copy_file(env: Any, source: str, path: str) -> None:
    """Write a consistent copy of an open environment to a path that must not exist."""
    temporary = f"{path}.new-{secrets.token_hex(6)}"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError as error:
        raise OperationalError(f"{path}: exists already", hint="choose another name") from error
    except OSError as error:
        raise convert(error, path) from error
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            # never compact=True: LMDB 0.9 crashes there on a key whose values fill a tree
            env.copyfd(fd)
        finally:
            os.close(fd)
        _publish(temporary, path)
    except BaseException as error:
        for leftover in (temporary, path):
            with contextlib.suppress(OSError):
                os.unlink(leftover)
        if isinstance(error, (OSError, lmdb.Error)):
            raise convert(error, source) from error
        raise
