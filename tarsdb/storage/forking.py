"""Makes what a child process inherits by ``fork()`` harmless to its parent.

LMDB's reader table is a shared mapping of the ``-lock`` file. A child that frees an inherited read
transaction, even at interpreter exit, would clear the parent's entry there, and the parent's
snapshot would lose its protection. So the child first replaces that mapping by a private copy of
itself; after that the inherited environment can be closed and the file opened anew. Linux only;
elsewhere a child cannot open a file its parent has open.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

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
