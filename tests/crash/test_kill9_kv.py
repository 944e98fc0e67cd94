"""kill -9 at random and at named moments: every acknowledged commit is there, whole and in order.

The default run is a few seconds; ``TARSDB_KILLS`` raises the number of random kills.
"""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tarsdb.options import OpenOptions
from tarsdb.storage.environment import Environment
from tarsdb.storage.values import ValueType, unpack

ROOT = pathlib.Path(__file__).parents[2]
KILLS = int(os.environ.get("TARSDB_KILLS", "16"))
pytestmark = pytest.mark.crash


class Lost(AssertionError):
    """An acknowledged commit is missing or torn."""


def launch(
    path: pathlib.Path,
    acknowledged: pathlib.Path,
    durability: str,
    threads: int,
    failpoint: str = "",
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.crash.kv_workload",
            str(path),
            str(acknowledged),
            durability,
            str(threads),
        ],
        cwd=ROOT,
        env={**os.environ, "TARSDB_FAILPOINTS": failpoint},
    )


def wait_for_growth(acknowledged: pathlib.Path, before: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if acknowledged.exists() and acknowledged.stat().st_size > before:
            return
        time.sleep(0.001)
    raise TimeoutError("the workload acknowledged nothing")


def check(path: pathlib.Path, acknowledged: pathlib.Path) -> int:
    """Verify structure and content against the acknowledgements; return the commits found."""
    env = Environment.open(path, OpenOptions(check=True))
    try:
        with env.read() as txn:
            last = txn.commit_number
            tokens: dict[int, bytes] = {}
            for key, value in txn.range("delta", b"", None):
                payload, _, number = unpack(ValueType.DELTA, key, value)
                tokens[number] = bytes(payload).rstrip(b".")
                if txn.get("tombs", tokens[number]) != key:
                    raise Lost(f"commit {number} is torn: no index entry")
            if sorted(tokens) != list(range(1, last + 1)) or txn.count("commits") != last:
                raise Lost(f"commits up to {last} are not complete: {len(tokens)}")
            if last and txn.get("meta", b"last") != last.to_bytes(8, "big"):
                raise Lost("the overwritten key is not the last commit's")
            if txn.count("blocks") != min(last, 40):
                raise Lost("deletes do not match the last commit")
            for key, value in txn.range("blocks", b"", None):
                unpack(ValueType.BLOCK, key, value)
    finally:
        env.release()
    for line in acknowledged.read_bytes().splitlines() if acknowledged.exists() else ():
        number, _, token = line.partition(b" ")
        if tokens.get(int(number)) != token:
            raise Lost(f"commit {int(number)} was acknowledged as {token!r} and is not there")
    return last


@pytest.mark.parametrize(("durability", "threads"), [("full", 4), ("group", 1), ("relaxed", 2)])
def test_random_kills(tmp_path: pathlib.Path, durability: str, threads: int) -> None:
    path, acknowledged = tmp_path / "t.tars", tmp_path / "acknowledged"
    rng = random.Random(durability)
    found = 0
    for _ in range(max(KILLS // 3, 1)):
        before = acknowledged.stat().st_size if acknowledged.exists() else 0
        child = launch(path, acknowledged, durability, threads)
        wait_for_growth(acknowledged, before)
        time.sleep(rng.random() * 0.05)
        child.kill()
        child.wait()
        now = check(path, acknowledged)
        assert now > found
        found = now


@pytest.mark.parametrize(
    "point",
    [
        "commit.before_apply",
        "commit.after_apply",
        "commit.before_sync",
        "commit.after_write",
        "commit.after_sync",
    ],
)
def test_kills_at_named_moments(tmp_path: pathlib.Path, point: str) -> None:
    path, acknowledged = tmp_path / "t.tars", tmp_path / "acknowledged"
    child = launch(path, acknowledged, "group", 3, f"{point}=kill:9")
    assert child.wait(timeout=30) == -signal.SIGKILL
    assert check(path, acknowledged) >= 2


def test_two_writers_one_killed(tmp_path: pathlib.Path) -> None:
    path, acknowledged = tmp_path / "t.tars", tmp_path / "acknowledged"
    children = [launch(path, acknowledged, "group", 2) for _ in range(2)]
    wait_for_growth(acknowledged, 0)
    time.sleep(0.3)
    children[0].kill()
    size = acknowledged.stat().st_size
    wait_for_growth(acknowledged, size + 200)
    children[1].kill()
    for child in children:
        child.wait()
    check(path, acknowledged)


def test_this_test_can_fail(tmp_path: pathlib.Path) -> None:
    """Negative control: a workload that acknowledges before it commits is caught."""
    path, acknowledged = tmp_path / "t.tars", tmp_path / "acknowledged"
    for _ in range(40):
        before = acknowledged.stat().st_size if acknowledged.exists() else 0
        child = launch(path, acknowledged, "CHEAT", 1, "commit.before_sync=kill:5")
        wait_for_growth(acknowledged, before)
        child.wait()
        try:
            check(path, acknowledged)
        except Lost:
            return
    pytest.fail("40 cheating runs went unnoticed")
