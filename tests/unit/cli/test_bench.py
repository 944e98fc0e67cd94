"""``tarsdb bench`` end to end."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tarsdb
from tarsdb.cli import main
from tarsdb.metrics import METRICS

DIM, ROWS = 24, 3000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("bench") / "a.tars")
    rows = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.table("t").insert({"id": np.arange(ROWS), "emb": rows})
        db.execute("CREATE INDEX tv ON t USING hnsw (emb)")
        db.execute(f"CREATE TABLE listed (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.table("listed").insert({"id": np.arange(ROWS), "emb": rows})
        db.execute("CREATE INDEX lv ON listed USING ivf (emb) WITH (lists = 100)")
        db.execute("CREATE TABLE two (a VECTOR(2), b VECTOR(2), name TEXT)")
        db.execute("INSERT INTO two VALUES ('[1,2]', '[1,2]', 'x'), ('[1,3]', NULL, 'y')")
    return path


def test_recall_grows_with_the_list(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = METRICS.snapshot().get("index.graph_searches", 0)
    digest = hashlib.sha256(Path(file).read_bytes()).digest()
    assert main(["bench", file, "t", "--queries", "50", "--format", "json"]) == 0
    assert hashlib.sha256(Path(file).read_bytes()).digest() == digest
    exact, chosen, *ladder = json.loads(capsys.readouterr().out)
    assert METRICS.snapshot()["index.graph_searches"] >= before + 50 * (1 + len(ladder))
    assert (exact["search"], exact["recall"], exact["note"]) == ("exact", 1.0, "50 queries")
    assert "target_recall" in chosen["note"]
    assert [row["effort"] for row in ladder] == [16, 32, 64, 128, 256, 512]
    assert ladder[0]["recall"] < ladder[-1]["recall"]
    assert ladder[-1]["recall"] >= 0.99
    for row in (exact, chosen, *ladder):
        assert row["p99_us"] >= row["p50_us"] > 0
        assert row["qps"] > 0


def test_recall_grows_with_the_lists_looked_at(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", file, "listed", "--queries", "50", "--format", "json"]) == 0
    exact, chosen, *ladder = json.loads(capsys.readouterr().out)
    assert exact["recall"] == 1.0
    assert "lists, probes" in chosen["note"]
    assert [row["effort"] for row in ladder] == [1, 2, 4, 8, 16, 32, 64, 100]
    assert ladder[0]["recall"] < ladder[3]["recall"] < ladder[-1]["recall"]
    assert ladder[-1]["recall"] >= 0.99


def test_formats(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", file, "t", "--queries", "5", "--k", "40", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["effort"] for row in rows[2:]] == ["41", "64", "128", "256", "512"]
    assert main(["bench", file, "t", "--queries", "5"]) == 0
    assert capsys.readouterr().out.startswith("search │ operator")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["absent"], "'absent' does not exist"),
        (["two"], "2 vector columns: a, b"),
        (["two", "--column", "c"], "no column 'c'"),
        (["two", "--column", "name"], "TEXT, not a vector"),
        (["two", "--column", "b"], "fewer than 2 rows"),
        (["t", "--k", "0"], "--k must be at least 1"),
        (["t", "--queries", "-1"], "--queries must be at least 1"),
    ],
)
def test_errors(
    file: str, capsys: pytest.CaptureFixture[str], given: list[str], words: str
) -> None:
    assert main(["bench", file, *given]) == 1
    assert words in capsys.readouterr().err


def test_a_column_without_an_index(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", file, "two", "--column", "a", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["search"], row["operator"]) == ("exact", "<->")


def test_an_absent_file_is_not_created(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tmp_path / "no.tars"), "t"]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_interrupt(file: str) -> None:
    program = (
        "import sys, tarsdb.cli.bench as b; from tarsdb.cli import main\n"
        "from tarsdb.engine.search.index_methods import METHODS\n"
        "METHODS['hnsw'].shown = range(16, 10**6)\n"
        "real = b.recall.measure\n"
        "def told(*a):\n    print('run', file=sys.stderr, flush=True)\n    return real(*a)\n"
        "b.recall.measure = told\n"
        "sys.exit(main())\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", program, "bench", file, "t"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert command.stderr is not None
    assert command.stderr.readline() == "run\n"
    time.sleep(0.3)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=30)
    assert (command.returncode, out) == (1, "")
    assert "InterruptError" in err
    assert "Traceback" not in err
