"""kill -9 inside VACUUM, OPTIMIZE, REINDEX, ALTER, COPY, CREATE, DROP: done or not, and sound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("ddl_workload.py")
ROUNDS = int(os.environ.get("TARSDB_DDL_KILLS", "1"))

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL"),
    pytest.mark.slow,
]


def run(folder: Path, rounds: int, *extra: str) -> dict[str, Any]:
    seed = str(int.from_bytes(os.urandom(3), "little"))
    command = [sys.executable, str(SCRIPT), str(folder), str(rounds), seed, *extra]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_killed_statement_is_done_or_not(tmp_path: Path) -> None:
    answer = run(tmp_path, ROUNDS)
    assert answer["findings"] == []
    assert answer["killed"] > 5


def test_a_statement_in_two_commits_is_noticed(tmp_path: Path) -> None:
    findings = run(tmp_path, 4, "torn")["findings"]
    assert findings
    assert all("half done" in finding for finding in findings)
