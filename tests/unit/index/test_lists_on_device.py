"""Search of inverted lists by a device, NumPy in its place, names what the processor's names."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import numpy as np
import pytest

from tarsdb.index import arrays
from tarsdb.index.ivf import Ivf, on_device
from tarsdb.kernels import ivf as kernels
from tarsdb.kernels.gpu import device as devices
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.select import partition
from tarsdb.metrics import METRICS
from tests.unit.index.test_ivf import OPERATORS, built, clustered


def numpy_device(budget: int = 1 << 30) -> Device:
    return Device("NumPy", np, DeviceArrays(budget), partition(np))


def assert_same(
    ivf: Ivf, queries: np.ndarray, wanted: int, effort: int,
    allowed: np.ndarray | None = None, device: Device | None = None,
) -> int:  # fmt: skip
    """Compare; return how many queries the device left to the processor."""
    found = on_device.search(device or numpy_device(), ivf, queries, wanted, effort, allowed)
    assert found is not None and len(found) == len(queries)
    left = 0
    for query, nodes in zip(queries, found, strict=True):
        if nodes is None:
            left += 1
            continue
        np.testing.assert_array_equal(nodes, ivf.search(query, wanted, effort, allowed))
    return left


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("dim", [7, 65, 384])
def test_answers_are_the_processors(op: str, dim: int) -> None:
    rows, queries = clustered(1500, dim, 1), clustered(30, dim, 2)
    ivf = built(rows, op, lists=33)
    for wanted, effort in ((10, 4), (64, 33), (1, 1), (40, 17)):
        assert assert_same(ivf, queries, wanted, effort) <= (wanted == 10) * 30
    zero = np.zeros((20, dim), np.float32)
    assert assert_same(ivf, zero, 10, 33) == 0


def test_other_lists_are_other_answers() -> None:
    """Negative control: the effort counts."""
    rng = np.random.default_rng(1)
    rows, queries = (rng.standard_normal((n, 24)).astype(np.float32) for n in (1500, 30))
    ivf = built(rows, lists=33)
    few = on_device.search(numpy_device(), ivf, queries, 40, 2)
    assert few is not None
    differing = [
        nodes is None or (nodes != ivf.search(query, 40, 33)).any()
        for query, nodes in zip(queries, few, strict=True)
    ]
    assert sum(differing) > 10


def test_only_allowed_nodes_are_named() -> None:
    ivf, queries = built(clustered(1500, 24, 1), lists=20), clustered(30, 24, 2)
    allowed = (np.random.default_rng(1).random(1500) < 0.5).astype(np.uint8)
    assert assert_same(ivf, queries, 20, 20, allowed) == 0
    found = on_device.search(numpy_device(), ivf, queries, 20, 20, allowed)
    assert found is not None and all(allowed[nodes].all() for nodes in found if nodes is not None)
    allowed[:] = 0
    allowed[:19] = 1
    assert assert_same(ivf, queries, 20, 20, allowed) == 30


def test_lists_in_a_file_come_once() -> None:
    ivf, queries = built(clustered(1500, 24, 1), lists=20), clustered(30, 24, 2)
    packed = b"".join(bytes(part) for part in arrays.pack(ivf.to_arrays()))
    halves = [memoryview(packed)[: len(packed) // 2], memoryview(packed)[len(packed) // 2 :]]
    copied, left = arrays.unpack_runs(halves, ("codes",))
    stored = Ivf.from_arrays({**copied, **left})
    assert isinstance(stored.codes, arrays.Runs)
    device = numpy_device()
    assert assert_same(stored, queries, 20, 20, device=device) == 0
    assert device.arrays.nbytes == on_device._bytes(stored)
    held = device.arrays.get(stored.constants, 0, lambda: pytest.fail("brought again"))
    assert assert_same(stored, queries, 20, 20, device=device) == 0
    assert device.arrays.get(stored.constants, 0, lambda: pytest.fail("brought again")) is held


@pytest.mark.parametrize("why", ["few", "codes", "wanted", "room", "infinite"])
def test_what_is_left_to_the_processor(why: str) -> None:
    rows, queries = clustered(1500, 24, 1), clustered(30, 24, 2)
    ivf = built(rows, lists=20, codes="none" if why == "codes" else "int8")
    device = numpy_device(1000) if why == "room" else numpy_device()
    if why == "infinite":
        queries[3, 3] = np.inf
    given = queries[:15] if why == "few" else queries
    wanted = 1025 if why == "wanted" else 10
    with np.errstate(all="ignore"):
        assert on_device.search(device, ivf, given, wanted, 5) is None


def test_a_device_that_fails_is_done_without() -> None:
    def full(*_: object) -> tuple[np.ndarray, np.ndarray]:
        raise MemoryError("the device is full")

    device = replace(numpy_device(), merge=full)
    ivf, queries = built(clustered(1500, 24, 1), lists=20), clustered(30, 24, 2)
    before = METRICS.snapshot().get("index.device_failures", 0)
    assert on_device.search(device, ivf, queries, 10, 5) is None
    assert METRICS.snapshot()["index.device_failures"] == before + 1


@pytest.mark.gpu
def test_on_a_device(shared_data: pathlib.Path) -> None:
    device = devices.choose("auto")
    if device is None:
        pytest.skip("no CUDA device")
    folder = shared_data / "minilm384"
    base, queries = (np.load(folder / f"{n}.f16.npy", mmap_mode="r") for n in ("base", "query"))
    ivf = built(base[:20_000].astype(np.float32), "<=>")
    assert kernels.current() is not None
    assert assert_same(ivf, queries[:300].astype(np.float32), 100, 64, device=device) == 0
