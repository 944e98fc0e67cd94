"""Threads with a stack that guest code cannot overflow.

A guest may use ``MAX_WASM_STACK`` bytes of the calling thread's stack. A thread that has less
(an application may create threads of 256 KiB) would die of a segmentation fault, so such a
caller's work is done by a thread of ours. Knows nothing of WebAssembly.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

MAX_WASM_STACK = 512 << 10
ENOUGH_STACK = 4 << 20
WORKER_STACK = 16 << 20
_IDLE_WORKERS = 4
_SYSTEM: str = sys.platform

T = TypeVar("T")
_start_lock = threading.Lock()
_idle: list[_Worker] = []
_local = threading.local()


def on_main_thread() -> bool:
    """Return True in the thread that handles Python signals."""
    return threading.get_ident() == threading.main_thread().ident


def has_enough_stack() -> bool:
    """Return True when the calling thread is known to have a stack of 4 MiB or more."""
    known = getattr(_local, "enough", None)
    if known is None:
        known = _local.enough = _stack_bytes() >= ENOUGH_STACK
    return bool(known)


def _stack_bytes() -> int:
    if on_main_thread():
        return _main_stack_bytes()
    try:
        return _darwin_stack_bytes() if _SYSTEM == "darwin" else _linux_stack_bytes()
    except (AttributeError, OSError, TypeError):  # a C library without these calls
        return 0


def _main_stack_bytes() -> int:
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return sys.maxsize if soft == resource.RLIM_INFINITY else int(soft)


def _darwin_stack_bytes() -> int:
    library = ctypes.CDLL(None)
    library.pthread_self.restype = ctypes.c_void_p
    library.pthread_get_stacksize_np.restype = ctypes.c_size_t
    library.pthread_get_stacksize_np.argtypes = [ctypes.c_void_p]
    return int(library.pthread_get_stacksize_np(library.pthread_self()))


def _linux_stack_bytes() -> int:
    library = _linux_library()
    attributes = ctypes.create_string_buffer(256)  # pthread_attr_t is 56 bytes on x86-64
    if library.pthread_getattr_np(library.pthread_self(), attributes) != 0:
        return 0
    size = ctypes.c_size_t()
    library.pthread_attr_getstacksize(attributes, ctypes.byref(size))
    library.pthread_attr_destroy(attributes)
    return size.value


@functools.cache
def _linux_library() -> ctypes.CDLL:
    """Return the C library, ready: threads of DuckDB are asked anew at each call they make."""
    library = ctypes.CDLL(None)
    library.pthread_self.restype = ctypes.c_void_p
    library.pthread_getattr_np.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.pthread_attr_getstacksize.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.pthread_attr_destroy.argtypes = [ctypes.c_void_p]
    return library


class _Task:
    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None


class _Worker:
    def __init__(self) -> None:
        self.inbox: SimpleQueue[_Task | None] = SimpleQueue()
        thread = threading.Thread(target=self._run, name="tarsdb-sandbox", daemon=True)
        with _start_lock:
            before = threading.stack_size(WORKER_STACK)
            try:
                thread.start()
            finally:
                threading.stack_size(before)

    def _run(self) -> None:
        _local.enough = True
        while (task := self.inbox.get()) is not None:
            try:
                task.result = task.work()
            except BaseException as error:  # handed to the caller, whatever it is
                task.error = error
            task.done.set()
            del task


def run_with_stack(work: Callable[[], T], cancel: Callable[[], None]) -> T:
    """Run ``work`` in a thread with a 16 MiB stack and return its result or raise its error.

    An exception that reaches the waiting caller (Ctrl-C in the main thread) calls ``cancel``,
    waits for the work to end and is raised then.
    """
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
    task = _Task(work)
    worker.inbox.put(task)
    try:
        task.done.wait()
    except BaseException:
        cancel()
        while not task.done.is_set():
            with contextlib.suppress(BaseException):  # the first one is raised below
                task.done.wait()
        raise
    finally:
        _retire(worker)
    if task.error is not None:
        raise task.error
    result: T = task.result
    return result


def _retire(worker: _Worker) -> None:
    if len(_idle) < _IDLE_WORKERS:
        _idle.append(worker)
    else:
        worker.inbox.put(None)


def forget_workers() -> None:
    """Drop threads that a fork did not copy."""
    global _start_lock
    _start_lock = threading.Lock()
    _idle.clear()
