"""Functions of every kind and place on one backend, from the command line."""

from __future__ import annotations

import pathlib

import pytest

from tarsdb.cli import main
from tests.sandbox.kinds_text import LETTERS, MID

EVEN = """(module (func (export "even") (param i64) (result i32)
  (i32.wrap_i64 (i64.xor (i64.and (local.get 0) (i64.const 1)) (i64.const 1)))))"""

SCRIPT = """
CREATE FUNCTION even(n BIGINT) RETURNS BOOLEAN LANGUAGE wasm AS '{even}' WITH ({options});
CREATE AGGREGATE FUNCTION mid(x DOUBLE) RETURNS DOUBLE LANGUAGE wasm AS '{mid}' WITH ({options});
CREATE FUNCTION letters(t TEXT) RETURNS TABLE (letter TEXT, at INT) LANGUAGE wasm
  AS '{letters}' WITH ({options});
CREATE TABLE t (n BIGINT, word TEXT);
CREATE TRIGGER only_even BEFORE INSERT ON t CALL even;
INSERT INTO t VALUES (1, 'one'), (2, 'two'), (4, 'four'), (6, NULL);
CREATE TABLE c (n BIGINT CHECK (even(n)));
"""
ANSWERS = {
    "SELECT n, even(n + 1) AS e FROM t WHERE even(n / 2 + 1) ORDER BY n": "n,e\n2,false\n6,false\n",
    "SELECT mid(n) AS m FROM t": "m\n4.0\n",
    "SELECT n, mid(n) OVER (ORDER BY n ROWS 1 PRECEDING) AS m FROM t ORDER BY n":
        "n,m\n2,2.0\n4,3.0\n6,5.0\n",
    "SELECT n, letter FROM t, letters(word) WHERE at = 1 ORDER BY n": "n,letter\n2,w\n4,o\n",
}  # fmt: skip


def check(folder: pathlib.Path, options: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Create the functions with these options, and ask for their answers."""
    path = str(folder / "kinds.tars")
    script = SCRIPT.format(even=EVEN, mid=MID, letters=LETTERS, options=options)
    assert main(["query", path, script]) == 0, capsys.readouterr().err
    capsys.readouterr()
    for sql, answer in ANSWERS.items():
        assert main(["query", path, sql, "--format", "csv"]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out == answer
    assert main(["query", path, "INSERT INTO c VALUES (2), (3)"]) == 1
    assert "CHECK constraint" in capsys.readouterr().err
    backends = "SELECT DISTINCT backend FROM tars_functions"
    assert main(["query", path, backends, "--format", "csv"]) == 0
    assert capsys.readouterr().out.split()[1] in options
