"""Compiled attention, norms and whole encoders against NumPy; how kernels come into use."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tarsdb.kernels import dispatch, packing
from tarsdb.kernels import encoder as kernels
from tarsdb.kernels.native import address

gemm = pytest.importorskip("tarsdb.kernels.cpu.gemm")
attention = pytest.importorskip("tarsdb.kernels.cpu.attention")
layer_norm = pytest.importorskip("tarsdb.kernels.cpu.layer_norm")
numba = pytest.importorskip("numba")

I64 = numba.types.int64


@pytest.fixture(scope="module", params=[gemm.AVX2, gemm.AVX512])
def attend(request: pytest.FixtureRequest) -> Any:
    """Attention with the micro-kernels of both levels: vectors of 16 run on AVX2 too."""
    if dispatch._best_level() == "portable":
        pytest.skip("this processor runs NumPy alone")
    inner = attention.make_attention(gemm.make_multiply(request.param))

    @numba.njit(numba.types.void(*[I64] * 11), nogil=True)
    def called(qkv, stride, tokens, heads, size, bias, step, reach, keys, scores, factors):  # type: ignore[no-untyped-def] # noqa: PLR0917
        inner(qkv, stride, tokens, heads, size, bias, step, reach, keys, scores, factors)

    return called


@pytest.fixture(scope="module")
def norm() -> Any:
    if dispatch._best_level() == "portable":
        pytest.skip("this processor runs NumPy alone")

    @numba.njit(numba.types.void(*[I64] * 8, numba.types.float32), nogil=True)
    def called(values, update, out, stride, rows, width, scale, shift, epsilon):  # type: ignore[no-untyped-def] # noqa: PLR0917
        layer_norm.add_and_norm(values, update, out, stride, rows, width, scale, shift, epsilon)

    return called


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_definition(rows: np.ndarray, heads: int, relative: np.ndarray | None) -> np.ndarray:
    """Attention of one text in float64; scores are powers of two."""
    tokens, width = len(rows), rows.shape[1] // 3
    parts = rows.astype(np.float64).reshape(tokens, 3, heads, width // heads)
    query, key, value = parts.transpose(1, 2, 0, 3)
    scores = query @ key.transpose(0, 2, 1)
    if relative is not None:
        place = np.arange(tokens)
        distance = place[None, :] - place[:, None]
        scores += relative[:, distance + relative.shape[1] // 2]
    terms = np.exp2(scores - scores.max(axis=2, keepdims=True))
    context = terms / terms.sum(axis=2, keepdims=True) @ value
    return context.transpose(1, 0, 2).reshape(tokens, width)


def attended(
    attend: Any, rows: np.ndarray, heads: int, relative: np.ndarray | None = None, reach: int = 0
) -> np.ndarray:
    """Call the kernel on a copy whose neighbours must stay as they are; return the context."""
    tokens, width = len(rows), rows.shape[1] // 3
    size, whole = width // heads, -(-tokens // 16) * 16
    memory = np.full((tokens + 2, 3 * width), 7, np.float32)
    memory[1:-1] = rows
    scratch = [np.full(n, np.nan, np.float32) for n in
               (size * whole, attention.QUERIES * whole, attention.QUERIES)]  # fmt: skip
    bias, step = 0, 0
    if relative is not None:
        padded = np.pad(relative, ((0, 0), (0, 16)))
        bias, step = address(padded) + 4 * (relative.shape[1] // 2), 4 * padded.shape[1]
    attend(address(memory[1:]), memory.strides[0], tokens, heads, size, bias, step, reach,
           *map(address, scratch))  # fmt: skip
    assert (memory[[0, -1]] == 7).all()
    assert np.array_equal(memory[1:-1, width:], rows[:, width:], equal_nan=True)
    return memory[1:-1, :width]


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 47, 48, 49, 130])
@pytest.mark.parametrize(("heads", "size"), [(1, 16), (3, 32), (2, 64)])
@pytest.mark.parametrize("biased", [False, True])
def test_attention(attend: Any, tokens: int, heads: int, size: int, biased: bool) -> None:
    rows = normal(tokens, tokens, 3 * heads * size)
    relative = normal(1, heads, 2 * 150 - 1) * 3 if biased else None
    expected = by_definition(rows, heads, relative)
    found = attended(attend, rows, heads, relative)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)
    if tokens > 1:  # the comparison can fail
        assert not np.allclose(by_definition(rows[::-1], heads, relative), expected, atol=1e-3)


@pytest.mark.parametrize("tokens", [1, 16, 48, 49, 130])
@pytest.mark.parametrize("reach", [1, 15, 40, 149])
def test_attention_of_the_neighbourhood(attend: Any, tokens: int, reach: int) -> None:
    rows = normal(tokens, tokens, 96)
    hidden = np.where(np.abs(np.arange(-149, 150)) > reach, -np.inf, 0).astype(np.float32)[None]
    expected = by_definition(rows, 1, hidden)
    found = attended(attend, rows, 1, hidden, reach)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)
    if tokens - 1 > reach:  # the window hides something
        assert not np.allclose(by_definition(rows, 1, None), expected, atol=1e-3)


@pytest.mark.parametrize("spread", [0.0, 30.0, 1e4])
def test_attention_of_equal_and_of_huge_scores(attend: Any, spread: float) -> None:
    rows = normal(5, 20, 96)
    rows[:, :64] *= np.float32(spread)
    found = attended(attend, rows, 1)
    np.testing.assert_allclose(found, by_definition(rows, 1, None), rtol=1e-3, atol=1e-4)


def test_nan_stays_in_its_query_and_nothing_hides_it(attend: Any) -> None:
    rows = normal(6, 20, 96)
    rows[3, 5] = np.nan
    found = attended(attend, rows, 1)
    assert np.isnan(found[3]).all()
    assert np.isfinite(np.delete(found, 3, axis=0)).all()
    rows[4, 40] = np.nan  # a key: every query sees it
    assert np.isnan(attended(attend, rows, 1)).all()


def normed(norm: Any, values: np.ndarray, update: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    """Call the kernel on rows filled up to the next 16 floats."""
    width = values.shape[1]
    whole = -(-width // 16) * 16
    rows, more = (np.pad(each, ((0, 0), (0, whole - width))) for each in (values, update))
    scale, shift = map(packing.pack_bias, rest)
    beside, sums = np.empty_like(rows), rows.copy()
    for out, source in ((beside, sums), (rows, rows)):  # beside what is read, and in its place
        norm(address(source), address(more), address(out), 4 * whole, len(rows), width,
             address(scale), address(shift), 1e-5)  # fmt: skip
    assert np.array_equal(beside, rows, equal_nan=True)
    assert np.array_equal(sums[:, :width], values + update, equal_nan=True)
    finite = np.isfinite(rows).all(axis=1)
    assert (rows[finite, width:] == 0).all()
    return rows[:, :width]


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 7), (5, 16), (33, 100), (2, 384)])
def test_norm(norm: Any, shape: tuple[int, int]) -> None:
    values, update = normal(1, *shape) * 4, normal(2, *shape)
    scale, shift = normal(3, shape[1]), normal(4, shape[1])
    total = values.astype(np.float64) + update
    centred = total - total.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    found = normed(norm, values, update, scale, shift)
    np.testing.assert_allclose(found, centred / deviation * scale + shift, rtol=2e-5, atol=2e-5)
    alone = [normed(norm, v[None], u[None], scale, shift)[0]
             for v, u in zip(values, update, strict=True)]  # fmt: skip
    assert all(np.array_equal(row, one) for row, one in zip(found, alone, strict=True))


def test_norm_passes_nan_on(norm: Any) -> None:
    values = normal(1, 2, 20)
    values[1, 3] = np.nan
    ones = np.ones(20, np.float32)
    found = normed(norm, values, values * 0, ones, ones)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[0]).all()


def test_blocks_fit_what_the_kernels_take() -> None:
    assert kernels.BLOCK >= attention.QUERIES


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_nobody_waits_long_for_a_compiler() -> None:
    code = """if True:
        import time
        from tarsdb.kernels import encoder
        from tarsdb.kernels.background import Compiled
        encoder.PATIENCE_SECONDS = 0.2
        Compiled._compile = lambda self, level: time.sleep(1.5)
        print(encoder.current("f32"))
        start = time.perf_counter()
        print(encoder.current("f32"), time.perf_counter() - start < 0.1)
    """
    assert run(code).split() == ["None", "None", "True"]


def test_portable_and_no_numba_stay_with_numpy() -> None:
    code = "from tarsdb.kernels import encoder, forms; "
    code += "print(encoder.wait('f32'), forms.form_of('int8'))"
    assert run(code, TARSDB_ISA="portable") == "None None"
    assert run("import sys; sys.modules['numba'] = None; " + code) == "None None"
