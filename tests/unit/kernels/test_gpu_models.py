"""Kernels of models on a device, over NumPy and simulated, against the references."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tarsdb.kernels import decoder_reference, transformer_reference
from tarsdb.kernels.decoder_reference import AttentionSpec
from tarsdb.kernels.gpu import device
from tarsdb.kernels.gpu.coded import quantised
from tarsdb.kernels.gpu.model_arrays import ArrayKernels, Paged

CLOSE = 2e-5


class Inputs:
    """Random arrays, on the device of a namespace."""

    def __init__(self, xp: Any) -> None:
        self.xp, self._rng = xp, np.random.default_rng(5)

    def normal(self, *shape: int) -> np.ndarray:
        return self._rng.standard_normal(shape).astype(np.float32)

    def there(self, *arrays: np.ndarray) -> list[Any]:
        """Copy arrays to the device; with NumPy too, as kernels work in place."""
        return [self.xp.asarray(array.copy()) for array in arrays]

    def here(self, array: Any) -> np.ndarray:
        return np.asarray(array if self.xp is np else self.xp.asnumpy(array))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=CLOSE, atol=CLOSE)


def check_encoder_rows(kernels: ArrayKernels, given: Inputs) -> None:
    rows, update, bias, scale, shift = (given.normal(*s) for s in [(5, 19)] * 2 + [(19,)] * 3)
    there = given.there(rows, update, bias, scale, shift)
    kernels.residual_norm(*there, 1e-5)
    transformer_reference.residual_norm(rows, update, bias, scale, shift, 1e-5)
    assert_close(given.here(there[0]), rows)
    for activation in (transformer_reference.GELU, transformer_reference.GELU_TANH,
                       transformer_reference.RELU, transformer_reference.SILU):  # fmt: skip
        rows = given.normal(4, 19) * np.float32(6)
        rows[0, :2] = 60, -60
        there = given.there(rows, bias)
        kernels.bias_activation(*there, activation)
        transformer_reference.bias_activation(rows, bias, activation)
        assert_close(given.here(there[0]), rows)


def check_self_attention(kernels: ArrayKernels, given: Inputs, size: int = 6) -> None:
    """Texts of one token, of less than a tile, of several; scores that grow and that shrink."""
    heads, offsets = 2, np.array([0, 1, 4, 41], np.int64)
    qkv = given.normal(41, 3 * heads * size) * np.float32(2)
    qkv[4:, heads * size : 2 * heads * size] *= np.linspace(0.1, 4, 37, dtype=np.float32)[:, None]
    for relative, reach in ((None, 0), (given.normal(heads, 2 * 50 - 1), 0), (None, 5)):
        expected = []
        for first, last in itertools.pairwise(offsets.tolist()):
            query, key, value = qkv[first:last].reshape(-1, 3, heads, size).transpose(1, 2, 0, 3)
            scores = key.astype(np.float64) @ query.transpose(0, 2, 1)  # keys x queries
            if relative is not None:
                place = np.arange(last - first)
                scores += relative[:, place[:, None] - place + 49]
            if reach:
                place = np.arange(last - first)
                scores[:, np.abs(place[:, None] - place) > reach] = -np.inf
            scores *= 0.7
            transformer_reference.softmax_columns(scores)
            expected.append((scores.transpose(0, 2, 1) @ value).swapaxes(0, 1))
        there = given.there(qkv, *([] if relative is None else [relative]))
        bias = None if relative is None else there[1]
        found = kernels.self_attention(there[0], offsets, heads, bias, 0.7, reach)
        right = np.concatenate(expected).reshape(41, -1).astype(np.float32)
        assert_close(given.here(found), right)


def check_decoder_rows(kernels: ArrayKernels, given: Inputs) -> None:
    rows, update, scale = given.normal(5, 19), given.normal(5, 19), given.normal(19)
    there = given.there(rows, update, scale)
    assert_close(
        given.here(kernels.rms_norm(there[0], there[2], 1e-5)),
        decoder_reference.rms_norm(rows, scale, 1e-5),
    )
    found = kernels.add_rms_norm(*there, 1e-5)
    assert_close(given.here(there[0]), rows + update)
    assert_close(given.here(found), decoder_reference.rms_norm(rows + update, scale, 1e-5))
    for activation in (decoder_reference.SILU, decoder_reference.GELU_TANH):
        both = given.normal(3, 38) * np.float32(4)
        both[0, :2] = 60, -200
        found = kernels.gated(given.there(both)[0], activation)
        expected = decoder_reference.gated(both[:, :19], both[:, 19:], activation)
        assert_close(given.here(found), expected)


def paged_rows(tables: np.ndarray, positions: np.ndarray) -> np.ndarray:
    blocks = tables[np.arange(len(tables)), positions // 16]
    head = np.stack([positions, blocks * 16 + positions % 16], axis=1)
    return np.concatenate([head, tables], axis=1).astype(np.int32)


def check_paged(kernels: ArrayKernels, given: Inputs, size: int = 6) -> None:
    """Three rows at positions 0, 20 and 37, of sequences with their blocks in disorder."""
    heads, kv_heads, blocks, width = 4, 2, 9, 16
    tables = np.array([[8, -1, -1], [4, 0, -1], [7, 2, 5]])
    positions = np.array([0, 20, 37])
    rows = paged_rows(tables, positions)
    keys, values = given.normal(blocks, kv_heads, size, 16), given.normal(blocks, kv_heads, 16, 16)
    qkv, angles = given.normal(3, heads + 2 * kv_heads, size), given.normal(3, size)
    for norms in (None, (given.normal(size), given.normal(size))):
        there = given.there(qkv, angles, rows, keys, values, *(norms or ()))
        paged = Paged(*there[2:5])
        scales = None if norms is None else (there[5], there[6])
        queries = kernels.turn_and_store(there[0], there[1], scales, 1e-5, paged)
        parts = list(np.split(qkv, [heads, heads + kv_heads], axis=1))
        for part, scale in enumerate(norms or ()):
            parts[part] = decoder_reference.rms_norm(parts[part], scale, 1e-5)
        turned = [decoder_reference.rotate(part, angles) for part in parts[:2]]
        assert_close(given.here(queries), turned[0])
        wanted_keys, wanted_values = keys.copy(), values.copy()
        for row, (block, slot) in enumerate(zip(rows[:, 1] // 16, rows[:, 1] % 16, strict=True)):
            wanted_keys[block, :, :, slot] = turned[1][row]
            wanted_values[block, :, slot, :size] = parts[2][row]
        assert_close(given.here(paged.keys), wanted_keys)
        assert_close(given.here(paged.values), wanted_values)
    for window, cap in ((0, 0.0), (9, 0.0), (0, 1.5)):
        spec = AttentionSpec(0.8, window, cap)
        expected = []
        for row, position in enumerate(positions.tolist()):
            own = tables[row, : position // 16 + 1]
            past = np.moveaxis(wanted_keys[own], 0, 2).reshape(kv_heads, size, -1)
            seen = np.moveaxis(wanted_values[own], 0, 1).reshape(kv_heads, -1, width)[..., :size]
            query = turned[0][row : row + 1]
            expected.append(decoder_reference.attend(query, past, seen, position, spec))
        found = kernels.paged_attention(queries, paged, spec)
        assert_close(given.here(found), np.concatenate(expected))


def check_coded(kernels: ArrayKernels, given: Inputs) -> None:
    weight = given.normal(7, 96)
    weight[3] = 0
    for bits, error in ((8, 0.5 / 127), (4, 0.5 / 7)):
        codes, scales, group = quantised(weight, bits)
        there = given.there(codes, scales)
        decoded = given.here(kernels.decoded(*there, group))
        largest = np.abs(weight.reshape(7, -1, group)).max(axis=2).repeat(group, axis=1)
        assert (np.abs(decoded - weight) <= largest * error * 1.001 + 1e-9).all()
        for count in (1, 3, 9):
            rows = given.normal(count, 96)
            found = kernels.coded_product(given.there(rows)[0], *there, group)
            assert_close(given.here(found), (rows.astype(np.float64) @ decoded.T).astype("f4"))


def check_half(kernels: ArrayKernels, given: Inputs) -> None:
    """Rows of all sizes: what leaves float16, what falls below it, and nothing."""
    for size, count in itertools.product((1.0, 0.01), (1, 3, 9)):
        weight = (given.normal(3, 96) * np.float32(size)).astype(np.float16)
        longest = float(np.sqrt(np.square(weight.astype(np.float64)).sum(axis=1).max()))
        rows = given.normal(count, 96)
        for factor in (1.0, 1e7, 1e-9, 0.0):
            scaled = rows * np.float32(factor)
            found = given.here(kernels.half_product(*given.there(scaled, weight), longest))
            expected = scaled.astype(np.float64) @ weight.T.astype(np.float64)
            sizes = np.linalg.norm(scaled, axis=1)[:, None] * longest
            assert found.dtype == np.float32
            assert (np.abs(found - expected) <= sizes * 1e-3).all()


def check_half_cache(kernels: ArrayKernels, given: Inputs) -> None:
    """A KV cache of float16 gives what one of the same numbers in float32 does."""
    rows, spec = paged_rows(np.array([[2, 0]]), np.array([20])), AttentionSpec(0.8, 0, 0.0)
    qkv, angles, queries = given.normal(1, 4, 6), given.normal(1, 6), given.normal(1, 2, 6)
    caches = [given.normal(3, 1, 6, 16).astype("f2"), given.normal(3, 1, 16, 16).astype("f2")]
    answers = []
    for number in ("f2", "f4"):
        there = given.there(qkv, angles, rows, *(each.astype(number) for each in caches))
        paged = Paged(*there[2:])
        kernels.turn_and_store(there[0], there[1], None, 1e-5, paged)
        for kept, before in zip((paged.keys, paged.values), caches, strict=True):
            stored = given.here(kept)
            assert stored.dtype == number and (stored != before).any()
            kept[...] = given.there(stored.astype("f2").astype(number))[0]
        answers.append(given.here(kernels.paged_attention(given.there(queries)[0], paged, spec)))
    assert_close(*answers)


CHECKS = (
    check_encoder_rows, check_self_attention, check_decoder_rows, check_paged, check_coded,
    check_half, check_half_cache,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_over_numpy(check: Any) -> None:
    check(ArrayKernels(np), Inputs(np))


@pytest.mark.parametrize("check", CHECKS)
def test_the_checks_can_fail(check: Any) -> None:
    class Inexact(ArrayKernels):
        """Whose sums, angles and weights are off by a thousandth."""

        def residual_norm(self, values: Any, *rest: Any) -> None:
            super().residual_norm(values, *rest)
            values *= np.float32(1.001)

        def self_attention(self, qkv: Any, *rest: Any) -> Any:
            return super().self_attention(qkv * np.float32(1.001), *rest)

        def rms_norm(self, *rest: Any) -> Any:
            return super().rms_norm(*rest) * np.float32(1.001)

        def turn_and_store(self, qkv: Any, angles: Any, *rest: Any) -> Any:
            return super().turn_and_store(qkv, angles * np.float32(1.001), *rest)

        def decoded(self, *rest: Any) -> Any:
            return super().decoded(*rest) * np.float32(1.001)

        def coded_product(self, rows: Any, codes: Any, scales: Any, group: int) -> Any:
            return rows @ self.decoded(codes, scales * np.float32(1.001), group).T

        def half_product(self, rows: Any, *rest: Any) -> Any:
            return super().half_product(rows * np.float32(1.01), *rest)

        def paged_attention(self, queries: Any, paged: Paged, spec: AttentionSpec) -> Any:
            inexact = 1.01 if paged.keys.dtype == np.float16 else 1.0
            return super().paged_attention(queries, paged, spec) * np.float32(inexact)

    with pytest.raises(AssertionError):
        check(Inexact(np), Inputs(np))


SIMULATED = """
import json, sys, traceback
sys.path.insert(0, sys.argv[1])
import numpy as np
from tarsdb.kernels.gpu.model_cuda import CudaKernels
from tests.unit.kernels import test_gpu_models as tests
outcomes = {}
for check in tests.CHECKS:
    try:
        check(CudaKernels(np, 8, 4), tests.Inputs(np))
        outcomes[check.__name__] = "simulated"
    except BaseException:
        outcomes[check.__name__] = traceback.format_exc()
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def simulated() -> dict[str, str]:
    """Run all checks in one process, whose start takes as long as some of them."""
    if importlib.util.find_spec("numba.cuda") is None:
        pytest.skip("this Numba has no CUDA target: pip install numba-cuda")
    root = str(device.__file__).rpartition("/tarsdb/")[0]
    outcome = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SIMULATED, root],
        capture_output=True, text=True, check=False,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    found: dict[str, str] = json.loads(outcome.stdout)
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_simulator(check: Any, simulated: dict[str, str]) -> None:
    assert simulated[check.__name__] == "simulated"


@pytest.mark.gpu
@pytest.mark.parametrize("check", CHECKS)
def test_on_a_device(check: Any) -> None:
    found = device.choose("auto")
    if found is None:
        pytest.skip("no CUDA device")
    from tarsdb.kernels.gpu.model_cuda import CudaKernels

    for kernels in (ArrayKernels(found.xp), CudaKernels(found.xp)):
        check(kernels, Inputs(found.xp))
