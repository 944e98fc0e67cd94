"""Codes and integer inner products are NumPy's to the last bit, on every set of instructions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tarsdb.index import sieve as index_sieve
from tarsdb.kernels import dispatch, reference
from tarsdb.kernels.native import address

coded = pytest.importorskip("tarsdb.kernels.cpu.coded")
encode = pytest.importorskip("tarsdb.kernels.cpu.encode")
disk_cache = pytest.importorskip("tarsdb.kernels.cpu.disk_cache")

WIDTHS = (1, 3, 16, 17, 63, 64, 65, 384, 385, 1025)


def sieve(variant: str) -> Any:
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    lacking = {
        coded.VNNI: not features.get("avx512vnni"),
        coded.MADDUBS: not features.get("avx2"),
        coded.AMX: not (features.get("amx-int8") and coded.amx_allowed()),
    }
    if lacking[variant]:
        pytest.skip(f"this processor has no {variant}")
    return disk_cache.compiled(coded.make_sieve(variant), coded.SIEVE_SIGNATURE)


def coder() -> Any:
    if dispatch._best_level() == "portable":
        pytest.skip("this processor runs NumPy alone")
    return disk_cache.compiled(encode.make_encode(), encode.SIGNATURE)


@pytest.mark.parametrize("width", WIDTHS)
def test_codes_are_numpys_and_norms_are_rounded_up(width: int) -> None:
    rows = np.random.default_rng(width).standard_normal((37, width)).astype(np.float32)
    rows[3] = 0
    rows[4] *= np.float32(1e-38)
    made = index_sieve.encode(rows, coder())
    scale, square, norm, residual, inverse = made.constants.transpose(1, 0, 2).reshape(5, -1)[
        :, :37
    ]
    integers = made.codes.transpose(0, 2, 1, 3).reshape(48, -1)[:37, :width].astype(int) - 128
    expected = np.abs(rows).max(axis=1) / np.float32(127)
    expected[expected < encode.TINY_SCALE] = 0
    np.testing.assert_array_equal(scale, expected)
    with np.errstate(all="ignore"):
        factor = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
    np.testing.assert_array_equal(integers, np.rint(rows * factor[:, None]).clip(-127, 127))
    back, wide = scale[:, None].astype(np.float64) * integers, rows.astype(np.float64)
    for rounded, exact in ((norm, back), (residual, wide - back)):
        true = np.linalg.norm(exact, axis=1)
        assert (rounded >= true).all()
        assert (rounded <= true * 1.00001 + 1e-41).all()
    np.testing.assert_allclose(square, (wide * wide).sum(axis=1), rtol=1e-6, atol=1e-44)
    assert inverse[3] == 0
    assert made.smallest == square[square > 0].min() or square[4] == 0
    assert np.isinf(made.constants[-1, 1, 37 % 16 :]).all()
    assert address(made.codes) % 64 == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("variant", [coded.VNNI, coded.MADDUBS, coded.AMX])
def test_inner_products_are_exact(variant: str, width: int) -> None:
    kernel, rng = sieve(variant), np.random.default_rng(width)
    limit = 63 if variant == coded.MADDUBS else 127
    rows, count, padded = 53, 32, index_sieve.padded_width(width)
    integers = rng.integers(-127, 128, (64, padded))
    integers[:2, :] = [[127], [-127]]
    queries = np.zeros((count, padded), np.int8)
    queries[:, :width] = rng.integers(-limit, limit + 1, (count, width))
    queries[:2, :width] = [[limit], [-limit]]
    codes = index_sieve.aligned(64 * padded).reshape(4, padded // 4, 16, 4)
    codes[:] = (integers + 128).reshape(4, 16, padded // 4, 4).transpose(0, 2, 1, 3)
    constants = np.zeros((4, 5, 16), np.float32)
    constants[:, 0] = 1
    numbers = np.zeros((8, count), np.float32)
    numbers[0], numbers[5] = -1, np.inf  # the bound is the inner product itself
    numbers.view(np.int32)[6] = 128 * queries.sum(axis=1, dtype=np.int64)
    table = np.array([[address(codes), address(constants), rows, 0, 1000]])
    places, lows = np.empty((count, 64), np.int64), np.empty((count, 64), np.float32)
    heaps, state = np.empty((count, 60), np.float32), np.zeros((count, 2), np.int64)
    scratch = np.empty(coded.SCRATCH, np.uint8)
    for asked in {count, 32 if variant == coded.AMX else 11}:
        state[:] = 0
        some = numbers[:, :asked].copy()
        laid = queries
        if variant == coded.AMX:
            laid = index_sieve.side_by_side(queries)
        kernel(address(table), 1, address(laid), asked, padded, address(some), 60,
               address(heaps), reference.IP, address(places), address(lows), 64, address(state),
               address(scratch))  # fmt: skip
        expected = queries[:asked].astype(np.int64) @ integers[:rows].T
        assert (state[:asked] == rows).all()
        np.testing.assert_array_equal(places[:asked, :rows], [np.arange(1000, 1053)] * asked)
        np.testing.assert_array_equal(lows[:asked, :rows], expected.astype(np.float32))


def test_constants_agree() -> None:
    assert coded.TILE == encode.TILE == index_sieve._TILE
    assert coded.CONSTANTS == encode.CONSTANTS == index_sieve._LINES
    assert coded.GROUP == index_sieve.GROUP
    assert coded.SCRATCH == index_sieve._SCRATCH
    assert list(index_sieve.METRICS) == [coded.L2, coded.IP, coded.COSINE]
    assert set(dispatch.CODE_LIMITS) == {coded.VNNI, coded.MADDUBS}
    assert (encode.L2, encode.IP, encode.COSINE) == (coded.L2, coded.IP, coded.COSINE)
    assert index_sieve.HUGE == encode.HUGE


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("metric", [coded.L2, coded.IP, coded.COSINE])
@pytest.mark.parametrize("limit", [63, 127])
def test_queries_are_coded_as_the_formulas_say(width: int, metric: int, limit: int) -> None:
    rng = np.random.default_rng(width)
    queries = rng.standard_normal((9, width)).astype(np.float32)
    queries[3], queries[4, 0], queries[5, -1] = 0, np.nan, np.inf
    queries[6] *= np.float32(1e-38)
    queries[7] = np.float32(1e19)
    codes, numbers, usable = index_coded_queries(queries, metric, limit)
    wide = queries.astype(np.float64)
    expected = np.ones(9, bool)
    expected[[4, 5, 7]] = False
    if metric == coded.COSINE:
        expected[[3, 6]] = False
    assert usable == expected.sum()
    np.testing.assert_array_equal(numbers[5] > 0, expected)
    assert (numbers[:4, ~expected] == 0).all()
    scale = np.abs(queries).max(axis=1) / np.float32(limit)
    scale[scale < encode.TINY_SCALE] = 0
    with np.errstate(all="ignore"):
        factor = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
        digits = np.rint(queries * factor[:, None]).clip(-limit, limit)
    np.testing.assert_array_equal(codes[expected, :width], digits[expected])
    assert (codes[expected, width:] == 0).all()
    for j in np.flatnonzero(expected):
        lost = np.linalg.norm(wide[j] - scale[j].astype(np.float64) * digits[j])
        norm, kappa = np.linalg.norm(wide[j]), 4 * 2.0**-24 * (width / 8 + 32)
        exact = {
            coded.L2: (2 * scale[j], 2 * lost, 2 * norm, kappa, kappa * norm**2),
            coded.IP: (scale[j], lost + kappa * norm, norm * (1 + kappa), 0, 0),
            coded.COSINE: (scale[j] / norm if norm else 0, lost / norm if norm else 0, 1, 0, kappa),
        }[metric]
        assert numbers[0, j] == pytest.approx(exact[0], rel=1e-6)
        for line in range(1, 5):  # rounded up, by little
            assert exact[line] <= numbers[line, j] <= exact[line] * (1 + 1e-5) + 1e-20
        assert numbers.view(np.int32)[6, j] == 128 * digits[j].sum()


def index_coded_queries(
    queries: np.ndarray, metric: int, limit: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Code queries for rows whose squared norms are 1; codes, numbers, how many are usable."""
    coder()
    kernel = disk_cache.compiled(encode.make_query_coder(), encode.QUERY_SIGNATURE)
    count, width = queries.shape
    padded = index_sieve.padded_width(width)
    codes = np.full((count, padded), 77, np.int8)
    numbers = np.full((8, count), 7, np.float32)
    extremes, work = np.ones(2), np.empty(4)
    usable = kernel(address(queries), count, width, padded, address(codes), address(numbers), count,
                    metric, limit, address(extremes), address(work))  # fmt: skip
    return codes, numbers, usable
