"""The power goes at any moment: what was acknowledged is there, whole, and the file is sound.

A small C library records every write and sync of the data file while a workload runs; a replayer
makes the contents the file could have had after a power loss at each moment, and opens them. The
default run is a few hundred states; ``TARSDB_POWER_STATES`` sets the number of the slow one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tarsdb.storage import Environment
from tests.crash.power import scenario

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MODES = {"full": 3, "group": 1, "relaxed": 3}  # durability -> threads
SLOW_STATES = int(os.environ.get("TARSDB_POWER_STATES", "4000"))

Recorder = Callable[[str, int], Path]
pytestmark = pytest.mark.crash


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """Return a function that records a workload once and returns the folder of its log."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("recording needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("recorder") / "recorder.so"
    command = [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library]
    subprocess.run([*command, HERE / "recorder.c", "-ldl", "-lpthread"], check=True)
    known: dict[tuple[str, int], Path] = {}

    def run(durability: str, steps: int) -> Path:
        if (durability, steps) not in known:
            folder = tmp_path_factory.mktemp(durability)
            _record(folder, library, durability, steps)
            known[durability, steps] = folder
        return known[durability, steps]

    return run


def _record(folder: Path, library: Path, durability: str, steps: int) -> None:
    path, marks = folder / "t.tars", folder / "marks"
    env = Environment.open(path)
    scenario.create(env, MODES[durability])
    env.release()
    shutil.copy(path, folder / "base")
    marks.touch()
    settings = {
        "POWER_FILE": path, "POWER_MARKS": marks, "POWER_LOG": folder / "log",
        "POWER_SYNC_US": "300", "LD_PRELOAD": library,
    }  # fmt: skip
    module = "tests.crash.power.workload"
    arguments = [path, marks, durability, str(MODES[durability]), str(steps)]
    subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in settings.items()}},
        check=True,
        timeout=120,
    )


def replay(folder: Path, durability: str, states: int, seed: int, mode: str = "") -> dict[str, Any]:
    """Verify states in a process of their own; return its counts."""
    module = "tests.crash.power.replay"
    arguments = [folder, durability, str(MODES[durability]), str(states), str(seed), mode]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert done.returncode == 0, f"seed {seed}: {done.returncode} {done.stderr[-2000:]}"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("durability", MODES)
def test_power_loss(record: Recorder, durability: str) -> None:
    answer = replay(record(durability, 24), durability, 140, seed=1)
    assert answer["first"] == []
    assert answer["distinct"] > 100
    assert answer["records"] > 500


@pytest.mark.slow
@pytest.mark.parametrize("durability", MODES)
def test_power_loss_in_many_states(record: Recorder, durability: str) -> None:
    seed = int.from_bytes(os.urandom(3), "little")
    answer = replay(record(durability, 32), durability, SLOW_STATES, seed)
    assert answer["first"] == [], f"seed {seed}"
    assert answer["distinct"] > SLOW_STATES // 2


@pytest.mark.parametrize("durability", ["full", "relaxed"])
def test_ignoring_syncs_is_noticed(record: Recorder, durability: str) -> None:
    """The negative control: were the syncs absent, commits would be lost and files damaged."""
    answer = replay(record(durability, 24), durability, 60, seed=2, mode="ignore-syncs")
    assert answer["lost"] > 0
    assert answer["violations"] - answer["lost"] > 10, "torn states must be seen as such"


def test_full_is_more_than_relaxed(record: Recorder) -> None:
    """A relaxed recording judged by the rule of full loses commits: the rule can fail."""
    answer = replay(record("relaxed", 24), "full", 200, seed=3)
    assert answer["lost"] == answer["violations"] > 0
