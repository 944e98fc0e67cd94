"""Searches of a file in a process of its own, under a limit of memory: warm, cold, bytes read.

``python -m benchmarks.limited FILE FOLDER PROBES LIMIT RAW`` answers with JSON; FOLDER has
``queries.npy`` and ``truth.npy``. The limit is set by cgroup v2; where that is not allowed,
``limit`` says why, and ``touched_share`` tells what a limit would have to hold: the bytes of the
file that these searches map, of the raw vectors' bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import re
import sys
import time
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

import tarsdb  # noqa: E402
from benchmarks import exact, processes  # noqa: E402
from benchmarks.adapters import lists  # noqa: E402

K, COLD = 10, 200
_GROUPS = pathlib.Path("/sys/fs/cgroup")
_DONTNEED = 4  # of madvise


def limited(size: int) -> str:
    """Put this process under a limit of memory; return "applied" or why not."""
    group = _GROUPS / f"tarsdb-bench-{os.getpid()}"
    try:
        if not (_GROUPS / "cgroup.controllers").exists():
            return "not applied: no cgroup v2"
        group.mkdir()
        (group / "memory.max").write_text(str(size), encoding="ascii")
        (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    except OSError as reason:
        return f"not applied: {reason.strerror}"
    return "applied"


def maps(path: pathlib.Path) -> list[tuple[int, int, int]]:
    """Return start, bytes and resident bytes of this process's maps of a file."""
    found, current = [], None
    for line in pathlib.Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(.*)", line):
            start, end = int(head[1], 16), int(head[2], 16)
            current = (start, end - start) if head[3] == str(path) else None
        elif current and line.startswith("Rss:"):
            found.append((*current, int(line.split()[1]) * 1024))
    return found


def drop(path: pathlib.Path) -> None:
    """Let go of a file's pages: those mapped here, then the system's copies."""
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    for start, size, _ in maps(path):
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _DONTNEED)
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> int:
    """Return the bytes this process made the system read from disks."""
    text = pathlib.Path("/proc/self/io").read_text(encoding="ascii")
    return int(text.partition("read_bytes: ")[2].partition("\n")[0])


def searches(db: Any, queries: np.ndarray) -> tuple[list[list[int]], dict[str, float]]:
    """Search one after the other; return ids, and what a query took and read."""
    sql, before = f"{lists.SQL}{K}", read_bytes()
    start = time.perf_counter(), time.thread_time()
    found = [[row[0] for row in db.execute(sql, (query,)).fetchall()] for query in queries]
    wall, cpu = time.perf_counter() - start[0], time.thread_time() - start[1]
    return found, {
        "wall_us": wall / len(queries) * 1e6, "cpu_us": cpu / len(queries) * 1e6,
        "read_bytes": (read_bytes() - before) / len(queries),
    }  # fmt: skip


def run(
    path: pathlib.Path, folder: pathlib.Path, probes: int, limit: int, raw: int
) -> dict[str, Any]:
    """Measure and return the figures."""
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    applied = limited(limit)
    db = tarsdb.connect(path)
    db.execute(f"SET probes = {probes}")
    searches(db, queries[:2])  # the first reads the whole index, to verify it
    drop(path)
    _, cold = searches(db, queries[:COLD])
    drop(path)
    searches(db, queries)
    touched = sum(resident for _, _, resident in maps(path))
    found, warm = searches(db, queries)
    return {
        "limit_bytes": limit, "limit": applied, "warm": warm, "cold": cold,
        "recall": exact.recall(found, truth), "touched_share": touched / raw,
        "private_share": processes.private_bytes() / raw,
    }  # fmt: skip


if __name__ == "__main__":
    _path, _folder, *_numbers = sys.argv[1:]
    processes.pin()
    print(json.dumps(run(pathlib.Path(_path), pathlib.Path(_folder), *map(int, _numbers))))
