"""The device room over NumPy: choice of a device, memory, selection; the CUDA kernel simulated."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tarsdb.errors import DeviceError
from tarsdb.kernels.gpu import device, nearest
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.select import nothing, partition


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Forget what was found, before and after."""
    monkeypatch.setattr(device, "_found", None)
    yield monkeypatch


def broken(reason: str) -> Any:
    def fail(*_: Any) -> Any:
        raise RuntimeError(reason)

    return fail


def cupy_of(count: Any) -> Any:
    """Return what stands for CuPy up to the question how many devices there are."""
    return SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=count)))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "CuPy cannot be imported"),
        (cupy_of(lambda: 0), "CuPy finds no CUDA device"),
        (cupy_of(broken("driver is older")), "RuntimeError: driver is older"),
    ],
)
def test_what_keeps_a_device_away_is_said(
    unknown: pytest.MonkeyPatch, module: Any, message: str
) -> None:
    unknown.setitem(sys.modules, "cupy", module)
    assert device.choose("cpu") is None
    assert device.choose("auto") is None
    for _ in range(2):  # found out once, told each time
        with pytest.raises(DeviceError, match=message) as caught:
            device.choose("gpu")
        assert "SET device = 'cpu'" in (caught.value.hint or "")


def test_cpu_asks_nobody(unknown: pytest.MonkeyPatch) -> None:
    unknown.setattr(device, "_detected", broken("was asked"))
    assert device.choose("cpu") is None
    with pytest.raises(RuntimeError, match="was asked"):
        device.choose("auto")


def test_products_of_less_than_float32_are_refused() -> None:
    class Rounding:
        """NumPy whose products keep 10 bits of a factor, as TF32 does."""

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        @staticmethod
        def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return (a.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) @ b

    device.check_precision(np)
    with pytest.raises(DeviceError, match="less precise than float32"):
        device.check_precision(Rounding())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_no_device(unknown: pytest.MonkeyPatch) -> None:
    unknown.setattr(device, "_found", numpy_device())
    assert device.choose("gpu") is not None
    child = os.fork()
    if not child:
        try:
            device.choose("gpu")
        except DeviceError as error:
            os._exit(42 if "forked" in error.message else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


# --- memory ---


def test_arrays_are_made_once_within_the_budget_and_leave_in_turn() -> None:
    kept, made = DeviceArrays(100), []
    a, b, c = (np.zeros(3) for _ in range(3))

    def get(key: np.ndarray, size: int) -> str | None:
        def make() -> str:
            made.append(id(key))
            return f"{id(key)}"

        return kept.get(key, size, make)

    assert get(a, 40) == get(a, 40) == f"{id(a)}" and made == [id(a)]
    get(b, 40), get(a, 40)
    get(c, 40)  # b was used longest ago
    assert kept.nbytes == 80
    get(a, 40), get(c, 40)
    assert made == [id(a), id(b), id(c)]
    get(b, 40)
    assert made[-1] == id(b) and kept.nbytes == 80
    assert get(np.zeros(9), 101) is None and kept.nbytes == 80


def test_what_belongs_to_a_dead_array_is_freed() -> None:
    kept = DeviceArrays(100)
    a, b = np.zeros(3), np.zeros(3)
    kept.get(a, 60, object), kept.get(b, 30, object)
    del a
    gc.collect()
    assert kept.nbytes == 30


# --- selection ---


def numpy_device(budget: int = 1 << 30) -> Device:
    return Device("NumPy", np, DeviceArrays(budget), partition(np))


CASES = [(1, 1, 1), (3, 5, 8), (2, 300, 1), (2, 257, 16), (1, 300, 64)]
LARGE = [(4, 1000, 64), (1, 600, 256), (5, 70_000, 128)]


def given(queries: int, rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((queries, rows)).astype(np.float32)
    keys[:, :: 3 + seed] = 0.25  # equal ones
    keys[:, 1 :: 7 + seed] = np.inf
    keys[0, -1] = -np.inf
    return keys


def assert_smallest(keys: np.ndarray, places: np.ndarray, every: np.ndarray) -> None:
    wanted = keys.shape[1]
    right = np.sort(np.pad(every, ((0, 0), (0, wanted)), constant_values=np.inf), axis=1)
    np.testing.assert_array_equal(np.sort(keys, axis=1), right[:, :wanted])
    for row, (some, names) in enumerate(zip(keys, places, strict=True)):
        real = some < np.inf
        assert len(set(names[real].tolist())) == real.sum()
        np.testing.assert_array_equal(every[row, names[real]], some[real])


def check_merge(merge: Any, cases: list[tuple[int, int, int]], xp: Any = np) -> None:
    for queries, rows, wanted in cases:
        tiles = [given(queries, rows, seed) for seed in range(2)]
        keys, places = nothing(xp, queries, wanted)
        for number, tile in enumerate(tiles):
            keys, places = merge(xp.asarray(tile), number * rows, keys, places)
        if xp is not np:
            keys, places = xp.asnumpy(keys), xp.asnumpy(places)
        assert_smallest(keys, places, np.concatenate(tiles, axis=1))


def test_partition_keeps_the_smallest() -> None:
    check_merge(partition(np), CASES + LARGE)


def test_the_check_of_merges_can_fail() -> None:
    with pytest.raises(AssertionError):
        check_merge(
            lambda found, first, keys, places: partition(np)(-found, first, keys, places), CASES
        )


SIMULATED = """
import sys
sys.path.insert(0, sys.argv[1])
from tarsdb.kernels.gpu.topk import TopK
from tests.unit.kernels.test_gpu import check_merge
check_merge(TopK(4, 3), [(1, 1, 1), (3, 5, 8), (2, 130, 1), (1, 60, 32)])
check_merge(TopK(32, 1), [(2, 50, 4)])
print("simulated")
"""


def test_the_kernel_keeps_the_smallest_in_the_simulator() -> None:
    if importlib.util.find_spec("numba.cuda") is None:
        pytest.skip("this Numba has no CUDA target: pip install numba-cuda")
    root = str(device.__file__).rpartition("/tarsdb/")[0]
    outcome = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SIMULATED, root], capture_output=True, text=True,
        check=False, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
    )  # fmt: skip
    assert outcome.stdout == "simulated\n", outcome.stderr


# --- products ---


def test_smallest_keys_over_blocks_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "TILE_QUERIES", 7)
    monkeypatch.setattr(nearest, "TILE_ROWS", 40)
    rng = np.random.default_rng(3)
    blocks = [rng.standard_normal((rows, 9)).astype(np.float32) for rows in (100, 1, 57)]
    queries = rng.standard_normal((20, 9)).astype(np.float32)
    offsets = [rng.standard_normal(len(rows)).astype(np.float32) for rows in blocks]
    factors = rng.random(100).astype(np.float32)
    terms = [(blocks[0], offsets[0], factors), (blocks[1], offsets[1], None),
             (blocks[2], offsets[2], None)]  # fmt: skip
    keys, places = nearest.smallest(numpy_device(), terms, queries, 16)
    scale = np.concatenate([factors, np.ones(58, np.float32)])
    want = np.concatenate(offsets) - scale * (queries @ np.concatenate(blocks).T)
    order = np.argsort(want, axis=1)[:, :16]
    np.testing.assert_array_equal(np.sort(places, axis=1), np.sort(order, axis=1))
    np.testing.assert_allclose(keys, np.take_along_axis(want, places, 1), rtol=1e-5, atol=1e-5)


# --- a real device ---


@pytest.mark.gpu
def test_the_smallest_are_kept_on_a_device() -> None:
    found = device.choose("auto")
    if found is None:
        pytest.skip("no CUDA device")
    for merge in (found.merge, partition(found.xp)):
        check_merge(merge, CASES + LARGE, found.xp)
