"""The relational engine against a test double of ``Inputs``: no storage, no binder."""

from __future__ import annotations

import datetime as dt
import decimal
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tarsdb import errors
from tarsdb.columns import Column, from_list
from tarsdb.engine.arrow import from_arrow, to_arrow
from tarsdb.engine.by_duckdb.relational import RelationalEngine
from tarsdb.schema import ColumnDef, FunctionDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Relation, Relational, RelationalCall
from tarsdb.types import BIGINT, TEXT, Kind, SqlType, from_storage, parse_type, to_storage


class ListScan:
    """Batches in memory, with a record of what was asked for and pulled."""

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        self.schema = batches[0].schema
        self._batches = list(batches)
        self.asked: list[list[str]] = []
        self.pulled = 0

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        self.asked.append(list(columns))
        for batch in self._batches:
            self.pulled += 1
            yield batch.select(list(columns))


class TableScan(ListScan):
    """A small relation that gives one cached table."""

    is_kept = True

    def __init__(self, table: pa.Table) -> None:
        super().__init__(table.to_batches())
        self._table = table

    def table(self) -> pa.Table:
        return self._table


class FakeInputs:
    """Inputs from dictionaries."""

    def __init__(
        self, scans: dict[str, Any] | None = None, parameters: dict[Any, Any] | None = None
    ) -> None:
        self.scans = scans or {}
        self.parameters = parameters or {}
        self.calls: list[Any] = []
        self.raises: BaseException | None = None

    def scan(self, relation: Relation) -> Any:
        return self.scans[relation.name]

    def parameter(self, key: Any) -> Any:
        return self.parameters[key]

    def constant(self, node: Any) -> Any:
        return node

    def call_model(self, call: ex.Call, columns: list[Column], rows: int) -> Column:
        texts = columns[0].to_list()
        self.calls.append(texts)
        vectors = np.array([[len(t or ""), 1.0] for t in texts], dtype=np.float32)
        return Column(call.returns, vectors, None, columns[0].validity)

    def call_function(self, function: FunctionDef, columns: list[Column], rows: int) -> Column:
        if self.raises is not None:
            raise self.raises
        values = columns[0].to_list()
        return from_list(function.returns, [None if v is None else v * 2 for v in values])

    def session_signature(self, name: str) -> Any:
        return ((), BIGINT) if name == "seven" else ((TEXT,), TEXT)

    def call_session_function(self, name: str, columns: list[Column], rows: int) -> Column:
        if name == "seven":
            return from_list(BIGINT, [7] * rows)
        return from_list(TEXT, [f"<{v}>" for v in columns[0].to_list()])


def plan(sql: str, *names: str, **more: Any) -> Relational:
    table = TableDef(1, "docs", (ColumnDef(1, "a", BIGINT),))
    return Relational(sql, tuple(Relation(name, table=table) for name in names), **more)


def batches(count: int = 5, rows: int = 3000) -> list[pa.RecordBatch]:
    vector = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 2, np.float32)), 2)
    return [
        pa.record_batch(
            {
                "a": pa.array(range(i * rows, (i + 1) * rows), pa.int64()),
                "v": vector,
                "s": pa.array([f"k{j % 3}" for j in range(rows)]),
            }
        )
        for i in range(count)
    ]


@pytest.fixture
def engine() -> Iterator[RelationalEngine]:
    made = RelationalEngine({"memory_limit": "1GB"})
    yield made
    made.close()


def rows(
    engine: RelationalEngine, sql: str, inputs: FakeInputs | None = None, *names: str, **more: Any
) -> list[Any]:
    inputs = inputs or FakeInputs()
    result = engine.run(plan(sql, *names, **more), inputs)
    columns = [
        [from_storage(v, t) for v in from_arrow(result.table.column(i), t, n).to_list()]
        for i, (t, n) in enumerate(zip(result.types, result.names, strict=True))
    ]
    return list(zip(*columns, strict=True))


def test_a_vector_is_not_read_unless_asked(engine: RelationalEngine) -> None:
    scan = ListScan(batches())
    got = rows(
        engine,
        "SELECT s, count(*), sum(a) FROM __r0 GROUP BY s ORDER BY s",
        FakeInputs({"__r0": scan}),
        "__r0",
    )
    assert [row[0] for row in got] == ["k0", "k1", "k2"]
    assert sum(row[2] for row in got) == sum(range(15000))
    assert sum(row[1] for row in got) == 15000
    assert all("v" not in asked for asked in scan.asked) and scan.asked


def test_a_filter_reaches_the_scan_and_is_applied(engine: RelationalEngine) -> None:
    scan = ListScan(batches())
    got = rows(
        engine,
        "SELECT a FROM __r0 WHERE a > 14990 AND s = 'k1' ORDER BY a",
        FakeInputs({"__r0": scan}),
        "__r0",
    )
    expected = [(a,) for a in range(14991, 15000) if a % 3000 % 3 == 1]
    assert got == expected
    text = engine.explain(
        plan("SELECT a FROM __r0 WHERE a > 14990", "__r0"), FakeInputs({"__r0": scan})
    )
    assert "14990" in text


def test_a_limit_pulls_few_batches(engine: RelationalEngine) -> None:
    scan = ListScan(batches(count=40))
    assert len(rows(engine, "SELECT a FROM __r0 LIMIT 3", FakeInputs({"__r0": scan}), "__r0")) == 3
    assert scan.pulled <= 4
    pulled = scan.pulled
    time.sleep(0.05)
    assert scan.pulled == pulled


def test_joins_and_self_joins_of_scans(engine: RelationalEngine) -> None:
    inputs = FakeInputs({"__r0": ListScan(batches()), "__r1": TableScan(pa.table({"k": ["k1"]}))})
    sql = "SELECT count(*) FROM __r0 AS x JOIN __r1 ON x.s = __r1.k JOIN __r0 AS y ON x.a = y.a"
    assert rows(engine, sql, inputs, "__r0", "__r1") == [(5000,)]


def test_a_relation_name_in_text_stays_text(engine: RelationalEngine) -> None:
    inputs = FakeInputs({"__r0": TableScan(pa.table({"a": [1]}))})
    sql = "SELECT '__r0' AS t, \"__r0\".a /* __r0 */, $$__r0$$ AS d FROM __r0 -- __r0"
    assert rows(engine, sql, inputs, "__r0") == [("__r0", 1, "__r0")]


def test_the_result_outlives_the_scanned_memory(engine: RelationalEngine) -> None:
    memory = np.arange(10, dtype=np.int64)
    batch = pa.record_batch({"a": to_arrow(Column(BIGINT, memory))})
    result = engine.run(plan("SELECT a FROM __r0", "__r0"), FakeInputs({"__r0": ListScan([batch])}))
    memory[:] = -1
    assert result.table.column("a").to_pylist() == list(range(10))


def test_nothing_reads_after_the_statement(engine: RelationalEngine) -> None:
    scan = ListScan(batches())
    alive = weakref.ref(scan)
    rows(engine, "SELECT count(a) FROM __r0", FakeInputs({"__r0": scan}), "__r0")
    del scan
    gc.collect()
    assert alive() is None


def test_an_unchanged_table_stays_registered_and_a_new_one_is_seen(
    engine: RelationalEngine,
) -> None:
    first, second = pa.table({"a": [1]}), pa.table({"a": [2]})
    for table, value in ((first, 1), (second, 2), (first, 1)):
        assert rows(
            engine, "SELECT a FROM __r0", FakeInputs({"__r0": TableScan(table)}), "__r0"
        ) == [(value,)]
    for number in range(200):
        table = pa.table({"a": [number]})
        assert rows(
            engine, "SELECT a FROM __r0", FakeInputs({"__r0": TableScan(table)}), "__r0"
        ) == [(number,)]


PARAMETERS = [
    (None, None),
    (True, True),
    (7, 7),
    (2**40, 2**40),
    (2**70, decimal.Decimal(2**70)),
    (1.5, 1.5),
    ("é'x", "é'x"),
    (b"\x00\xff", b"\x00\xff"),
    (decimal.Decimal("1.50"), decimal.Decimal("1.50")),
    (dt.date(1969, 1, 1), dt.date(1969, 1, 1)),
    (dt.time(1, 2, 3, 4), dt.time(1, 2, 3, 4)),
    (dt.datetime(2020, 1, 1, 2), dt.datetime(2020, 1, 1, 2)),
    (dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),
    (dt.timedelta(days=3, microseconds=5), dt.timedelta(days=3, microseconds=5)),
    (uuid.UUID(int=5), uuid.UUID(int=5)),
    (np.int64(3), 3),
    (np.float32(0.5), 0.5),
    ([1, 2], [1, 2]),
    ([np.int64(1)], [1]),
    (bytearray(b"x"), b"x"),
    (np.array([True, False]), "10"),
    ({"k": 1}, {"k": 1}),
    (pa.scalar(4), 4),
]


@pytest.mark.parametrize(("value", "expected"), PARAMETERS, ids=lambda v: repr(v)[:20])
def test_parameters_of_each_type(engine: RelationalEngine, value: Any, expected: Any) -> None:
    inputs = FakeInputs(parameters={0: value, "n": value})
    got = rows(engine, "SELECT $p0 AS x, $n AS y", inputs, parameters=(0, "n"))
    assert got == [(expected, expected)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_a_vector_parameter_keeps_its_components(engine: RelationalEngine, dtype: Any) -> None:
    vector = np.array([1, -2, 3], dtype=dtype)
    got = rows(engine, "SELECT $p0 AS v", FakeInputs(parameters={0: vector}), parameters=(0,))
    wanted = np.int8 if dtype is np.int8 else np.float32
    assert got[0][0].dtype == wanted and got[0][0].tolist() == [1, -2, 3]


@pytest.mark.parametrize(
    "value", [object(), 2**130, np.zeros((2, 2))], ids=["object", "huge", "matrix"]
)
def test_what_cannot_be_bound_names_the_parameter(engine: RelationalEngine, value: Any) -> None:
    with pytest.raises(errors.DataError, match="parameter 1"):
        rows(engine, "SELECT $p0", FakeInputs(parameters={0: value}), parameters=(0,))


SAMPLES: dict[str, list[Any]] = {
    "BOOLEAN": [True, None],
    "SMALLINT": [-3, None],
    "INT": [2**31 - 1, None],
    "BIGINT": [-(2**63), None],
    "REAL": [0.5, None],
    "DOUBLE": [1e300, None],
    "DECIMAL(12,3)": ["1.250", None],
    "DECIMAL(38,2)": ["-123456789012345678901234567890.25", None],
    "TEXT": ["é", "", None],
    "BLOB": [b"\x00", None],
    "DATE": ["1960-02-29", None],
    "TIME": ["23:59:59.999999", None],
    "TIMESTAMP": ["1900-01-01 00:00:00.000001", None],
    "TIMESTAMPTZ": ["2020-01-01 00:00:00+02:00", None],
    "INTERVAL": [(1, -2, 3), None],
    "UUID": [uuid.UUID(int=2**127 + 9), uuid.UUID(int=1), None],
    "JSON": ['{"a": [1]}', None],
    "INT[]": [[1, None], [], None],
    "TEXT[]": [["a"], None],
    "VECTOR(2)": [[1, 2], None],
    "INT8VEC(3)": [[1, -128, 127], None],
}


@pytest.mark.parametrize("lazily", [True, False])
@pytest.mark.parametrize("name", SAMPLES)
def test_each_type_through_a_query_and_back(
    engine: RelationalEngine, name: str, lazily: bool
) -> None:
    sql_type = parse_type(name)
    column = from_list(sql_type, [to_storage(v, sql_type, "c") for v in SAMPLES[name]])
    table = pa.table({"n": pa.array(range(len(column))), "c": to_arrow(column)})
    scan = ListScan(table.to_batches()) if lazily else TableScan(table)
    result = engine.run(plan("SELECT c FROM __r0 ORDER BY n", "__r0"), FakeInputs({"__r0": scan}))
    assert result.types == [sql_type]
    back = from_arrow(result.table.column(0), sql_type, "c")
    for left, right in zip(back.to_list(), column.to_list(), strict=True):
        assert np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right


RESULTS = [
    ("sum(x) FROM (VALUES (1), (2)) t(x)", 3, "BIGINT"),
    (
        "sum(x) FROM (VALUES (9223372036854775807), (1)) t(x)",
        decimal.Decimal(2**63),
        "DECIMAL(38,0)",
    ),
    ("1::UTINYINT", 1, "SMALLINT"),
    ("1::UBIGINT", 1, "BIGINT"),
    ("18446744073709551615::UBIGINT", decimal.Decimal(2**64 - 1), "DECIMAL(38,0)"),
    ("'x'::ENUM('x', 'y')", "x", "TEXT"),
    ("'0101'::BIT", "0101", "TEXT"),
    (
        "{'a': 1, 'b': [uuid '00000000-0000-0000-0000-000000000001']}",
        {"a": 1, "b": [str(uuid.UUID(int=1))]},
        "JSON",
    ),
    ("MAP {'k': 1}", {"k": 1}, "JSON"),
    ("[[1], [2]]", [[1], [2]], "JSON"),
    ("[1, NULL]", [1, None], "INT[]"),
    ("NULL", None, "TEXT"),
    ("[1.5, NULL]::FLOAT[2]", [1.5, None], "REAL[]"),
    ("TIMESTAMP_NS '2020-01-01 00:00:00.000001'", dt.datetime(2020, 1, 1, 0, 0, 0, 1), "TIMESTAMP"),
    ("7 / 2", 3, "INT"),
    ("avg(x) FROM (VALUES (1), (2)) t(x)", 1.5, "DOUBLE"),
]


@pytest.mark.parametrize(("sql", "value", "name"), RESULTS, ids=lambda v: str(v)[:20])
def test_result_types(engine: RelationalEngine, sql: str, value: Any, name: str) -> None:
    result = engine.run(plan(f"SELECT {sql}"), FakeInputs())
    assert result.types == [parse_type(name)]
    assert rows(engine, f"SELECT {sql}") == [(value,)]


def test_a_type_without_counterpart_names_the_column(engine: RelationalEngine) -> None:
    with pytest.raises(errors.NotSupportedError, match="column big"):
        rows(engine, "SELECT 1::BIGNUM AS big")


FAILURES = [
    ("SELEC 1", errors.SQLSyntaxError, "syntax error"),
    ("SELECT nope FROM __r0", errors.BindError, "nope"),
    ("SELECT * FROM missing", errors.BindError, "missing"),
    ("SELECT nofunction(1)", errors.BindError, "nofunction"),
    ("SELECT CAST('x' AS INT)", errors.DataError, "'x'"),
    ("SELECT 2147483647::INT + 1::INT", errors.ValueRangeError, "Overflow"),
    ("SELECT 1 % 0", errors.DataError, "Division by zero"),
    ("SELECT (SELECT a FROM __r0)", errors.DataError, "scalar subqueries"),
]


@pytest.mark.parametrize(("sql", "kind", "text"), FAILURES, ids=lambda v: str(v)[:24])
def test_duckdb_errors_are_ours(
    engine: RelationalEngine, sql: str, kind: type[errors.Error], text: str
) -> None:
    inputs = FakeInputs({"__r0": TableScan(pa.table({"a": [1, 2]}))})
    with pytest.raises(kind, match=text) as caught:
        rows(engine, sql, inputs, "__r0")
    shown = str(caught.value)
    assert (
        "__" not in shown and "LINE" not in shown and " Error:" not in shown and "SET " not in shown
    )
    assert rows(engine, "SELECT 1") == [(1,)]


def test_memory_is_limited() -> None:
    small = RelationalEngine({"memory_limit": "20MB"})
    distinct = "SELECT DISTINCT x * 7, x::TEXT || repeat('a', 20) FROM range(2000000) t(x)"
    sql = f"SELECT count(*) FROM ({distinct})"
    with pytest.raises(errors.OperationalError, match="memory") as caught:
        rows(small, sql)
    assert caught.value.hint
    small.close()


CAGE = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_text('/etc/hostname')",
    "LOAD httpfs",
    "INSTALL httpfs",
    "COPY (SELECT 1) TO '/tmp/tarsdb-escape.csv'",
    "ATTACH '/tmp/tarsdb-escape.db'",
    "SELECT * FROM glob('/etc/*')",
    "SET enable_external_access = true",
    "SET threads = 1",
    "SELECT * FROM visible_here",
    "SELECT getenv('HOME')",
]


@pytest.mark.parametrize("sql", CAGE)
def test_the_cage(engine: RelationalEngine, sql: str) -> None:
    visible_here = pa.table({"a": [1]})
    with pytest.raises(errors.Error):
        rows(engine, sql)
    assert visible_here.num_rows == 1
    assert not os.path.exists("/tmp/tarsdb-escape.csv") and not os.path.exists(
        "/tmp/tarsdb-escape.db"
    )


def test_file_access_opens_the_cage(tmp_path: Any) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a\n5\n")
    values: dict[str, Any] = {"file_access": False}
    engine = RelationalEngine(values)
    with pytest.raises(errors.OperationalError, match="disabled") as caught:
        rows(engine, f"SELECT a FROM read_csv('{path}')")
    assert "file_access" in (caught.value.hint or "")
    values["file_access"] = True
    assert rows(engine, f"SELECT a FROM read_csv('{path}')") == [(5,)]
    engine.close()


def test_null_order_is_a_setting() -> None:
    values = {"default_null_order": "nulls_last"}
    engine = RelationalEngine(values)
    sql = "SELECT x FROM (VALUES (NULL), (1)) t(x) ORDER BY x"
    assert rows(engine, sql) == [(1,), (None,)]
    values["default_null_order"] = "nulls_first"
    assert rows(engine, sql) == [(None,), (1,)]
    engine.close()


EMBED = ex.Call("model", "embed", "Mini", (), SqlType(Kind.VECTOR, dim=2))
DOUBLED = FunctionDef(2, "twice", (("x", BIGINT),), BIGINT, "wasm", None, "f", "d")


def test_functions_and_models_are_called_in_batches(engine: RelationalEngine) -> None:
    scan = ListScan(
        [pa.record_batch({"s": pa.array(["a", None, "ccc"]), "n": pa.array([1, None, 3])})]
    )
    inputs = FakeInputs({"__r0": scan})
    calls = "__embed_mini(s) AS e, __udf_twice(n) AS t, __udf_tag(s) AS g, __udf_seven() AS k"
    sql = f"SELECT {calls} FROM __r0"
    got = rows(
        engine,
        sql,
        inputs,
        "__r0",
        calls=(RelationalCall("__embed_mini", 1, EMBED),),
        functions=(DOUBLED,),
        session_functions=("tag", "seven"),
    )
    assert got[0][0].tolist() == [1, 1] and got[1][0] is None and got[2][0].tolist() == [3, 1]
    assert [row[1:] for row in got] == [(2, "<a>", 7), (None, "<None>", 7), (6, "<ccc>", 7)]
    assert inputs.calls == [["a", None, "ccc"]]


def test_a_function_may_change_its_signature(engine: RelationalEngine) -> None:
    assert rows(engine, "SELECT __udf_twice(2)", functions=(DOUBLED,)) == [(4,)]
    other = FunctionDef(3, "twice", (("x", TEXT),), TEXT, "wasm", None, "f", "e")
    assert rows(engine, "SELECT __udf_twice('ab')", functions=(other,)) == [("abab",)]


def test_an_error_of_a_function_comes_out_as_it_was(engine: RelationalEngine) -> None:
    inputs = FakeInputs({"__r0": ListScan(batches())})
    inputs.raises = errors.UdfTrapError("unreachable executed")
    for sql in ("SELECT __udf_twice(a) FROM __r0", "SELECT __udf_twice(3)"):
        with pytest.raises(errors.UdfTrapError) as caught:
            rows(engine, sql, inputs, "__r0", functions=(DOUBLED,))
        assert caught.value is inputs.raises
    sql = "SELECT CASE WHEN false THEN __udf_twice(1) ELSE 5 END"
    assert rows(engine, sql, inputs, functions=(DOUBLED,)) == [(5,)]


def test_an_error_of_a_scan_comes_out_as_it_was(engine: RelationalEngine) -> None:
    broken = errors.CorruptionError("table docs, rows 1..5: checksum differs")

    class Broken(ListScan):
        def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
            yield from list(super().batches(columns))[:2]
            raise broken

    with pytest.raises(errors.CorruptionError) as caught:
        rows(engine, "SELECT sum(a) FROM __r0", FakeInputs({"__r0": Broken(batches())}), "__r0")
    assert caught.value is broken


def test_a_query_inside_a_function_is_refused(engine: RelationalEngine) -> None:
    class Nested(FakeInputs):
        def call_function(self, function: FunctionDef, columns: list[Column], count: int) -> Column:
            rows(engine, "SELECT 1")
            raise AssertionError

    done: list[BaseException] = []

    def work() -> None:
        try:
            rows(engine, "SELECT __udf_twice(3)", Nested(), functions=(DOUBLED,))
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert isinstance(done[0], errors.InterfaceError)


SLOW = "SELECT count(*) FROM range(100000000000) t(x) WHERE x % 7 = 3"


def test_interrupt_ends_a_statement(engine: RelationalEngine) -> None:
    engine.interrupt()
    assert rows(engine, "SELECT 1") == [(1,)]
    timer = threading.Timer(0.2, engine.interrupt)
    timer.start()
    started = time.monotonic()
    with pytest.raises(errors.InterruptError):
        rows(engine, SLOW)
    assert time.monotonic() - started < 5
    assert rows(engine, "SELECT 1") == [(1,)]


def test_ctrl_c_ends_a_statement(engine: RelationalEngine) -> None:
    rows(engine, "SELECT 1")
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(errors.InterruptError):
        rows(engine, SLOW)
    assert rows(engine, "SELECT 1") == [(1,)]


def test_ctrl_c_inside_a_scan(engine: RelationalEngine) -> None:
    class Interrupted(ListScan):
        def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
            yield from super().batches(columns)
            raise KeyboardInterrupt

    with pytest.raises(errors.InterruptError):
        rows(
            engine, "SELECT sum(a) FROM __r0", FakeInputs({"__r0": Interrupted(batches())}), "__r0"
        )


def test_constants_are_bound_by_name(engine: RelationalEngine) -> None:
    sql = "SELECT list_dot_product($__c0, [1.0, 2.0]::FLOAT[2]) AS d"
    vector = np.array([3, 4], np.float32)
    assert rows(engine, "SELECT $__c0 AS d", constants=(("__c0", vector),))[0][0].tolist() == [3, 4]
    assert rows(engine, sql, constants=(("__c0", vector),)) == [(11.0,)]


def test_distances_check_dimensions(engine: RelationalEngine) -> None:
    pytest.importorskip("tarsdb.index.flat")
    values = {"l2": 5.0, "ip": 0.0, "l1": 7.0}
    for operation, expected in values.items():
        values_of_v = "(VALUES ([0, 0]::FLOAT[2]), (NULL)) t(v)"
        sql = f"SELECT __distance_{operation}(v, '[3, 4]') FROM {values_of_v}"
        assert rows(engine, sql, distances=((operation, 2),)) == [(expected,), (None,)]
    with pytest.raises(errors.DimensionMismatchError, match=r"2 dimensions.*3"):
        rows(engine, "SELECT __distance_l2([1, 2], [1, 2, 3])", distances=(("l2", 2),))
    assert rows(
        engine, "SELECT __distance_hamming('0110', '0101')", distances=(("hamming", 4),)
    ) == [(2.0,)]


def test_a_closed_engine_refuses(engine: RelationalEngine) -> None:
    engine.close()
    with pytest.raises(errors.InterfaceError, match="closed"):
        rows(engine, "SELECT 1")


def test_no_warnings_at_exit() -> None:
    script = (
        "from tests.unit.engine.test_relational import *\n"
        "engine = RelationalEngine({})\n"
        "small = TableScan(pa.table({'a': [1]}))\n"
        "inputs = FakeInputs({'__r0': ListScan(batches()), '__r1': small})\n"
        "sql = 'SELECT __udf_twice(x.a) FROM __r0 x, __r1'\n"
        "rows(engine, sql, inputs, '__r0', '__r1', functions=(DOUBLED,))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
