"""Triggers: sandboxed functions that look at inserted rows and may reject them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb import errors
from tests.sandbox.wasm_text import PRELUDE

# status(n, m): n where n > m, else 0; traps for n = 13
STATUS = """(module (func (export "status") (param i64 i64) (result i32)
  (if (i64.eq (local.get 0) (i64.const 13)) (then (unreachable)))
  (select (i32.wrap_i64 (local.get 0)) (i32.const 0) (i64.gt_s (local.get 0) (local.get 1)))))"""
# says(word): the word itself as the message, NULL where it is empty
SAYS = f"""(module {PRELUDE}
  (func (export "says") (param $d i32) (param $n i32) (result i32)
    (local $i i32) (local $a i32) (local $v i32)
    (memory.copy (i32.add (local.get $d) (i32.const 40)) (i32.add (local.get $d) (i32.const 8))
                 (i32.const 8))
    (i32.store offset=52 (local.get $d) (i32.load offset=20 (local.get $d)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
      (local.set $a (i32.add (i32.load offset=20 (local.get $d))
        (i32.shl (local.get $i) (i32.const 2))))
      (if (i32.eq (i32.load (local.get $a)) (i32.load offset=4 (local.get $a))) (then
        (local.set $v (i32.add (i32.load offset=48 (local.get $d))
          (i32.shr_u (local.get $i) (i32.const 3))))
        (i32.store8 (local.get $v) (i32.and (i32.load8_u (local.get $v)) (i32.xor (i32.const -1)
          (i32.shl (i32.const 1) (i32.and (local.get $i) (i32.const 7))))))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (i32.const 0)))"""
CREATE = f"CREATE FUNCTION status(n BIGINT, m BIGINT) RETURNS INT LANGUAGE wasm AS '{STATUS}'"


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "a.tars"


@pytest.fixture
def db(path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path) as opened:
        opened.execute(CREATE)
        opened.execute(f"CREATE FUNCTION says(word TEXT) RETURNS TEXT LANGUAGE wasm AS '{SAYS}'")
        opened.execute(
            "CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT, word TEXT DEFAULT '', "
            "m BIGINT GENERATED ALWAYS AS (id * 10) STORED)"
        )
        opened.execute("INSERT INTO t (id, n) VALUES (1, 99)")
        opened.execute("CREATE TRIGGER small AFTER INSERT ON t CALL status")
        yield opened


def rows(db: tarsdb.Connection, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return db.execute(sql, parameters).fetchall()


def test_a_row_is_rejected_by_number_or_by_message(db: tarsdb.Connection) -> None:
    db.execute("INSERT INTO t (id, n) VALUES (2, 20), (3, NULL)")
    with pytest.raises(
        errors.IntegrityError, match=r"trigger small rejected a row: 41 \(table t, row 2\)"
    ):
        db.execute("INSERT INTO t (id, n) VALUES (5, 50), (4, 41), (6, 99)")
    db.execute("CREATE TRIGGER quiet AFTER INSERT ON t CALL says")
    with pytest.raises(errors.IntegrityError, match="trigger quiet rejected a row: oh nö"):
        db.execute("INSERT INTO t (id, word) VALUES (7, ''), (8, 'oh nö'), (9, 'x')")
    db.execute("INSERT INTO t (id) VALUES (10)")
    db.execute("UPDATE t SET n = 1000, word = 'free' WHERE id = 2")  # they look at inserts only
    assert rows(db, "SELECT id, n FROM t ORDER BY id") == [
        (1, 99),
        (2, 1000),
        (3, None),
        (10, None),
    ]
    shown = "SELECT name, table_name, event, function FROM tars_triggers ORDER BY name"
    assert rows(db, shown) == [
        ("quiet", "t", "AFTER INSERT", "says"), ("small", "t", "AFTER INSERT", "status"),
    ]  # fmt: skip
    db.execute("DROP TRIGGER small")
    db.execute("INSERT INTO t (id, n) VALUES (4, 41)")


def ways(db: tarsdb.Connection, n: int, folder: pathlib.Path) -> list[Any]:
    """Return all ways to insert rows with ids from 100 on, one of which has this n."""
    ids, values = np.arange(100, 5100), np.full(5000, 3)
    values[4500] = n
    batch = {"id": ids, "n": values}
    csv = folder / "rows.csv"
    csv.write_text("".join(f"{i},{v}\n" for i, v in zip(ids, values, strict=True)))

    def variable() -> None:
        db.execute("INSERT INTO t (id, n) SELECT id, n FROM batch")
        assert len(batch) == 2

    return [
        lambda: db.execute("INSERT INTO t (id, n) VALUES (4600, ?)", (n,)),
        lambda: db.executemany(
            "INSERT INTO t (id, n) VALUES (?, ?)", zip(ids, values, strict=True)
        ),
        lambda: db.execute(f"INSERT INTO t (id, n) SELECT 4600, {n}"),
        lambda: db.execute("INSERT INTO t (id, n) VALUES (4600, ?) RETURNING id", (n,)),
        variable,
        lambda: db.table("t").insert(batch),
        lambda: db.execute(f"COPY t (id, n) FROM '{csv}' (format csv, header false)"),
        lambda: db.execute("INSERT OR REPLACE INTO t (id, n) VALUES (4600, ?)", (n,)),
        lambda: db.execute("INSERT INTO t (id, n) VALUES (4600, ?) ON CONFLICT DO NOTHING", (n,)),
    ]


@pytest.mark.parametrize("way", range(9))
def test_every_way_to_insert_asks_it(
    db: tarsdb.Connection, tmp_path: pathlib.Path, way: int
) -> None:
    for n, error in ((90_000, errors.IntegrityError), (13, errors.UdfTrapError)):
        for transaction in (False, True):
            if transaction:
                db.execute("BEGIN")
                db.execute("INSERT INTO t (id, n) VALUES (50, 2)")
            with pytest.raises(error, match=r"small rejected a row: 90000|status: trap"):
                ways(db, n, tmp_path)[way]()
            assert rows(db, "SELECT count(*) FROM t") == [(2 if transaction else 1,)]
            db.rollback()
    ways(db, 4, tmp_path)[way]()
    assert rows(db, "SELECT n FROM t WHERE id = 4600") == [(4,)]


def test_on_conflict_asks_about_new_rows_only(db: tarsdb.Connection) -> None:
    update = "ON CONFLICT (id) DO UPDATE SET n = excluded.n"
    db.execute(f"INSERT INTO t (id, n) VALUES (1, 500), (2, 3) {update}")
    assert rows(db, "SELECT id, n FROM t ORDER BY id") == [(1, 500), (2, 3)]
    with pytest.raises(errors.IntegrityError, match="rejected a row: 77"):
        db.execute("INSERT INTO t (id, n) VALUES (1, 600), (3, 77) ON CONFLICT (id) DO NOTHING")
    db.execute("INSERT INTO t (id, n) VALUES (1, 600) ON CONFLICT (id) DO NOTHING")
    assert rows(db, "SELECT id, n FROM t ORDER BY id") == [(1, 500), (2, 3)]


def test_it_holds_on_to_function_and_columns(db: tarsdb.Connection, path: pathlib.Path) -> None:
    for sql in ("DROP FUNCTION status", CREATE.replace("CREATE", "CREATE OR REPLACE", 1),
                "ALTER TABLE t DROP COLUMN n", "ALTER TABLE t RENAME COLUMN m TO k"):  # fmt: skip
        with pytest.raises(errors.CatalogError, match="trigger"):
            db.execute(sql)
    db.execute("ALTER TABLE t RENAME TO u")
    db.execute("ALTER TABLE u ADD COLUMN more INT")
    rejects = pytest.raises(errors.IntegrityError, match="small rejected a row: 77")
    with tarsdb.connect(path) as other, rejects:
        other.execute("INSERT INTO u (id, n) VALUES (3, 77)")
    db.execute("DROP TABLE u")
    db.execute("DROP FUNCTION status")


def test_a_drop_beside_a_trigger_conflicts(db: tarsdb.Connection, path: pathlib.Path) -> None:
    with tarsdb.connect(path) as other:
        for one, sql in ((db, "CREATE TRIGGER quiet AFTER INSERT ON t CALL says"),
                         (other, "DROP FUNCTION says")):  # fmt: skip
            one.execute("BEGIN")
            one.execute(sql)
        db.execute("COMMIT")
        with pytest.raises(errors.ConflictError):
            other.execute("COMMIT")
        other.rollback()


@pytest.mark.parametrize(
    ("sql", "error", "message"),
    [
        ("CREATE TRIGGER small AFTER INSERT ON t CALL says", errors.CatalogError, "exists already"),
        ("CREATE TRIGGER x AFTER INSERT ON nobody CALL says", errors.CatalogError, "'nobody'"),
        ("CREATE TRIGGER x AFTER INSERT ON t CALL nobody", errors.CatalogError, "'nobody'"),
        ("CREATE TRIGGER x AFTER INSERT ON plain CALL says", errors.CatalogError,
         "says takes word TEXT, in table plain there is none"),
        ("CREATE TRIGGER x AFTER INSERT ON plain CALL status", errors.CatalogError,
         "takes n BIGINT, in table plain column n is INT"),
        ("CREATE TRIGGER x AFTER INSERT ON plain CALL big", errors.CatalogError,
         "returns BIGINT, expected TEXT"),
        ("DROP TRIGGER nobody", errors.CatalogError, "does not exist"),
    ],
)  # fmt: skip
def test_what_is_refused(
    db: tarsdb.Connection, sql: str, error: type[Exception], message: str
) -> None:
    db.execute("CREATE TABLE plain (n INT)")
    text = '(module (func (export "big") (param i32) (result i64) (i64.const 1)))'
    db.execute(f"CREATE FUNCTION big(n INT) RETURNS BIGINT LANGUAGE wasm AS '{text}'")
    with pytest.raises(error) as caught:
        db.execute(sql)
    assert message in str(caught.value)
    db.execute("CREATE TRIGGER IF NOT EXISTS small AFTER INSERT ON t CALL says")
    db.execute("DROP TRIGGER IF EXISTS nobody")


# keeps(n): n is even
KEEPS = """(module (func (export "keeps") (param i64) (result i32)
  (i32.wrap_i64 (i64.xor (i64.and (local.get 0) (i64.const 1)) (i64.const 1)))))"""


@pytest.fixture
def guarded(db: tarsdb.Connection) -> tarsdb.Connection:
    db.execute("DROP TRIGGER small")
    db.execute(f"CREATE FUNCTION keeps(n BIGINT) RETURNS BOOLEAN LANGUAGE wasm AS '{KEEPS}'")
    return db


@pytest.mark.parametrize("way", range(9))
def test_every_way_to_insert_asks_before(
    guarded: tarsdb.Connection, tmp_path: pathlib.Path, way: int
) -> None:
    guarded.execute("CREATE TRIGGER early BEFORE INSERT ON t CALL status")
    for n, error in ((90_000, errors.IntegrityError), (13, errors.UdfTrapError)):
        with pytest.raises(error, match=r"early rejected a row: 90000|status: trap"):
            ways(guarded, n, tmp_path)[way]()
        assert rows(guarded, "SELECT count(*) FROM t") == [(1,)]
        guarded.rollback()
    ways(guarded, 4, tmp_path)[way]()
    assert rows(guarded, "SELECT n FROM t WHERE id = 4600") == [(4,)]


@pytest.mark.parametrize("way", range(9))
def test_rows_that_are_not_true_are_left_out(
    guarded: tarsdb.Connection, tmp_path: pathlib.Path, way: int
) -> None:
    """As by RAISE(IGNORE): neither counted nor returned, and no error. NULL is not true."""
    guarded.execute("CREATE TRIGGER even BEFORE INSERT ON t CALL keeps")
    ways(guarded, 5, tmp_path)[way]()  # n of the others is 3
    assert rows(guarded, "SELECT id FROM t") == [(1,)]
    ways(guarded, 4, tmp_path)[way]()
    assert rows(guarded, "SELECT id, n, m FROM t ORDER BY id") == [(1, 99, 10), (4600, 4, 46000)]


def test_left_out_rows_are_not_counted_or_returned(guarded: tarsdb.Connection) -> None:
    guarded.execute("CREATE TRIGGER even BEFORE INSERT ON t CALL keeps")
    found = guarded.execute("INSERT INTO t (id, n) VALUES (2, 1), (3, 2), (4, NULL), (5, 6)")
    assert found.rowcount == 2
    sql = "INSERT INTO t (id, n) VALUES (6, 1), (7, 8) RETURNING id, m"
    assert rows(guarded, sql) == [(7, 70)]
    assert rows(guarded, "INSERT INTO t (id, n) VALUES (8, 1) RETURNING id") == []
    assert guarded.execute("INSERT INTO t (id, n) VALUES (9, 1)").rowcount == 0


def test_it_is_asked_before_constraints_and_conflicts(guarded: tarsdb.Connection) -> None:
    """A row that is left out breaks none; one of ON CONFLICT is asked about too, as in SQLite."""
    guarded.execute("CREATE TABLE c (n BIGINT UNIQUE CHECK (n < 100), m BIGINT NOT NULL)")
    guarded.execute("INSERT INTO c VALUES (2, 0)")
    guarded.execute("CREATE TRIGGER even BEFORE INSERT ON c CALL keeps")
    guarded.execute("INSERT INTO c VALUES (1001, 0), (3, NULL), (4, 0)")
    assert rows(guarded, "SELECT n FROM c ORDER BY n") == [(2,), (4,)]
    for sql, words in (("(1002, 0)", "CHECK"), ("(6, NULL)", "NOT NULL"), ("(2, 0)", "UNIQUE|key")):
        with pytest.raises(errors.IntegrityError, match=words):
            guarded.execute(f"INSERT INTO c VALUES {sql}")
    guarded.execute("CREATE TRIGGER early BEFORE INSERT ON c CALL status")
    for rule in ("DO NOTHING", "(n) DO UPDATE SET m = 5"):
        with pytest.raises(errors.IntegrityError, match="early rejected a row: 2"):
            guarded.execute(f"INSERT INTO c VALUES (2, 1) ON CONFLICT {rule}")
    guarded.execute("INSERT INTO c VALUES (2, 7) ON CONFLICT (n) DO UPDATE SET m = 7")
    assert rows(guarded, "SELECT m FROM c WHERE n = 2") == [(7,)]


def test_triggers_are_asked_in_their_order_and_kept_in_the_file(
    guarded: tarsdb.Connection, path: pathlib.Path
) -> None:
    for sql in ("even BEFORE INSERT ON t CALL keeps", "early BEFORE INSERT ON t CALL status",
                "late AFTER INSERT ON t CALL says"):  # fmt: skip
        guarded.execute(f"CREATE TRIGGER {sql}")
    with tarsdb.connect(path) as other:
        other.execute("INSERT INTO t (id, n) VALUES (2, 77)")  # left out, early is not asked
        with pytest.raises(errors.IntegrityError, match="early rejected a row: 78"):
            other.execute("INSERT INTO t (id, n, word) VALUES (2, 78, 'no')")
        with pytest.raises(errors.IntegrityError, match="late rejected a row: no"):
            other.execute("INSERT INTO t (id, n, word) VALUES (2, 8, 'no')")
        other.execute("INSERT INTO t (id, n, word) VALUES (2, 77, 'no'), (3, 8, '')")
        assert rows(other, "SELECT id FROM t ORDER BY id") == [(1,), (3,)]
        assert rows(other, "SELECT name, event FROM tars_triggers ORDER BY name") == [
            ("early", "BEFORE INSERT"), ("even", "BEFORE INSERT"), ("late", "AFTER INSERT"),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("sql", "error", "message"),
    [
        ("x AFTER INSERT ON t CALL keeps", errors.CatalogError, "returns BOOLEAN, expected TEXT"),
        ("x BEFORE INSERT ON t FOR EACH ROW CALL keeps", errors.NotSupportedError, "FOR is not"),
        ("x BEFORE INSERT ON t WHEN n > 2 CALL keeps", errors.NotSupportedError, "WHEN is not"),
        ("x BEFORE INSERT ON t BEGIN SELECT RAISE(ABORT, ''no'')", errors.NotSupportedError,
         "BEGIN is not supported, a trigger calls a function"),
        ("x BEFORE UPDATE ON t CALL keeps", errors.NotSupportedError, "BEFORE UPDATE is not"),
        ("x AFTER DELETE ON t CALL keeps", errors.NotSupportedError, "AFTER DELETE is not"),
        ("x INSTEAD OF INSERT ON t CALL keeps", errors.NotSupportedError, "INSTEAD OF is not"),
        ("x INSERT ON t CALL keeps", errors.SQLSyntaxError, "BEFORE INSERT or AFTER INSERT"),
    ],
)  # fmt: skip
def test_what_else_a_trigger_could_be_is_refused(
    guarded: tarsdb.Connection, sql: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        guarded.execute(f"CREATE TRIGGER {sql}")
    assert message in str(caught.value)
    assert rows(guarded, "SELECT * FROM tars_triggers") == []
