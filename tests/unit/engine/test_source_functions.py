"""CREATE FUNCTION in Python and JavaScript, as far as it goes without Hyperlight."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

import tarsdb
from tarsdb.errors import (
    BindError,
    NotSupportedError,
    UdfBackendError,
    UdfValidationError,
)
from tarsdb.udf_sandbox.hyperlight import probe

HYPERLIGHT = "WITH (backend = 'hyperlight')"


@pytest.fixture
def connection(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "x.tars") as opened:
        yield opened


@pytest.mark.parametrize(
    ("declaration", "error", "message"),
    [
        ("f(x INT) RETURNS INT LANGUAGE python AS 'f'", BindError, "the function's is 'wasmtime'"),
        (f"f(x INT) RETURNS INT LANGUAGE python FROM m::f {HYPERLIGHT}", BindError, "FROM m"),
        (f"f(x DATE) RETURNS INT LANGUAGE python AS 'f' {HYPERLIGHT}",
         UdfValidationError, "DATE has no form in JSON"),
        (f"f(x INT) RETURNS DECIMAL(30, 2) LANGUAGE javascript AS 'f' {HYPERLIGHT}",
         UdfValidationError, "DECIMAL"),
        (f'"f-g"(x INT) RETURNS INT LANGUAGE python AS \'f\' {HYPERLIGHT}',
         UdfValidationError, "no name of a function in python"),
        ("f(x INT) RETURNS INT LANGUAGE python AS 'f' WITH (backend = 'hyperlight', fuel = 9)",
         BindError, "fuel is not counted"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_when_it_is_declared(
    connection: tarsdb.Connection, declaration: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        connection.execute(f"CREATE FUNCTION {declaration}")


def test_aggregates_in_source_are_refused(connection: tarsdb.Connection) -> None:
    text = f"CREATE AGGREGATE FUNCTION f(x INT) RETURNS INT LANGUAGE python AS 'f' {HYPERLIGHT}"
    with pytest.raises(NotSupportedError, match="this is aggregate"):
        connection.execute(text)


def test_where_hyperlight_is_not_a_call_says_so_and_nothing_is_lost(
    connection: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "unavailable", lambda: "/dev/kvm does not exist")
    for name, language, code in (
        ("p", "python", "def p(x): return x"),
        ("j", "javascript", "const j = (x) => x"),
        ("w", "wasm", '(module (func (export "w") (param i32) (result i32) (local.get 0)))'),
    ):
        connection.execute(f"""CREATE FUNCTION {name}(x INT) RETURNS INT LANGUAGE {language}
          AS $${code}$$ {HYPERLIGHT}""")
    connection.execute("CREATE TABLE t (x INT)")
    connection.execute("BEGIN")
    connection.execute("INSERT INTO t VALUES (1)")
    for name in ("p", "j", "w"):
        with pytest.raises(UdfBackendError, match="/dev/kvm does not exist"):
            connection.execute(f"SELECT {name}(x) FROM t")
    connection.execute("COMMIT")
    assert connection.execute("SELECT x FROM t").fetchall() == [(1,)]
    names = connection.execute("SELECT name, language FROM tars_functions").fetchall()
    assert sorted(names) == [("j", "javascript"), ("p", "python"), ("w", "wasm")]
