"""Search by a distance of one's own: brute force, ties, dead rows, NaN, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tarsdb.columns import VectorBlock
from tarsdb.errors import DataError, DimensionMismatchError, InterruptError, NotSupportedError
from tarsdb.index import own_metric
from tarsdb.index.flat import FlatIndex
from tarsdb.types import SqlType, parse_type

TYPES = ("VECTOR", "HALFVEC", "INT8VEC")


def chebyshev(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Largest difference of any element."""
    found: np.ndarray = np.abs(rows - query).max(axis=1)
    return found.astype(np.float32)


def index_of(
    sql_type: SqlType, rows: int, dead: bool
) -> tuple[FlatIndex, np.ndarray, np.ndarray, np.ndarray]:
    """Return an index of three blocks, its row ids, vectors and which of them live."""
    rng = np.random.default_rng(rows)
    data = rng.integers(0, 4, (rows, sql_type.width)).astype(sql_type.dtype)
    rowids = rng.permutation(rows).astype(np.int64) + 5
    live = rng.random(rows) < 0.6 if dead else np.ones(rows, bool)
    blocks = [
        VectorBlock(rowids[a:b], data[a:b], live[a:b].copy() if dead else None)
        for a, b in itertools.pairwise([0, rows // 3, rows // 2, rows])
    ]
    return FlatIndex(blocks, sql_type), rowids, data, live


def brute(
    query: np.ndarray, rowids: np.ndarray, data: np.ndarray, k: int
) -> list[tuple[int, float]]:
    values = [float(chebyshev(query, row[np.newaxis].astype(np.float32))[0]) for row in data]
    keyed = sorted(zip(values, rowids.tolist(), strict=True))
    return [(r, v) for v, r in keyed[:k]]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("rows", [0, 1, 7, 400])
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("k", [0, 1, 10, 1000])
def test_it_is_brute_force(
    monkeypatch: pytest.MonkeyPatch, name: str, rows: int, dead: bool, k: int
) -> None:
    monkeypatch.setattr(own_metric, "BLOCK_BYTES", 4 * 5 * 16)  # blocks of 16 rows
    sql_type = parse_type(f"{name}(5)")
    index, rowids, data, live = index_of(sql_type, rows, dead)
    query = np.array([0, 1, 2, 1, 0], dtype=np.float32)
    every = np.arange(rows)
    few = np.sort(np.random.default_rng(1).permutation(rows)[: rows // 2])
    for positions in (None, every, few, every[::-1]):
        at = every if positions is None else positions
        at = at[live[at]]
        ids, values = index.search_by(chebyshev, query, k, positions)
        assert (ids.dtype, values.dtype) == (np.int64, np.float32)
        wanted = brute(query, rowids[at], data[at], k)
        assert ids.tolist() == [r for r, _ in wanted]
        np.testing.assert_array_equal(values, np.array([v for _, v in wanted], np.float32))


def test_the_built_in_metric_written_by_hand_gives_the_built_in_answer() -> None:
    index, _, _, _ = index_of(parse_type("VECTOR(5)"), 400, True)
    query = np.array([0, 1, 2, 1, 0], dtype=np.float32)

    def taxicab(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.abs(rows - query).sum(axis=1, dtype=np.float32)
        return found

    ids, values = index.search(query[np.newaxis], 30, "<+>")
    own_ids, own_values = index.search_by(taxicab, query, 30)
    np.testing.assert_array_equal(own_ids, ids[0])
    np.testing.assert_array_equal(own_values, values[0])


def test_the_blocks_cannot_be_written_to() -> None:
    index, _, data, _ = index_of(parse_type("VECTOR(5)"), 50, False)
    before = data.copy()

    def rude(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        assert rows.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            rows[:] = 7
        query[:] = 7
        return np.zeros(len(rows), np.float32)

    query = np.zeros(5, np.float32)
    ids, _ = index.search_by(rude, query, 50)
    assert ids.tolist() == sorted(ids.tolist())
    np.testing.assert_array_equal(data, before)
    assert not query.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda rows: np.zeros(len(rows)), r"returned float64 \(50,\) for rows \(50, 5\)"),
        (lambda rows: np.zeros((len(rows), 1), np.float32), r"returned float32 \(50, 1\) for rows"),
        (lambda rows: np.zeros(len(rows) + 1, np.float32), r"float32 \(51,\).*expected float32 \("),
        (lambda rows: [0.0] * len(rows), r"returned list for rows \(50, 5\)"),
        (lambda rows: {}["mine"], r"failed on query \(5,\) and rows \(50, 5\): KeyError: 'mine'"),
    ],
)
def test_what_the_function_does_wrong_is_named(wrong: Any, message: str) -> None:
    sql_type = parse_type("VECTOR(5)")
    data = np.zeros((50, 5), np.float32)
    index = FlatIndex([VectorBlock(np.arange(50), data)], sql_type)
    with pytest.raises(DataError, match=message):
        index.search_by(lambda query, rows: wrong(rows), np.zeros(5, np.float32), 3)


def test_our_own_errors_pass_through() -> None:
    index, _, _, _ = index_of(parse_type("VECTOR(5)"), 50, False)

    def stop(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        raise InterruptError("stopped")

    with pytest.raises(InterruptError, match="stopped"):
        index.search_by(stop, np.zeros(5, np.float32), 3)


def test_what_cannot_be_asked() -> None:
    index, _, _, _ = index_of(parse_type("VECTOR(5)"), 50, False)
    with pytest.raises(DimensionMismatchError, match=r"\(4,\).*VECTOR\(5\)"):
        index.search_by(chebyshev, np.zeros(4, np.float32), 3)
    bits = FlatIndex([VectorBlock(np.arange(2), np.zeros((2, 1), np.uint8))], parse_type("BIT(8)"))
    with pytest.raises(NotSupportedError, match=r"BIT\(8\)"):
        bits.search_by(chebyshev, np.zeros(1, np.float32), 3)


def test_nan_is_an_error_that_names_the_row_even_a_far_one() -> None:
    index, rowids, data, _ = index_of(parse_type("VECTOR(5)"), 400, False)
    query = np.array([0, 1, 2, 1, 0], dtype=np.float32)
    bad = data[:, 0] == 3

    def broken(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.where(rows[:, 0] == 3, np.float32(np.nan), chebyshev(query, rows))

    with pytest.raises(DataError, match=f"function broken gave NaN for row {rowids[bad].min()}"):
        index.search_by(broken, query, 3)
    good = np.flatnonzero(~bad)
    ids, _ = index.search_by(broken, query, 3, good)
    assert ids.tolist() == index.search_by(chebyshev, query, 3, good)[0].tolist()
