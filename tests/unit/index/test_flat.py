"""FlatIndex against brute force in float64, on NumPy and on compiled kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tarsdb.columns import VectorBlock
from tarsdb.errors import DimensionMismatchError, NotSupportedError, ValueRangeError
from tarsdb.index import flat
from tarsdb.index.base import METRICS, metric_code
from tarsdb.index.flat import FlatIndex, distances, prepare_queries, prepare_query, query_dtype
from tarsdb.kernels import dispatch
from tarsdb.types import SqlType, parse_type
from tests.unit.index.levels import forced

TYPES = ("VECTOR", "HALFVEC", "INT8VEC", "BIT")


def operators(sql_type: SqlType) -> list[str]:
    return ["<~>", "<%>"] if str(sql_type).startswith("BIT") else ["<->", "<#>", "<=>", "<+>"]


@pytest.fixture(scope="module", params=dispatch.LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from forced(request.param)


def small_integers(sql_type: SqlType, rows: int, seed: int = 0) -> np.ndarray:
    """Vectors whose sums are exact in every type, with many ties."""
    drawn = np.random.default_rng(seed).integers(0, 4, (rows, sql_type.width))
    return drawn.astype(sql_type.dtype)


def exact(op: str, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    a, b = rows.astype(np.float64), query.astype(np.float64)
    if op in ("<~>", "<%>"):
        a, b = np.unpackbits(rows, axis=1), np.unpackbits(query)
        common, either = (a & b).sum(1), (a | b).sum(1)
        jaccard = np.where(common == 0, 1, 1 - common / np.maximum(either, 1))
        return ((a != b).sum(1) if op == "<~>" else jaccard).astype(np.float32)
    with np.errstate(invalid="ignore"):
        cosine = 1 - (a @ b) / np.sqrt((a * a).sum(1) * (b * b).sum())
    known = {"<->": np.sqrt(((a - b) ** 2).sum(1)), "<#>": 0.0 - a @ b,
             "<+>": np.abs(a - b).sum(1), "<=>": np.clip(cosine, 0, 2)}  # fmt: skip
    return known[op].astype(np.float32)


def blocks_of(rows: np.ndarray, mask: bool) -> tuple[list[VectorBlock], np.ndarray, np.ndarray]:
    """Split rows into blocks with shuffled row ids; returns blocks, row ids and live rows."""
    rng = np.random.default_rng(len(rows))
    rowids = rng.permutation(len(rows)).astype(np.int64) + 5
    live = rng.random(len(rows)) < 0.6 if mask else np.ones(len(rows), bool)
    cuts = [0, len(rows) // 3, len(rows) // 3, len(rows)]
    blocks = [
        VectorBlock(rowids[a:b], rows[a:b], live[a:b].copy() if mask else None)
        for a, b in itertools.pairwise(cuts)
    ]
    return blocks, rowids, live


def expected(values: np.ndarray, rowids: np.ndarray, k: int, descending: bool) -> list[int]:
    last = np.isnan(values)
    keys = np.where(last, 0, -values if descending else values)
    found: list[int] = rowids[np.lexsort((rowids, keys, last))][:k].tolist()
    return found


@pytest.mark.parametrize("rows", [0, 1, 2, 63, 67, 500])
@pytest.mark.parametrize("dim", [1, 3, 8, 17, 384, 385])
@pytest.mark.parametrize("name", TYPES)
def test_search_is_brute_force(level: str, name: str, dim: int, rows: int) -> None:
    sql_type = parse_type(f"{name}({dim})")
    data = small_integers(sql_type, rows)
    queries = small_integers(sql_type, 5, seed=1).astype(query_dtype(sql_type))
    for mask in (False, True):
        blocks, rowids, live = blocks_of(data, mask)
        index = FlatIndex(blocks, sql_type)
        kept = rowids[live]
        for op in operators(sql_type):
            truths = [exact(op, data[live], query) for query in queries]
            by_id = [dict(zip(kept.tolist(), truth.tolist(), strict=True)) for truth in truths]
            for descending in (False, True):
                orders = [expected(truth, kept, len(kept), descending) for truth in truths]
                for k in (1, 7, rows + 3):
                    found, values = index.search(queries, k, op, descending=descending, threads=2)
                    assert [len(ids) for ids in found] == [min(k, live.sum())] * 5
                    if op != "<=>":  # cosines may differ in the last bit, and so in order
                        assert [ids.tolist() for ids in found] == [order[:k] for order in orders]
                    wanted = [[known[i] for i in ids.tolist()]
                              for known, ids in zip(by_id, found, strict=True)]  # fmt: skip
                    np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("name", TYPES)
def test_positions_restrict_the_search(level: str, name: str) -> None:
    sql_type = parse_type(f"{name}(40)")
    data = small_integers(sql_type, 400)
    blocks, rowids, live = blocks_of(data, mask=True)
    index = FlatIndex(blocks, sql_type)
    asked = np.random.default_rng(4).choice(450, 150, replace=False)
    positions = index.positions(asked)
    where = {r: i for i, r in enumerate(rowids.tolist()) if live[i]}
    assert positions.tolist() == [where.get(r, -1) for r in asked.tolist()]
    positions = positions[positions >= 0]
    query = prepare_query(data[3] if name != "BIT" else "10" * 20, sql_type)
    for op in operators(sql_type):
        found, _ = index.search(query[None], 9, op, positions=positions)
        truth = exact(op, data[positions], query)
        if op != "<=>":
            assert found[0].tolist() == expected(truth, rowids[positions], 9, False)
        none, _ = index.search(query[None], 9, op, positions=positions[:0])
        assert none.shape == (1, 0)


@pytest.mark.parametrize(
    "runs",
    [[(5, 9)], [(5, 9), (14, 3), (17, 20)], [(5, 9), (15, 3), (18, 7)], [(0, 1), (9, 1), (3, 5)],
     [(5, 4), (9, 4), (20, 4), (24, 1), (30, 2)]],
)  # fmt: skip
def test_positions_of_rows_that_follow_one_another(runs: list[tuple[int, int]]) -> None:
    data = small_integers(parse_type("VECTOR(4)"), 60)
    rowids = [np.arange(low, low + rows) for low, rows in runs]
    blocks = [VectorBlock(ids, data[: len(ids)]) for ids in rowids]
    index = FlatIndex(blocks, parse_type("VECTOR(4)"))
    where = {r: i for i, r in enumerate(np.concatenate(rowids).tolist())}
    rng = np.random.default_rng(1)
    every = np.concatenate(rowids)
    for asked in (np.arange(45), every, rng.permutation(45), every[:1],
                  np.empty(0, np.int64), np.array([-3, 6]), np.array([6, 44])):  # fmt: skip
        assert index.positions(asked).tolist() == [where.get(r, -1) for r in asked.tolist()]


@pytest.mark.parametrize("name", TYPES)
def test_within_gives_all_rows_of_the_radius(level: str, name: str) -> None:
    sql_type = parse_type(f"{name}(40)")
    data = small_integers(sql_type, 300)
    blocks, rowids, live = blocks_of(data, mask=True)
    index = FlatIndex(blocks, sql_type)
    query = prepare_query(data[3] if name != "BIT" else "10" * 20, sql_type)
    for op in set(operators(sql_type)) - {"<=>"}:
        truth = exact(op, data[live], query)
        radius = float(np.sort(truth)[40])
        for inclusive in (True, False):
            keep = truth <= radius if inclusive else truth < radius
            found, values = index.within(query, radius, op, inclusive=inclusive)
            assert found.tolist() == expected(truth[keep], rowids[live][keep], 300, False)
            assert (np.diff(values) >= 0).all()


def test_zero_vectors_and_nan_sort_last_both_ways(level: str) -> None:
    sql_type = parse_type("VECTOR(3)")
    data = np.array([[0, 0, 0], [1, 0, 0], [np.nan, 1, 1], [-1, 0, 0], [0, 1, 0]], np.float32)
    index = FlatIndex([VectorBlock(np.arange(5), data)], sql_type)
    query = np.array([[1, 0, 0]], np.float32)
    assert index.search(query, 5, "<=>")[0][0].tolist() == [1, 4, 3, 0, 2]
    assert index.search(query, 5, "<=>", descending=True)[0][0].tolist() == [3, 4, 1, 0, 2]
    assert index.search(query, 5, "<->")[0][0].tolist() == [1, 0, 4, 3, 2]
    assert index.within(query[0], 9, "<=>", inclusive=True)[0].tolist() == [1, 4, 3]


def test_nan_of_one_block_makes_way_for_rows_of_another(level: str) -> None:
    sql_type = parse_type("VECTOR(3)")
    data = small_integers(sql_type, 60)
    data[:40] *= np.random.default_rng(2).random((40, 1)) < 0.2  # distances of the others are NaN
    blocks, rowids, _ = blocks_of(data, False)
    query = np.array([1, 2, 3], np.float32)
    truth = exact("<=>", data, query)
    assert np.isnan(truth[:20]).sum() > 10 and not np.isnan(truth[40:]).all()
    for k, descending in itertools.product((1, 7, 30, 60), (False, True)):
        found = FlatIndex(blocks, sql_type).search(query[None], k, "<=>", descending=descending)
        assert found[0][0].tolist() == expected(truth, rowids, k, descending)


def test_threads_change_nothing(level: str) -> None:
    sql_type = parse_type("VECTOR(64)")
    data = np.random.default_rng(9).standard_normal((40_001, 64)).astype(np.float32)
    index = FlatIndex([VectorBlock(np.arange(40_001), data)], sql_type)
    for queries in (data[:1], data[:6]):
        one, two = (index.search(queries, 20, "<->", threads=n) for n in (1, 2))
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
        assert one[0][:, 0].tolist() == list(range(len(queries)))


def test_expressions_agree_with_search(level: str) -> None:
    sql_type = parse_type("VECTOR(100)")
    data = np.random.default_rng(2).standard_normal((50, 100)).astype(np.float32)
    index = FlatIndex([VectorBlock(np.arange(50), data)], sql_type)
    for op in operators(sql_type):
        rowids, values = index.search(data[:1], 50, op)
        np.testing.assert_allclose(
            distances(op, data, data[0], sql_type)[rowids[0]], values[0], rtol=1e-6, atol=1e-5
        )
        pairwise = distances(op, data, data[::-1], sql_type)
        np.testing.assert_allclose(pairwise, pairwise[::-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8])
def test_a_batch_is_converted_as_its_rows_are(name: str, dtype: type) -> None:
    sql_type = parse_type(f"{name}(20)")
    given = np.random.default_rng(8).integers(0, 2, (40, 40)).astype(dtype)[::3, ::2]
    together = prepare_queries(given, sql_type)
    one_by_one = np.stack([prepare_query(row, sql_type) for row in given])
    assert together.dtype == one_by_one.dtype
    assert together.flags.c_contiguous
    np.testing.assert_array_equal(together, one_by_one)


def test_wrong_batches_are_named() -> None:
    vector = parse_type("VECTOR(3)")
    for value in (np.nan, np.inf, 1e300):
        given = np.zeros((5, 3))
        given[4, 1] = value
        with pytest.raises(ValueRangeError, match="NaN or infinity"):
            prepare_queries(given, vector)
    with pytest.raises(DimensionMismatchError, match=r"4 dimensions.*VECTOR\(3\)"):
        prepare_queries(np.zeros((2, 4), np.float32), vector)


def test_wrong_input_is_named() -> None:
    vector, bits = parse_type("VECTOR(3)"), parse_type("BIT(9)")
    with pytest.raises(DimensionMismatchError, match=r"2 dimensions.*VECTOR\(3\)"):
        prepare_query([1, 2], vector)
    with pytest.raises(ValueRangeError):
        prepare_query([1, 2, float("nan")], vector)
    with pytest.raises(DimensionMismatchError, match=r"VECTOR\(3\)"):
        FlatIndex([], vector).search(np.zeros((1, 4), np.float32), 1, "<->")
    with pytest.raises(DimensionMismatchError, match="left has 3"):
        distances("<->", np.zeros((1, 3)), np.zeros(4), vector)
    for op, sql_type in (("<~>", vector), ("<->", bits), ("<&>", vector)):
        with pytest.raises(NotSupportedError, match=op):
            metric_code(op, sql_type)
    assert len(METRICS) == 6
    assert flat.HEAP_LIMIT > 0
