"""Kill a writing process and count what is there: acknowledged means on disk."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tarsdb.database import connect
from tarsdb.errors import OperationalError
from tarsdb.records import dataclass

WRITE_S = 4.0


@dataclass(frozen=True)
class Recovery:
    """What a killed writer had acknowledged and what the file holds."""

    acknowledged: int
    found: int
    beyond: int
    check: str
    check_s: float


def kill_a_writer(path: Path, write_s: float = WRITE_S) -> Recovery:
    """Start a writer, kill it after about ``write_s`` seconds, reopen the file and count.

    Raises
    ------
    OperationalError
        The writer stopped by itself.
    """
    with connect(path) as db:
        db.execute("CREATE TABLE journal (id BIGINT PRIMARY KEY, note TEXT NOT NULL)")
    lines = _write_and_kill(path, write_s)
    acknowledged = len(lines)
    if lines != [str(i) for i in range(1, acknowledged + 1)]:
        raise OperationalError("the writer's acknowledgements are not 1, 2, 3, ...")
    with connect(path) as db:
        found, total = db.execute(
            "SELECT count(*) FILTER (WHERE id <= ?), count(*) FROM journal", [acknowledged]
        ).fetchall()[0]
        start = time.perf_counter()
        findings = [str(row[0]) for row in db.execute("PRAGMA integrity_check").fetchall()]
        check_s = time.perf_counter() - start
    return Recovery(acknowledged, found, total - found, "; ".join(findings), check_s)


def _write_and_kill(path: Path, write_s: float) -> list[str]:
    command = [sys.executable, "-m", "tarsdb.demo.writer", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()  # the moment is random, the start-up is not part of it
        time.sleep(write_s * random.uniform(0.5, 1.0))
        if not first or writer.poll() is not None:
            raise OperationalError(f"the writer ended by itself with code {writer.wait()}")
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read()
    return (first + rest).split()
