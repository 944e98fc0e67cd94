"""Vector functions against NumPy in float64, and sums of lanes in their fixed order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tarsdb.kernels import dispatch
from tarsdb.kernels.native import address

pytest.importorskip("numba")
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from tarsdb.kernels.cpu import vector_math
from tarsdb.kernels.cpu.emit import FLOAT, LANES, load, store

VALUES = np.concatenate([
    np.linspace(-12, 12, 4001), np.linspace(-200, 200, 1003),
    [0.0, -0.0, 1e-30, -1e-30, 1e20, -1e20, 126.99, -126.0],
]).astype(np.float32)  # fmt: skip
VALUES = np.concatenate([VALUES, np.zeros(-len(VALUES) % LANES, np.float32)])


def through(emit: Callable[[Any, Any], Any], values: np.ndarray, size: int = 4) -> np.ndarray:
    """Return what an emitter makes of float32 values, as bytes of ``size`` for 16 lanes or one."""
    if dispatch._best_level() == "portable":
        pytest.skip("this processor runs NumPy alone")

    @intrinsic
    def apply(typingctx, source, target):  # type: ignore[no-untyped-def]
        def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
            store(b, emit(b, load(b, args[0], ir.VectorType(FLOAT, LANES))), args[1])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    @njit
    def each(source, lines, target, step):  # type: ignore[no-untyped-def]
        for line in range(lines):
            apply(source + 64 * line, target + step * line)

    out = np.zeros(len(values) * size // 4, np.uint32)
    each(address(values), len(values) // LANES, address(out), LANES * size)
    return out


def floats(emit: Callable[[Any, Any], Any], values: np.ndarray) -> np.ndarray:
    return through(emit, values).view(np.float32)


def test_exp2() -> None:
    x = VALUES[np.abs(VALUES) <= 126]
    x = x[: len(x) // LANES * LANES]
    exact = np.exp2(x.astype(np.float64))
    assert np.abs(floats(vector_math.exp2, x) / exact - 1).max() < 1.2e-7


def test_exp2_is_clamped_and_keeps_nan() -> None:
    x = np.array([-1e9, -np.inf, 1e9, np.inf, np.nan, -np.nan, *[0.0] * 10], np.float32)
    found = floats(vector_math.exp2, x)
    assert found[:4].tolist() == [2.0**-126, 2.0**-126, 2.0**127, 2.0**127]
    assert np.isnan(found[4:6]).all()
    assert (found[6:] == 1).all()


def logistic(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def gelu_exact(x: np.ndarray) -> np.ndarray:
    return x * np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])


def gelu_tanh_exact(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("emit", "exact"),
    [
        (vector_math.gelu, gelu_exact),
        (vector_math.gelu_tanh, gelu_tanh_exact),
        (vector_math.silu, lambda x: x * logistic(x)),
        (vector_math.relu, lambda x: np.maximum(x, 0)),
    ],
)
def test_activations(
    emit: Callable[[Any, Any], Any], exact: Callable[[np.ndarray], np.ndarray]
) -> None:
    expected = exact(VALUES.astype(np.float64))
    error = np.abs(floats(emit, VALUES) - expected) / np.maximum(np.abs(expected), 1)
    assert error.max() < 4e-7
    assert np.isnan(floats(emit, np.full(LANES, np.nan, np.float32))).all()


def test_the_two_gelus_are_told_apart() -> None:
    exact = gelu_exact(VALUES.astype(np.float64))
    assert np.abs(floats(vector_math.gelu_tanh, VALUES) - exact).max() > 1e-4


def test_lanes_are_added_by_halves() -> None:
    x = (np.random.default_rng(1).standard_normal(LANES) * 1000).astype(np.float32)
    halves = x
    while len(halves) > 1:
        halves = halves[: len(halves) // 2] + halves[len(halves) // 2 :]
    found = through(vector_math.total, x).view(np.float32)[0]
    assert found == halves[0]
    in_order = np.float32(0)
    for value in x:
        in_order += value
    assert found != in_order  # these values tell orders apart


def test_largest_lane() -> None:
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal(LANES).astype(np.float32)
        assert through(vector_math.largest, x).view(np.float32)[0] == x.max()


def test_bfloat16_rounds_to_the_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0x7F800000,
                     0x7F800001, 0x80000000, 0x26800000, 0x267FFFFF], np.uint32)  # fmt: skip
    values = np.concatenate([bits, np.zeros(6, np.uint32)]).view(np.float32)
    found = through(vector_math.to_bfloat16, values, 2).view(np.uint16)
    assert found[:10].tolist() == [
        0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7F80, 0x7F80, 0x7FC0, 0, 0x2680, 0,
    ]  # fmt: skip


def test_bfloat16_comes_back() -> None:
    def there_and_back(b: Any, x: Any) -> Any:
        return vector_math.from_bfloat16(b, vector_math.to_bfloat16(b, x))

    found = floats(there_and_back, VALUES)
    assert (found.view(np.uint32) & 0xFFFF == 0).all()
    finite = np.abs(VALUES) > 2.0**-50
    assert np.abs(found[finite] / VALUES[finite] - 1).max() <= 2.0**-8
