"""k-means over codes: inertia, odd data, the same on every level and at any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tarsdb.index.hnsw.codes import Space
from tarsdb.index.ivf.kmeans import Rows, Work, assign, coded, kmeans, tile_starts, tiled
from tarsdb.kernels import dispatch
from tarsdb.kernels import ivf as kernels
from tarsdb.kernels.gpu import assign as on_device
from tarsdb.kernels.gpu import device as devices
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.select import partition
from tarsdb.kernels.ivf import IvfKernels
from tests.unit.index.levels import forced


def ready() -> IvfKernels:
    found = kernels.wait()
    assert found is not None
    return found


def inertia(rows: np.ndarray, centroids: np.ndarray) -> float:
    return float(squares(rows, centroids).min(axis=1).sum())


def squares(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return ((rows[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)


def groups(rows: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = 4 * np.random.default_rng(dim).standard_normal((20, dim))
    return (centres[rng.integers(0, 20, rows)] + rng.standard_normal((rows, dim))).astype("f4")


@pytest.fixture(params=dispatch.LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from forced(request.param)


@pytest.mark.parametrize("dim", [1, 3, 64, 65, 200])
def test_codes_equal_the_definition(level: str, dim: int) -> None:
    rows = groups(37, dim, 1)
    rows[5] = 0
    space = Space("<->", np.zeros(dim, np.float32), 0.0)
    want, constants = space.coded(rows)
    made = coded(rows, ready())
    assert ((made.codes.view(np.uint8) ^ 128) == want).all()
    np.testing.assert_array_equal(made.constants, constants)


@pytest.mark.parametrize(("rows", "lists", "dim"), [(1, 1, 1), (50, 17, 30), (133, 64, 384)])
def test_assignment_is_the_nearest_code(level: str, rows: int, lists: int, dim: int) -> None:
    made, centroids = coded(groups(rows, dim, 1), ready()), coded(groups(lists, dim, 2), ready())
    labels, distances = assign(made, centroids, Work(ready(), threads=2))
    want = squares(made.decoded(), centroids.decoded())
    size = made.constants[:, 0].max() + centroids.constants[:, 0].max()
    chosen = want[np.arange(rows), labels]
    np.testing.assert_allclose(chosen, want.min(axis=1), atol=1e-5 * size)
    np.testing.assert_allclose(distances, want.min(axis=1), atol=1e-5 * size)


def test_levels_agree() -> None:
    rows = groups(700, 96, 1)
    found = []
    for name in dispatch.LEVELS[dispatch.LEVELS.index(dispatch._best_level()) :]:
        for _ in forced(name):
            found.append(kmeans(coded(rows, ready()), 30, 5, 1, Work(ready())))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_matter(threads: int) -> None:
    made = coded(groups(3001, 20, 1), ready())
    alone = kmeans(made, 50, 6, 1, Work(ready()))
    np.testing.assert_array_equal(alone, kmeans(made, 50, 6, 1, Work(ready(), threads)))
    assert (alone != kmeans(made, 50, 6, 2, Work(ready()))).any()


def test_inertia_falls_to_that_of_lloyd_in_float64() -> None:
    rows = groups(2000, 24, 1)
    found = kmeans(coded(rows, ready()), 40, 12, 1, Work(ready()))
    rng = np.random.default_rng(1)
    exact = rows[np.sort(rng.choice(2000, 40, replace=False))].astype(np.float64)
    start = inertia(rows, exact)
    for _ in range(12):
        labels = squares(rows, exact).argmin(axis=1)
        exact = np.stack([rows[labels == c].mean(axis=0) if (labels == c).any() else exact[c]
                          for c in range(40)])  # fmt: skip
    assert inertia(rows, found) <= 1.02 * inertia(rows, exact)
    assert inertia(rows, found) < 0.7 * start


def test_empty_clusters_take_from_the_largest() -> None:
    rows = np.zeros((400, 8), np.float32)
    rows[200:] = groups(200, 8, 1)  # half of the rows are one point: most of its centroids are idle
    found = kmeans(coded(rows, ready()), 60, 15, 1, Work(ready()))
    labels, _ = assign(coded(rows, ready()), coded(found, ready()), Work(ready()))
    assert len(np.unique(labels)) >= 45
    assert np.isfinite(found).all()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_rows_all_equal(value: float) -> None:
    rows = np.full((50, 5), value, np.float32)
    found = kmeans(coded(rows, ready()), 10, 5, 1, Work(ready()))
    assert found.shape == (10, 5)
    assert inertia(rows, found) <= 1e-6 * (1 + value)


def test_more_clusters_than_rows() -> None:
    rows = groups(3, 4, 1)
    assert kmeans(coded(rows, ready()), 10, 5, 1, Work(ready())).shape == (3, 4)


def test_tiles_hold_the_rows_of_a_list() -> None:
    made = coded(groups(40, 70, 1), ready())
    starts = np.array([0, 0, 17, 40])
    codes, constants = tiled(made, starts)
    assert tile_starts(starts).tolist() == [0, 0, 2, 4]
    rows = codes.transpose(0, 2, 1, 3).reshape(-1, 128)
    np.testing.assert_array_equal(rows[:17], made.codes[:17].view(np.uint8) ^ 128)
    np.testing.assert_array_equal(rows[32:55], made.codes[17:].view(np.uint8) ^ 128)
    assert np.isinf(constants[1, 0, 1:]).all()
    assert (constants[3, 0, :7] == made.constants[33:, 0]).all()


def test_it_stops_when_told() -> None:
    class StopIt(Exception):
        pass

    def stop(rows: int) -> None:
        raise StopIt

    with pytest.raises(StopIt):
        kmeans(coded(groups(50, 4, 1), ready()), 5, 5, 1, Work(ready(), advance=stop))


def test_sizes_are_those_of_the_kernels() -> None:
    from tarsdb.kernels.cpu import ivf as compiled
    from tarsdb.kernels.cpu import product_codes, refining, sign_bits

    own = (kernels.TILE, kernels.PLAN, kernels.SCRATCH, kernels.BLOCK, kernels.ROUNDS)
    of_bits = (sign_bits.BLOCK, sign_bits.ROUNDS)
    assert own == (compiled.TILE, compiled.PLAN, compiled.SCRATCH, *of_bits)
    assert kernels.CENTROIDS == product_codes.CENTROIDS
    further = kernels.PLACE, kernels.FURTHER_CONSTANTS
    assert further == (refining.PLACE, refining.CONSTANTS)
    assert kernels.STEP % max(compiled.SEVERAL.values()) == 0
    assert Rows.empty(2, 65).codes.shape == (2, 128)


ODD = ("plain", "equal", "zero", "large", "small")


def odd(kind: str, rows: int, dim: int, seed: int) -> np.ndarray:
    found = groups(rows, dim, seed)
    if kind == "equal":
        found[:] = found[0]
    elif kind == "zero":
        found[::2] = 0
    elif kind == "large":
        found[1::3] *= 1e19  # squares are no float32
    elif kind == "small":
        found *= 1e-24
    return found


def assert_assigned_alike(device: Device, rows: Rows, centroids: Rows) -> None:
    told: list[int] = []
    want = assign(rows, centroids, Work(ready()))
    found = assign(rows, centroids, Work(ready(), 1, told.append, device))
    np.testing.assert_array_equal(found[0], want[0])
    np.testing.assert_array_equal(found[1].view(np.int32), want[1].view(np.int32))
    assert found[0].dtype == want[0].dtype and sum(told) == len(rows)


@pytest.mark.parametrize("budget", [1 << 30, 0])
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize(("rows", "lists", "dim"), [(1, 1, 1), (133, 64, 384), (90, 7, 2100)])
def test_a_device_assigns_as_the_kernel(
    monkeypatch: pytest.MonkeyPatch, rows: int, lists: int, dim: int, kind: str, budget: int
) -> None:
    monkeypatch.setattr(on_device, "KEYS", 1000)
    device = Device("NumPy", np, DeviceArrays(budget), partition(np))
    made, centroids = (coded(odd(kind, n, dim, n), ready()) for n in (rows, lists))
    assert_assigned_alike(device, made, centroids)
    assert device.arrays.nbytes <= budget


def test_sums_beyond_float32_need_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: codes of one sign, so long that one product would round."""
    rows = np.random.default_rng(1).uniform(0.9, 1, (600, 4100)).astype(np.float32)
    made, centroids = coded(rows[:500], ready()), coded(rows[500:], ready())
    device = Device("NumPy", np, DeviceArrays(1 << 30), partition(np))
    assert_assigned_alike(device, made, centroids)
    monkeypatch.setattr(on_device, "EXACT", 1 << 20)
    with pytest.raises(AssertionError):
        assert_assigned_alike(device, made, centroids)


def test_a_device_that_fails_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    made, centroids = (coded(groups(n, 30, n), ready()) for n in (90, 7))
    monkeypatch.setattr(on_device, "KEYS", 7 * 40)
    calls: list[int] = []

    def products(*_: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("the device is full")
        return whole(*_)  # type: ignore[arg-type]

    whole = on_device._products
    monkeypatch.setattr(on_device, "_products", products)
    device = Device("NumPy", np, DeviceArrays(1 << 30), partition(np))
    found = assign(made, centroids, Work(ready(), device=device))
    assert len(calls) == 2
    np.testing.assert_array_equal(found[0], assign(made, centroids, Work(ready()))[0])


def test_who_is_told_may_stop_a_device() -> None:
    def stop(rows: int) -> None:
        raise RuntimeError("enough")

    made = coded(groups(90, 30, 1), ready())
    device = Device("NumPy", np, DeviceArrays(1 << 30), partition(np))
    with pytest.raises(RuntimeError, match="enough"):
        assign(made, made, Work(ready(), 1, stop, device))


@pytest.mark.gpu
def test_a_real_device_assigns_as_the_kernel() -> None:
    device = devices.choose("auto")
    if device is None:
        pytest.skip("no CUDA device")
    for kind in ODD:
        made, centroids = (coded(odd(kind, n, 384, n), ready()) for n in (20_000, 500))
        assert_assigned_alike(device, made, centroids)
