"""Every SQL type through every door: in by each way, out by each way, to a file and back."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tarsdb

D = decimal.Decimal
VECTOR = np.array([1, 2.5, -3], np.float32)
CODES = np.array([1, -128, 127], np.int8)
ID = uuid.UUID(int=7)
LONG = D("123456789012345678901234567890.1234")
STAMP = dt.datetime(2020, 2, 29, 1, 2, 3, 4)
# type -> a value, another value, the first as a literal
TYPES: dict[str, tuple[Any, Any, str]] = {
    "BOOLEAN": (True, False, "TRUE"),
    "SMALLINT": (-5, 7, "-5"),
    "INT": (2**31 - 1, -1, "2147483647"),
    "BIGINT": (-(2**63), 9, "-9223372036854775808"),
    "REAL": (0.5, -1.25, "0.5"),
    "DOUBLE": (1e300, 0.1, "1e300"),
    "DECIMAL(10,2)": (D("12.34"), D("-0.01"), "12.34"),
    "DECIMAL(38,4)": (LONG, D("-1.0000"), str(LONG)),
    "TEXT": ("it's é\U0001f600\n", "", "'it''s é\U0001f600\n'"),
    "BLOB": (b"\x00\xffab\\", b"", "X'00ff61625c'"),
    "DATE": (dt.date(2020, 2, 29), dt.date(1, 1, 1), "DATE '2020-02-29'"),
    "TIME": (dt.time(1, 2, 3, 4), dt.time(0), "TIME '01:02:03.000004'"),
    "TIMESTAMP": (STAMP, dt.datetime(1969, 12, 31), "TIMESTAMP '2020-02-29 01:02:03.000004'"),
    "TIMESTAMPTZ": (STAMP.replace(tzinfo=dt.UTC), dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
                    "TIMESTAMPTZ '2020-02-29 01:02:03.000004+00'"),
    "INTERVAL": (dt.timedelta(days=3, seconds=5), dt.timedelta(0), "INTERVAL '3 days 5 seconds'"),
    "UUID": (ID, uuid.UUID(int=2**128 - 1), f"'{ID}'"),
    "JSON": ({"a": [1, None, "x"]}, [1], '\'{"a":[1,null,"x"]}\''),
    "INT[]": ([1, None, 3], [], "[1, NULL, 3]"),
    "TEXT[]": (["a", 'b,"c'], [None], "['a', 'b,\"c']"),
    "DOUBLE[]": ([1.5, 2.0], [0.0], "[1.5, 2.0]"),
    "VECTOR(3)": (VECTOR, np.zeros(3, np.float32), "'[1, 2.5, -3]'"),
    "HALFVEC(3)": (VECTOR, np.zeros(3, np.float32), "'[1, 2.5, -3]'"),
    "INT8VEC(3)": (CODES, np.zeros(3, np.int8), "'[1, -128, 127]'"),
    "BIT(5)": ("10110", "00000", "'10110'"),
}  # fmt: skip
VECTORS = [name for name in TYPES if "VEC" in name or "BIT" in name]
QUERIES = {"native": "SELECT id, c FROM t", "relational": "SELECT id, c FROM t ORDER BY id",
           "point": "SELECT id, c FROM t WHERE id = 1", 
           "none": "SELECT id, c FROM t WHERE id = 99"}  # fmt: skip


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return type(left) is type(right) and left.dtype == right.dtype and (left == right).all()
    return type(left) is type(right) and bool(left == right)


def column(db: tarsdb.Connection, sql: str, *parameters: Any) -> list[Any]:
    return [row[0] for row in db.execute(sql, *parameters).fetchall()]


def check(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    assert all(map(same, found, expected)), (found, expected)


@pytest.fixture(params=TYPES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    sql_type = request.param
    first, second, literal = TYPES[sql_type]
    with tarsdb.connect(tmp_path / "a.tars", durability="relaxed") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, c {sql_type})")
        db.execute(f"INSERT INTO t VALUES (1, {literal}), (2, NULL)")
        db.execute("INSERT INTO t VALUES (?, ?)", (3, first))
        db.execute("INSERT INTO t VALUES (:id, :c)", {"id": 4, "c": second})
        db.executemany("INSERT INTO t VALUES (?, ?)", [(5, first), (6, None), (7, second)])
        yield db, sql_type, [first, None, first, second, first, None, second]


def test_rows_come_back_as_they_went_in(case: Any, tmp_path: Path) -> None:
    db, _sql_type, values = case
    merged = "SELECT c FROM (SELECT * FROM t UNION ALL SELECT * FROM t WHERE id > 99) ORDER BY id"
    for sql in ("SELECT c FROM t", "SELECT c FROM t ORDER BY id", merged):
        check(column(db, sql), values)
    check(column(db, "SELECT c FROM t WHERE id = 4"), values[3:4])
    db.execute("OPTIMIZE t")
    with tarsdb.connect(tmp_path / "a.tars") as other:
        check(column(other, "SELECT c FROM t ORDER BY id"), values)
        assert column(other, "PRAGMA integrity_check") == ["ok"]
        assert column(other, "SELECT DISTINCT c FROM t") is not None


@pytest.mark.parametrize("query", QUERIES)
def test_results_go_back_in_from_every_form(case: Any, query: str) -> None:
    db, sql_type, values = case
    values = {"point": values[:1], "none": []}.get(query, values)
    for form in ("arrow", "df", "pl", "numpy") if query != "point" else ("df", "numpy"):
        result = getattr(db.execute(QUERIES[query]), form)()
        assert result is not None
        db.execute(f"CREATE OR REPLACE TABLE u (id INT PRIMARY KEY, c {sql_type})")
        db.execute("INSERT INTO u SELECT * FROM result")
        check(column(db, "SELECT c FROM u ORDER BY id"), values)
        db.execute("DELETE FROM u")
        assert db.table("u").insert(result) == len(values)
        check(column(db, "SELECT c FROM u ORDER BY id"), values)


def test_a_dict_of_lists_goes_in(case: Any) -> None:
    db, sql_type, values = case
    db.execute(f"CREATE TABLE u (id INT PRIMARY KEY, c {sql_type})")
    assert db.table("u").insert({"id": [1, 2], "c": [values[0], values[3]]}) == 2
    check(column(db, "SELECT c FROM u ORDER BY id"), [values[0], values[3]])


def test_updates(case: Any) -> None:
    db, sql_type, _values = case
    first, second, literal = TYPES[sql_type]
    db.execute(f"UPDATE t SET c = {literal} WHERE id = 2")
    db.execute("UPDATE t SET c = ? WHERE id = 6", (second,))
    db.execute("UPDATE t SET c = NULL WHERE id = 7")
    db.execute("UPDATE t SET c = s.c FROM t s WHERE s.id = 1 AND t.id = 4")
    expected = [first, first, first, first, first, second, None]
    check(column(db, "SELECT c FROM t ORDER BY id"), expected)
    for output in ("c, id", "c, id, upper('a')"):
        rows = db.execute(f"UPDATE t SET c = c RETURNING {output}").fetchall()
        check([row[0] for row in sorted(rows, key=lambda row: row[1])], expected)
    db.execute("INSERT INTO t SELECT id + 100, c FROM t")
    check(column(db, "SELECT c FROM t ORDER BY id"), expected * 2)


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet", "csv.gz"])
def test_copy_to_a_file_and_back(case: Any, suffix: str, tmp_path: Path) -> None:
    db, sql_type, values = case
    db.execute(f"COPY t TO '{tmp_path}/t.{suffix}'")
    db.execute(f"CREATE TABLE u (id INT PRIMARY KEY, c {sql_type})")
    db.execute(f"COPY u FROM '{tmp_path}/t.{suffix}'")
    check(column(db, "SELECT c FROM u ORDER BY id"), values)


def test_defaults_new_columns_and_tables_of_queries(case: Any) -> None:
    db, sql_type, values = case
    first, _, literal = TYPES[sql_type]
    db.execute(f"CREATE TABLE d (id INT, c {sql_type} DEFAULT {literal})")
    db.execute("INSERT INTO d (id) VALUES (1)")
    db.execute(f"ALTER TABLE d ADD COLUMN e {sql_type} DEFAULT {literal}")
    db.execute("INSERT INTO d (id) VALUES (2)")
    check(column(db, "SELECT c FROM d") + column(db, "SELECT e FROM d"), [first] * 4)
    db.execute("CREATE TABLE z AS SELECT * FROM t")
    check(column(db, "SELECT c FROM z ORDER BY id"), values)
    kinds = "SELECT DISTINCT type FROM tars_columns WHERE table_name IN ('t', 'z') AND name = 'c'"
    assert len(column(db, kinds)) == 1


@pytest.mark.parametrize("sql_type", [name for name in TYPES if name not in VECTORS])
def test_scalar_keys_and_indexes(sql_type: str) -> None:
    first, second, literal = TYPES[sql_type]
    with tarsdb.connect() as db:
        db.execute(f"CREATE TABLE t (c {sql_type} PRIMARY KEY, n INT)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(first, 1), (second, 2)])
        with pytest.raises(tarsdb.IntegrityError):
            db.execute("INSERT INTO t VALUES (?, 3)", (first,))
        assert column(db, f"SELECT n FROM t WHERE c = {literal}") == [1]
        if not isinstance(second, (dict, list)):
            assert column(db, "SELECT n FROM t WHERE c = ?", (second,)) == [2]
        db.execute("DELETE FROM t WHERE n = 1; OPTIMIZE t")
        db.execute("INSERT INTO t VALUES (?, 3)", (first,))
        assert column(db, f"SELECT n FROM t WHERE c = {literal}") == [3]


OPERATORS = {"VECTOR(3)": ["<->", "<#>", "<=>", "<+>"], "HALFVEC(3)": ["<->", "<#>", "<=>", "<+>"],
             "INT8VEC(3)": ["<->", "<#>", "<=>", "<+>"], "BIT(5)": ["<~>", "<%>"]}  # fmt: skip


DEEP = "[" * 100_000
NO_NUMBERS: list[Any] = [
    ["0", "1", "0"], [1j, 0, 0], np.array(["0", "1", "0"]), [dt.date(2020, 1, 1)] * 3,
    np.array(["2020-01-01"] * 3, "M8[D]"), np.array([1, 0, 1], "m8[s]"), [1, None, 0],
    [float("nan"), 0, 1], np.ma.array([1, 0, 1], mask=[0, 1, 0]), DEEP, '["0", "1", "0"]',
]  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS, ids=range(len(NO_NUMBERS)))
@pytest.mark.parametrize("sql_type", ["VECTOR(3)", "HALFVEC(3)", "INT8VEC(3)", "BIT(3)"])
def test_a_vector_is_made_of_numbers(sql_type: str, value: Any) -> None:
    """What NumPy would turn into some number, or bit, is refused as a value and as a query."""
    operator = OPERATORS.get(sql_type, ["<~>"])[0]
    with tarsdb.connect() as db:
        db.execute(f"CREATE TABLE t (id INT, c {sql_type})")
        db.execute("INSERT INTO t VALUES (1, ?)", ([1, 0, 1],))
        with pytest.raises(tarsdb.DataError, match="column c"):
            db.execute("INSERT INTO t VALUES (2, ?)", (value,))
        with pytest.raises(tarsdb.DataError, match="query"):
            db.execute(f"SELECT id FROM t ORDER BY c {operator} ? LIMIT 1", (value,))


@pytest.mark.parametrize("value", [[2, 0, 1], [0.5, 0, 1], np.array([1, 0, 255], np.uint8)])
def test_a_bit_is_0_or_1(value: Any) -> None:
    with tarsdb.connect() as db:
        db.execute("CREATE TABLE t (id INT, c BIT(3))")
        with pytest.raises(tarsdb.DataError, match="column c"):
            db.execute("INSERT INTO t VALUES (1, ?)", (value,))
        with pytest.raises(tarsdb.DataError, match="row 1 holds components other than 0 and 1"):
            db.table("t").insert({"id": [1, 2], "c": np.array([[1, 0, 1], value])})
        with pytest.raises(tarsdb.DataError, match="query"):
            db.execute("SELECT id FROM t ORDER BY c <~> ? LIMIT 1", (value,))
        db.table("t").insert({"id": [1], "c": np.array([[1.0, 0, 1]])})
        assert column(db, "SELECT c FROM t") == ["101"]


@pytest.mark.parametrize("sql_type", ["JSON", "INT[]"])
def test_text_nested_beyond_what_python_reads(sql_type: str) -> None:
    with tarsdb.connect() as db:
        db.execute(f"CREATE TABLE t (id INT, c {sql_type})")
        with pytest.raises(tarsdb.DataError, match="column c"):
            db.execute("INSERT INTO t VALUES (1, ?)", (DEEP,))
        with pytest.raises(tarsdb.DataError, match="column c"):
            db.table("t").insert({"id": [1], "c": [DEEP]})


@pytest.mark.parametrize("sql_type", VECTORS)
def test_operators_agree_natively_and_relationally(sql_type: str) -> None:
    rng = np.random.default_rng(5)
    with tarsdb.connect() as db:
        db.execute(f"CREATE TABLE t (id INT, c {sql_type}, e {sql_type})")
        bits = sql_type.startswith("BIT")
        for i in range(20):
            values: Any = rng.integers(0, 2, 5) if bits else rng.integers(-9, 9, 3)
            pair = ["".join(map(str, values)), "01100"] if bits else [values, values[::-1]]
            db.execute("INSERT INTO t VALUES (?, ?, ?)", (i, *pair))
        db.execute("INSERT INTO t VALUES (20, NULL, NULL)")
        query = "'01101'" if bits else "'[3,-4,1]'"
        for op in OPERATORS[sql_type]:
            for right in (query, "e"):
                native = dict(db.execute(f"SELECT id, c {op} {right} FROM t").fetchall())
                sql = f"SELECT id, c {op} {right} AS d FROM t GROUP BY ALL ORDER BY id"
                relational = dict(db.execute(sql).fetchall())
                assert native.keys() == relational.keys()
                assert native.pop(20) is None and relational.pop(20) is None
                np.testing.assert_allclose(
                    [native[i] for i in native], [relational[i] for i in native], rtol=1e-6
                )
            near = f"SELECT id, c {op} {query} AS d FROM t ORDER BY d LIMIT 7"
            top = [d for _, d in db.execute(near).fetchall()]
            every = f"SELECT c {op} {query} AS d FROM t WHERE abs(id) < 20"
            slow = sorted(column(db, every))[:7]
            np.testing.assert_allclose(top, slow, rtol=1e-6, atol=1e-6)
