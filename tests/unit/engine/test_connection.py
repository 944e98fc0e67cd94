"""The Python face: PEP 249, functions, variables, search by batch, limits, threads, damage."""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import tarsdb
from tarsdb import errors

given = pa.table({"id": [100]})  # a global variable, for replacement scans
INC = (
    '(module (func (export "inc") (param i64) (result i64) (i64.add (local.get 0) (i64.const 1))))'
)
LOOP = '(module (func (export "lp") (param i64) (result i64) (loop (br 0)) (i64.const 0)))'


@pytest.fixture
def db() -> Iterator[tarsdb.Connection]:
    with tarsdb.connect() as connection:
        connection.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INT, v VECTOR(2))")
        sets = [(1, 10, [0, 0]), (2, 20, [1, 0]), (3, 30, [0, 3]), (4, None, None)]
        connection.executemany("INSERT INTO t VALUES (?, ?, ?)", sets)
        yield connection


def rows(db: tarsdb.Connection, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return db.execute(sql, *parameters).fetchall()


def test_pep_249(db: tarsdb.Connection) -> None:
    assert (tarsdb.apilevel, tarsdb.paramstyle, tarsdb.threadsafety) == ("2.0", "qmark", 2)
    for name in ("Warning", "Error", "InterfaceError", "DatabaseError", "DataError",
                 "OperationalError", "IntegrityError", "InternalError", "ProgrammingError",
                 "NotSupportedError"):  # fmt: skip
        assert issubclass(getattr(tarsdb, name), Exception)
    cursor = db.cursor()
    assert cursor.description is None and cursor.rowcount == -1 and cursor.arraysize == 1
    for fetch in (cursor.fetchone, cursor.fetchall, cursor.fetchmany):
        with pytest.raises(errors.Error):
            fetch()
    assert cursor.execute("SELECT id, n AS m FROM t ORDER BY id") is cursor
    assert [(d[0], d[1], len(d)) for d in cursor.description or []] == [
        ("id", "BIGINT", 7), ("m", "INT", 7)]  # fmt: skip
    assert cursor.rowcount == 4
    assert cursor.fetchone() == (1, 10)
    assert cursor.fetchmany() == [(2, 20)]
    assert cursor.fetchmany(5) == [(3, 30), (4, None)]
    assert cursor.fetchone() is None and cursor.fetchall() == [] and cursor.fetchmany(2) == []
    cursor.execute("SELECT id FROM t ORDER BY id")
    assert list(cursor) == [(1,), (2,), (3,), (4,)] and list(cursor) == []
    cursor.execute("UPDATE t SET n = 1 WHERE id < 3")
    assert cursor.rowcount == 2 and cursor.description is None
    with pytest.raises(errors.InterfaceError):
        cursor.fetchall()
    cursor.setinputsizes([1])
    cursor.setoutputsize(1)
    with pytest.raises(errors.NotSupportedError):
        cursor.callproc("f")
    with pytest.raises(errors.SQLSyntaxError):
        cursor.execute("SELEC 1")
    assert cursor.description is None and cursor.rowcount == -1
    cursor.close()
    with pytest.raises(errors.InterfaceError):
        cursor.execute("SELECT 1")
    db.commit()
    db.rollback()


def test_names_of_pep_249(db: tarsdb.Connection) -> None:
    cursor = db.execute(
        "SELECT 'a' AS s, '{}'::JSON AS j, 1.5 AS d, true AS b, now() AS m, DATE '2020-01-01' AS n,"
        " 'a'::BLOB AS o, [1] AS a"
    )
    codes = [column[1] for column in cursor.description or ()]
    kinds = [tarsdb.STRING, tarsdb.BINARY, tarsdb.NUMBER, tarsdb.DATETIME, tarsdb.ROWID]
    found = [[kind for kind in kinds if code == kind] for code in codes]
    assert found == [
        [tarsdb.STRING], [tarsdb.STRING], [tarsdb.NUMBER], [tarsdb.NUMBER], [tarsdb.DATETIME],
        [tarsdb.DATETIME], [tarsdb.BINARY], [],
    ]  # fmt: skip
    assert len(set(kinds)) == len(kinds)
    moment = tarsdb.Timestamp(2020, 1, 2, 3, 4, 5)
    assert tarsdb.TimestampFromTicks(moment.timestamp()) == moment
    assert tarsdb.DateFromTicks(moment.timestamp()) == tarsdb.Date(2020, 1, 2)
    assert tarsdb.TimeFromTicks(moment.timestamp()) == tarsdb.Time(3, 4, 5)
    (row,) = db.execute("SELECT ?, ?", [moment, tarsdb.Binary(b"a")]).fetchall()
    assert row == (moment, b"a")


def test_a_cursor_is_an_iterator(db: tarsdb.Connection) -> None:
    cursor = db.execute("SELECT * FROM range(3)")
    assert iter(cursor) is cursor
    assert next(cursor) == (0,)
    assert list(cursor) == [(1,), (2,)]
    assert next(cursor, None) is None
    with pytest.raises(errors.InterfaceError):
        next(db.cursor())


def test_fetchall_does_not_share_its_list(db: tarsdb.Connection) -> None:
    cursor = db.execute("SELECT id FROM t WHERE id < 3")
    first = cursor.fetchall()
    first.clear()
    assert len(cursor.arrow()) == 2 and cursor.rowcount == 2


def test_results_outlive_everything(tmp_path: Path) -> None:
    db = tarsdb.connect(tmp_path / "a.tars")
    db.execute("CREATE TABLE t (id INT, s TEXT, v VECTOR(3))")
    db.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, "x" * i, [i] * 3) for i in range(3000)])
    db.execute("OPTIMIZE t")
    cursors = [db.execute("SELECT * FROM t"), db.execute("SELECT * FROM t ORDER BY id"),
               db.execute("SELECT * FROM t ORDER BY v <-> '[0,0,0]' LIMIT 9")]  # fmt: skip
    tables = [db.execute("SELECT id, s, v FROM t").arrow()]
    db.execute("DELETE FROM t; VACUUM")
    db.close()
    assert [len(c.fetchall()) for c in cursors] == [3000, 3000, 9]
    assert tables[0].column("v").to_pylist()[2999] == [2999.0] * 3
    assert cursors[0].numpy()["v"].sum() == sum(range(3000)) * 3


def test_memory_databases_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with tarsdb.connect() as db:
        db.execute("CREATE TABLE t (a INT)")
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(errors.InterfaceError):
        tarsdb.connect(":memory:", read_only=True)


@pytest.mark.parametrize(
    "wrong",
    [{"path": 5}, {"path": None}, {"path": ""}, {"path": "a\0b"}, {"options": "x"}],
)
def test_what_names_no_file_is_an_interface_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.InterfaceError):
        tarsdb.connect(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"lock_timeout_s": "x"}, {"lock_timeout_s": -1}, {"max_read_age_s": float("nan")},
     {"segment_rows": 0}, {"segment_rows": 1.5}, {"delta_limit_rows": None},
     {"max_size_bytes": 0}, {"map_size_bytes": True}, {"durability": "full"}],
)  # fmt: skip
def test_options_are_numbers_that_mean_something(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(errors.InterfaceError, match=name):
        tarsdb.OpenOptions(**wrong)


def test_options_reach_commits(tmp_path: Path) -> None:
    """`durability` and `lock_timeout_s` of the options, unless the connection says otherwise."""
    options = tarsdb.OpenOptions(durability=tarsdb.Durability.RELAXED, lock_timeout_s=0.2)
    path = tmp_path / "t.tars"
    with tarsdb.connect(path, options=options) as db:
        assert rows(db, "PRAGMA durability") == [("relaxed",)]
        db.execute("CREATE TABLE t (a INT)")
        env = db._require_session().env
        inside, leave = threading.Event(), threading.Event()

        def hold(_: Any) -> None:
            inside.set()
            leave.wait(10)

        holder = threading.Thread(target=env.stage, args=(hold,))
        holder.start()
        inside.wait(10)
        with pytest.raises(errors.LockError, match=r"waited 0\.[23] s"):
            db.execute("INSERT INTO t VALUES (1)")
        leave.set()
        holder.join()
    with tarsdb.connect(path, durability="full", options=options) as db:
        assert rows(db, "PRAGMA durability") == [("full",)]


def test_a_function_replaced_meanwhile_is_a_conflict(tmp_path: Path) -> None:
    """A transaction goes on with the version it began with, and does not commit what that made."""
    create = "CREATE OR REPLACE FUNCTION inc(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS '{}'"
    with tarsdb.connect(tmp_path / "t.tars") as db, tarsdb.connect(tmp_path / "t.tars") as other:
        db.execute("CREATE TABLE t (n BIGINT)")
        db.execute(create.format(INC))
        db.execute("BEGIN")
        assert rows(db, "SELECT inc(5)") == [(6,)]
        other.execute(create.format(INC.replace("i64.const 1", "i64.const 9")))
        assert rows(other, "SELECT inc(5)") == [(14,)]
        db.execute("INSERT INTO t SELECT inc(5)")
        with pytest.raises(errors.ConflictError, match="function inc was changed by commit 3"):
            db.execute("COMMIT")
        assert rows(other, "SELECT count(*) FROM t") == [(0,)]


def test_a_path_of_bytes(tmp_path: Path) -> None:
    with tarsdb.connect(os.fsencode(tmp_path / "b.tars")) as db:
        db.execute("CREATE TABLE t (a INT)")
    assert (tmp_path / "b.tars").stat().st_size


def test_python_functions(db: tarsdb.Connection) -> None:
    db.create_function("add", lambda a, b: a + b, ["BIGINT", "BIGINT"], "BIGINT")
    db.create_function("nulls", lambda a: a is None, ["INT"], "BOOLEAN", strict=False)
    db.create_function("many", lambda a: [x * 2 for x in a], ["BIGINT"], "BIGINT", vectorized=True)
    db.create_function("few", lambda a: [1], ["BIGINT"], "BIGINT", vectorized=True)
    db.create_function("fails", lambda a: 1 // 0, ["BIGINT"], "BIGINT")
    db.create_function("wrong", lambda a: "text", ["BIGINT"], "BIGINT")
    db.create_function("nothing", lambda: 7, [], "INT")
    db.create_function("norm", lambda v: float(np.linalg.norm(v)), ["VECTOR(2)"], "DOUBLE")
    assert rows(db, "SELECT add(id, n) FROM t ORDER BY id") == [(11,), (22,), (33,), (None,)]
    assert rows(db, "SELECT id FROM t WHERE nulls(n)") == [(4,)]
    assert rows(db, "SELECT many(id) FROM t WHERE add(id, 1) > 3 ORDER BY 1") == [(6,), (8,)]
    assert rows(db, "SELECT norm(v), nothing() FROM t WHERE id = 3") == [(3.0, 7)]
    assert rows(db, "UPDATE t SET n = add(id, 5) WHERE id = 4 RETURNING n") == [(9,)]
    for bad in ("few(id)", "fails(id)", "wrong(id)", "add(id)", "add(id, 'x')"):
        with pytest.raises(errors.DatabaseError) as caught:
            db.execute(f"SELECT {bad} FROM t")
        assert re.match(r"\w+", bad)[0] in str(caught.value) or "x" in bad  # type: ignore[index]
        with pytest.raises(errors.DatabaseError):
            db.execute(f"UPDATE t SET n = {bad}")
    with pytest.raises(errors.BindError):
        db.create_function("f", len, ["NOPE"], "INT")
    assert rows(db, "SELECT n FROM t WHERE id = 4") == [(9,)]


def test_functions_and_tables_made_in_a_transaction(db: tarsdb.Connection) -> None:
    create = f"CREATE FUNCTION inc(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS '{INC}'"
    db.execute("BEGIN")
    db.execute(create)
    assert rows(db, "SELECT inc(3)") == [(4,)]
    db.execute("SAVEPOINT s")
    db.execute(
        "CREATE TABLE u (a BIGINT CHECK (inc(a) > 3), g BIGINT GENERATED ALWAYS AS (inc(a)) STORED)"
    )
    assert rows(db, "INSERT INTO u (a) VALUES (5) RETURNING g") == [(6,)]
    with pytest.raises(errors.IntegrityError):
        db.execute("INSERT INTO u (a) VALUES (1)")
    with pytest.raises(errors.CatalogError, match="uses it"):
        db.execute("DROP FUNCTION inc")
    db.execute("ROLLBACK TO s")
    with pytest.raises(errors.BindError):
        db.execute("SELECT * FROM u")
    assert rows(db, "SELECT id FROM t WHERE inc(id) = 3") == [(2,)]
    db.execute("ROLLBACK")
    with pytest.raises(errors.BindError):
        db.execute("SELECT inc(3)")
    with db.transaction():
        db.execute(create)
        db.execute("UPDATE t SET n = inc(n)")
    assert rows(db, "SELECT sum(n), sum(inc(n)) FROM t") == [(63, 66)]


def test_a_limit_leaves_the_transaction_usable(db: tarsdb.Connection) -> None:
    db.execute(
        f"CREATE FUNCTION lp(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS '{LOOP}' "
        "WITH (fuel = 1000, fuel_per_row = 1000)"
    )
    with db.transaction():
        db.execute("INSERT INTO t (id, n) VALUES (9, 1)")
        for sql in ("UPDATE t SET n = lp(n)", "SELECT lp(id) FROM t", "SELECT lp(1)",
                    "INSERT INTO t (id) VALUES (lp(3))"):  # fmt: skip
            with pytest.raises(errors.UdfLimitError) as caught:
                db.execute(sql)
            assert caught.value.kind == "fuel" and caught.value.hint
    assert rows(db, "SELECT sum(n) FROM t") == [(61,)]


def test_variables_of_the_caller(db: tarsdb.Connection) -> None:
    def local(kind: Any) -> list[tuple[Any, ...]]:
        mine = kind
        assert mine is not None
        return db.execute("SELECT id FROM mine ORDER BY id").fetchall()

    assert local(pa.table({"id": [1, 2]})) == [(1,), (2,)]
    assert local(pd.DataFrame({"id": [3]})) == [(3,)]
    assert local(pl.DataFrame({"id": [4]})) == [(4,)]
    assert local({"id": np.array([5])}) == [(5,)]
    assert local(np.array([(6,)], dtype=[("id", "i8")])) == [(6,)]
    assert db.execute("SELECT id FROM given").fetchall() == [(100,)]
    t = pa.table({"id": [77]})
    assert t is not None and len(db.execute("SELECT id FROM t").fetchall()) == 4
    for hidden in ("mine", "print", "rows", "os"):
        with pytest.raises(errors.ProgrammingError):
            db.execute(f"SELECT * FROM {hidden}")
    ragged = {"a": np.array([1, 2]), "b": np.array([1])}
    with pytest.raises(errors.DataError, match="ragged"):
        db.execute("SELECT * FROM ragged")
    assert ragged


QUERY_MATRIX = np.array([[0, 0], [0, 3]], np.float32)


def test_search_by_batch_and_its_edges(db: tarsdb.Connection) -> None:
    near = "SELECT id FROM t ORDER BY v <-> ? LIMIT 2"
    assert rows(db, near, (QUERY_MATRIX,)) == [(0, 1), (0, 2), (1, 3), (1, 1)]
    assert rows(db, near, ([[0, 0]],)) == [(0, 1), (0, 2)]
    assert rows(db, near.replace("?", ":q"), {"q": QUERY_MATRIX})[2] == (1, 3)
    assert rows(db, near, (QUERY_MATRIX[0],)) == [(1,), (2,)]
    assert rows(db, near + " OFFSET 1", ([0, 0],)) == [(2,), (3,)]
    assert rows(db, near + " OFFSET 9", ([0, 0],)) == []
    assert rows(db, near.replace("? ", "? DESC "), ([0, 0],)) == [(3,), (2,)]
    assert rows(db, near, (None,)) == [] or len(rows(db, near, (None,))) <= 2
    assert rows(db, "SELECT id FROM t ORDER BY v <-> NULL LIMIT 2") is not None
    cosine = rows(db, "SELECT id, v <=> '[0,1]' AS d FROM t ORDER BY d LIMIT 3")
    assert [i for i, _ in cosine] == [3, 2, 1] and np.isnan(cosine[2][1])
    for wrong in ([1], [1, 2, 3], "[1]", [float("nan"), 0], "x", [[1, 2], [1]], [[]],
                  np.zeros((2, 3)), np.zeros((0, 2)), np.zeros((1, 1, 2)), 5,
                  {"a": 1}):  # fmt: skip
        with pytest.raises(errors.DatabaseError):
            db.execute(near, (wrong,))
    within = "SELECT id FROM t WHERE v <-> ? <= 1 ORDER BY id"
    assert rows(db, within, ([0, 0],)) == [(1,), (2,)]
    with pytest.raises(errors.DatabaseError):
        db.execute(within, (QUERY_MATRIX,))


def test_the_search_builder(db: tarsdb.Connection) -> None:
    table = db.table("T")
    assert table.count() == 4
    found = table.search([0, 0], k=2, metric="l2").where("n > 5").where("id <> 1")
    assert [row[0] for row in found.rows()] == [2, 3]
    assert found.select(["id"]).limit(1).rows() == [(2, 1.0)]
    assert found.arrow().num_rows == len(found.df()) == len(found.pl()) == 2
    for bad in ({"metric": "nope"}, {"on": "n"}, {"on": "zz"}):
        with pytest.raises(errors.BindError):
            table.search([0, 0], **bad)  # type: ignore[arg-type]
    with pytest.raises(errors.BindError):
        table.search("text")
    with pytest.raises(errors.ProgrammingError):
        db.table("nope").count()
    with pytest.raises(errors.Error):
        table.insert({"id": [1, 2], "n": [1]})
    with pytest.raises(errors.Error):
        table.insert(5)
    assert table.insert({"id": [8, 9], "v": [[1.0, 2.0], None]}) == 2


def test_two_connections_and_threads(tmp_path: Path) -> None:
    path = tmp_path / "a.tars"
    with tarsdb.connect(path) as one, tarsdb.connect(path) as two:
        one.execute("CREATE TABLE t (id INT PRIMARY KEY)")
        one.create_function("mine", lambda: 1, [], "INT")
        with pytest.raises(errors.BindError):
            two.execute("SELECT mine()")
        one.execute("BEGIN; INSERT INTO t VALUES (1)")
        two.execute("INSERT INTO t VALUES (2)")
        assert rows(two, "SELECT * FROM t") == [(2,)] and rows(one, "SELECT * FROM t") == [(1,)]
        one.execute("COMMIT")
        assert rows(two, "SELECT id FROM t ORDER BY id") == [(1,), (2,)]
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for i in range(15):
                    one.execute("INSERT INTO t VALUES (?)", (100 + number * 100 + i,))
                    two.execute("SELECT id, count(*) FROM t GROUP BY id").fetchall()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures and rows(two, "SELECT count(*) FROM t") == [(62,)]


def test_timeouts_reach_python_and_native_code(db: tarsdb.Connection) -> None:
    db.create_function("slow", lambda n: time.sleep(0.05) or n, ["BIGINT"], "BIGINT")
    db.execute("SET statement_timeout = '100ms'")
    start = time.monotonic()
    with pytest.raises(errors.StatementTimeoutError):
        db.execute("SELECT sum(slow(a.range)) FROM range(100000) a")
    assert time.monotonic() - start < 30
    db.execute("RESET statement_timeout")
    assert rows(db, "SELECT count(*) FROM t") == [(4,)]


@pytest.mark.parametrize("how", ["empty", "text", "half", "header", "tail", "bits"])
def test_damaged_files_are_typed_errors(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.tars"
    with tarsdb.connect(path) as db:
        db.execute("CREATE TABLE t (id INT PRIMARY KEY, s TEXT)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(i, "x" * 50) for i in range(3000)])
        db.execute("OPTIMIZE t")
    whole = path.read_bytes()
    rng = random.Random(how)
    for _ in range(1 if how != "bits" else 10):
        damaged = bytearray(whole)
        if how == "bits":
            for _ in range(20):
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        pieces = {"empty": b"\0" * 100, "text": b"hello world\n" * 1000,
                  "half": whole[: len(whole) // 2],
                  "header": b"\xff" * 4096 + whole[4096:], "tail": whole[:-5000]}  # fmt: skip
        path.write_bytes(pieces.get(how, bytes(damaged)))
        try:
            with tarsdb.connect(path, check=how == "bits") as db:
                db.execute("SELECT sum(id), max(s) FROM t").fetchall()
        except errors.Error as error:
            assert str(error)
    path.write_bytes(whole)
    with tarsdb.connect(path) as db:
        assert rows(db, "SELECT count(*), max(s) FROM t") == [(3000, "x" * 50)]
        assert rows(db, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("files", [{}, {"config.json": "{}"}, {"config.json": "not json"},
                                   {"config.json": '{"model_type": "bert"}',
                                    "tokenizer.json": "{}"},
                                   {"config.json": "[]", "model.safetensors": "x"}])  # fmt: skip
def test_directories_that_are_no_model(db: tarsdb.Connection, files: Any, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for inside in (False, True):
        if inside:
            db.execute("BEGIN")
        with pytest.raises(errors.ModelFormatError):
            db.execute(f"CREATE MODEL m FROM '{tmp_path}'")
        assert rows(db, "SHOW MODELS") == []
    db.execute("COMMIT")


def test_a_module_is_the_one_its_sha256_names(db: tarsdb.Connection, tmp_path: Path) -> None:
    (tmp_path / "m.wat").write_text(INC, "utf-8")
    found = hashlib.sha256(INC.encode()).hexdigest()
    create = f"CREATE MODULE m FROM '{tmp_path}/m.wat' WITH (sha256 = '{{}}')"
    for wrong in ("0" * 64, "xyz", found[:-1]):
        with pytest.raises(
            errors.UdfValidationError, match=r"module m: sha256 of .* the statement"
        ):
            db.execute(create.format(wrong))
        assert rows(db, "SHOW MODULES") == []
    db.execute(create.format(found.upper()))


@pytest.mark.parametrize(
    "code", [b"", b"\0asm", b"\0asm\1\0\0\0\xff\xff", b"(module", b"\xff" * 99]
)
def test_modules_that_do_not_validate(db: tarsdb.Connection, code: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.wasm").write_bytes(code)
    with pytest.raises(errors.UdfValidationError) as caught:
        db.execute(f"CREATE MODULE m FROM '{tmp_path}/m.wasm'")
    assert str(caught.value)
    assert rows(db, "SHOW MODULES") == []
