"""Fresh processes as contenders, their peak memory, and the flushes they ask of the kernel.

A child is ``python -m MODULE ARGUMENTS`` and answers with one JSON object on its last line.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PEERS_VARIABLE = "TARSDB_BENCH_PEERS"
TRACED = "openat,open,dup,fdatasync,fsync,msync,sync_file_range,pwrite64,pwritev,write,writev"
_CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)")
"""A process id, padded with spaces, a call and the rest of its line."""
_WRITES = ("pwrite64", "pwritev", "write", "writev")


class ChildError(Exception):
    """A child process failed or could not be started."""


def interpreter() -> str:
    """Return the Python that has the peers installed: ours unless ``TARSDB_BENCH_PEERS`` says."""
    return os.environ.get(PEERS_VARIABLE) or sys.executable


def call(
    module: str,
    *arguments: object,
    python: str | None = None,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a child to its end and return its answer.

    Raises
    ------
    ChildError
        With the last lines the child wrote to standard error.
    """
    command = [*prefix, python or sys.executable, "-m", module, *map(str, arguments)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=_root(),
        env={**plain_environment(), **(environment or {})},
    )  # fmt: skip
    if ran.returncode != 0:
        tail = " | ".join(ran.stderr.strip().splitlines()[-3:])
        raise ChildError(f"{module} {arguments[:2]}: exit status {ran.returncode}: {tail}")
    answer: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return answer


def plain_environment() -> dict[str, str]:
    """Return the environment children get: modules are compiled once, as when installed."""
    unwanted = ("PYTHONDONTWRITEBYTECODE", "PYTHONPROFILEIMPORTTIME")
    return {key: value for key, value in os.environ.items() if key not in unwanted}


def _root() -> pathlib.Path:
    return pathlib.Path(__file__).resolve().parents[1]


def pin(core: int = 0) -> None:
    """Keep this process on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[core % len(allowed)]})


class PeakMemory:
    """Peak resident bytes of this process above what it held on entry (Linux)."""

    def __init__(self) -> None:
        self.extra_bytes: int | None = None
        self._before = 0

    def __enter__(self) -> PeakMemory:
        try:
            pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return self
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before:
            self.extra_bytes = _status("VmHWM") - self._before


def private_bytes() -> int:
    """Return the anonymous resident bytes of this process: pages of mapped files do not count."""
    return _status("RssAnon")


def _status(field: str) -> int:
    text = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def flushes(module: str, *arguments: object, log: pathlib.Path) -> dict[str, int]:
    """Run a child under strace and count what it flushed to disk.

    A flush is an fsync, fdatasync or msync call, or a write to a file opened with O_SYNC or O_DSYNC
    (LMDB writes its meta page so).

    Raises
    ------
    ChildError
        strace is absent or not permitted.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise ChildError("strace is not installed")
    prefix = [strace, "-f", "-q", "-o", str(log), "-e", f"trace={TRACED}"]
    call(module, *arguments, prefix=prefix)
    return _count(log.read_text(encoding="utf-8", errors="replace"))


def _count(text: str) -> dict[str, int]:
    synchronous: set[str] = set()
    counts = {"fsync": 0, "fdatasync": 0, "msync": 0, "sync_write": 0}
    for line in text.splitlines():
        found = _CALL.match(line.strip())
        if found is None:
            continue
        name, rest = found[1], found[2]
        if name in ("openat", "open") and (opened := re.search(r"= (\d+)$", rest)):
            synchronous.discard(opened[1])
            if "O_DSYNC" in rest or "O_SYNC" in rest:
                synchronous.add(opened[1])
        elif name in counts:
            counts[name] += 1
        elif name in _WRITES and rest.partition(",")[0] in synchronous:
            counts["sync_write"] += 1
    return counts


def last_transaction(path: pathlib.Path) -> int:
    """Return the number of a file's last LMDB transaction, read from its two meta pages."""
    with open(path, "rb") as file:
        page_size = int.from_bytes(file.read(44)[40:44], "little")
        file.seek(0)
        pages = file.read(2 * page_size)
    return max(int.from_bytes(pages[at + 144 : at + 152], "little") for at in (0, page_size))
