"""Graphs whose neighbours a device found, NumPy in its place, beside those of the processor."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from tarsdb.errors import DeviceError
from tarsdb.index.course import UNWATCHED, Course
from tarsdb.index.hnsw import Graph, GraphOptions, on_device
from tarsdb.index.resources import Resources
from tarsdb.kernels.gpu import device as devices
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.select import partition
from tarsdb.metrics import METRICS
from tests.unit.index.test_hnsw import OPERATORS, built, clustered, recall


def numpy_device(budget: int = 1 << 30) -> Device:
    return Device("NumPy", np, DeviceArrays(budget), partition(np))


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "MIN_ROWS", 1)


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows do not lie on the device at once."""
    monkeypatch.setattr(on_device, "WHOLE", 500)
    monkeypatch.setattr(on_device, "GROUP", 1000)


def built_there(
    rows: np.ndarray, op: str = "<->", device: Device | None = None, threads: int = 1,
    course: Course = UNWATCHED, **options: Any,
) -> Graph:  # fmt: skip
    found = on_device.build_graph(
        rows, np.arange(len(rows)), op, GraphOptions(**options),
        Resources(threads, device or numpy_device()), course,
    )  # fmt: skip
    assert found is not None
    return found


def real(shared_data: pathlib.Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    folder = shared_data / "minilm384"
    base, queries = (np.load(folder / f"{n}.f16.npy", mmap_mode="r") for n in ("base", "query"))
    return base[:count].astype(np.float32), queries[:200].astype(np.float32)


@pytest.mark.parametrize("op", OPERATORS)
def test_recall_is_the_processors(shared_data: pathlib.Path, op: str) -> None:
    rows, queries = real(shared_data, 5000)
    there, here = built_there(rows, op), built(rows, op)
    for ef in (20, 64):
        own, others = (recall(graph, rows, op, ef, queries) for graph in (there, here))
        assert own >= others - 0.01 > 0.9, ef


def test_recall_of_groups(shared_data: pathlib.Path, grouped: None) -> None:
    rows, queries = real(shared_data, 5000)
    there, here = built_there(rows), built(rows)
    own, others = (recall(graph, rows, "<->", 64, queries) for graph in (there, here))
    assert own >= others - 0.01 > 0.9


def test_without_neighbours_recall_is_lost(
    shared_data: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: what the device finds is what counts."""

    def anything(device: Device, among: Any, queries: np.ndarray, wanted: int) -> np.ndarray:
        return np.random.default_rng(1).integers(0, len(among.data), (len(queries), wanted))

    rows, queries = real(shared_data, 5000)
    monkeypatch.setattr(on_device, "nearest_rows", anything)
    assert recall(built_there(rows), rows, "<->", 20, queries) < 0.8


@pytest.mark.parametrize("way", ["whole", "grouped"])
def test_edges_are_sound(way: str, request: pytest.FixtureRequest) -> None:
    if way == "grouped":
        request.getfixturevalue("grouped")
    rows = clustered(3000, 12, 4)
    graph = built_there(rows, m=6, ef_construction=40)
    edges = np.sort(graph.edges, axis=1)
    assert edges.shape[1] == 12 and edges.max() < 3000
    assert (edges != np.arange(3000)[:, None]).all()
    assert ((edges[:, 1:] != edges[:, :-1]) | (edges[:, 1:] < 0)).all()
    seen, at = set(graph.entries.tolist()), list(graph.entries.tolist())
    while at:
        new = set(graph.edges[at.pop()].tolist()) - seen - {-1}
        seen |= new
        at += new
    assert len(seen) == 3000
    np.testing.assert_array_equal(np.sort(graph.rowids), np.arange(3000))


def test_the_same_whatever_the_threads(grouped: None) -> None:
    rows = clustered(3000, 12, 4)
    first, second = (built_there(rows, threads=n).to_arrays() for n in (1, 3))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    other = built_there(rows, seed=2).to_arrays()
    assert (other["edges"] != first["edges"]).any()


@pytest.mark.parametrize("rows", [
    np.zeros((1, 8)), np.zeros((300, 8)), np.ones((700, 3)), np.arange(900.0)[:, None],
    np.repeat(np.random.default_rng(1).standard_normal((4, 8)), 200, axis=0),
], ids=["one", "zero", "equal", "narrow", "four"])  # fmt: skip
@pytest.mark.parametrize("op", OPERATORS)
def test_odd_data(rows: np.ndarray, op: str) -> None:
    rows = rows.astype(np.float32)
    graph = built_there(rows, op)
    near = graph.search(rows[0], min(len(rows), 20), 200)
    assert near is not None and len(set(near.tolist())) == min(len(rows), 20)
    assert graph.edges.max() < len(rows)


def test_bits_and_halves() -> None:
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 256, (1200, 4), dtype=np.uint8)
    assert len(built_there(bits)) == 1200
    halves = clustered(1200, 8, 1)
    queries = halves[:50]
    assert recall(built_there(halves.astype(np.float16)), halves, "<->", 64, queries) > 0.95


def failures() -> float:
    return METRICS.snapshot().get("index.device_failures", 0)


@pytest.mark.parametrize("why", ["memory", "budget", "infinite", "few", "none"])
def test_what_is_left_to_the_processor(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, device, before = clustered(1000, 8, 1), numpy_device(), failures()
    if why == "memory":
        device = Device("NumPy", np, DeviceArrays(1 << 30), lambda *_: 1 / 0)  # type: ignore[arg-type,return-value]
    elif why == "budget":
        device = numpy_device(1000 * 8 * 4)
    elif why == "infinite":
        rows[5, 5] = np.inf
    elif why == "few":
        monkeypatch.setattr(on_device, "MIN_ROWS", 1001)
    resources = Resources(1, None if why == "none" else device)
    with np.errstate(all="ignore"):
        found = on_device.build_graph(
            rows, np.arange(1000), "<->", GraphOptions(quantization="int8"), resources, UNWATCHED
        )
    assert found is None
    assert failures() - before == (why in ("memory", "budget"))


def test_what_does_not_fit_names_its_size() -> None:
    rows = on_device._Rows(built(clustered(50, 8, 1)).space, clustered(50, 8, 1), np.arange(50))
    with pytest.raises(DeviceError, match="50 rows take 1850 bytes, device NumPy has 1849"):
        on_device._brought(numpy_device(1849), rows, np.arange(50))


def test_a_build_tells_how_far_it_is_and_can_be_stopped(grouped: None) -> None:
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append(done)
        if len(told) > limit:
            raise KeyboardInterrupt

    limit = 10**6
    built_there(clustered(2000, 8, 1), course=Course(progress))
    assert told == sorted(told) and told[-1] == 2000 and len(set(told)) > 4
    told, limit = [], 3
    with pytest.raises(KeyboardInterrupt):
        built_there(clustered(2000, 8, 1), course=Course(progress))


@pytest.mark.gpu
def test_on_a_device(shared_data: pathlib.Path) -> None:
    device = devices.choose("auto")
    if device is None:
        pytest.skip("no CUDA device")
    rows, queries = real(shared_data, 20_000)
    there, here = built_there(rows, device=device), built(rows)
    for ef in (20, 64):
        own, others = (recall(graph, rows, "<->", ef, queries) for graph in (there, here))
        assert own >= others - 0.01
