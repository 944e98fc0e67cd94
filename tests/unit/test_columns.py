"""Columns put together late are what ``concat`` makes of them at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tarsdb.columns import Column, Joined, concat, from_list, joined
from tarsdb.types import BIGINT, TEXT, parse_type

VECTOR = parse_type("VECTOR(2)")
PARTS: dict[str, tuple[Any, list[list[Any]]]] = {
    "numbers": (BIGINT, [[1, 2, 3], [4], [5, 6]]),
    "nulls": (BIGINT, [[1, None], [], [3]]),
    "texts": (TEXT, [["a", ""], ["größe"], ["b", "c", "d"]]),
    "null texts": (TEXT, [["a"], [None, "b"]]),
    "vectors": (VECTOR, [[np.ones(2, "f4")], [np.zeros(2, "f4"), np.full(2, 3, "f4")]]),
    "nothing": (BIGINT, [[], []]),
}


def same(found: Column, wanted: Column) -> None:
    assert found.type == wanted.type
    assert len(found) == len(wanted)
    for name in ("values", "offsets", "validity"):
        a, b = getattr(found, name), getattr(wanted, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and np.array_equal(a, b)), name


@pytest.mark.parametrize("name", PARTS)
def test_joined_late_as_at_once(name: str) -> None:
    sql_type, lists = PARTS[name]
    parts = [from_list(sql_type, items) for items in lists]
    wanted = concat(sql_type, parts)
    column = joined(parts)
    assert (len(column), column.nbytes) == (len(wanted), wanted.nbytes)
    same(column, wanted)
    same(column, wanted)  # a second look finds it put together
    assert str(column.to_list()) == str(wanted.to_list())
    back = np.arange(len(wanted))[::-1]
    same(joined(parts).take(back), wanted.take(back))
    same(joined(parts).slice(1, len(wanted)), wanted.slice(1, len(wanted)))
    twice = concat(sql_type, [joined(parts), parts[0], column])
    same(twice, concat(sql_type, [*parts, parts[0], *parts]))
    owned = joined(parts).owned()
    same(owned, wanted)
    assert not any(np.shares_memory(owned.values, part.values) for part in parts)


@pytest.mark.parametrize("name", ["numbers", "vectors", "nothing"])
def test_rows_are_copied_without_the_whole(name: str) -> None:
    sql_type, lists = PARTS[name]
    parts = [from_list(sql_type, items) for items in lists]
    wanted = concat(sql_type, parts)
    for start in range(len(wanted) + 1):
        for stop in range(start, len(wanted) + 1):
            column = Joined(parts)
            out = np.full_like(wanted.values[start:stop], 9)
            column.copy_rows(start, stop, out)
            assert np.array_equal(out, wanted.values[start:stop])
            assert column.parts() == parts  # nobody put them together
            out[:] = 9
            wanted.copy_rows(start, stop, out)
            assert np.array_equal(out, wanted.values[start:stop])


def test_one_column_is_itself() -> None:
    column = from_list(BIGINT, [1, 2])
    assert joined([column]) is column
    assert column.parts() == [column]
