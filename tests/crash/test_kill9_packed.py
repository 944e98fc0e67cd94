"""kill -9 while packed weights are written, and models that go while others map them."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import tarsdb
from tarsdb.engine.inference import inference_cache, packed_weights
from tarsdb.kernels import dispatch
from tarsdb.storage import packed
from tests.crash.packed_workload import QUERY
from tests.golden.models.tiny_decoders import CONFIGS, tiny_decoder_tensors, tiny_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path(__file__).with_name("packed_workload.py")
KILLS = (
    "packed.between_chunks=kill:1",
    "packed.between_chunks=kill:5",
    "packed.before_descriptor=kill:2",
    "packed.before_overlay=kill:1",
    "packed.before_overlay=kill:3",
    "stage.before_commit=kill:6",
    "stage.after_commit=kill:7",
    "",
)
CONFIG = {**CONFIGS["llama"], "vocab_size": 90, "hidden_size": 256, "intermediate_size": 2048,
          "head_dim": 64, "num_hidden_layers": 4, "max_position_embeddings": 400}  # fmt: skip
"""Of two chunks, so that a text and a write take a while."""
pytestmark = pytest.mark.skipif(
    not packed.CAN_OVERLAY or dispatch.level() == "portable", reason="nothing is mapped here"
)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(tiny_tokenizer(CONFIG["vocab_size"]))
    safetensors.numpy.save_file(tiny_decoder_tensors(CONFIG), folder / "model.safetensors")
    path = tmp_path / "t.tars"
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE MODEL m FROM '{folder}'")
    return path


def _run_until_killed(path: pathlib.Path, failpoint: str) -> None:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path)],
        env={**os.environ, "TARSDB_FAILPOINTS": failpoint},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    if not failpoint:
        for _ in range(3):
            assert process.stdout.readline() == "done\n"
        process.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors[-2000:]


def test_killed_writers_leave_a_sound_file(path: pathlib.Path) -> None:
    with tarsdb.connect(path) as db:
        db.execute("SET packed_weights = off")
        wanted = db.execute(QUERY).fetchall()
    for failpoint in KILLS:
        _run_until_killed(path, failpoint)
        with tarsdb.connect(path, check=True) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], failpoint
            db.execute("SET inference_cache = off")
            assert db.execute(QUERY).fetchall() == wanted, failpoint
            packed_weights.queue_of(db._require_session().env).wait()
    with tarsdb.connect(path) as db:
        db.execute("DROP MODEL m")
        inference_cache.queue_of(db._require_session().env).wait()
        with db._require_session().env.read() as txn:
            assert txn.count(packed.DATABASE) == 0


CHILD = """
import json, sys
import tarsdb
from tarsdb.engine.inference import generation, packed_weights
from tarsdb.metrics import METRICS
packed_weights.SMALLEST_BYTES = 0
path, mode = sys.argv[1:3]
if mode == "unchecked":
    generation.Lease.check = lambda self: None
db = tarsdb.connect(path, read_only=mode == "read-only")
pieces = db.generate("m", "abc", stream=True, max_tokens=300)
text = next(pieces)
print(json.dumps(METRICS.snapshot().get("packed_weights.hits", 0)), flush=True)
sys.stdin.readline()
try:
    answer = text + "".join(pieces)
except tarsdb.Error as error:
    answer = f"{type(error).__name__}: {error}"
print(json.dumps(answer), flush=True)
"""


class Child:
    """A process in the middle of a text of the model."""

    def __init__(self, path: pathlib.Path, mode: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), mode], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.hits = json.loads(self.process.stdout.readline())

    def finish(self) -> Any:
        """Let it write on; return the text, or the error in words."""
        answer, errors = self.process.communicate("\n", timeout=120)
        assert self.process.returncode == 0, errors[-2000:]
        return json.loads(answer)


@pytest.mark.parametrize("mode", ["lease", "read-only", "unchecked"])
def test_a_model_dropped_in_the_middle_of_a_text(
    path: pathlib.Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_weights, "SMALLEST_BYTES", 0)
    with tarsdb.connect(path) as db:
        env = db._require_session().env
        wanted = db.generate("m", "abc", max_tokens=300)
        packed_weights.queue_of(env).wait()
        child = Child(path, mode)
        assert child.hits == 1
        db.execute("DROP MODEL m")
        db.execute("VACUUM")
        inference_cache.queue_of(env).wait()
        with env.read() as txn:
            assert packed.size_bytes(txn) > 0  # the child maps it
        db.execute("CREATE TABLE t (id INT, v VECTOR(1000))")
        for _ in range(4):  # takes every page that is free
            db.execute("INSERT INTO t SELECT range, NULL FROM range(10)")
            rows = [(1, np.ones(1000, np.float32))] * 2000
            db.executemany("INSERT INTO t VALUES (?, ?)", rows)
            db.execute("DELETE FROM t")
            db.execute("VACUUM")
        answer = child.finish()
        if mode == "unchecked":
            assert answer == wanted
        else:
            assert "ModelError: model m was dropped or replaced" in answer
        db.execute("VACUUM")
        with env.read() as txn:
            assert packed.size_bytes(txn) == 0


def test_a_killed_process_holds_nothing(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_weights, "SMALLEST_BYTES", 0)
    with tarsdb.connect(path) as db:
        db.generate("m", "abc", max_tokens=3)
        packed_weights.queue_of(db._require_session().env).wait()
        child = Child(path, "lease")
        db.execute("DROP MODEL m")
        child.process.kill()
        child.process.communicate()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            db.execute("VACUUM")
            with db._require_session().env.read() as txn:
                if packed.size_bytes(txn) == 0:
                    return
    pytest.fail("the image is still there")
