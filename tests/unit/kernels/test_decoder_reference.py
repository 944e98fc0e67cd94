from __future__ import annotations

import math

import numpy as np
import pytest

from tarsdb.kernels import decoder_reference as reference

RANDOM = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 30])
def test_product(count: int) -> None:
    rows, weight = normal(count, 33), normal(21, 33)
    out = reference.product(rows, weight)
    assert np.allclose(out, rows.astype(np.float64) @ weight.T.astype(np.float64), atol=1e-4)
    for row in range(count):
        assert np.array_equal(reference.product(rows[row : row + 1], weight)[0], out[row])


def test_rms_norm() -> None:
    row = [3.0, -4.0]
    out = reference.rms_norm(np.array([row], "f4"), np.array([1.0, 2.0], "f4"), 0.5)
    root = math.sqrt(12.5 + 0.5)
    assert np.allclose(out, [[3.0 / root, -8.0 / root]])
    assert not reference.rms_norm(np.zeros((1, 4), "f4"), np.ones(4, "f4"), 1e-6).any()


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    query, key = normal(1, 1, 8), normal(1, 1, 8)

    def score(first: int, second: int) -> float:
        speeds = 10.0 ** -np.arange(4.0)
        turned = []
        for heads, position in ((query, first), (key, second)):
            angles = np.concatenate([np.cos(position * speeds), np.sin(position * speeds)])
            turned.append(reference.rotate(heads, angles[None].astype("f4")))
        assert math.isclose(np.linalg.norm(turned[0]), np.linalg.norm(query), rel_tol=1e-5)
        return float((turned[0] * turned[1]).sum())

    assert math.isclose(score(7, 3), score(14, 10), rel_tol=1e-4)
    assert not math.isclose(score(7, 3), score(8, 3), rel_tol=1e-2)


def test_gates() -> None:
    gate, up = normal(5, 6) * 3, normal(5, 6)
    silu = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    assert np.allclose(reference.gated(gate, up, reference.SILU), silu, atol=1e-6)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate.astype(np.float64) ** 3)
    gelu = 0.5 * gate * (1 + np.tanh(inner)) * up
    assert np.allclose(reference.gated(gate, up, reference.GELU_TANH), gelu, atol=1e-6)
    far = np.array([-200.0, 200.0], "f4")
    assert np.array_equal(reference.gated(far, np.ones(2, "f4"), reference.SILU), [0.0, 200.0])


def test_soft_cap() -> None:
    values = np.array([-1e6, -0.1, 0.0, 0.1, 1e6], "f4")
    assert np.array_equal(reference.soft_cap(values, 0.0), values)
    capped = reference.soft_cap(values, 5.0)
    assert np.allclose(capped, [-5, -0.09998, 0, 0.09998, 5], atol=1e-4)


@pytest.mark.parametrize("window", [0, 1, 3])
def test_attention_sees_the_past_and_no_more(window: int) -> None:
    queries, keys, values = normal(4, 6, 8), normal(2, 8, 9), normal(2, 9, 8)
    spec = reference.AttentionSpec(0.3, window, 0.0)
    out = reference.attend(queries, keys, values, 3, spec).reshape(4, 6, 8)
    for row, head in np.ndindex(4, 6):
        start = max(0, 4 + row - window) if window else 0
        seen = slice(start, 4 + row)
        scores = np.exp(0.3 * queries[row, head] @ keys[head // 3, :, seen])
        expected = (scores / scores.sum()) @ values[head // 3, seen]
        assert np.allclose(out[row, head], expected, atol=1e-5)
