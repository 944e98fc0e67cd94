"""Failpoints: armed by text or by function, counted, and silent otherwise."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tarsdb.storage import failpoints


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    failpoints.disarm()


def test_nothing_happens_unarmed() -> None:
    failpoints.hit("commit.before_sync")
    failpoints.arm("stage.after_commit", "error")
    failpoints.hit("commit.before_sync")


def test_nth_hit_only() -> None:
    failpoints.arm("a", "error:2")
    failpoints.hit("a")
    with pytest.raises(OSError) as raised:
        failpoints.hit("a")
    assert raised.value.errno == errno.EIO
    failpoints.hit("a")


def test_functions_sleep_and_unknown_actions() -> None:
    seen: list[int] = []
    failpoints.arm("a", lambda: seen.append(1))
    failpoints.hit("a")
    assert seen == [1]
    failpoints.arm("a", "sleep:30")
    started = time.monotonic()
    failpoints.hit("a")
    assert time.monotonic() - started >= 0.03
    with pytest.raises(ValueError, match="unknown action"):
        failpoints.arm("a", "explode")


def test_kill_from_the_environment() -> None:
    code = "from tarsdb.storage.failpoints import hit\nhit('x')\nprint('one', flush=True)\nhit('x')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TARSDB_FAILPOINTS": "x=kill:2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "one\n"
