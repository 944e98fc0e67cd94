"""INSERT from a Python variable as it is: what it takes, what it refuses, beside DuckDB's way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import tarsdb
from tarsdb.errors import BindError, DataError, ValueRangeError

ROWS = 9_000


@pytest.fixture
def db(tmp_path: Path) -> tarsdb.Connection:
    found = tarsdb.connect(tmp_path / "v.tars")
    for name in ("straight", "around"):
        found.execute(f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, body TEXT, v VECTOR(4))")
    return found


def given(rows: int = ROWS) -> pa.Table:
    numbers = np.random.default_rng(3).standard_normal((rows, 4)).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), 4)
    texts = pa.array([None if i % 7 == 0 else f"text {i}" for i in range(rows)])
    return pa.table({"ID": pa.array(np.arange(rows)), "body": texts, "v": vectors})


def test_the_same_rows_as_through_duckdb(db: tarsdb.Connection) -> None:
    data = given()  # read by name from this frame
    assert db.execute("INSERT INTO straight SELECT * FROM data").rowcount == data.num_rows
    db.execute("INSERT INTO around SELECT * FROM data WHERE true")
    assert "VariableScan" in str(
        db.execute("EXPLAIN INSERT INTO straight SELECT * FROM data").fetchall()
    )
    both = [db.execute(f"SELECT * FROM {n} ORDER BY id").fetchall() for n in ("straight", "around")]
    assert len(both[0]) == ROWS
    for left, right in zip(*both, strict=True):
        assert left[:2] == right[:2]
        assert np.array_equal(left[2], right[2])


def test_names_in_any_case_and_order(db: tarsdb.Connection) -> None:
    data = given(500)
    db.execute("INSERT INTO straight (v, id) SELECT d.V, id FROM data AS d")
    stored = db.execute("SELECT id, body, v FROM straight WHERE id = 3").fetchone()
    assert stored is not None
    assert stored[:2] == (3, None)
    assert np.array_equal(stored[2], data.column("v")[3].as_py())


def test_refusals_name_the_column(db: tarsdb.Connection) -> None:
    data = given(100)
    assert data.num_rows == 100
    with pytest.raises(BindError, match="'weight'"):
        db.execute("INSERT INTO straight (id, body) SELECT id, weight FROM data")
    with pytest.raises(DataError, match="names 2 columns, the query gives 3"):
        db.execute("INSERT INTO straight (id, body) SELECT * FROM data")
    with pytest.raises(BindError, match="3 columns"):
        db.execute("INSERT INTO straight SELECT id, body FROM data")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_not_finite_is_refused_and_nothing_stays(db: tarsdb.Connection, wrong: float) -> None:
    vectors = np.full((ROWS, 4), 1e25, dtype=np.float32)  # the squares overflow: still fine
    db.table("straight").insert({"id": np.arange(ROWS), "v": vectors})
    vectors[ROWS - 1, 2] = wrong
    with pytest.raises(ValueRangeError, match="NaN or infinity"):
        db.table("around").insert({"id": np.arange(ROWS), "v": vectors})
    assert db.table("around").count() == 0


def test_the_callers_arrays_may_change_afterwards(db: tarsdb.Connection) -> None:
    vectors = np.ones((ROWS, 4), dtype=np.float32)
    db.execute("BEGIN")
    db.table("straight").insert({"id": np.arange(ROWS), "v": vectors})
    vectors[:] = 7
    db.execute("COMMIT")
    total = db.execute("SELECT count(*) FROM straight WHERE v <-> [1, 1, 1, 1] = 0").fetchone()
    assert total == (ROWS,)


def test_frames_that_are_no_table() -> None:
    doubled = pd.DataFrame([[1, 2]], columns=["a", "a"])
    opaque = pl.DataFrame({"o": [object()]})
    with tarsdb.connect(":memory:") as db:
        with pytest.raises(DataError, match=r"doubled \(DataFrame\) is not a table"):
            db.execute("SELECT * FROM doubled")
        with pytest.raises(DataError, match="column o holds Python objects"):
            db.execute("SELECT * FROM opaque")
        with pytest.raises(DataError):
            db.execute("CREATE TABLE t AS SELECT * FROM opaque")
    del doubled, opaque


def test_an_index_of_numbers_is_no_column() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    some = frame[frame["a"] > 1]
    named = some.set_index("b")
    pairs = frame.set_index([pd.Index([7, 8, 9], name="n"), pd.Index([1, 2, 3])])
    with tarsdb.connect(":memory:") as db:
        db.execute("CREATE TABLE t (a INT, b TEXT)")
        db.execute("INSERT INTO t SELECT * FROM some")
        db.table("t").insert(some)
        assert db.execute("SELECT * FROM t").fetchall() == [(2, "y"), (3, "z")] * 2
        names = [column[0] for column in db.execute("SELECT * FROM named").description or ()]
        assert names == ["a", "b"]
        names = [column[0] for column in db.execute("SELECT * FROM pairs").description or ()]
        assert names == ["a", "b", "n"]
    del named, pairs


def test_a_reader_is_refused_for_it_can_be_read_once() -> None:
    reader = pa.table({"a": [1, 2]}).to_reader()
    with tarsdb.connect(":memory:") as db:
        with pytest.raises(DataError, match=r"reader is a RecordBatchReader.*read_all"):
            db.execute("SELECT * FROM reader")
        whole = reader.read_all()
        assert db.execute("SELECT sum(a) FROM whole").fetchone() == (3,)
    del whole
