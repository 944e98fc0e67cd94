"""Which graph kernels to use, and getting them ready in the background.

A search asks :func:`current`; until the kernels are compiled (or loaded from the disk cache) it
gets None and its caller searches exactly. Building waits for them. Knows no graph.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tarsdb.kernels import dispatch

TOGETHER, STARTS, LIST_ROOM = 3, 8, 17
"""Nodes a search expands at a time, from how many it starts, and the words of a list besides its
entries; as in kernels/cpu, which is not imported before it is compiled."""


@dataclass(frozen=True)
class GraphKernels:
    """The compiled kernels of a level; ``kernels/cpu/graph.py`` says what each does."""

    variant: str
    sketch: Callable[..., None]
    search: Callable[..., int]
    insert: Callable[..., None]
    link: Callable[..., None]
    order: Callable[..., int]


_known: dict[str, GraphKernels | None] = {}  # by level; None: cannot be compiled here
_lock = threading.Lock()
_threads: dict[str, threading.Thread] = {}


def current() -> GraphKernels | None:
    """Return the kernels of the level in use, or None while (or because) there are none."""
    level = dispatch.level()
    found = _known.get(level)
    if found is None and level not in _known:
        _start(level)
    return found


def wait() -> GraphKernels | None:
    """Compile if need be and return the kernels; None where there is no compiler."""
    level = dispatch.level()
    if level not in _known:
        _start(level).join()
    return _known.get(level)


def _start(level: str) -> threading.Thread:
    with _lock:
        thread = _threads.get(level)
        if thread is None or (not thread.is_alive() and level not in _known):
            # No daemon: a compiler running while the process is taken down crashes it.
            thread = threading.Thread(target=_compile, args=(level,), name="tarsdb-graph-kernels")
            _threads[level] = thread
            thread.start()
        return thread


def _compile(level: str) -> None:
    try:
        from tarsdb.kernels.cpu import disk_cache, graph

        variant = _variant(level)
        made: dict[str, Any] = graph.make_kernels(variant)
        ready: dict[str, Any] = {
            name: disk_cache.compiled(made[name], signature, variant)
            for name, signature in graph.SIGNATURES.items()
        }
    except Exception:  # no Numba, or a compiler bug: searches stay exact
        _known[level] = None
        return
    _known[level] = GraphKernels(variant, **ready)


def _forget_threads() -> None:
    """After fork: what the parent was compiling is not to be had, LLVM's locks may be held."""
    global _lock
    _lock = threading.Lock()
    for level in _threads:
        _known.setdefault(level, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def _variant(level: str) -> str:
    import llvmlite.binding as llvm

    if level == "portable":
        return "plain"
    has_vnni = bool(llvm.get_host_cpu_features().get("avx512vnni"))
    return "vnni" if level == "avx512" and has_vnni else "avx2"
