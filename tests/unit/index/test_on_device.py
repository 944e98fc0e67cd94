"""Exact search on a device, over NumPy, gives what the float32 scan gives, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tarsdb.columns import VectorBlock
from tarsdb.index import on_device
from tarsdb.index.flat import FlatIndex
from tarsdb.kernels import dispatch
from tarsdb.kernels.gpu import device as devices
from tarsdb.kernels.gpu import nearest
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.select import partition
from tarsdb.metrics import METRICS
from tarsdb.types import parse_type
from tests.unit.index.levels import forced
from tests.unit.index.test_coded import KINDS, OPERATORS, ROWS, Maker, blocks_of


@pytest.fixture(scope="module", params=["avx512", "avx2"])
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from forced(request.param)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the device for any batch, in many tiles."""
    monkeypatch.setattr(on_device, "MIN_QUERIES", 1)
    monkeypatch.setattr(on_device, "MIN_PAIRS", 1)
    monkeypatch.setattr(nearest, "TILE_QUERIES", 13)
    monkeypatch.setattr(nearest, "TILE_ROWS", 200)


def numpy_device(budget: int = 1 << 30) -> Device:
    return Device("NumPy", np, DeviceArrays(budget), partition(np))


def counted(name: str) -> float:
    return METRICS.snapshot().get(f"index.device_{name}", 0)


def assert_same(
    flat: FlatIndex, device: Device, queries: np.ndarray, k: int, op: str
) -> tuple[float, float]:
    """Compare; return how many answers the device proved, and how many it left."""
    before = [counted(name) for name in ("certified", "fallbacks")]
    found, expected = flat.search_on(device, queries, k, op), flat.search(queries, k, op)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1].view(np.int32), expected[1].view(np.int32))
    return counted("certified") - before[0], counted("fallbacks") - before[1]


@pytest.mark.parametrize("dim", (1, 7, 65, 384))
@pytest.mark.parametrize("maker", KINDS, ids=lambda maker: maker.__name__)
def test_answers_are_the_scans(level: str, small_batches: None, maker: Maker, dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows = maker(rng, ROWS, dim).astype(np.float32)
    near = (rows[::40] * np.float32(1.01)).astype(np.float32)
    queries = np.concatenate([near, maker(rng, 3, dim), np.zeros((1, dim))]).astype(np.float32)
    for mask in (False, True):
        flat, device = (
            FlatIndex(blocks_of(rows, mask), parse_type(f"VECTOR({dim})")),
            numpy_device(),
        )
        for op in OPERATORS:
            for k in (1, 40):
                assert_same(flat, device, queries, k, op)


@pytest.mark.parametrize("op", OPERATORS)
def test_plain_data_is_proved(level: str, small_batches: None, op: str) -> None:
    rng = np.random.default_rng(1)
    rows, queries = (rng.standard_normal((n, 384)).astype(np.float32) for n in (ROWS, 50))
    flat = FlatIndex(blocks_of(rows, True), parse_type("VECTOR(384)"))
    assert assert_same(flat, numpy_device(), queries, 10, op) == (50, 0)


def test_rows_that_are_all_alike_are_left_to_the_scan(level: str, small_batches: None) -> None:
    rows = np.tile(np.random.default_rng(1).standard_normal(384).astype(np.float32), (ROWS, 1))
    flat = FlatIndex(blocks_of(rows, False), parse_type("VECTOR(384)"))
    assert assert_same(flat, numpy_device(), rows[:30] + 1, 10, "<->") == (0, 30)


@pytest.mark.parametrize("op", OPERATORS)
def test_limits_hold_for_every_row(level: str, op: str) -> None:
    """No distance of the float kernel is below what its row's key stands for."""
    metric = OPERATORS[op]
    assert dispatch.get("f32") is not None
    for maker in KINDS:
        for dim in (1, 7, 384):
            rng = np.random.default_rng(dim)
            rows = np.clip(maker(rng, 300, dim), -1e16, 1e16).astype(np.float32)
            queries = np.concatenate([rows[::50] * 1.001, maker(rng, 4, dim)]).astype(np.float32)
            norms = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
            usable = (norms > 1e-10) & (norms < 1e17)
            queries, norms = queries[usable], norms[usable]
            known = nearest.upload(numpy_device(), rows)
            offsets, factors = on_device._terms(np, metric, known, None)
            products = on_device._scaled(metric, queries, norms) @ rows.T
            keys = offsets - (products if factors is None else products * factors)
            flat = FlatIndex([VectorBlock(np.arange(300), rows)], parse_type(f"VECTOR({dim})"))
            for number, query in enumerate(queries):
                distances = flat._all(metric, query, None)[1]
                limits = on_device._limits(metric, keys[number], np.full(300, norms[number]), dim)
                defined = ~np.isnan(distances)
                assert (distances[defined] >= limits[defined]).all(), (maker, dim)


def test_a_bound_without_its_error_term_is_caught(
    level: str, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: rows much nearer to each other than to zero."""
    monkeypatch.setattr(on_device, "SLACK", 1)
    rng = np.random.default_rng(5)
    rows = (100 + 1e-3 * rng.standard_normal((69, 384))).astype(np.float32)
    flat = FlatIndex([VectorBlock(np.arange(9), rows[:9])], parse_type("VECTOR(384)"))
    assert_same(flat, numpy_device(), rows[9:], 3, "<->")
    monkeypatch.setattr(on_device, "_kappa", lambda width: 0.0)
    with pytest.raises(AssertionError):
        assert_same(flat, numpy_device(), rows[9:], 3, "<->")


def test_what_does_not_fit_is_searched_by_the_processor(level: str, small_batches: None) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((ROWS, 64)).astype(np.float32)
    flat = FlatIndex(blocks_of(rows, False), parse_type("VECTOR(64)"))
    device = numpy_device(ROWS * 64 * 4)
    assert assert_same(flat, device, rows[:20], 5, "<->") == (0, 0)
    assert device.arrays.nbytes == 0


def test_blocks_come_once_and_deletions_count_at_once(level: str, small_batches: None) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((ROWS, 64)).astype(np.float32)
    data, rowids, kind = rows.copy(), np.arange(ROWS), parse_type("VECTOR(64)")
    device, live = numpy_device(), np.ones(ROWS, bool)
    assert_same(FlatIndex([VectorBlock(rowids, data)], kind), device, rows[:20], 3, "<->")
    held = device.arrays.get(data, 0, lambda: pytest.fail("brought again"))
    live[:10] = False
    after = FlatIndex([VectorBlock(rowids, data, live)], kind)
    assert assert_same(after, device, rows[:20], 3, "<->") == (20, 0)
    assert after.search_on(device, rows[:20], 1, "<->")[0].min() >= 10
    assert device.arrays.get(data, 0, lambda: pytest.fail("brought again")) is held


@pytest.mark.parametrize(("kind", "op", "k", "queries"), [
    ("HALFVEC(64)", "<->", 5, 40), ("VECTOR(64)", "<+>", 5, 40), ("VECTOR(64)", "<->", 600, 40),
    ("VECTOR(64)", "<->", 5, 15), ("VECTOR(64)", "<->", 0, 40),
])  # fmt: skip
def test_what_a_device_is_not_asked(
    level: str, monkeypatch: pytest.MonkeyPatch, kind: str, op: str, k: int, queries: int
) -> None:
    monkeypatch.setattr(on_device, "MIN_PAIRS", 1)
    monkeypatch.setattr(on_device, "search", lambda *_: pytest.fail("was asked"))
    sql_type = parse_type(kind)
    rows = np.random.default_rng(1).standard_normal((ROWS, 64)).astype(sql_type.dtype)
    flat = FlatIndex([VectorBlock(np.arange(ROWS), rows)], sql_type)
    assert_same(flat, numpy_device(), rows[:queries].astype(np.float32), k, op)


def test_a_device_that_fails_is_done_without(level: str, small_batches: None) -> None:
    def full(*_: object) -> tuple[np.ndarray, np.ndarray]:
        raise MemoryError("the device is full")

    rows = np.random.default_rng(1).standard_normal((ROWS, 64)).astype(np.float32)
    flat, before = FlatIndex(blocks_of(rows, False), parse_type("VECTOR(64)")), counted("failures")
    device = Device("NumPy", np, DeviceArrays(1 << 30), full)
    for _ in range(2):  # it is not left locked
        assert assert_same(flat, device, rows[:20], 5, "<->") == (0, 0)
    assert counted("failures") == before + 2


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPERATORS)
def test_answers_of_a_device_are_the_scans(level: str, op: str) -> None:
    device = devices.choose("auto")
    if device is None:
        pytest.skip("no CUDA device")
    rng = np.random.default_rng(1)
    rows, queries = (rng.standard_normal((n, 384)).astype(np.float32) for n in (100_000, 500))
    flat = FlatIndex(blocks_of(rows, True), parse_type("VECTOR(384)"))
    certified, _ = assert_same(flat, device, queries, 10, op)
    assert certified == 500
