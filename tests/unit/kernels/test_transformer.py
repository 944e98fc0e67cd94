"""Compiled transformer kernels against the NumPy ones, and how they come into use."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tarsdb.kernels.transformer import REFERENCE, TransformerKernels, wait


@pytest.fixture(scope="module")
def compiled() -> TransformerKernels:
    kernels = wait()
    if kernels is REFERENCE:
        pytest.skip("no compiled kernels here")
    return kernels


SHAPES = [(0, 8), (1, 1), (3, 7), (5, 16), (33, 100), (2, 1537)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", [0, 1, 2])
def test_bias_activation(compiled, shape: tuple[int, int], activation: int) -> None:
    rng = np.random.default_rng(1)
    values = (rng.standard_normal(shape) * 5).astype(np.float32)
    bias = rng.standard_normal(shape[1]).astype(np.float32)
    if values.size > 20:
        values[0, :6] = [0.0, -0.0, 1e20, -1e20, 6.0, -6.0]
    ours, expected = values.copy(), values.copy()
    compiled.bias_activation(ours, bias, activation)
    REFERENCE.bias_activation(expected, bias, activation)
    assert np.allclose(ours, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_residual_norm_and_add_bias(compiled, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    values, update = (rng.standard_normal(shape).astype(np.float32) * 4 for _ in range(2))
    bias, scale, shift = (rng.standard_normal(shape[1]).astype(np.float32) for _ in range(3))
    ours, expected = values.copy(), values.copy()
    compiled.residual_norm(ours, update.copy(), bias, scale, shift, 1e-5)
    REFERENCE.residual_norm(expected, update.copy(), bias, scale, shift, 1e-5)
    assert np.allclose(ours, expected, rtol=1e-5, atol=1e-5)
    compiled.add_bias(ours, bias)
    REFERENCE.add_bias(expected, bias)
    assert np.allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 4, 4), (1, 1, 1), (3, 7, 7), (2, 5, 40), (2, 200, 200)])
@pytest.mark.parametrize("spread", [1.0, 60.0, 1e4])
def test_softmax_columns(compiled, shape: tuple[int, int, int], spread: float) -> None:
    rng = np.random.default_rng(3)
    scores = (rng.standard_normal(shape) * spread).astype(np.float32)
    ours, expected = scores.copy(), scores.copy()
    compiled.softmax_columns(ours)
    REFERENCE.softmax_columns(expected)
    assert np.allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_nan_is_passed_on_not_hidden(compiled) -> None:
    for kernels in (compiled, REFERENCE):
        values = np.ones((2, 16), np.float32)
        values[1, 3] = np.nan
        kernels.bias_activation(values, np.zeros(16, np.float32), 0)
        assert np.isnan(values[1, 3])
        assert not np.isnan(values[0]).any()
        scores = np.ones((1, 4, 4), np.float32)
        scores[0, 2, 1] = np.nan
        kernels.softmax_columns(scores)
        assert np.isnan(scores[0, :, 1]).any()


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_first_call_answers_with_numpy_and_the_swap_comes_later(compiled) -> None:
    code = """if True:
        from tarsdb.kernels import transformer
        import sys
        assert "numba" not in sys.modules
        print(transformer.current().name, transformer.wait().name, transformer.current().name)
    """
    assert run(code) == "numpy numba numba"


def test_portable_and_no_numba_stay_with_numpy() -> None:
    code = "from tarsdb.kernels import transformer; print(transformer.wait().name)"
    assert run(code, TARSDB_ISA="portable") == "numpy"
    assert run("import sys; sys.modules['numba'] = None; " + code) == "numpy"
