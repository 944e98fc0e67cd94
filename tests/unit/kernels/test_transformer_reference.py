from __future__ import annotations

import math

import numpy as np
import pytest

from tarsdb.kernels import transformer_reference as kernels


@pytest.mark.parametrize("rows", [0, 1, 3, 200])
def test_gelu_against_the_error_function(rows: int) -> None:
    rng = np.random.default_rng(rows)
    values = (rng.standard_normal((rows, 37)) * 4).astype(np.float32)
    bias = rng.standard_normal(37).astype(np.float32)
    wide = (values + bias).astype(np.float64)
    exact = np.array([x * 0.5 * math.erfc(-x / math.sqrt(2)) for x in wide.ravel()])
    kernels.bias_activation(values, bias, kernels.GELU)
    assert np.abs(values - exact.reshape(values.shape)).max(initial=0) < 2e-6


def test_gelu_far_out_and_the_other_activations() -> None:
    extremes = np.array([[-1e30, -100.0, -20.0, -6.1, 0.0, 6.1, 100.0, 1e10]], np.float32)
    values, zero = extremes.copy(), np.zeros(8, np.float32)
    kernels.bias_activation(values, zero, kernels.GELU)
    assert np.allclose(values, np.maximum(extremes, 0.0), rtol=1e-6, atol=1e-7)
    x = np.linspace(-8, 8, 801, dtype=np.float32)[None]
    tanh, relu, nothing = x.copy(), x.copy(), np.zeros(801, np.float32)
    kernels.bias_activation(tanh, nothing, kernels.GELU_TANH)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x.astype(np.float64) ** 3)
    assert np.abs(tanh - 0.5 * x * (1 + np.tanh(inner))).max() < 2e-6
    kernels.bias_activation(relu, nothing, kernels.RELU)
    assert np.array_equal(relu, np.maximum(x, 0))


def test_residual_norm_against_float64() -> None:
    rng = np.random.default_rng(2)
    values, update = (rng.standard_normal((9, 24)).astype(np.float32) * 3 for _ in range(2))
    bias, scale, shift = (rng.standard_normal(24).astype(np.float32) for _ in range(3))
    total = values.astype(np.float64) + update + bias
    centred = total - total.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * scale + shift
    kernels.residual_norm(values, update, bias, scale, shift, 1e-5)
    assert np.abs(values - expected).max() < 1e-5


@pytest.mark.parametrize("shape", [(0, 3, 3), (1, 1, 1), (3, 5, 7), (2, 64, 33)])
def test_softmax_over_columns(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(4)
    scores = (rng.standard_normal(shape) * 30).astype(np.float32)
    expected = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-1e9).astype(np.float64))
    expected /= expected.sum(axis=1, keepdims=True)
    kernels.softmax_columns(scores)
    assert np.abs(scores - expected).max(initial=0) < 1e-6
