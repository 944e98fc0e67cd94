"""Index keys: byte order is value order, and the vectorised encoder equals the scalar one."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarsdb.columns import from_list
from tarsdb.errors import NotSupportedError
from tarsdb.storage.index_keys import MAX_KEY, PREFIX, KeyCodec
from tarsdb.types import parse_type

BIGINT, TEXT, DOUBLE = (parse_type(name) for name in ("BIGINT", "TEXT", "DOUBLE"))
INT64 = st.integers(-(2**63), 2**63 - 1)
WIDE = st.integers(-(10**37), 10**37).map(lambda n: n.to_bytes(16, "little", signed=True))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "SMALLINT": st.integers(-(2**15), 2**15 - 1),
    "INT": st.integers(-(2**31), 2**31 - 1),
    "BIGINT": INT64,
    "REAL": st.floats(width=32),
    "DOUBLE": st.floats(),
    "BOOLEAN": st.booleans(),
    "TEXT": st.text(max_size=12),
    "BLOB": st.binary(max_size=12),
    "UUID": st.binary(min_size=16, max_size=16),
    "DECIMAL(38,2)": WIDE,
}


def order_of(name: str, value: Any) -> Any:
    """Return something Python compares as SQL compares the value."""
    if value is None:
        return (2,)
    if name in ("REAL", "DOUBLE"):
        return (1, 0.0) if math.isnan(value) else (0, value)
    if name == "TEXT":
        return (0, value.encode())
    if name.startswith("DECIMAL"):
        return (0, int.from_bytes(value, "little", signed=True))
    return (0, value)


@pytest.mark.parametrize("name", VALUES)
@given(data=st.data())
def test_byte_order_is_value_order(name: str, data: st.DataObject) -> None:
    values = st.none() | VALUES[name]
    left, right = data.draw(values), data.draw(values)
    codec = KeyCodec([parse_type(name)])
    a, b = codec.encode([left]), codec.encode([right])
    x, y = order_of(name, left), order_of(name, right)
    assert ((a > b) - (a < b)) == ((x > y) - (x < y))


@given(st.lists(st.tuples(st.none() | st.text(max_size=4), st.none() | INT64), min_size=2))
def test_compound_keys_order_by_first_then_second(rows: list[tuple[Any, Any]]) -> None:
    codec = KeyCodec([TEXT, BIGINT])
    by_key = sorted(rows, key=codec.encode)
    by_value = sorted(rows, key=lambda r: (order_of("TEXT", r[0]), order_of("BIGINT", r[1])))
    assert by_key == by_value


@pytest.mark.parametrize("name", VALUES)
@given(data=st.data())
def test_many_keys_equal_single_keys(name: str, data: st.DataObject) -> None:
    items = data.draw(st.lists(st.none() | VALUES[name], max_size=20))
    codec = KeyCodec([parse_type(name), BIGINT])
    columns = [from_list(parse_type(name), items), from_list(BIGINT, list(range(len(items))))]
    assert codec.encode_columns(columns) == [
        codec.encode(r) for r in zip(items, range(len(items)), strict=True)
    ]


def test_zeros_are_equal_and_nan_is_last() -> None:
    codec = KeyCodec([DOUBLE])
    assert codec.encode([-0.0]) == codec.encode([0.0])
    strange = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000001))[0]
    assert codec.encode([strange]) == codec.encode([math.nan]) > codec.encode([math.inf])


def test_intervals_compare_by_length() -> None:
    codec = KeyCodec([parse_type("INTERVAL")])
    month, days = struct.pack("<iiq", 1, 0, 0), struct.pack("<iiq", 0, 30, 0)
    assert codec.encode([month]) == codec.encode([days])
    assert codec.encode([struct.pack("<iiq", 0, -1, 0)]) < codec.encode([days])


def test_long_keys_are_bounded_distinct_and_inside_their_range() -> None:
    codec = KeyCodec([TEXT])
    long = ["x" * 1000 + tail for tail in ("a", "b")]
    found = [codec.encode([text]) for text in long]
    assert len(set(found)) == 2
    assert all(len(key) <= MAX_KEY for key in found)
    start, stop = codec.bounds([long[0]], [long[1]], False, False)
    assert all(start <= key < stop for key in found)
    start, stop = codec.bounds(["x" * (PREFIX - 50)], None, True, True)
    assert all(start <= key < stop for key in found)


def test_a_bound_as_long_as_the_prefix_includes_every_hash() -> None:
    """A truncated key that starts with the whole bound goes on with any byte, 0xff too."""
    codec = KeyCodec([TEXT, TEXT])
    first = "x" * (PREFIX - 2)
    start, stop = codec.bounds([first], [first], True, True)
    keys = [codec.encode([first, f"{tail} of some length"]) for tail in range(3000)]
    assert any(key[PREFIX] == 0xFF for key in keys)
    assert all(start <= key < stop for key in keys)


@given(st.lists(INT64, max_size=12), INT64, INT64, st.booleans(), st.booleans())
def test_bounds_select_the_range(
    items: list[int], low: int, high: int, low_in: bool, high_in: bool
) -> None:
    codec = KeyCodec([BIGINT, TEXT])
    start, stop = codec.bounds([low], [high], low_in, high_in)
    for item in [*items, low, high]:
        inside = (low < item or (low_in and item == low)) and (
            item < high or (high_in and item == high)
        )
        assert (start <= codec.encode([item, "t"]) < stop) == inside


def test_a_bound_leaves_nulls_out() -> None:
    codec = KeyCodec([BIGINT])
    start, stop = codec.bounds([0], None, True, True)
    assert not start <= codec.encode([None]) < stop
    start, stop = codec.bounds(None, None, True, True)
    assert start <= codec.encode([None]) < stop


def test_vectors_are_refused() -> None:
    with pytest.raises(NotSupportedError, match="VECTOR"):
        KeyCodec([parse_type("VECTOR(3)")])


def test_fixed_matrix_has_one_row_per_key() -> None:
    codec = KeyCodec([BIGINT, DOUBLE])
    columns = [from_list(BIGINT, [1, None]), from_list(DOUBLE, [None, 2.5])]
    matrix = codec.encode_fixed(columns)
    assert matrix.shape == (2, 18)
    assert np.array_equal(matrix[0], np.frombuffer(codec.encode([1, None]), np.uint8))
