"""A forked child may drop the connections that it inherits: they end in their own process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import gc, os, sys
import tarsdb
gc.disable()
db = tarsdb.connect(sys.argv[1])
db.execute("CREATE TABLE t (a INT, b TEXT)")
db.execute("INSERT INTO t VALUES (1, 'x'), (2, 'x')")
ask = "SELECT b, count(*) FROM t GROUP BY b ORDER BY 1"
assert db.execute(ask).fetchall() == [("x", 2)]
child = os.fork()
if child == 0:
    if sys.argv[2] == "dropped":
        db = None
        gc.collect()
    elif sys.argv[2] == "closed":
        db.close()
    with tarsdb.connect(sys.argv[1]) as own:
        assert own.execute(ask).fetchall() == [("x", 2)]
    if sys.argv[2] == "exits":
        sys.exit(0)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), db.execute(ask).fetchall())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("how", ["dropped", "closed", "exits"])
def test_a_child_ends_what_it_inherits(tmp_path: Path, how: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "t.tars"), how],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, "0 [('x', 2)]\n"), ran.stderr
