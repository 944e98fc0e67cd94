"""How many threads NumPy's OpenBLAS uses, for as long as we bring our own.

Two threads that each run single-threaded products beat one product on two threads, and mixing
the two oversubscribes the cores: 8 times slower where it was measured. Only the OpenBLAS inside
NumPy's wheels can be told; elsewhere (Accelerate, a distribution's BLAS) :func:`controllable` is
False and callers leave the threads to the library.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import os
import threading
from collections.abc import Iterator

import numpy as np

_lock = threading.Lock()
_users = 0
_saved = 0


def controllable() -> bool:
    """Whether the number of BLAS threads can be set at run time."""
    return _library() is not None


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Run matrix products on the calling thread only.

    The setting is the process's: while any thread is inside, products of other threads are
    single-threaded too. The last one to leave restores the number that was set before.
    """
    library = _library()
    if library is None:
        yield
        return
    _enter(library)
    try:
        yield
    finally:
        _leave(library)


def _enter(library: tuple[ctypes.CDLL, str]) -> None:
    global _users, _saved
    blas, suffix = library
    with _lock:
        if _users == 0:
            _saved = int(blas[f"scipy_openblas_get_num_threads{suffix}"]())
            if _saved > 1:
                blas[f"scipy_openblas_set_num_threads{suffix}"](1)
        _users += 1


def _leave(library: tuple[ctypes.CDLL, str]) -> None:
    global _users
    blas, suffix = library
    with _lock:
        _users -= 1
        if _users == 0 and _saved > 1:
            blas[f"scipy_openblas_set_num_threads{suffix}"](_saved)


@functools.cache
def _library() -> tuple[ctypes.CDLL, str] | None:
    """Return the OpenBLAS NumPy's wheel brings and the suffix of its names."""
    package = os.path.dirname(os.path.abspath(np.__file__))
    folders = (os.path.join(os.path.dirname(package), "numpy.libs"),
               os.path.join(package, ".dylibs"))  # fmt: skip
    for path in (p for folder in folders for p in glob.glob(f"{folder}/*openblas*")):
        try:
            blas = ctypes.CDLL(path)
        except OSError:
            continue
        for suffix in ("64_", ""):
            if hasattr(blas, f"scipy_openblas_set_num_threads{suffix}"):
                return blas, suffix
    return None
