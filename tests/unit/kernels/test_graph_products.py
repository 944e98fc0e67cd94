"""Products of a graph's codes on every variant against sums of whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import llvmlite.binding as llvm
from numba import njit

from tarsdb.kernels import dispatch
from tarsdb.kernels.cpu import graph_products
from tarsdb.kernels.native import address

LEVELS_OF = {"vnni": ("avx512",), "avx2": ("avx512", "avx2"), "plain": dispatch.LEVELS}
MOST, LEAST = 127, -128
"""Of a signed byte: with these every sum of 16 bits is as far from zero as it can be."""


@pytest.fixture(scope="module", params=graph_products.VARIANTS)
def products(request: pytest.FixtureRequest) -> Any:
    """Return a variant's ``dot`` and ``pick``, compiled; skip where the processor lacks it."""
    features = llvm.get_host_cpu_features()
    best = dispatch._best_level()
    if best not in LEVELS_OF[request.param] or (
        request.param == "vnni" and not features.get("avx512vnni")
    ):
        pytest.skip(f"this processor has no {request.param}")
    dot, pick = graph_products.make_products(request.param)

    @njit
    def both(row, query, padded, bits, signs):  # type: ignore[no-untyped-def]
        return dot(row, query, padded, bits), pick(signs, query, padded)

    return both


def expected(codes: np.ndarray, query: np.ndarray, bits: int) -> int:
    """Return the product of codes as they stand in memory and a query."""
    if bits == 8:
        return int(codes.astype(np.int64) @ query)
    runs = codes.reshape(-1, 64)
    halves = np.concatenate([runs & 15, runs >> 4], axis=1).ravel()
    return 2 * int(halves.astype(np.int64) @ query)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("padded", [128, 384, 640, 16_384])
def test_products_are_exact(products: Any, padded: int, bits: int) -> None:
    rng = np.random.default_rng(padded)
    drawn = rng.integers(LEAST, MOST + 1, padded)
    for query in (drawn, np.full(padded, LEAST), np.full(padded, MOST)):
        numbers = query.astype(np.int8)
        for codes in (rng.integers(0, 256, padded * bits // 8), np.full(padded * bits // 8, 255)):
            row = codes.astype(np.uint8)
            signs = row[: padded // 8]
            chosen = np.unpackbits(signs, bitorder="little").astype(bool)
            given = address(row), address(numbers), padded, bits, address(signs)
            assert products(*given) == (
                expected(row, query, bits), int(query[chosen].sum()),
            )  # fmt: skip


def test_codes_of_8_bits_may_end_amid_a_step(products: Any) -> None:
    rng = np.random.default_rng(3)
    row, query = rng.integers(0, 256, 64).astype(np.uint8), rng.integers(-128, 128, 64)
    numbers, signs = query.astype(np.int8), np.full(8, 255, np.uint8)
    found = products(address(row), address(numbers), 64, 8, address(signs))
    assert found == (expected(row, query, 8), int(query.sum()))
