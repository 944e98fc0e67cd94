"""Delta records and column blocks: what goes in comes out, damage is noticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarsdb.columns import from_list
from tarsdb.errors import CorruptionError
from tarsdb.schema import ColumnDef
from tarsdb.storage import blocks, records
from tarsdb.types import parse_type

SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "BOOLEAN": st.booleans(),
    "SMALLINT": st.integers(-(2**15), 2**15 - 1),
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "REAL": st.floats(width=32, allow_nan=False),
    "DOUBLE": st.floats(allow_nan=False),
    "TEXT": st.text(max_size=30),
    "BLOB": st.binary(max_size=30),
    "UUID": st.binary(min_size=16, max_size=16),
}


@given(st.tuples(*[st.none() | values for values in SCALARS.values()]))
def test_record_round_trip(row: tuple[Any, ...]) -> None:
    columns = [ColumnDef(i, f"c{i}", parse_type(name)) for i, name in enumerate(SCALARS, 3)]
    shape = records.shape_of(columns)
    found_shape, values = records.decode(shape.encode(row))
    assert values == row
    assert [type(v) for v in values] == [type(v) for v in row]
    assert found_shape.index == {column.id: i for i, column in enumerate(columns)}


def test_record_of_an_unknown_shape_reads() -> None:
    columns = [ColumnDef(977, "x", parse_type("INT")), ColumnDef(4, "y", parse_type("TEXT"))]
    raw = records.shape_of(columns).encode((5, "five"))
    records._SHAPES.clear()
    shape, values = records.decode(raw)
    assert (shape.column_ids, values) == ((977, 4), (5, "five"))


@pytest.mark.parametrize("raw", [b"", b"\x05\x00", b"\x01\x00\x01\x00\x00\x00\x63", b"\xff" * 9])
def test_broken_records_are_refused(raw: bytes) -> None:
    with pytest.raises(CorruptionError):
        records.decode(raw)


@pytest.mark.parametrize("name", [*SCALARS, "VECTOR(3)", "BIT(11)", "INT8VEC(5)"])
@given(data=st.data())
def test_block_round_trip(name: str, data: st.DataObject) -> None:
    sql_type = parse_type(name)
    if sql_type.is_vector:
        values = st.just(np.ones(sql_type.width, dtype=sql_type.dtype))
    else:
        values = SCALARS[name]
    items = data.draw(st.lists(st.none() | values, max_size=40))
    column = from_list(sql_type, items)
    parts, nulls = blocks.encode_block(column)
    payload = b"".join(bytes(part) for part in parts)
    assert blocks.payload_size(parts) == len(payload)
    found = blocks.parse_block(memoryview(payload), len(items), sql_type, nulls)
    assert list(map(str, found.to_list())) == list(map(str, column.to_list()))


def test_a_slice_of_text_is_stored_alone() -> None:
    column = from_list(parse_type("TEXT"), ["aa", "bbb", None, "d"])
    for start, stop in [(1, 3), (0, 4), (2, 2), (3, 4)]:
        part = column.slice(start, stop)
        parts, nulls = blocks.encode_block(part)
        payload = memoryview(b"".join(bytes(p) for p in parts))
        found = blocks.parse_block(payload, stop - start, column.type, nulls)
        assert found.to_list() == column.to_list()[start:stop]


def test_values_start_at_multiples_of_64() -> None:
    column = from_list(parse_type("DOUBLE"), [None, *map(float, range(100))])
    parts, nulls = blocks.encode_block(column)
    assert nulls
    assert sum(len(part) for part in parts[:-1]) % 64 == 0


def test_short_payloads_are_refused() -> None:
    column = from_list(parse_type("TEXT"), ["abc", "d"])
    parts, nulls = blocks.encode_block(column)
    payload = b"".join(bytes(part) for part in parts)
    for size in (0, 5, len(payload) - 1):
        with pytest.raises(CorruptionError):
            blocks.parse_block(memoryview(payload)[:size], 2, column.type, nulls)


def test_descending_offsets_are_refused() -> None:
    payload = np.array([0, 9, 3], dtype=np.int32).tobytes() + bytes(80)
    with pytest.raises(CorruptionError, match="ascend"):
        blocks.parse_block(memoryview(payload), 2, parse_type("TEXT"), False)


def test_missing_values_fill_a_column() -> None:
    column = ColumnDef(1, "x", parse_type("BLOB"), missing="00ff")
    assert blocks.missing_column(column, 3).to_list() == [b"\x00\xff"] * 3
    column = ColumnDef(1, "x", parse_type("INT"))
    assert blocks.missing_column(column, 2).to_list() == [None, None]
