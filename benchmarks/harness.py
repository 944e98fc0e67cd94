"""Measures contenders side by side: interleaved repeats, medians, an environment record, JSON.

Ratios come from one run of one process, so that what disturbs one contender disturbs all. Knows
no database but for the level of tarsdb's kernels; a workload gives it functions of no arguments.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


CAPS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2", "CT2_FORCE_CPU_ISA": "AVX2", "FAISS_OPT_LEVEL": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
}  # fmt: skip
"""Environment of rivals by ``TARSDB_ISA``, for those that have a knob."""


def one_thread() -> None:
    """Limit numeric libraries to one thread, and ``cap_rivals``; call before importing any."""
    for name in THREAD_LIMITS:
        os.environ[name] = "1"
    cap_rivals()


def cap_rivals() -> None:
    """Limit libraries to the instructions ``TARSDB_ISA`` allows us; call before importing any.

    Who has no knob (onnxruntime, llama.cpp, hnswlib, usearch, ScaNN) uses all it finds.
    """
    os.environ.update(_caps())


def _caps() -> dict[str, str]:
    return CAPS.get(os.environ.get("TARSDB_ISA", ""), {})


def measure(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 5,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, dict[str, float]]:
    """Run all contenders in turn, ``repeats`` times, after one unmeasured turn.

    Parameters
    ----------
    contenders : mapping of name to function
        Each call is one sample.
    repeats : int
    clock : callable
        ``time.process_time`` (CPU seconds, for pure computation) or ``time.perf_counter``.

    Returns
    -------
    dict
        Name -> ``median``, ``min`` and ``max`` seconds of a call.
    """
    for run in contenders.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = clock()
            run()
            samples[name].append(clock() - start)
    return {name: summary(values) for name, values in samples.items()}


def summary(values: Iterable[float]) -> dict[str, float]:
    """Return median, min and max."""
    known = list(values)
    return {"median": statistics.median(known), "min": min(known), "max": max(known)}


def ratios(figures: Mapping[str, Mapping[str, float]], base: str) -> dict[str, float]:
    """Return how many times the base's median each other contender takes."""
    own = figures[base]["median"]
    return {name: figure["median"] / own for name, figure in figures.items() if name != base}


def environment(packages: Iterable[str]) -> dict[str, Any]:
    """Describe machine, level of our kernels and versions; no names or paths of the machine."""
    from tarsdb.kernels import dispatch  # after the thread limit

    return {
        "machine": {
            "cpu": _cpu_name(), "cores": os.cpu_count(), "architecture": platform.machine(),
            "system": platform.system(),
        },
        "isa": dispatch.level(), "rivals_capped_by": _caps(),
        "versions": {"python": platform.python_version(), **_versions(packages)},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }  # fmt: skip


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def stored_at(name: str, level: str) -> pathlib.Path:
    """Return where the result of a workload with kernels of one level is kept."""
    return RESULTS / f"{name}.{level}.json"


def write(name: str, record: Mapping[str, Any]) -> pathlib.Path:
    """Store a record as ``results/NAME.LEVEL.json`` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = stored_at(name, record["isa"])
    path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def table(title: str, figures: Mapping[str, Mapping[str, float]], unit: float = 1e-3) -> str:
    """Return figures as text, in multiples of ``unit`` seconds (milliseconds by default)."""
    width = max(map(len, figures))
    lines = [title]
    for name, figure in sorted(figures.items(), key=lambda item: item[1]["median"]):
        spread = f"{figure['min'] / unit:.3f}..{figure['max'] / unit:.3f}"
        lines.append(f"  {name:<{width}}  {figure['median'] / unit:10.3f}  ({spread})")
    return "\n".join(lines)
