"""Chooses the kernels for this machine and gets them ready without making anyone wait.

A query asks :func:`get`; until the compiled kernel is there it gets None and computes with
``reference``. :func:`prepare`, called when an answer is out, lets a background thread import Numba
and load or compile. Levels: ``avx512``, ``avx2``, ``portable`` (NumPy alone); the environment
variable ``TARSDB_ISA`` forces one, or ``amx``. Knows no queries and no data.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable

Kernel = Callable[..., int]

LEVELS = ("avx512", "avx2", "portable")
AMX = "amx"
"""Of TARSDB_ISA: ``avx512`` and tile registers, which ``avx512`` itself leaves out."""
LEVEL_VARIABLE = "TARSDB_ISA"
KINDS = ("f32", "f16", "i8", "bit")
CODED = (
    "encode", "code_queries", "sieve", "coded_nearest", "coded_within", "sieve_many",
)  # fmt: skip
"""Kernels of int8 codes; a processor may lack the last."""
QUANTIZED = ("rabitq", "fastscan")
"""Scans of quantised rows."""
GATHER, ANSWER = "gather", "answer"
"""Values of a few rows; a search and the values of its rows."""
PAUSE_SECONDS = 0.05
"""How long the background thread lets the caller of the first query go on undisturbed."""

_NEEDED = {
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma", "f16c"),
    "avx2": ("avx2", "fma", "f16c"),
}

_kernels: dict[tuple[str, str], Kernel] = {}
_failed: set[tuple[str, str]] = set()
_wanted: list[str] = []
_compiling = threading.Lock()  # held while one kernel is compiled
_changing = threading.Lock()  # guards the names below and the lists above
_stopping = threading.Event()
_thread: threading.Thread | None = None
_level: str | None = None  # None: not chosen yet, which needs llvmlite


def _forced() -> str | None:
    name = os.environ.get(LEVEL_VARIABLE, "").lower()
    name = "avx512" if name == AMX else name
    return name if name in LEVELS else None


def tiles_allowed() -> bool:
    """Return whether kernels may use tile registers (AMX), where the processor has them."""
    from tarsdb.kernels.cpu import tile_registers

    return os.environ.get(LEVEL_VARIABLE, "").lower() not in LEVELS and tile_registers.allowed()


def use(level: str | None) -> None:
    """Force a level from now on; None or ``'auto'`` chooses by the processor again."""
    global _level
    if level not in (None, "auto", *LEVELS):
        raise ValueError(f"{level!r} is no instruction set level; known: {', '.join(LEVELS)}")
    with _changing:
        _level = _forced() if level in (None, "auto") else level


def level() -> str:
    """Return the level in use; chooses one on first call, which imports llvmlite."""
    global _level
    chosen = _level
    if chosen is None:
        best = _best_level()
        with _changing:  # another thread may have forced one meanwhile
            _level = chosen = _level or best
    return chosen


def _best_level() -> str:
    try:
        import llvmlite.binding as llvm
        import numba  # noqa: F401  # a machine may have one without the other

        features = llvm.get_host_cpu_features()
    except Exception:  # absent, broken, or a processor LLVM does not know: NumPy works
        return "portable"
    for name, needed in _NEEDED.items():
        if all(features.get(feature) for feature in needed):
            return name
    return "portable"


def get(kind: str) -> Kernel | None:
    """Return the compiled scan of an element kind, or None while there is none."""
    chosen = _level
    return None if chosen is None else _kernels.get((kind, chosen))


def entry(kernel: Kernel) -> int:
    """Return the address by which compiled kernels call another one."""
    from tarsdb.kernels.cpu import disk_cache

    return disk_cache.entry(kernel)


def prepare(kind: str) -> None:
    """Get the scan of an element kind ready in the background; returns at once."""
    global _thread
    key = (kind, _level or "")
    if _level == "portable" or key in _kernels or key in _failed or _stopping.is_set():
        return
    with _changing:
        if kind in _wanted:
            return
        _wanted.append(kind)
        if _thread is None:
            _thread = threading.Thread(target=_work, name="tarsdb-kernels", daemon=True)
            _thread.start()


def wait(timeout_s: float | None = None) -> None:
    """Return when the background has nothing left to compile (for benchmarks and tests)."""
    thread = _thread
    if thread is not None:
        thread.join(timeout_s)


def warmup(progress: Callable[[str], None] | None = None) -> None:
    """Compile every kernel for this machine now, or load it from the disk cache."""
    for kind in (*KINDS, *CODED, *QUANTIZED, GATHER, ANSWER) if level() != "portable" else ():
        start = time.perf_counter()
        _make(kind)
        if progress is not None:
            name = kind if kind not in KINDS else f"scan {kind}"
            progress(f"{name} ({level()}): {time.perf_counter() - start:.2f} s")


def _work() -> None:
    global _thread
    _stopping.wait(PAUSE_SECONDS)
    while True:
        with _changing:
            if not _wanted or _stopping.is_set():
                _thread = None
                return
            kind = _wanted[0]
        _make(kind)
        with _changing:
            _wanted.remove(kind)


def _make(kind: str) -> None:
    """Compile or load one kernel; a failure leaves NumPy in its place."""
    chosen = level()
    key = (kind, chosen)
    with _compiling:
        if chosen == "portable" or key in _kernels or key in _failed or _stopping.is_set():
            return
        try:
            found = _maker(kind)(kind, chosen)
        except Exception:  # a compiler that fails must not fail the query
            found = None
        if found is None:
            _failed.add(key)
        else:
            _kernels[key] = found


def _maker(kind: str) -> Callable[[str, str], Kernel | None]:
    if kind in (GATHER, ANSWER):
        return _gather
    return _coded if kind in CODED else _quantized if kind in QUANTIZED else _scan


def _gather(kind: str, chosen: str) -> Kernel:
    from tarsdb.kernels.cpu import answer, disk_cache, gather

    if kind == ANSWER:
        return disk_cache.compiled(answer.make_answer(), answer.SIGNATURE)
    return disk_cache.compiled(gather.make_gather(), gather.SIGNATURE)


def _scan(kind: str, chosen: str) -> Kernel:
    from tarsdb.kernels.cpu import disk_cache, scan

    return disk_cache.compiled(scan.make_scan(kind, chosen), scan.SIGNATURE)


def _quantized(kind: str, chosen: str) -> Kernel:
    from tarsdb.kernels.cpu import disk_cache, quantized

    if kind == "rabitq":
        return disk_cache.compiled(quantized.make_rabitq(chosen), quantized.RABITQ_SIGNATURE)
    return disk_cache.compiled(quantized.make_fastscan(chosen), quantized.FASTSCAN_SIGNATURE)


def _coded(kind: str, chosen: str) -> Kernel | None:
    import llvmlite.binding as llvm

    from tarsdb.kernels.cpu import (
        coded,
        coded_batch,
        coded_many,
        coded_nearest,
        disk_cache,
        encode,
    )

    if kind == "encode":
        return disk_cache.compiled(encode.make_encode(), encode.SIGNATURE)
    if kind == "code_queries":
        return disk_cache.compiled(encode.make_query_coder(), encode.QUERY_SIGNATURE)
    if kind == "coded_nearest":
        return disk_cache.compiled(coded_nearest.make_coded_nearest(), coded_nearest.SIGNATURE)
    features = llvm.get_host_cpu_features()
    has_vnni = chosen == "avx512" and features.get("avx512vnni")
    if kind == "coded_within":
        return disk_cache.compiled(coded_nearest.make_coded_within(), coded_nearest.SIGNATURE)
    if kind == "sieve":
        variant = coded.VNNI if has_vnni else coded.MADDUBS
        return disk_cache.compiled(coded.make_sieve(variant), coded.SIEVE_SIGNATURE)
    if not has_vnni:
        return disk_cache.compiled(coded_many.make_sieve_many(), coded.SIEVE_SIGNATURE)
    has_amx = features.get("amx-int8") and tiles_allowed()
    variant = coded_batch.AMX if has_amx else coded.VNNI
    many = coded_batch.make_sieve_many(variant)
    return disk_cache.compiled(many, coded.SIEVE_SIGNATURE, variant)


def _finish() -> None:
    """Let the kernel being compiled finish: LLVM must not run while the process ends."""
    _stopping.set()
    thread = _thread
    if thread is not None:
        thread.join()


def _forget_thread() -> None:
    """After fork: the child has no background thread, and a lock may be held for ever."""
    global _thread, _compiling, _changing, _level
    if _thread is not None:
        _level = "portable"  # LLVM's own locks may be held too
    _thread, _compiling, _changing = None, threading.Lock(), threading.Lock()
    _wanted.clear()


atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_thread)
_level = _forced()
