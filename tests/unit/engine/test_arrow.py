"""Round trips between columns and Arrow for every SQL type, and the casts of foreign arrays."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarsdb.columns import from_list
from tarsdb.engine.arrow import from_arrow, sql_type_of, to_arrow
from tarsdb.errors import DataError, DimensionMismatchError, NotSupportedError, ValueRangeError
from tarsdb.types import arrow_type, from_storage, parse_type, to_storage

_INTERVALS = st.tuples(
    st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63) // 1000 + 1, 2**63 // 1000 - 1),
)  # fmt: skip
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_F16 = st.integers(-(2**15), 2**15).map(lambda n: float(np.float16(n / 7)))
_F32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
_BIG = st.integers(-(10**38) + 1, 10**38 - 1).map(lambda n: decimal.Decimal(f"{n}E-5"))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "BOOLEAN": st.booleans(),
    "SMALLINT": st.integers(-(2**15), 2**15 - 1),
    "INT": st.integers(-(2**31), 2**31 - 1),
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "REAL": st.floats(width=32, allow_nan=False),
    "DOUBLE": st.floats(allow_nan=False),
    "DECIMAL(12,3)": st.decimals(-(10**8), 10**8, places=3, allow_nan=False),
    "DECIMAL(38,5)": _BIG,
    "TEXT": _TEXT,
    "BLOB": st.binary(max_size=9),
    "DATE": st.dates(),
    "TIME": st.times(),
    "TIMESTAMP": st.datetimes(),
    "TIMESTAMPTZ": st.datetimes(timezones=st.just(dt.UTC)),
    "INTERVAL": _INTERVALS,
    "UUID": st.uuids(),
    "JSON": st.dictionaries(_TEXT, st.integers(0, 9) | st.none(), max_size=2),
    "INT[]": st.lists(st.integers(-9, 9) | st.none(), max_size=3),
    "TEXT[]": st.lists(_TEXT | st.none(), max_size=3),
    "BLOB[]": st.lists(st.binary(max_size=3) | st.none(), max_size=3),
    "UUID[]": st.lists(st.uuids() | st.none(), max_size=2),
    "DECIMAL(30,2)[]": st.lists(st.decimals(-99, 99, places=2) | st.none(), max_size=2),
    "TIMESTAMP[]": st.lists(st.datetimes(), max_size=2),
    "VECTOR(3)": st.lists(_F32, min_size=3, max_size=3),
    "HALFVEC(3)": st.lists(_F16, min_size=3, max_size=3),
    "INT8VEC(5)": st.lists(st.integers(-128, 127), min_size=5, max_size=5),
    "BIT(11)": st.text("01", min_size=11, max_size=11),
}  # fmt: skip


def stored(name: str, values: list[Any]) -> list[Any]:
    sql_type = parse_type(name)
    return [to_storage(value, sql_type, "c") for value in values]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return right is not None and left.dtype == right.dtype and np.array_equal(left, right)
    return type(left) is type(right) and left == right


def assert_same(left: list[Any], right: list[Any]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert same(a, b), (a, b)


@pytest.mark.parametrize("name", VALUES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip(name: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(VALUES[name] | st.none(), max_size=12))
    sql_type = parse_type(name)
    items = stored(name, values)
    array = to_arrow(from_list(sql_type, items))
    array.validate(full=True)
    assert array.type == arrow_type(sql_type)
    assert array.null_count == sum(item is None for item in items)
    assert_same(from_arrow(array, sql_type, "c").to_list(), items)
    assert_same(from_arrow(array.slice(1), sql_type, "c").to_list(), items[1:])
    chunked = pa.chunked_array([array.slice(0, 2), array.slice(2)])
    assert_same(from_arrow(chunked, sql_type, "c").to_list(), items)
    if not name.startswith(("HALFVEC", "BIT", "JSON")):
        assert sql_type_of(array.type) == sql_type


@pytest.mark.parametrize("name", ["INT", "TEXT", "DECIMAL(12,3)", "DATE", "TIMESTAMPTZ", "BOOLEAN"])
def test_python_sees_the_same_values(name: str) -> None:
    sample = {
        "INT": [1, None], "TEXT": ["é", None], "DECIMAL(12,3)": [decimal.Decimal("-1.500"), None],
        "DATE": [dt.date(1969, 12, 31), None], "BOOLEAN": [True, False, None],
        "TIMESTAMPTZ": [dt.datetime(2020, 1, 1, tzinfo=dt.UTC), None],
    }[name]  # fmt: skip
    sql_type = parse_type(name)
    array = to_arrow(from_list(sql_type, stored(name, sample)))
    assert array.to_pylist() == sample


def test_numbers_and_text_share_their_buffers() -> None:
    for name, items in (("BIGINT", [1, 2]), ("TEXT", ["a", "bc"]), ("VECTOR(2)", [[1, 2], [3, 4]])):
        sql_type = parse_type(name)
        column = from_list(sql_type, stored(name, items))
        array = to_arrow(column)
        back = from_arrow(array, sql_type, "c")
        assert np.shares_memory(back.values, column.values)


CASTS = [
    (pa.array([1, None], pa.uint8()), "INT", [1, None]),
    (pa.array([1, 2], pa.int64()), "SMALLINT", [1, 2]),
    (pa.array([0.5, 1.5, 2.5]), "INT", [0, 2, 2]),
    (pa.array(["7", None]), "INT", [7, None]),
    (pa.array([1, 0, None]), "BOOLEAN", [True, False, None]),
    (pa.array(["a", "b", "a", None]).dictionary_encode(), "TEXT", ["a", "b", "a", None]),
    (pa.array(["x", None], pa.large_string()), "TEXT", ["x", None]),
    (pa.array(["x", None, "y" * 40], pa.string_view()), "TEXT", ["x", None, "y" * 40]),
    (pa.array([b"x"], pa.binary(1)), "BLOB", [b"x"]),
    (pa.array([1, 2], pa.int32()), "DOUBLE", [1.0, 2.0]),
    (pa.array([2**60 + 1]), "DOUBLE", [float(2**60)]),
    (pa.array([3], pa.int64()), "DECIMAL(5,2)", [300]),
    (pa.array([decimal.Decimal("1.255")]), "DECIMAL(5,2)", [126]),
    (pa.array([1.25]), "DECIMAL(5,1)", [13]),
    (pa.array([1_500], pa.timestamp("ns")), "TIMESTAMP", [1]),
    (pa.array([-1], pa.timestamp("ns")), "TIMESTAMP", [-1]),
    (pa.array([2], pa.timestamp("s", tz="Europe/Berlin")), "TIMESTAMPTZ", [2_000_000]),
    (pa.array([1], pa.date32()), "TIMESTAMP", [86_400_000_000]),
    (pa.array([-1], pa.timestamp("us")), "DATE", [-1]),
    (pa.array([5], pa.time32("s")), "TIME", [5_000_000]),
    (pa.array([dt.timedelta(days=1, seconds=1)]), "INTERVAL", stored("INTERVAL", [(0, 1, 10**6)])),
    (pa.array(["00000000-0000-0000-0000-000000000001"]), "UUID", [uuid.UUID(int=1).bytes]),
    (pa.array([{"a": 1}, None]), "JSON", ['{"a":1}', None]),
    (pa.array([[1, None], None]), "INT[]", ["[1,null]", None]),
    (pa.nulls(2), "TEXT", [None, None]),
    (pa.nulls(1), "VECTOR(2)", [None]),
    (pa.array(["101"]), "BIT(3)", stored("BIT(3)", ["101"])),
    (pa.array([[True, False, True]]), "BIT(3)", stored("BIT(3)", ["101"])),
]


@pytest.mark.parametrize(("array", "name", "expected"), CASTS, ids=lambda v: str(v)[:24])
def test_foreign_arrays_cast(array: pa.Array, name: str, expected: list[Any]) -> None:
    assert_same(from_arrow(array, parse_type(name), "c").to_list(), expected)


@pytest.mark.parametrize("list_type", [
    pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2),
    pa.list_(pa.float16(), 2), pa.list_(pa.int32()), pa.list_view(pa.float32()),
])  # fmt: skip
@pytest.mark.parametrize("name", ["VECTOR(2)", "HALFVEC(2)", "INT8VEC(2)"])
def test_vectors_of_any_list(list_type: pa.DataType, name: str) -> None:
    array = pa.array([[9, 9], [1, 2], None, [3, 4]], pa.list_(pa.int64())).cast(
        pa.list_(pa.float32())
    )
    if pa.types.is_float16(list_type.value_type):
        flat = pa.array(np.array([9, 9, 1, 2, 0, 0, 3, 4], np.float16))
        array = pa.FixedSizeListArray.from_arrays(
            flat, 2, mask=pa.array([False, False, True, False])
        )
    else:
        array = pa.array(array.to_pylist(), list_type)
    expected = stored(name, [[1, 2], None, [3, 4]])
    assert_same(from_arrow(array.slice(1), parse_type(name), "v").to_list(), expected)


REFUSED = [
    (pa.array([2**40]), "INT", ValueRangeError),
    (pa.array([300]), "DECIMAL(4,2)", ValueRangeError),
    (pa.array([math.nan]), "INT", DataError),
    (pa.array(["x"]), "INT", DataError),
    (pa.array([[1.0]]), "INT", DataError),
    (pa.array(["{"]), "JSON", DataError),
    (pa.array([[1.0, 2.0, 3.0]]), "VECTOR(2)", DimensionMismatchError),
    (pa.array([[1.0, math.nan]]), "VECTOR(2)", ValueRangeError),
    (pa.array([[1.0, math.inf]]), "VECTOR(2)", ValueRangeError),
    (pa.array([[1.0, 1e300]]), "VECTOR(2)", ValueRangeError),
    (pa.array([[1.0, 70000.0]]), "HALFVEC(2)", ValueRangeError),
    (pa.array([[1.0, 200.0]]), "INT8VEC(2)", ValueRangeError),
    (pa.array([[1.0, None]]), "VECTOR(2)", DataError),
    (pa.array([["a", "b"]]), "VECTOR(2)", DataError),
    (pa.array(["10"]), "BIT(3)", DimensionMismatchError),
    (pa.array(["1x1"]), "BIT(3)", DataError),
    (pa.array([2**62], pa.timestamp("s")), "TIMESTAMP", ValueRangeError),
    (pa.array([b"\xff"]), "TEXT", DataError),
    (pa.array([{"a": 1}]), "DATE", DataError),
]


@pytest.mark.parametrize(("array", "name", "error"), REFUSED, ids=lambda v: str(v)[:24])
def test_refusals_name_the_column(array: pa.Array, name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="price"):
        from_arrow(array, parse_type(name), "price")


def test_a_bad_vector_is_named_by_row() -> None:
    array = pa.array([[1.0, 2.0], None, [math.nan, 0.0]])
    with pytest.raises(ValueRangeError, match="row 2"):
        from_arrow(array, parse_type("VECTOR(2)"), "v")


def test_a_long_interval_does_not_fit_arrow() -> None:
    sql_type = parse_type("INTERVAL")
    with pytest.raises(ValueRangeError, match="INTERVAL"):
        to_arrow(from_list(sql_type, [to_storage((0, 0, 2**62), sql_type, "c")]))


def test_types_of_results() -> None:
    assert str(sql_type_of(pa.uint32())) == "BIGINT"
    assert str(sql_type_of(pa.uint64())) == "DECIMAL(20,0)"
    assert str(sql_type_of(pa.list_(pa.float32(), 4))) == "VECTOR(4)"
    assert str(sql_type_of(pa.list_(pa.list_(pa.int8())))) == "JSON"
    assert str(sql_type_of(pa.dictionary(pa.int8(), pa.string()))) == "TEXT"
    with pytest.raises(NotSupportedError, match="price"):
        sql_type_of(pa.opaque(pa.binary(), "bignum", "DuckDB"), "price")


def test_pandas_and_polars_tables() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    times = [dt.datetime(2020, 1, 1), None]
    for frame in (pandas.DataFrame, polars.DataFrame):
        table = pa.table(frame({"t": times, "s": ["a", None]}))
        got = from_arrow(table.column("t"), parse_type("TIMESTAMP"), "t").to_list()
        assert [from_storage(v, parse_type("TIMESTAMP")) for v in got] == times
        assert from_arrow(table.column("s"), parse_type("TEXT"), "s").to_list() == ["a", None]
