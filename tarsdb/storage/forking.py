"""Makes what a child process inherits by ``fork()`` harmless to its parent.

LMDB's reader table is a shared mapping of the ``-lock`` file. A child that frees an inherited read
transaction, even at interpreter exit, would clear the parent's entry there, and the parent's
snapshot would lose its protection. So the child first replaces that mapping by a private copy of
itself; after that it can open the file anew. The inherited environment stays as it is, for ever: to
close it lmdb would wait for the calls that other threads of the parent were in, and those threads
are not in the child. Linux only; elsewhere a child cannot open a file its parent has open.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import sys
from typing import Any

IS_OPEN = "the process this one was forked from has the file open"
INSTEAD = "start processes with multiprocessing's 'spawn', or fork before opening"
_MAP_FIXED = 0x10
_MAPS = "/proc/self/maps"


def detach_lock_file(path: str) -> bool:
    """Replace this process's mappings of ``path-lock`` by private copies; return success."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        with open(_MAPS, encoding="utf-8", errors="surrogateescape") as maps:
            ranges = ranges_of(f"{path}-lock", maps.read().splitlines())
        libc = ctypes.CDLL(None, use_errno=True)
    except OSError:
        return False
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    for start, size in ranges:
        content = ctypes.string_at(start, size)
        found = libc.mmap(start, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if found != start:
            return False
        ctypes.memmove(start, content, size)
    return bool(ranges)


def keep_for_ever(lmdb_env: Any) -> None:
    """Keep an inherited environment from being closed, also at the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(lmdb_env))


def tell_files_apart() -> bool:
    """Let lmdb take files this process opens for others than its parent had open; return success.

    It refuses to open a file twice in one process, since closing one would drop the locks of both.
    What was inherited has no locks, those are the parent's, and is never closed.
    """
    identities: Any = importlib.import_module("lmdb._envid")
    plain = getattr(identities, "env_keys", None)
    if plain is None:
        return False
    process = os.getpid()

    def own_keys(path: Any, subdir: Any) -> tuple[Any, ...]:
        return tuple((*key, process) for key in plain(path, subdir))

    identities.env_keys = own_keys
    return True


def ranges_of(name: str, lines: list[str]) -> list[tuple[int, int]]:
    """Return (address, size) of each mapping of a file in the lines of ``/proc/self/maps``."""
    found = []
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].removesuffix(" (deleted)") == name:
            start, _, end = fields[0].partition("-")
            found.append((int(start, 16), int(end, 16) - int(start, 16)))
    return found


def close_quietly(fd: int) -> None:
    """Close a descriptor; the parent's copy keeps its locks."""
    try:
        os.close(fd)
    except OSError:
        return
