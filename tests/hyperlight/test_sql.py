"""Functions of the Hyperlight backend from SQL, in transactions."""

from __future__ import annotations

import pathlib

import pytest

import tarsdb
from tarsdb.errors import UdfTrapError
from tests.sandbox.every_kind import check
from tests.sandbox.kinds_text import LETTERS, MID

LIMITS = "backend = 'hyperlight', max_memory = '2MB', timeout_ms = 60000"
OPTIONS = f"WITH ({LIMITS})"


def test_functions_from_sql_and_the_transaction_around_a_trap(tmp_path: pathlib.Path) -> None:
    """A trap ends its statement; what was there before is there after."""
    with tarsdb.connect(tmp_path / "x.tars") as connection:
        connection.execute("CREATE TABLE t (id INT PRIMARY KEY, s TEXT)")
        connection.execute("INSERT INTO t VALUES (1, 'one'), (2, NULL), (3, 'drei')")
        connection.execute(f"""CREATE FUNCTION halved(n INT) RETURNS INT LANGUAGE wasm AS $$
          (module (func (export "halved") (param i32) (result i32)
            (i32.div_s (i32.const 6) (i32.sub (local.get 0) (i32.const 3))))) $$ {OPTIONS}""")
        connection.execute(f"""CREATE FUNCTION shout(s TEXT) RETURNS TEXT LANGUAGE python
          AS $$def shout(s): return s.upper() + "!"$$ {OPTIONS}""")
        rows = connection.execute("SELECT id, shout(s) FROM t ORDER BY id").fetchall()
        assert rows == [(1, "ONE!"), (2, None), (3, "DREI!")]
        found = connection.execute("SELECT halved(id) FROM t WHERE id < 3 ORDER BY id").fetchall()
        assert found == [(-3,), (-6,)]
        connection.execute(
            f"CREATE AGGREGATE FUNCTION mid(x DOUBLE) RETURNS DOUBLE LANGUAGE wasm AS $${MID}$$ "
            f"{OPTIONS}"
        )
        connection.execute(
            "CREATE FUNCTION letters(t TEXT) RETURNS TABLE (letter TEXT, at INT) LANGUAGE wasm AS "
            f"$${LETTERS}$$ {OPTIONS}"
        )
        found = connection.execute(
            "SELECT s IS NULL, mid(id::DOUBLE) FROM t GROUP BY 1 ORDER BY 1"
        ).fetchall()
        assert found == [(False, 2.0), (True, 2.0)]
        found = connection.execute("SELECT letter, at FROM t, letters(s) WHERE id = 1").fetchall()
        assert found == [("o", 0), ("n", 1), ("e", 2)]
        with pytest.raises(UdfTrapError, match="halved"):
            connection.execute("UPDATE t SET id = halved(id) + 10")
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(3,)]


def test_every_kind_from_the_command_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(tmp_path, LIMITS, capsys)
