"""The life of a statement: autocommit, transactions, savepoints, conflicts, errors, timeouts."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

import tarsdb
from tarsdb import errors
from tarsdb.storage import reader_watch


@pytest.fixture
def db() -> tarsdb.Connection:
    connection = tarsdb.connect()
    connection.execute("CREATE TABLE t (id INT PRIMARY KEY, a INT, b TEXT, v VECTOR(2))")
    return connection


def rows(db: tarsdb.Connection, sql: str, *parameters: object) -> list[tuple[object, ...]]:
    return db.execute(sql, *parameters).fetchall()


def test_each_statement_commits_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.tars"
    with tarsdb.connect(path) as db:
        db.execute("CREATE TABLE t (id INT PRIMARY KEY)")
        db.execute("INSERT INTO t VALUES (1)")
        with tarsdb.connect(path) as other:
            assert rows(other, "SELECT id FROM t") == [(1,)]


def test_rollback_undoes_everything_since_begin(db: tarsdb.Connection) -> None:
    db.execute("INSERT INTO t VALUES (1, 1, 'x', '[1,0]')")
    db.execute("BEGIN")
    db.execute("UPDATE t SET a = 9")
    db.execute("INSERT INTO t VALUES (2, 2, 'y', '[0,1]')")
    db.execute("CREATE TABLE other (a INT)")
    assert rows(db, "SELECT count(*) FROM t") == [(2,)]
    db.execute("ROLLBACK")
    assert rows(db, "SELECT id, a FROM t") == [(1, 1)]
    assert rows(db, "SHOW TABLES")[0][0] == "t"


def test_a_failing_statement_undoes_only_itself(db: tarsdb.Connection) -> None:
    db.execute("BEGIN")
    db.execute("INSERT INTO t VALUES (1, 1, 'x', NULL)")
    with pytest.raises(errors.IntegrityError, match="t_pkey"):
        db.execute("INSERT INTO t VALUES (2, 2, 'y', NULL), (1, 3, 'z', NULL)")
    db.execute("COMMIT")
    assert rows(db, "SELECT id FROM t") == [(1,)]


def test_savepoints_nest(db: tarsdb.Connection) -> None:
    db.execute("BEGIN; INSERT INTO t (id) VALUES (1); SAVEPOINT a; INSERT INTO t (id) VALUES (2)")
    db.execute("SAVEPOINT b; INSERT INTO t (id) VALUES (3); ROLLBACK TO b")
    assert rows(db, "SELECT count(*) FROM t") == [(2,)]
    db.execute("ROLLBACK TO a; RELEASE a; COMMIT")
    assert rows(db, "SELECT id FROM t") == [(1,)]


def test_first_committer_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.tars"
    with tarsdb.connect(path) as one, tarsdb.connect(path) as two:
        one.execute("CREATE TABLE t (id INT PRIMARY KEY, a INT); INSERT INTO t VALUES (1, 0)")
        one.execute("BEGIN")
        one.execute("UPDATE t SET a = 1 WHERE id = 1")
        two.execute("UPDATE t SET a = 2 WHERE id = 1")
        with pytest.raises(errors.ConflictError) as caught:
            one.execute("COMMIT")
        assert caught.value.retryable
        assert not one.in_transaction
        assert rows(one, "SELECT a FROM t") == [(2,)]


def test_autocommit_statements_retry_conflicts(tmp_path: Path) -> None:
    path = tmp_path / "a.tars"
    with tarsdb.connect(path) as db:
        db.execute("CREATE TABLE t (id INT PRIMARY KEY, a INT); INSERT INTO t VALUES (1, 0)")

        def count() -> None:
            with tarsdb.connect(path) as mine:
                for _ in range(25):
                    mine.execute("UPDATE t SET a = a + 1 WHERE id = 1")

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert rows(db, "SELECT a FROM t") == [(100,)]


def test_a_snapshot_does_not_move_inside_a_transaction(tmp_path: Path) -> None:
    path = tmp_path / "a.tars"
    with tarsdb.connect(path) as reader, tarsdb.connect(path) as writer:
        writer.execute("CREATE TABLE t (id INT PRIMARY KEY, v VECTOR(2))")
        reader.execute("BEGIN")
        assert rows(reader, "SELECT count(*) FROM t") == [(0,)]
        writer.execute("INSERT INTO t VALUES (1, '[1,1]')")
        assert rows(reader, "SELECT count(*) FROM t") == [(0,)]
        assert rows(reader, "SELECT id FROM t ORDER BY v <-> '[0,0]' LIMIT 1") == []
        reader.execute("COMMIT")
        assert rows(reader, "SELECT count(*) FROM t") == [(1,)]


def test_an_expired_transaction_is_rolled_back(tmp_path: Path) -> None:
    options = tarsdb.OpenOptions(max_read_age_s=0.2)
    with tarsdb.connect(tmp_path / "a.tars", options=options) as db:
        db.execute("CREATE TABLE t (id INT PRIMARY KEY)")
        db.execute("BEGIN")
        db.execute("INSERT INTO t VALUES (1)")
        time.sleep(0.5)
        with pytest.raises(errors.SnapshotExpiredError):
            db.execute("SELECT * FROM t")
        assert not db.in_transaction
        assert rows(db, "SELECT count(*) FROM t") == [(0,)]


@pytest.mark.parametrize("limit", [None, 0.2])
@pytest.mark.parametrize(
    "sql", ["CREATE TABLE c AS SELECT slow(id) AS n FROM t", "UPDATE t SET n = slow(id)"]
)
def test_a_statement_at_work_is_ended_by_a_given_limit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str, limit: float | None
) -> None:
    monkeypatch.setattr(reader_watch, "IDLE_LIMIT_S", 0.2)

    def slow(ids: list[int]) -> list[int]:
        time.sleep(0.3)
        return [each + 1 for each in ids]

    options = tarsdb.OpenOptions(max_read_age_s=limit)
    with tarsdb.connect(tmp_path / "a.tars", options=options) as db:
        db.create_function("slow", slow, ["BIGINT"], "BIGINT", vectorized=True)
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT)")
        for start in (0, 5000):  # several batches, and several segments
            db.executemany("INSERT INTO t (id) VALUES (?)", [(start + i,) for i in range(5000)])
            db.execute("OPTIMIZE t")
        if limit is None:
            assert db.execute(sql).rowcount == 10_000
        else:
            with pytest.raises(errors.SnapshotExpiredError, match=r"limit is 0\.2 s"):
                db.execute(sql)


def test_read_your_own_writes_in_search(db: tarsdb.Connection) -> None:
    db.execute("INSERT INTO t VALUES (1, 1, 'x', '[5,5]')")
    with db.transaction():
        db.execute("INSERT INTO t VALUES (2, 2, 'y', ?)", (np.array([1.0, 1.0]),))
        db.execute("UPDATE t SET v = '[0,0]' WHERE id = 1")
        found = rows(db, "SELECT id FROM t ORDER BY v <-> '[1,1]' LIMIT 2")
        assert found == [(2,), (1,)]
        db.execute("DELETE FROM t WHERE id = 2")
        assert rows(db, "SELECT id FROM t ORDER BY v <-> '[1,1]' LIMIT 2") == [(1,)]


def test_the_plan_cache_notices_ddl(db: tarsdb.Connection) -> None:
    db.execute("INSERT INTO t (id, a) VALUES (1, 7)")
    sql = "SELECT * FROM t WHERE id = ?"
    assert len(rows(db, sql, (1,))[0]) == 4
    db.execute("ALTER TABLE t ADD COLUMN extra INT DEFAULT 3")
    assert rows(db, sql, (1,))[0][4] == 3
    db.execute("ALTER TABLE t DROP COLUMN extra")
    assert len(rows(db, sql, (1,))[0]) == 4
    db.execute("DROP TABLE t")
    with pytest.raises(errors.ProgrammingError):
        db.execute(sql, (1,))


def test_interrupt_ends_a_running_statement(db: tarsdb.Connection) -> None:
    timer = threading.Timer(0.3, db.interrupt)
    timer.start()
    with pytest.raises(errors.InterruptError):
        db.execute("SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b")
    assert rows(db, "SELECT 1") == [(1,)]


def test_statement_timeout(db: tarsdb.Connection) -> None:
    db.execute("SET statement_timeout = '200ms'")
    with pytest.raises(errors.StatementTimeoutError):
        db.execute("SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b")
    db.execute("RESET statement_timeout")
    assert rows(db, "SELECT 1") == [(1,)]


def test_closed_handles_say_so(db: tarsdb.Connection) -> None:
    cursor = db.execute("SELECT 1")
    db.close()
    db.close()
    assert cursor.fetchall() == [(1,)]
    with pytest.raises(errors.InterfaceError, match="closed"):
        db.execute("SELECT 1")


def test_read_only_refuses_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.tars"
    with tarsdb.connect(path) as db:
        db.execute("CREATE TABLE t (id INT)")
    with tarsdb.connect(path, read_only=True) as db, pytest.raises(errors.ReadOnlyError):
        db.execute("INSERT INTO t VALUES (1)")


@pytest.mark.parametrize(
    ("sql", "parameters", "kind", "words"),
    [
        ("INSERT INTO t VALUES (1, 2, 'x', '[1,2,3]')", (), errors.DimensionMismatchError, "3"),
        ("INSERT INTO t (id, v) VALUES (1, ?)", ([float("nan"), 1],), errors.DataError, "NaN"),
        ("INSERT INTO t (id) VALUES (?)", ("abc",), errors.DataError, "abc"),
        ("INSERT INTO t (id) VALUES (?)", (2**40,), errors.DataError, "INT"),
        ("INSERT INTO t (id) VALUES (?)", (), errors.ProgrammingError, "parameter 1"),
        ("SELECT * FROM t WHERE id = :x", {"y": 1}, errors.ProgrammingError, ":x"),
        ("SELECT nope FROM t", (), errors.BindError, "nope"),
        ("SELECT * FROM nope", (), errors.ProgrammingError, "nope"),
        ("SELECT id FROM t ORDER BY v <-> '[1]' LIMIT 1", (), errors.DimensionMismatchError, "1"),
        ("SELECT id FROM t ORDER BY v <-> '[1,2]' LIMIT -1", (), errors.DataError, "LIMIT"),
        ("SELECT FROM WHERE", (), errors.SQLSyntaxError, "line 1"),
        ("CREATE TABLE t (a INT)", (), errors.CatalogError, "exists"),
        ("CREATE INDEX i ON t USING fts (v)", (), errors.NotSupportedError, "fts"),
        ("SET nope = 1", (), errors.ProgrammingError, "nope"),
        ("COMMIT", (), errors.ProgrammingError, "no transaction"),
        ("CREATE MODEL m FROM '/no/such/dir'", (), errors.ModelFormatError, "dir"),
        ("SELECT * FROM 'file.csv'", (), errors.Error, ""),
    ],
)  # fmt: skip
def test_bad_input_is_a_typed_error(
    db: tarsdb.Connection, sql: str, parameters: object, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        db.execute(sql, parameters)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert rows(db, "SELECT count(*) FROM t") == [(0,)]


def test_ctrl_c_during_executemany_leaves_nothing(db: tarsdb.Connection) -> None:
    def sets() -> object:
        for i in range(10_000):
            if i == 9000:
                raise KeyboardInterrupt
            yield (i, i, "x", [1.0, 2.0])

    with pytest.raises(KeyboardInterrupt):
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", sets())  # type: ignore[arg-type]
    assert rows(db, "SELECT count(*) FROM t") == [(0,)]
    assert rows(db, "PRAGMA integrity_check") == [("ok",)]


def test_threads_share_a_connection(db: tarsdb.Connection) -> None:
    def work(start: int) -> None:
        for i in range(start, start + 20):
            db.execute("INSERT INTO t VALUES (?, ?, 'x', '[1,1]')", (i, i))
            assert rows(db, "SELECT a FROM t WHERE id = ?", (i,)) == [(i,)]

    threads = [threading.Thread(target=work, args=(i * 100,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(db, "SELECT count(*), sum(a) FROM t")[0][0] == 120


def test_an_instruction_set_is_chosen_before_the_process_starts() -> None:
    with tarsdb.connect(":memory:") as db:
        db.execute("SET isa = 'auto'")
        with pytest.raises(errors.NotSupportedError, match="'avx2'") as caught:
            db.execute("SET isa = 'avx2'")
        assert "TARSDB_ISA=avx2" in str(caught.value.hint)
        with pytest.raises(errors.DataError, match="'mmx'"):
            db.execute("SET isa = 'mmx'")
        assert db.execute("SHOW isa").fetchone()[0] == "auto"
