"""kill -9 at random moments of SQL transactions: acknowledged means there, and all of it agrees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sql_workload.py")
KILLS = int(os.environ.get("TARSDB_KILLS", "200"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def _run(directory: Path, kills: int, seed: int, *extra: str) -> dict[str, object]:
    command = [sys.executable, str(SCRIPT), str(directory), str(kills), str(seed), *extra]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_acknowledged_commits_survive_kill(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(3), "little")
    answer = _run(tmp_path, KILLS, seed)
    assert answer["findings"] == []
    assert answer["kills"] == KILLS
    assert int(str(answer["commits"])) > KILLS, "the writers must get something done"


def test_acknowledging_too_early_is_noticed(tmp_path: Path) -> None:
    answer = _run(tmp_path, 40, 7, "ack-first")
    assert answer["findings"], "a writer that lies must be caught"
