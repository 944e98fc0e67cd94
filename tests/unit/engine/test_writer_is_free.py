"""Models, functions and DuckDB never run while the writer is held, whatever statement asks."""

from __future__ import annotations

import functools
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tarsdb
from tarsdb.engine.by_duckdb.relational import RelationalEngine
from tarsdb.errors import LockError
from tarsdb.model_ops import Encoder
from tarsdb.storage import Environment
from tarsdb.udf_sandbox.in_process.wasmtime_backend import Store
from tests.unit.model_ops.conftest import model_dir as model_dir

COMPUTING = [(Encoder, "encode"), (Store, "invoke"), (RelationalEngine, "_execute")]
IS_ODD = """(module (func (export "odd") (param i64) (result i32)
  (i32.wrap_i64 (i64.and (local.get 0) (i64.const 1)))))"""
SETUP = (
    f"CREATE FUNCTION odd(n BIGINT) RETURNS INT LANGUAGE wasm AS '{IS_ODD}'",
    "CREATE TABLE notes (id BIGINT PRIMARY KEY, n BIGINT CHECK (odd(n) = 1), body TEXT, "
    "emb VECTOR(24) GENERATED ALWAYS AS (embed('m', body)) STORED)",
    "INSERT INTO notes (id, n, body) VALUES (1, 1, 'parse a date')",
    "CREATE TABLE other (id BIGINT, n BIGINT)",
    "INSERT INTO other VALUES (1, 3), (2, 5)",
)


@pytest.fixture
def db(tmp_path: pathlib.Path, model_dir: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "t.tars") as opened:
        opened.execute(f"CREATE MODEL m FROM '{model_dir}'")
        for statement in SETUP:
            opened.execute(statement)
        yield opened


def take_writer(env: Environment) -> None:
    """Raise LockError where this thread, or one that waits for it, holds the writer."""
    env.stage(lambda _: None, timeout_s=2.0)


@pytest.fixture
def computed(db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Take the writer wherever something computes; count where."""
    env, counts = db._session.env, Counter[str]()

    def watched(original: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(original)
        def run(*arguments: Any, **options: Any) -> Any:
            take_writer(env)
            counts[name] += 1
            return original(*arguments, **options)

        return run

    for owner, name in COMPUTING:
        monkeypatch.setattr(owner, name, watched(getattr(owner, name), name))
    return counts


@pytest.mark.parametrize(
    ("statement", "computing"),
    [
        ("INSERT INTO notes (id, n, body) VALUES (7, 7, 'how do I')", {"encode", "invoke"}),
        ("INSERT INTO notes (id, n, body) VALUES (1, 7, 'i') ON CONFLICT (id) DO UPDATE SET "
         "body = 'b', n = 9", {"encode", "invoke"}),
        ("UPDATE notes SET body = 'a string', n = n + 2", {"encode", "invoke"}),
        ("DELETE FROM notes WHERE odd(n) = 1", {"invoke"}),
        ("INSERT INTO notes (id, n, body) SELECT a.id + 10, max(b.n), 'time' FROM other a "
         "JOIN other b ON a.id <= b.id GROUP BY a.id", {"encode", "invoke", "_execute"}),
    ],
)  # fmt: skip
def test_the_writer_is_free_while_something_computes(
    db: tarsdb.Connection, computed: Counter[str], statement: str, computing: set[str]
) -> None:
    db.execute("BEGIN")
    db.execute(statement)
    db.execute("ROLLBACK")
    db.execute(statement)
    assert set(computed) == computing


def test_a_model_under_the_writer_is_noticed(db: tarsdb.Connection, computed: Counter[str]) -> None:
    started = time.monotonic()
    with pytest.raises(LockError):
        db._session.env.stage(lambda _: db.execute("SELECT embed('m', 'a date')").fetchall())
    assert time.monotonic() - started > 1
    assert not computed
