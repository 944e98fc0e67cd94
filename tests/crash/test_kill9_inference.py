"""kill -9 while results of models are written: a sound file, and what it holds equals computing."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import tarsdb
from tarsdb.storage import inference
from tarsdb.storage.transaction import WriteTxn
from tests.crash.inference_workload import WORDS
from tests.unit.model_ops.conftest import model_dir as model_dir

SCRIPT = pathlib.Path(__file__).with_name("inference_workload.py")
KILLS = ("inference.before_commit=kill:3", "stage.after_commit=kill:5", "", "")

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")


def _run_until_killed(path: pathlib.Path, seed: int, failpoint: str) -> None:
    environment = {**os.environ, "TARSDB_FAILPOINTS": failpoint}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path), str(seed)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    if not failpoint:
        assert process.stdout.readline() == "done\n"
        time.sleep(random.Random(seed).random() * 0.5)
        process.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors[-2000:]


def _wrong(db: tarsdb.Connection) -> int:
    """Return how many short texts have another result with the cache than without."""
    texts = [*WORDS, *(f"{one} {two}" for one in WORDS for two in WORDS)]
    rows = ", ".join(f"('{text}')" for text in texts)
    query = f"SELECT embed('m', t) FROM (VALUES {rows}) v(t)"
    kept = [row[0] for row in db.execute(query).fetchall()]
    db.execute("SET inference_cache = off")
    computed = [row[0] for row in db.execute(query).fetchall()]
    db.execute("SET inference_cache = on")
    pairs = zip(kept, computed, strict=True)
    return sum(not np.allclose(one, other, rtol=0, atol=1e-6) for one, other in pairs)


def test_killed_writers_leave_a_sound_file(tmp_path: pathlib.Path, model_dir: pathlib.Path) -> None:
    path = tmp_path / "t.tars"
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE MODEL m FROM '{model_dir}'")
    survived = 0
    for seed, failpoint in enumerate(KILLS):
        _run_until_killed(path, seed, failpoint)
        with tarsdb.connect(path, check=True) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            figures = db.execute("PRAGMA inference_cache_size").fetchone()
            assert figures is not None
            assert figures[1] <= figures[0] == 1 << 20
            survived = max(survived, figures[2])
            assert _wrong(db) == 0
    assert survived > 500, "the killed processes must have stored something"


def test_a_wrong_result_would_be_noticed(tmp_path: pathlib.Path, model_dir: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "t.tars") as db:
        db.execute(f"CREATE MODEL m FROM '{model_dir}'")
        assert _wrong(db) == 0
        session = db._require_session()
        tarsdb.engine.inference.inference_cache.queue_of(session.env).wait()

        def swap(txn: WriteTxn) -> None:
            for key in list(inference._keys(txn))[:3]:
                wrong = np.ones(24, np.float32).tobytes()
                txn.put(inference.DATABASE, key, inference.pack(9, key, wrong))

        session.env.stage(swap)
        assert _wrong(db) == 3
