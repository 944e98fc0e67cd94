"""Search through int8 codes gives what the float32 scan gives, to the last bit."""

from __future__ import annotations

import ctypes
import gc
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import pytest

from tarsdb.columns import VectorBlock
from tarsdb.index import coded, sieve
from tarsdb.index.basis import Basis
from tarsdb.index.coded import CodeCache
from tarsdb.index.flat import FlatIndex
from tarsdb.kernels import dispatch, reference
from tarsdb.kernels.native import address
from tarsdb.metrics import METRICS
from tarsdb.types import parse_type
from tests.unit.index.levels import forced

OPERATORS = {"<->": reference.L2, "<#>": reference.IP, "<=>": reference.COSINE}
ROWS = 700
FIVES = 7
"""Number of the residuals of five bits, behind the lines of constants."""
DIMS = (1, 2, 7, 33, 63, 64, 65, 255, 384, 1024)


@pytest.fixture(scope="module", params=["avx512", "avx2"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from forced(request.param)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code blocks of any width from 64 rows on."""
    monkeypatch.setattr(coded, "worth_coding", lambda block: len(block.rowids) >= 64)


def random(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return rng.standard_normal((rows, dim))


def clustered(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    centres = rng.standard_normal((8, dim))
    return centres[rng.integers(0, 8, rows)] + 1e-3 * rng.standard_normal((rows, dim))


def duplicated(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return rng.standard_normal((40, dim))[rng.integers(0, 40, rows)]


def equal(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return np.tile(rng.standard_normal(dim), (rows, 1))


def zeros(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return rng.standard_normal((rows, dim)) * (rng.random((rows, 1)) < 0.02)


def outlier(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    found = rng.standard_normal((rows, dim))
    found[rows // 2] *= 1e15
    found[rows // 3] *= 1e20  # its square is no float32
    return found


def tiny(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return rng.standard_normal((rows, dim)) * 10.0 ** rng.integers(-44, -15, (rows, 1))


def mixed(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return rng.standard_normal((rows, dim)) * 10.0 ** rng.integers(-12, 12, (rows, 1))


def spiky(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return rng.standard_normal((rows, dim)) ** 9


def integers(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return rng.integers(-2, 3, (rows, dim))


def sparse(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return rng.standard_normal((rows, dim)) * (rng.random((rows, dim)) < 3 / dim)


def one_sided(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return 5 + rng.standard_normal((rows, dim))


KINDS = (
    random, clustered, duplicated, equal, zeros, outlier, tiny, mixed, spiky, integers, sparse,
    one_sided,
)  # fmt: skip
Maker = Callable[[np.random.Generator, int, int], np.ndarray]


def blocks_of(rows: np.ndarray, mask: bool) -> list[VectorBlock]:
    """Two blocks to code, one that is too small, shuffled row ids."""
    rng = np.random.default_rng(len(rows))
    rowids = rng.permutation(len(rows)).astype(np.int64) + 5
    live = rng.random(len(rows)) < 0.6
    cuts = [0, len(rows) // 3 + 1, len(rows) - 20, len(rows)]
    return [
        VectorBlock(rowids[a:b], rows[a:b].copy(), live[a:b].copy() if mask else None)
        for a, b in itertools.pairwise(cuts)
    ]


def pair(blocks: list[VectorBlock], dim: int) -> tuple[FlatIndex, FlatIndex]:
    """Return the index without and with codes, these made already."""
    sql_type = parse_type(f"VECTOR({dim})")
    flat, with_codes = FlatIndex(blocks, sql_type), FlatIndex(blocks, sql_type, CodeCache())
    for _ in range(2):
        with_codes.search(np.ones((1, dim), np.float32), 1, "<->")
    assert with_codes._coded
    return flat, with_codes


def assert_same(flat: FlatIndex, other: FlatIndex, queries: np.ndarray, k: int, op: str) -> None:
    expected, found = (index.search(queries, k, op) for index in (flat, other))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1].view(np.int32), expected[1].view(np.int32))


def assert_all_same(
    flat: FlatIndex, other: FlatIndex, queries: np.ndarray, sizes: Iterable[int],
    parts: Iterable[slice],
) -> None:  # fmt: skip
    """Compare searches for so many rows, of such parts of the queries, with one scan of each."""
    for op in OPERATORS:
        rowids, distances = flat.search(queries, max(sizes), op)
        for k, part in itertools.product(sizes, parts):
            found = other.search(queries[part], k, op)
            np.testing.assert_array_equal(found[0], rowids[part, :k])
            expected = distances[part, :k].view(np.int32)
            np.testing.assert_array_equal(found[1].view(np.int32), expected)


def counted(name: str) -> float:
    return METRICS.snapshot().get(f"index.exact_{name}", 0)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("maker", KINDS, ids=lambda maker: maker.__name__)
def test_answers_are_the_scans(level: str, small_blocks: None, maker: Maker, dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows = maker(rng, ROWS, dim).astype(np.float32)
    near = (rows[::40] * np.float32(1.01)).astype(np.float32)
    queries = np.concatenate([near, maker(rng, 3, dim), np.zeros((1, dim))]).astype(np.float32)
    for mask in (False, True):
        flat, with_codes = pair(blocks_of(rows, mask), dim)
        sizes, parts = (1, 10, 300, ROWS + 9), (slice(None), slice(6), slice(-1, None))
        assert_all_same(flat, with_codes, queries, sizes, parts)


@pytest.mark.parametrize("maker", [random, clustered], ids=lambda maker: maker.__name__)
def test_most_searches_are_certified(level: str, maker: Maker) -> None:
    rng = np.random.default_rng(1)
    rows = maker(rng, 5000, 96).astype(np.float32)
    flat, with_codes = pair(blocks_of(rows, False), 96)
    before = counted("certified")
    for op in OPERATORS:
        assert_same(flat, with_codes, rows[:40], 10, op)
    assert counted("certified") - before >= 118


SHIFTS: dict[str, Callable[[np.ndarray], np.ndarray | float]] = {
    "<->": lambda queries: (queries.astype(np.float64) ** 2).sum(axis=1),
    "<#>": lambda queries: 0.0,
    "<=>": lambda queries: 1.0,
}
"""What to add to the kernels' bounds, which leave the query's own part out."""


def bounds(
    rows: np.ndarray,
    queries: np.ndarray,
    op: str,
    limits: np.ndarray | None = None,
    chosen: Basis | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the kernel's lower and upper bounds, float64 (rows, q), of what they bound.

    And whether the kernel let the row pass ``limits``, float64 (rows, q); infinite unless given.
    """
    metric, encoder, kernel = OPERATORS[op], dispatch.get("encode"), dispatch.get("sieve")
    coder = dispatch.get("code_queries")
    assert coder is not None
    assert encoder is not None
    assert kernel is not None
    found, passed = (
        np.empty((2, len(rows), len(queries))),
        np.empty((len(rows), len(queries)), bool),
    )
    scratch, shift = sieve.aligned(sieve._SCRATCH), SHIFTS[op](queries)
    for at in range(len(rows)):
        made = sieve.encode(rows[at : at + 1], encoder, chosen)
        codes, numbers = sieve.Sieve([(made, 0, 0)])._code(coder, metric, queries, len(queries))
        usable = numbers[5] > 0
        if limits is not None:
            with np.errstate(over="ignore"):
                given = np.nextafter((limits[at] - shift).astype(np.float32), np.float32(np.inf))
            numbers[5, usable] = given[usable]
        planes = map(address, (made.high, made.low, made.constants))
        table = np.array([[*planes, 1, 0, 0, address(made.rest)]])
        places, lows = np.empty(len(queries), np.int64), np.empty(len(queries), np.float32)
        highs, state = np.empty(len(queries), np.float32), np.zeros((len(queries), 2), np.int64)
        head = made.basis.head or codes.shape[1]
        kernel(address(table), 1, address(codes), len(queries), codes.shape[1], head,
               address(numbers), 1, address(highs), metric, address(places), address(lows),
               1, address(state), address(scratch))  # fmt: skip
        found[:, at] = lows, highs
        found[:, at, ~usable] = [[-np.inf], [np.inf]]
        passed[at] = (state[:, 1] > 0) | ~usable
    return found[0] + shift, found[1] + shift, passed


def violations(rows: np.ndarray, queries: np.ndarray, op: str, chosen: Basis | None = None) -> int:
    """Count distances, true ones and the scan's, that lie outside the bounds.

    And rows that do not pass a limit which is their own distance.
    """
    low, high, _ = bounds(rows, queries, op, None, chosen)
    index = FlatIndex(
        [VectorBlock(np.arange(len(rows)), rows)], parse_type(f"VECTOR({rows.shape[1]})")
    )
    ids, values = index.search(queries, len(rows), op)
    scanned = np.take_along_axis(values, np.argsort(ids, axis=1), 1).T.astype(np.float64)
    a, b = rows.astype(np.float64), queries.astype(np.float64)
    with np.errstate(all="ignore"):
        if op == "<->":
            scanned = scanned**2
            true = ((a[:, None] - b) ** 2).sum(axis=2)
        else:
            true = -(a @ b.T)
            if op == "<=>":
                norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
                true = 1 + true / norms
    slack = 1e-12 * (np.abs(true) + 1)  # the float64 of this test
    if op != "<=>":
        slack = 1e-12 * (a**2).sum(axis=1)[:, None] + 1e-12 * (b**2).sum(axis=1)
    bad = [(value < low - slack) | (value > high + slack) for value in (true, scanned)]
    passed = [bounds(rows, queries, op, value + slack, chosen)[2] for value in (true, scanned)]
    return int(sum(map(np.count_nonzero, bad)) + sum(np.count_nonzero(~each) for each in passed))


@pytest.mark.parametrize("maker", KINDS, ids=lambda maker: maker.__name__)
def test_distances_lie_within_the_bounds(level: str, maker: Maker) -> None:
    for dim in (1, 5, 64, 131, 1025):
        rng = np.random.default_rng(dim)
        rows = maker(rng, 40, dim).astype(np.float32)
        queries = np.concatenate([maker(rng, 3, dim), rows[:3]]).astype(np.float32)
        for op in OPERATORS:
            assert violations(rows, queries, op) == 0


def adversarial(dim: int = 65) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose residual points along the query, or against it: Cauchy and Schwarz are tight.

    The query is coded without loss. The first row is nearest by inner product; by its codes the
    next twenty are, which round upwards in half of their elements.
    """
    query = np.ones((1, dim), np.float32)
    query[0, 0] = 0
    rows = np.full((200, dim), 0.01, np.float32)
    rows[0], rows[1:21] = 20.49, 20.45
    rows[1:21, 1 : dim // 2 + 1] = 20.51
    rows[:21, 0] = 136
    return rows, query


def adversarial_to_rough(dim: int = 65) -> tuple[np.ndarray, np.ndarray]:
    """The same for the higher four bits, of which 24 is the farthest from its 16.

    Whole codes lose nothing. The last row is nearest, when the limit is set already.
    """
    query = np.ones((1, dim), np.float32)
    query[0, 0] = 0
    rows = np.full((200, dim), 0.01, np.float32)
    rows[-1], rows[1:21] = 24, 23
    rows[[*range(1, 21), -1], 0] = 136
    return rows, query


def adversarial_to_five(dim: int = 65) -> tuple[np.ndarray, np.ndarray]:
    """The same for the higher five bits, of which 19 is the farthest above its 16."""
    query = np.ones((1, dim), np.float32)
    query[0, 0] = 0
    rows = np.full((200, dim), 0.01, np.float32)
    rows[-1], rows[1:21] = 19, 18
    rows[[*range(1, 21), -1], 0] = 136
    return rows, query


def test_half_the_bound_is_noticed(
    level: str, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, query = adversarial()
    assert violations(rows, query, "<#>") == 0
    flat, right = pair([VectorBlock(np.arange(200), rows)], rows.shape[1])
    assert_same(flat, right, query, 1, "<#>")
    assert right.search(query, 1, "<#>")[0][0, 0] == 0
    coder = dispatch.get("code_queries")
    assert coder is not None

    def halved(*arguments: int) -> int:
        usable = coder(*arguments)
        numbers, pitch = arguments[6], arguments[7]
        for number in range(pitch, 5 * pitch):
            ctypes.c_float.from_address(numbers + 4 * number).value /= 2
        return usable

    monkeypatch.setitem(dispatch._kernels, ("code_queries", level), halved)
    assert violations(rows, query, "<#>") > 0
    both = np.repeat(query, 2, axis=0)  # one alone is coded in the compiled call
    assert (right.search(both, 1, "<#>")[0] != 0).all()


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize(
    ("line", "make", "nearest"),
    [(3, adversarial_to_rough, 199), (4, adversarial, 0), (FIVES, adversarial_to_five, 199)],
)
def test_half_a_residual_is_noticed(
    level: str,
    small_blocks: None,
    line: int,
    make: Callable[[], tuple[np.ndarray, np.ndarray]],
    nearest: int,
    count: int,
) -> None:
    rows, query = make()
    flat, right = pair([VectorBlock(np.arange(200), rows)], rows.shape[1])
    queries = np.repeat(query, count, axis=0)
    assert_same(flat, right, queries, 1, "<#>")
    assert (right.search(queries, 1, "<#>")[0] == nearest).all()
    assert right._coded is not None
    codes = right._coded._sieve._held[0]
    halved = codes.fives if line == FIVES else codes.constants[:, line]
    halved /= 2
    found = right.search(queries, 1, "<#>")[0]
    read = {4, of_many(level) if count == 40 else 3}
    assert (found != nearest).all() if line in read else (found == nearest).all()


def of_many(level: str) -> int:
    """Return the line of the residuals that the kernel of many queries reads first."""
    import llvmlite.binding as llvm

    has_vnni = level == "avx512" and llvm.get_host_cpu_features().get("avx512vnni")
    return 4 if has_vnni else FIVES


def near_in_sampled_tiles(dim: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of which six, each in a tile of the sample, are much nearer than all others."""
    rng = np.random.default_rng(3)
    query, rows = np.ones((1, dim)), rng.standard_normal((4096, dim))
    rows[5 : 6 * 512 : 512] = query + 0.01 * rng.standard_normal((6, dim))
    return rows.astype(np.float32), query.astype(np.float32)


def test_a_wrong_guess_is_noticed(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import njit

    from tarsdb.kernels.cpu import coded_many
    from tarsdb.kernels.cpu.coded import SIEVE_SIGNATURE

    rows, query = near_in_sampled_tiles()
    flat, right = pair([VectorBlock(np.arange(len(rows)), rows)], rows.shape[1])
    queries = np.repeat(query, 20, axis=0)

    def use_kernel() -> None:
        kernel = coded_many.make_sieve_many()
        kernel.compile(SIEVE_SIGNATURE)
        monkeypatch.setitem(dispatch._kernels, ("sieve_many", level), kernel)

    use_kernel()
    before = counted("fallbacks")
    assert_same(flat, right, queries, 3, "<->")
    assert counted("fallbacks") == before
    assert_same(flat, right, queries, 10, "<->")
    assert counted("fallbacks") == before + 20
    monkeypatch.setattr(coded_many, "_verify", njit(lambda *arguments: None))
    use_kernel()
    found = right.search(queries, 10, "<->")[0]
    assert found.shape != (20, 10) or (found != flat.search(queries, 10, "<->")[0]).any()


def test_dead_rows_make_no_guess(level: str) -> None:
    rows, query = near_in_sampled_tiles()
    live = np.ones(len(rows), bool)
    live[5 : 6 * 512 : 512] = False
    flat, right = pair([VectorBlock(np.arange(len(rows)), rows, live)], rows.shape[1])
    before = counted("fallbacks")
    assert_same(flat, right, np.repeat(query, 20, axis=0), 10, "<->")
    assert counted("fallbacks") == before


@pytest.mark.parametrize("count", [16, 33, 70, 128])  # 70: a last turn of fewer queries
def test_guesses_among_many_rows_hold(level: str, count: int) -> None:
    rng = np.random.default_rng(count)
    rows = (rng.standard_normal((12_000, 96)) * 0.97 ** np.arange(96)).astype(np.float32)
    flat, right = pair(blocks_of(rows, False), 96)
    before = counted("fallbacks")
    for op in OPERATORS:
        for k in (1, 4, 10, 200):
            assert_same(flat, right, rows[:count] + np.float32(0.1), k, op)
    assert counted("fallbacks") == before


def test_too_many_candidates_fall_back(level: str) -> None:
    rows = equal(np.random.default_rng(0), 3000, 64).astype(np.float32)
    flat, with_codes = pair(blocks_of(rows, False), 64)
    before = counted("fallbacks")
    for count in (1, 20):
        assert_same(flat, with_codes, rows[:count] + np.float32(0.5), 10, "<->")
    assert counted("fallbacks") - before == 21
    for _ in range(5):
        assert_same(flat, with_codes, rows[:40], 10, "<->")
    assert counted("fallbacks") - before == 101  # then codes are not tried again


def test_threads_change_nothing(level: str) -> None:
    rows = random(np.random.default_rng(0), 3000, 64).astype(np.float32)
    flat, with_codes = pair(blocks_of(rows, True), 64)
    for count in (1, 20, 100):
        expected = flat.search(rows[:count], 9, "<->")
        found = with_codes.search(rows[:count], 9, "<->", threads=3)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_other_searches_keep_the_scan(level: str) -> None:
    rows = random(np.random.default_rng(0), 3000, 64).astype(np.float32)
    flat, with_codes = pair(blocks_of(rows, True), 64)
    before = counted("certified"), counted("fallbacks")
    for index in (flat, with_codes):
        assert index.search(rows[:1], 5, "<+>")[0].shape == (1, 5)
        assert index.search(rows[:1], 5, "<->", descending=True)[0].shape == (1, 5)
        assert index.search(rows[:1], 5, "<->", positions=np.arange(9))[0].shape[0] == 1
    assert (counted("certified"), counted("fallbacks")) == before


def test_codes_are_made_at_the_second_search_and_die_with_their_array(level: str) -> None:
    cache, encoder = CodeCache(), dispatch.get("encode")
    assert encoder is not None
    data = random(np.random.default_rng(0), 2000, 64).astype(np.float32)
    make = partial(sieve.encode, data, encoder)
    assert cache.get(data, data.shape, make) == (None, True)
    assert cache.nbytes == 0
    found, again = cache.get(data, data.shape, make)
    assert found is not None
    assert not again
    assert cache.get(data, data.shape, make)[0] is found
    assert cache.nbytes == found.nbytes == 2000 * (64 + 32)
    assert cache.get(data[:], data.shape, make) == (None, True)  # another array
    del data, make
    gc.collect()
    assert cache.nbytes == 0
    assert not cache._entries


def test_blocks_beyond_the_budget_are_scanned(level: str) -> None:
    rows = random(np.random.default_rng(0), 6000, 64).astype(np.float32)
    blocks, sql_type = blocks_of(rows, False), parse_type("VECTOR(64)")
    cache = CodeCache(budget=2100 * 96)
    flat, limited = FlatIndex(blocks, sql_type), FlatIndex(blocks, sql_type, cache)
    for _ in range(3):
        assert_same(flat, limited, rows[:20], 10, "<->")
    assert 0 < cache.nbytes <= 2100 * 96
    assert limited._coded is not None
    assert limited._coded.coded == [True, False, False]


def test_rows_that_are_no_numbers_are_scanned(level: str) -> None:
    rows = random(np.random.default_rng(0), 3000, 64).astype(np.float32)
    rows[5, 5], rows[2500, 0] = np.nan, np.inf
    blocks, sql_type = blocks_of(rows, False), parse_type("VECTOR(64)")
    flat, other = FlatIndex(blocks, sql_type), FlatIndex(blocks, sql_type, CodeCache())
    for op in OPERATORS:
        for _ in range(3):
            assert_same(flat, other, rows[10:30], 10, op)


def test_portable_level_has_no_codes() -> None:
    rows = random(np.random.default_rng(0), 2000, 64).astype(np.float32)
    dispatch.use("portable")
    try:
        index = FlatIndex(blocks_of(rows, False), parse_type("VECTOR(64)"), CodeCache())
        assert all(index.search(rows[:1], 3, "<->")[0].shape == (1, 3) for _ in range(3))
        assert dispatch.get("sieve") is None
    finally:
        dispatch.use(None)


@pytest.mark.parametrize("maker", KINDS, ids=lambda maker: maker.__name__)
def test_rows_of_a_filter_are_coded_at_the_second_search(level: str, maker: Maker) -> None:
    rng = np.random.default_rng(3)
    rows = maker(rng, 3000, 70).astype(np.float32)
    queries = maker(rng, 6, 70).astype(np.float32)
    for mask in (False, True):
        flat, with_codes = pair(blocks_of(rows, mask), 70)
        positions = np.sort(rng.choice(3000, 900, replace=False))
        for op, k in itertools.product(OPERATORS, (1, 10, 300, 2000)):
            for turn, query in enumerate(queries):
                expected = flat.search(query[None], k, op, positions=positions)
                found = with_codes.search(query[None], k, op, positions=positions)
                np.testing.assert_array_equal(found[0], expected[0], f"{op} {k} {turn}")
                np.testing.assert_array_equal(found[1].view(np.int32), expected[1].view(np.int32))


def test_rows_of_a_filter_come_in_any_order(level: str) -> None:
    """As they do where an update moved some vectors, and another the scalars of others."""
    rng = np.random.default_rng(3)
    rows = random(rng, 3000, 64).astype(np.float32)
    flat, with_codes = pair(blocks_of(rows, True), 64)
    for positions in (rng.choice(3000, 900, replace=False), np.arange(2999, -1, -3)):
        before = counted("certified")
        for query in random(rng, 6, 64).astype(np.float32):
            expected = flat.search(query[None], 10, "<->", positions=positions)
            found = with_codes.search(query[None], 10, "<->", positions=positions)
            np.testing.assert_array_equal(found[0], expected[0])
        assert counted("certified") - before == 5


def test_rows_of_a_filter_are_certified_and_forgotten_with_it(level: str) -> None:
    rows = random(np.random.default_rng(0), 3000, 64).astype(np.float32)
    cache = CodeCache()
    index = FlatIndex(blocks_of(rows, True), parse_type("VECTOR(64)"), cache)
    positions = np.arange(0, 3000, 3)
    before, empty = counted("certified"), cache.nbytes
    for turn in range(4):
        index.search(rows[turn : turn + 1], 10, "<->", positions=positions)
    assert counted("certified") - before == 3
    assert cache.nbytes > empty
    del positions
    gc.collect()
    assert cache.nbytes == empty


@pytest.mark.parametrize("maker", KINDS, ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("dim", [60, 64, 384])
def test_rows_within_a_distance_are_found(
    level: str, small_blocks: None, dim: int, op: str, maker: Maker
) -> None:
    """All of the k nearest that are no farther, to the last bit, those just as far among them."""
    rng, k = np.random.default_rng(dim), 10
    data = maker(rng, ROWS, dim).astype(np.float32)
    queries = np.vstack([maker(rng, 6, dim), data[:2]]).astype(np.float32)
    flat = FlatIndex(
        [VectorBlock(np.arange(ROWS), data)], parse_type(f"VECTOR({dim})"), CodeCache()
    )
    positions = np.arange(0, ROWS, 3)
    flat.code(positions, 64)
    found = flat.by_codes(positions, k, op)
    kernel = dispatch.get("coded_within")
    assert found is not None
    assert kernel is not None
    _, words = found.within
    memory, left, told = sieve.aligned(found.call[2]), 0, 0
    for query in queries:
        ids, distances = flat.search(query[np.newaxis], k, op, positions=positions)
        right, apart = ids[0], distances[0]
        for limit in (apart[0], apart[k // 2], apart[-1], np.nextafter(apart[0], -np.inf), np.inf):
            given = np.array([limit], np.float32)
            got, values = np.full(k, -1), np.full(k, np.nan, np.float32)
            count = kernel(
                words, address(query), address(query), address(given), address(got),
                address(values), address(memory),
            )  # fmt: skip
            if count < 0:
                continue
            told += 1
            wanted = int((apart <= limit).sum()) if np.isfinite(limit) else k
            assert count >= wanted
            left += k - count
            np.testing.assert_array_equal(got[:wanted], right[:wanted])
            assert values[:wanted].tobytes() == apart[:wanted].tobytes()
    assert told or maker in (outlier, tiny, zeros)
    assert left or maker is not random
