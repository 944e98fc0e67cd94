"""Searches of a file in a process of its own, under a limit of memory: warm, cold, bytes read.

``python -m benchmarks.limited FILE FOLDER PROBES LIMIT RAW`` answers with JSON; FOLDER has
``queries.npy`` and ``truth.npy``. The limit is set by cgroup v2 or v1; where that is not allowed,
``limit`` says why, and ``touched_share`` tells what a limit would have to hold: the bytes of the
file that these searches map, of the raw vectors' bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

import tarsdb  # noqa: E402
from benchmarks import exact, processes  # noqa: E402
from benchmarks.adapters import lists  # noqa: E402

K, COLD = 10, 200
_GROUPS, _OWN_GROUPS = pathlib.Path("/sys/fs/cgroup"), pathlib.Path("/proc/self/cgroup")
_DONTNEED = 4  # of madvise


@contextlib.contextmanager
def limited(
    size: int, groups: pathlib.Path = _GROUPS, own: pathlib.Path = _OWN_GROUPS
) -> Iterator[str]:
    """Hold this process under a limit of memory; give "applied" or why not.

    By cgroup v2, or v1 inside the group the process is in, so that limits around it stay.

    Parameters
    ----------
    size : int
        Bytes, cached pages of files among them.
    groups, own : Path
        Where the groups are mounted; what tells those of this process.
    """
    group = home = None
    try:
        home, within, file = _places(groups, own.read_text(encoding="ascii"))
        made = within / f"tarsdb-bench-{os.getpid()}"
        made.mkdir()
        group = made
        (group / file).write_text(str(size), encoding="ascii")
        _move(group)
        state = "applied"
    except OSError as reason:
        state = f"not applied: {reason.strerror}"
    try:
        yield state
    finally:
        if group is not None and home is not None:
            with contextlib.suppress(OSError):  # an empty group that stays does no harm
                _move(home)
                group.rmdir()


def _places(groups: pathlib.Path, own: str) -> tuple[pathlib.Path, pathlib.Path, str]:
    """Return this process's group, where to make one in it or beside it, and the limit's file."""
    paths = {names: path for _, names, path in (ln.split(":", 2) for ln in own.splitlines())}
    if (groups / "cgroup.controllers").exists():  # v2: a group with processes can hold no others
        return groups / paths.get("", "/").lstrip("/"), groups, "memory.max"
    if "memory" not in paths:
        raise OSError(errno.ENOSYS, "no controller of memory")
    home = groups / "memory" / paths["memory"].lstrip("/")
    return home, home, "memory.limit_in_bytes"


def _move(group: pathlib.Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


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
    with limited(limit) as applied:
        figures = _measured(path, queries, truth, probes, raw)
    return {"limit_bytes": limit, "limit": applied, **figures}


def _measured(
    path: pathlib.Path, queries: np.ndarray, truth: np.ndarray, probes: int, raw: int
) -> dict[str, Any]:
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
        "warm": warm, "cold": cold, "recall": exact.recall(found, truth),
        "touched_share": touched / raw, "private_share": processes.private_bytes() / raw,
    }  # fmt: skip


if __name__ == "__main__":
    _path, _folder, *_numbers = sys.argv[1:]
    processes.pin()
    print(json.dumps(run(pathlib.Path(_path), pathlib.Path(_folder), *map(int, _numbers))))
