"""Codes and integer inner products are NumPy's to the last bit, on every set of instructions."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from tarsdb.index import sieve as index_sieve
from tarsdb.index.basis import Basis
from tarsdb.index.quantization.principal import PrincipalAxes
from tarsdb.kernels import dispatch, reference
from tarsdb.kernels.native import address

candidates = pytest.importorskip("tarsdb.kernels.cpu.candidates")
coded = pytest.importorskip("tarsdb.kernels.cpu.coded")
coded_batch = pytest.importorskip("tarsdb.kernels.cpu.coded_batch")
coded_nearest = pytest.importorskip("tarsdb.kernels.cpu.coded_nearest")
coded_many = pytest.importorskip("tarsdb.kernels.cpu.coded_many")
encode = pytest.importorskip("tarsdb.kernels.cpu.encode")
disk_cache = pytest.importorskip("tarsdb.kernels.cpu.disk_cache")
emulation = pytest.importorskip("tests.unit.kernels.emulation")
njit = pytest.importorskip("numba").njit

WIDTHS = (1, 3, 16, 17, 63, 64, 65, 384, 385, 1025)


def sieve(variant: str, many: bool) -> Any:
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    lacking = {
        coded.VNNI: not features.get("avx512vnni"),
        coded.MADDUBS: not features.get("avx2"),
        coded_batch.AMX: not (features.get("amx-int8") and dispatch.tiles_allowed()),
    }
    if lacking[variant]:
        pytest.skip(f"this processor has no {variant}")
    if many and variant == coded.MADDUBS:
        return disk_cache.compiled(coded_many.make_sieve_many(), coded.SIEVE_SIGNATURE)
    make = coded_batch.make_sieve_many if many else coded.make_sieve
    return disk_cache.compiled(make(variant), coded.SIEVE_SIGNATURE, variant if many else "")


@functools.cache
def dense_sieve(variant: str) -> Any:
    """Compile a sieve that takes tiles whole after the first; never kept on disk."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(coded, "STRETCH", 1)
        changed.setattr(coded, "FIRST", 1)
        changed.setattr(disk_cache, "kernel_folder", lambda: None)
        return sieve(variant, many=False)


def coder() -> Any:
    if dispatch._best_level() == "portable":
        pytest.skip("this processor runs NumPy alone")
    return disk_cache.compiled(encode.make_encode(), encode.SIGNATURE)


def bytes_of(made: index_sieve.Codes) -> np.ndarray:
    """Put the planes of codes together: whole bytes, uint8 (tiles * 16, padded)."""
    rows, half = made.low.shape
    behind = made.rest.reshape(rows, -1)
    high = made.high.transpose(0, 2, 1, 3).reshape(rows, half // 4, 1, 4)
    low = made.low.reshape(rows, half // 32, 1, 32)
    upper = np.concatenate([high & 15, high >> 4], axis=2).reshape(rows, 2 * half)
    under = np.concatenate([low & 15, low >> 4], axis=2).reshape(rows, 2 * half)
    return np.concatenate([(upper << 4 | under).astype(np.uint8), behind], axis=1)


def in_planes(codes: np.ndarray, head: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the planes of the heads of whole bytes, uint8 (tiles * 16, padded), and the rest."""
    rows = len(codes)
    high, low = (index_sieve.aligned(rows * head // 2) for _ in range(2))
    first = codes[:, :head]
    upper = (first >> 4).reshape(rows, head // 8, 2, 4)
    packed = (upper[:, :, 0] | upper[:, :, 1] << 4).reshape(rows // 16, 16, head // 8, 4)
    high[:] = packed.transpose(0, 2, 1, 3).reshape(-1)
    under = (first & 15).reshape(rows, head // 64, 2, 32)
    low[:] = (under[:, :, 0] | under[:, :, 1] << 4).reshape(-1)
    return high, low, np.ascontiguousarray(codes[:, head:])


def heads_of(padded: int) -> list[int]:
    """Return lengths of heads: all of a code, the least, and one between."""
    return sorted({64, padded // 128 * 64 or 64, padded})


def as_it_is(width: int, head: int) -> Basis:
    """Return a basis that changes no vector, but of whose codes the head comes first."""
    return Basis(PrincipalAxes(np.eye(width, dtype=np.float32), np.full(width, 1 / width)), head)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("whole", [True, False])
def test_codes_are_numpys_and_norms_are_rounded_up(width: int, whole: bool) -> None:
    rows = np.random.default_rng(width).standard_normal((37, width)).astype(np.float32)
    rows[3] = 0
    rows[4] *= np.float32(1e-38)
    rows[5] = np.abs(rows[5])
    rows[6, 1:] = 0
    head = width if whole else heads_of(index_sieve.padded_width(width))[0]
    made = index_sieve.encode(rows, coder(), None if whole else as_it_is(width, head))
    scale, square, norm, rough, residual, tail, inverse = made.constants.transpose(
        1, 0, 2).reshape(7, -1)[:, :37]  # fmt: skip
    codes = bytes_of(made)[:37, :width].astype(int)
    below, above = -rows.min(axis=1).clip(max=0), rows.max(axis=1).clip(min=0)
    low, high = np.float32(136), np.float32(119)
    upright, turned = np.maximum(below / low, above / high), np.maximum(above / low, below / high)
    expected = np.where(upright <= turned, upright, -turned)
    expected[np.abs(expected) < encode.TINY_SCALE] = 0
    np.testing.assert_array_equal(scale, expected)
    with np.errstate(all="ignore"):
        factor = np.where(scale != 0, np.float32(1) / scale, np.float32(0))
    np.testing.assert_array_equal(codes - 136, np.rint(rows * factor[:, None]).clip(-136, 119))
    wide = rows.astype(np.float64)
    back = scale[:, None].astype(np.float64) * (codes - 136)
    upper = scale[:, None].astype(np.float64) * ((codes & ~15) - 128)
    eighths = scale[:, None].astype(np.float64) * ((codes + 4 & ~7) - 136)
    for rounded, exact in ((norm, wide), (residual, wide - back), (tail, wide[:, head:]),
                           (rough, (wide - upper)[:, :head]),
                           (made.fives[:37], (wide - eighths)[:, :head])):  # fmt: skip
        true = np.linalg.norm(exact, axis=1)
        assert (rounded >= true).all()
        assert (rounded <= true * 1.00001 + 1e-41).all()
    np.testing.assert_allclose(square, (wide * wide).sum(axis=1), rtol=1e-6, atol=1e-44)
    assert inverse[3] == 0
    assert made.smallest == square[square > 0].min() or square[4] == 0
    assert np.isinf(made.constants[-1, 1, 37 % 16 :]).all()
    assert address(made.high) % 64 == 0


@pytest.mark.parametrize("width", [*WIDTHS, 65_536])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("variant", [coded.VNNI, coded.MADDUBS])
def test_inner_products_are_exact(variant: str, dense: bool, width: int) -> None:
    kernel = dense_sieve(variant) if dense else sieve(variant, many=False)  # dense: all rows pass
    assert_exact(kernel, width, many=False)


@pytest.mark.parametrize("width", [*WIDTHS, 65_536])
@pytest.mark.parametrize("variant", [coded.VNNI, coded.MADDUBS, coded_batch.AMX])
def test_inner_products_of_many_are_exact(variant: str, width: int) -> None:
    assert_exact(sieve(variant, many=True), width, many=True)


def test_what_is_around_tile_registers_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    coder()
    emulation.replace_registers(monkeypatch)
    monkeypatch.setattr(coded_batch, "dpbusd", emulation.called_dpbusd)
    mark = njit(nogil=True)(coded_batch._by_tile_registers.py_func)
    kernel = coded_batch._marking(mark, coded_batch.GROUP)
    kernel.compile(coded.SIEVE_SIGNATURE)
    for width in (1, 65, 384):
        assert_exact(kernel, width, many=True)


@pytest.mark.parametrize("many", [False, True])
def test_what_is_around_vnni_is_exact(many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    coder()
    for module in (coded, coded_batch):
        monkeypatch.setattr(module, "dpbusd", emulation.called_dpbusd)
    kernel = coded.make_sieve(coded.VNNI)
    if many:
        mark = njit(nogil=True)(coded_batch._by_vectors.py_func)
        kernel = coded_batch._marking(mark, coded_batch.AT_ONCE)
    kernel.compile(coded.SIEVE_SIGNATURE)
    for width in (1, 65, 384):
        assert_exact(kernel, width, many)


def test_marks_of_a_turn_are_gone_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 96 queries the second turn has 32; the marks of 32 more would be of none that is there."""
    kernel = sieve(coded.VNNI, many=True)
    assert not states(kernel, 96)[96:].any()
    monkeypatch.setattr(coded_batch, "put_int", njit(lambda address, index, value: None))
    keeping = njit(nogil=True)(coded_batch._keep_all.py_func)
    monkeypatch.setattr(coded_batch, "_keep_all", keeping)
    careless = coded_batch.make_sieve_many(coded.VNNI)
    careless.compile(coded.SIEVE_SIGNATURE)
    assert states(careless, 96)[96:].any()


def states(kernel: Any, count: int) -> np.ndarray:
    """Search 64 rows, all of which pass, for some queries; return their states and 64 more."""
    rng, room = np.random.default_rng(1), count + 64
    high, low, rest = in_planes(rng.integers(0, 256, (64, 64)).astype(np.uint8), 64)
    constants = np.zeros((4, candidates.CONSTANTS, 16), np.float32)
    constants[:, 0] = 1
    queries = rng.integers(-127, 128, (room, 64)).astype(np.int8)
    numbers = np.zeros((candidates.PARAMETERS, count), np.float32)
    numbers[0], numbers[5] = -1, np.inf
    sums = 136 * queries[:count].sum(axis=1, dtype=np.int64)
    numbers.view(np.int32)[6] = numbers.view(np.int32)[8] = sums
    table = np.array([[*map(address, (high, low, constants)), 64, 0, 0, address(rest)]])
    places, lows = np.empty((room, 64), np.int64), np.empty((room, 64), np.float32)
    heaps, state = np.empty((room, 64), np.float32), np.zeros((room, 2), np.int64)
    scratch = index_sieve.aligned(memory_of(room, 64))
    kernel(address(table), 1, address(index_sieve.side_by_side(queries)), count, 64, 64,
           address(numbers), 64, address(heaps), reference.IP, address(places), address(lows), 64,
           address(state), address(scratch))  # fmt: skip
    assert (state[:count] == 64).all()
    return state


def assert_exact(kernel: Any, width: int, many: bool) -> None:
    """Compare the bounds of 53 rows, which are made the inner products, with NumPy's."""
    for head in heads_of(index_sieve.padded_width(width)):
        assert_exact_with(kernel, width, head, many)


def assert_exact_with(kernel: Any, width: int, head: int, many: bool) -> None:
    """The same for codes of which so many elements lie in planes."""
    rng = np.random.default_rng(width)
    rows, count, padded = 53, 32, index_sieve.padded_width(width)
    codes = rng.integers(0, 256, (64, padded)).astype(np.uint8)
    codes[:2] = [[255], [0]]
    queries = np.zeros((count, padded), np.int8)
    queries[:, :width] = rng.integers(-127, 128, (count, width))
    queries[:2, :width] = [[127], [-127]]
    high, low, rest = in_planes(codes, head)
    constants = np.zeros((5, candidates.CONSTANTS, 16), np.float32)  # four tiles, residuals
    constants[:, 0] = 1
    numbers = np.zeros((candidates.PARAMETERS, count), np.float32)
    numbers[0], numbers[5] = -1, np.inf  # the bound is the inner product itself
    sums = queries.sum(axis=1, dtype=np.int64)
    before = queries[:, :head].sum(axis=1, dtype=np.int64)
    numbers.view(np.int32)[6:9] = 136 * sums, 128 * before, 136 * before
    table = np.array([[*map(address, (high, low, constants)), rows, 0, 1000, address(rest)]])
    places, lows = np.empty((count, 64), np.int64), np.empty((count, 64), np.float32)
    heaps, state = np.empty((count, 60), np.float32), np.zeros((count, 2), np.int64)
    scratch = index_sieve.aligned(memory_of(count, padded))
    for asked in (32,) if many else (32, 11, 1):
        state[:] = 0
        some = numbers[:, :asked].copy()
        laid = index_sieve.side_by_side(queries) if many else queries
        kernel(address(table), 1, address(laid), asked, padded, head, address(some), 60,
               address(heaps), reference.IP, address(places), address(lows), 64, address(state),
               address(scratch))  # fmt: skip
        expected = queries[:asked].astype(np.int64) @ (codes[:rows].astype(np.int64) - 136).T
        assert (state[:asked] == rows).all()
        np.testing.assert_array_equal(places[:asked, :rows], [np.arange(1000, 1053)] * asked)
        found, expected = np.sort(lows[:asked, :rows], axis=1), np.sort(expected, axis=1)
        np.testing.assert_array_equal(found, expected.astype(np.float32))


def memory_of(count: int, head: int) -> int:
    """Return bytes that do for any sieve."""
    many = index_sieve._SCRATCH_MANY + 32 * head + (head // 8 + index_sieve._EACH) * count
    return max(index_sieve._SCRATCH, many)


@pytest.mark.parametrize("variant", [coded.VNNI, coded.MADDUBS])
def test_rough_bounds_are_those_of_the_higher_bits(variant: str) -> None:
    """Rows pass exactly where NumPy's rough bound is within the limit."""
    kernel, rng = sieve(variant, many=False), np.random.default_rng(5)
    for width in (1, 63, 65, 384):
        for head in heads_of(index_sieve.padded_width(width)):
            assert_rough_bounds(kernel, width, head, rng)


def assert_rough_bounds(kernel: Any, width: int, head: int, rng: np.random.Generator) -> None:
    padded = index_sieve.padded_width(width)
    codes = rng.integers(0, 256, (64, padded)).astype(np.uint8)
    query = np.zeros((1, padded), np.int8)
    query[0, :width] = rng.integers(-127, 128, width)
    high, low, rest = in_planes(codes, head)
    constants = np.zeros((4, candidates.CONSTANTS, 16), np.float32)
    constants[:, 0], constants[:, 4] = 1, 1e9
    constants[:, 3], constants[:, 5] = rng.integers(1, 5000, (2, 4, 16))
    first = query[0, :head].astype(np.int64)
    products = first @ ((codes[:, :head] & 240).astype(np.int64) - 128).T
    bounds = products - constants[:, 3].reshape(-1) - 2 * constants[:, 5].reshape(-1)
    numbers = np.zeros((candidates.PARAMETERS, 1), np.float32)
    numbers[0], numbers[2], numbers[5], numbers[9] = -1, 1, np.median(bounds), 2
    total, before = query.sum(dtype=np.int64), first.sum()
    numbers.view(np.int32)[6:9, 0] = 136 * total, 128 * before, 136 * before
    expected = np.flatnonzero(bounds <= numbers[5])
    table = np.array([[*map(address, (high, low, constants)), 64, 0, 0, address(rest)]])
    places, lows = np.empty(64, np.int64), np.empty(64, np.float32)
    heap, state = np.empty(64, np.float32), np.zeros((1, 2), np.int64)
    scratch = index_sieve.aligned(coded.SCRATCH)
    kernel(address(table), 1, address(query), 1, padded, head, address(numbers), 64, address(heap),
           reference.IP, address(places), address(lows), 64, address(state),
           address(scratch))  # fmt: skip
    np.testing.assert_array_equal(places[: state[0, 1]], expected)


def test_constants_agree() -> None:
    assert index_sieve._TILE == candidates.TILE
    assert index_sieve._LINES == candidates.CONSTANTS
    assert index_sieve._NUMBERS == candidates.PARAMETERS
    assert 8 * index_sieve._ENTRY == candidates.ENTRY
    assert index_sieve._LIMIT == candidates.LIMIT
    assert candidates.NEVER == index_sieve._NEVER
    assert coded_batch.GROUP == index_sieve.GROUP
    assert index_sieve.MAX_K == coded._MOST
    assert index_sieve._AT_ONCE % candidates.TILE == 0
    assert coded.SCRATCH == index_sieve._SCRATCH
    assert coded_nearest.QUERY == index_sieve._SCRATCH_ONE
    most_ranks = coded_many.RANKS + index_sieve.MAX_K // coded_many.RANKS_PER_K
    assert 4 + 16 * most_ranks == index_sieve._EACH
    assert max(coded_batch.SCRATCH, coded_many.SCRATCH) == index_sieve._SCRATCH_MANY
    assert list(index_sieve.METRICS) == [candidates.L2, candidates.IP, candidates.COSINE]
    assert index_sieve.HUGE == encode.HUGE


@pytest.mark.parametrize("distortion", [0.0, 1e-3])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("metric", [reference.L2, reference.IP, reference.COSINE])
def test_queries_are_coded_as_the_formulas_say(width: int, metric: int, distortion: float) -> None:
    rng = np.random.default_rng(width)
    queries = rng.standard_normal((9, width)).astype(np.float32)
    queries[3], queries[4, 0], queries[5, -1] = 0, np.nan, np.inf
    queries[6] *= np.float32(1e-38)
    queries[7] = np.float32(1e19)
    head = heads_of(index_sieve.padded_width(width))[0]
    codes, numbers, usable = index_coded_queries(queries, metric, head, distortion)
    wide = queries.astype(np.float64)
    expected = np.ones(9, bool)
    expected[[4, 5, 7]] = False
    if metric == reference.COSINE:
        expected[[3, 6]] = False
    assert usable == expected.sum()
    np.testing.assert_array_equal(numbers[5] > 0, expected)
    assert (numbers[:4, ~expected] == 0).all()
    scale = np.abs(queries).max(axis=1) / np.float32(127)
    scale[scale < encode.TINY_SCALE] = 0
    with np.errstate(all="ignore"):
        factor = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
        digits = np.rint(queries * factor[:, None]).clip(-127, 127)
    np.testing.assert_array_equal(codes[expected, :width], digits[expected])
    assert (codes[expected, width:] == 0).all()
    for j in np.flatnonzero(expected):
        back = scale[j].astype(np.float64) * digits[j]
        lost, coded_norm = np.linalg.norm(wide[j] - back), np.linalg.norm(back)
        norm, kappa = np.linalg.norm(wide[j]), 4 * 2.0**-24 * (width / 8 + 32) + 3 * distortion
        safe, tail = norm or 1, np.linalg.norm(wide[j, head:])
        exact = {
            reference.L2: (2 * scale[j], 2 * lost, 2 * coded_norm, kappa, kappa * norm**2),
            reference.IP: (scale[j], lost + kappa * norm, coded_norm, 0, 0),
            reference.COSINE: (scale[j] / safe, lost / safe, coded_norm / safe, 0, kappa),
        }[metric]
        assert numbers[0, j] == pytest.approx(exact[0], rel=1e-6)
        for line in range(1, 5):  # rounded up, by little
            assert exact[line] <= numbers[line, j] <= exact[line] * (1 + 1e-5) + 1e-20
        tail *= {reference.L2: 2, reference.IP: 1, reference.COSINE: 1 / safe}[metric]
        assert tail <= numbers[9, j] <= tail * (1 + 1e-5)
        assert numbers.view(np.int32)[6, j] == 136 * digits[j].sum()
        assert numbers.view(np.int32)[7, j] == 128 * digits[j, :head].sum()
        assert numbers.view(np.int32)[8, j] == 136 * digits[j, :head].sum()


def index_coded_queries(
    queries: np.ndarray, metric: int, head: int, distortion: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Code queries for rows whose squared norms are 1; codes, numbers, how many are usable."""
    coder()
    kernel = disk_cache.compiled(encode.make_query_coder(), encode.QUERY_SIGNATURE)
    count, width = queries.shape
    padded = index_sieve.padded_width(width)
    codes = np.full((count, padded), 77, np.int8)
    numbers = np.full((candidates.PARAMETERS, count), 7, np.float32)
    extremes, work = np.array([1, 1, distortion]), np.empty(7)
    usable = kernel(address(queries), count, width, padded, head, address(codes), address(numbers),
                    count, metric, address(extremes), address(work))  # fmt: skip
    return codes, numbers, usable
