"""Keys of inverted lists' rows on a device, over NumPy and simulated, against their definition."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tarsdb.kernels.gpu import device, lists
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.lists import Dots
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.select import partition


def numpy_device() -> Device:
    return Device("NumPy", np, DeviceArrays(1 << 30), partition(np))


def codes_of(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-127, 128, shape).astype(np.int8)


def tiles_of(rows: np.ndarray) -> np.ndarray:
    """Return int8 (n, padded) rows as uint8 (n / 16, padded / 4, 16, 4)."""
    tiles = (rows.view(np.uint8) ^ 128).reshape(-1, 16, rows.shape[1] // 4, 4)
    return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3))


def check_dots(dots: Dots, xp: Any) -> None:
    rng = np.random.default_rng(1)
    for tiles, padded, queries, looks in ((3, 64, 2, 1), (7, 128, 3, 9), (1, 1088, 1, 3)):
        rows, asked = codes_of(rng, 16 * tiles, padded), codes_of(rng, queries, padded)
        rows[:16], asked[0] = 127, -127  # the largest products
        words = tiles_of(rows).reshape(-1).view(np.int32).reshape(tiles, padded // 4, 16)
        looked = rng.integers(0, tiles, (queries, looks)).astype(np.int32)
        looked[0, 0] = 0
        looked[-1, -1] = -1 if looks > 1 else looked[-1, -1]
        found = dots(*map(xp.asarray, (words, asked, looked)))
        found = found if xp is np else xp.asnumpy(found)
        every = rows.reshape(tiles, 16, padded).astype(np.int64)
        right = np.einsum("qtrp,qp->qtr", every[looked], asked.astype(np.int64))
        known = looked >= 0
        assert found.dtype == np.int32 and found.shape == (queries, looks, 16)
        np.testing.assert_array_equal(found[known], right[known])


def test_the_definition() -> None:
    check_dots(lists.array_dots(np), np)


def test_the_definition_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_AT_ONCE", 1)
    check_dots(lists.array_dots(np), np)


def test_the_check_can_fail() -> None:
    def signless(words: Any, queries: Any, looked: Any) -> Any:
        return lists.array_dots(np)(words, queries, looked) + (words[looked][:, :, 0] & 1)

    with pytest.raises(AssertionError):
        check_dots(signless, np)


SIMULATED = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from tarsdb.kernels.gpu.cuda_lists import CudaDots
from tests.unit.kernels.test_gpu_lists import check_dots
check_dots(CudaDots(np, 32), np)
print("simulated")
"""


def test_the_kernel_in_the_simulator() -> None:
    if importlib.util.find_spec("numba.cuda") is None:
        pytest.skip("this Numba has no CUDA target: pip install numba-cuda")
    root = str(device.__file__).rpartition("/tarsdb/")[0]
    outcome = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SIMULATED, root], capture_output=True, text=True,
        check=False, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
    )  # fmt: skip
    assert outcome.stdout == "simulated\n", outcome.stderr


def test_the_smallest_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "KEYS", 100)
    rng = np.random.default_rng(2)
    rows, asked = codes_of(rng, 80, 64), codes_of(rng, 5, 64)
    constants = rng.random((5, 2, 16)).astype(np.float32)
    constants[4, 0, 9:] = np.inf
    constants[4, 1, 9:] = 0
    codes = tiles_of(rows)
    tiles = lists.bring(numpy_device(), codes.shape, np.split(codes.ravel(), [100]), constants)
    looked = np.array([[0, 4], [3, -1], [2, 1], [4, -1], [1, 0]], np.int32)
    factors, dead = rng.random(5).astype(np.float32), rng.random((5, 16)) < 0.2
    keys, slots = lists.smallest(numpy_device(), tiles, (asked, factors), looked, 5, dead)
    assert keys.shape == slots.shape == (5, 8)
    for query, own in enumerate(looked):
        products = (rows.reshape(5, 16, 64)[own].astype(np.int64) @ asked[query]).astype("f4")
        expected = constants[own, 0] - (factors[query] * constants[own, 1]) * products
        expected[(own < 0)[:, None] | dead[own]] = np.inf
        order = np.argsort(expected.ravel(), kind="stable")[:8]
        np.testing.assert_array_equal(np.sort(keys[query]), expected.ravel()[order])
        finite = expected.ravel()[order] < np.inf
        assert set(order[finite]) <= set(slots[query].tolist())


@pytest.mark.gpu
def test_on_a_device() -> None:
    found = device.choose("auto")
    if found is None:
        pytest.skip("no CUDA device")
    from tarsdb.kernels.gpu.cuda_lists import CudaDots

    for dots in (lists.array_dots(found.xp), CudaDots(found.xp)):
        check_dots(dots, found.xp)
