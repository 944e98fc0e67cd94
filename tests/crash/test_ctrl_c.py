"""Ctrl-C during inserts and commits: the process goes on; nothing is lost or doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tarsdb
from tests.crash.ctrl_c_workload import BULK, ROWS

ROOT = Path(__file__).parents[2]
INTERRUPTS = int(os.environ.get("TARSDB_INTERRUPTS", "40"))
pytestmark = pytest.mark.crash


def main_acknowledgements(path: Path) -> int:
    return path.read_bytes().count(b"main-") if path.exists() else 0


def wait_for_more(child: subprocess.Popen[str], path: Path, before: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert child.poll() is None, child.communicate()
        if main_acknowledgements(path) > before:
            return
        time.sleep(0.002)
    raise AssertionError("the interrupted thread makes no progress")


@pytest.mark.parametrize("durability", ["full", "group"])
def test_interrupts_lose_and_double_nothing(tmp_path: Path, durability: str) -> None:
    path, acknowledged = tmp_path / "t.tars", tmp_path / "acknowledged"
    with tarsdb.connect(path) as connection:
        connection.execute("CREATE TABLE log (token TEXT)")
        connection.execute("CREATE TABLE items (id TEXT, token TEXT, v VECTOR(16))")
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.ctrl_c_workload", path, acknowledged, durability],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    rng = random.Random(durability)
    for _ in range(INTERRUPTS):
        wait_for_more(child, acknowledged, main_acknowledgements(acknowledged))
        time.sleep(rng.random() * 0.01)
        child.send_signal(signal.SIGINT)
    wait_for_more(child, acknowledged, main_acknowledgements(acknowledged))
    (tmp_path / "acknowledged.stop").touch()
    out, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (0, "")
    assert all(line.startswith("InterruptError") for line in out.splitlines()), out
    check(path, acknowledged)


def check(path: Path, acknowledged: Path) -> None:
    with tarsdb.connect(path, check=True) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        logged = [token for (token,) in connection.execute("SELECT token FROM log").fetchall()]
        assert len(set(logged)) == len(logged), "a transaction was made twice"
        missing = set(acknowledged.read_text().split()) - set(logged)
        assert not missing, f"acknowledged and not there: {missing}"
        counts = connection.execute("SELECT token, count(*) FROM items GROUP BY token").fetchall()
        wanted = {token: BULK if token.endswith("0") else ROWS for token in logged}
        assert dict(counts) == wanted
