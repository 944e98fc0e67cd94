"""``SET device``: without a GPU, with a NumPy device in its place, through searches and builds."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import DataError, DeviceError
from tarsdb.index import on_device
from tarsdb.kernels import dispatch
from tarsdb.kernels.gpu import device as devices
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.select import partition
from tarsdb.metrics import METRICS

ROWS = np.random.default_rng(1).standard_normal((500, 16)).astype(np.float32)


@pytest.fixture
def db(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tarsdb.Connection]:
    dispatch.use(None)
    dispatch.warmup()
    monkeypatch.setattr(on_device, "MIN_PAIRS", 1)
    with tarsdb.connect(tmp_path / "a.tars") as found:
        found.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, emb VECTOR(16))")
        found.executemany("INSERT INTO t VALUES (?, ?)", list(enumerate(ROWS)))
        yield found


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_found", DeviceError("device 'gpu': none here"))


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device("NumPy", np, DeviceArrays(1 << 30), partition(np))
    monkeypatch.setattr(devices, "_found", found)
    return found


def batch(db: tarsdb.Connection) -> list[tuple[object, ...]]:
    return db.execute("SELECT id FROM t ORDER BY emb <-> ? LIMIT 5", [ROWS[:40] + 1]).fetchall()


def certified() -> float:
    return METRICS.snapshot().get("index.device_certified", 0)


def test_without_a_device(db: tarsdb.Connection, absent: None) -> None:
    assert db.execute("SHOW device").fetchall()[0][-1] == "cpu"
    expected = batch(db)
    with pytest.raises(DeviceError, match="none here"):
        db.execute("SET device = 'gpu'")
    with pytest.raises(DataError, match="none of cpu, gpu, auto"):
        db.execute("SET device = 'tpu'")
    db.execute("SET device = 'auto'")
    before = certified()
    assert batch(db) == expected and certified() == before


def test_batches_go_to_the_device_and_answers_stay(db: tarsdb.Connection, present: Device) -> None:
    expected, before = batch(db), certified()
    db.execute("SET device = 'gpu'")
    assert batch(db) == expected and certified() == before + 40
    held = present.arrays.nbytes
    assert held > 0
    db.execute("DELETE FROM t WHERE id < 10")
    assert min(row[1] for row in batch(db)) >= 10  # type: ignore[type-var]
    db.execute("INSERT INTO t VALUES (1000, ?)", [ROWS[0] + 1])
    assert batch(db)[0][1] == 1000
    db.execute("RESET device")
    assert batch(db)[0][1] == 1000
    before = certified()
    batch(db)
    assert certified() == before


def test_lists_are_built_on_the_device(
    db: tarsdb.Connection, present: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tarsdb.index.ivf import kmeans

    asked: list[int] = []
    whole = kmeans._assigned_on

    def counting(*args: object) -> tuple[np.ndarray, np.ndarray]:
        asked.append(1)
        return whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(kmeans, "_assigned_on", counting)
    db.execute("CREATE INDEX a ON t USING ivf (emb) WITH (lists = 8)")
    assert not asked
    db.execute("SET device = 'auto'")
    db.execute("CREATE INDEX b ON t USING ivf (emb) WITH (lists = 8)")
    assert asked


@pytest.mark.parametrize("statement", ["create", "optimize"])
def test_graphs_are_built_on_the_device(
    db: tarsdb.Connection, present: Device, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    from tarsdb.index.hnsw import on_device as graphs

    def made() -> float:
        return METRICS.snapshot().get("index.device_graphs", 0)

    before = made()
    db.execute("SET device = 'gpu'")
    db.execute("CREATE INDEX small ON t USING hnsw (emb) WITH (m = 8)")
    assert made() == before  # too few rows
    monkeypatch.setattr(graphs, "MIN_ROWS", 100)
    if statement == "create":
        db.execute("CREATE INDEX a ON t USING hnsw (emb) WITH (m = 8, metric = 'cosine')")
        search = "SELECT id FROM t ORDER BY emb <=> ? LIMIT 5"
    else:
        db.executemany(
            "INSERT INTO t VALUES (?, ?)", [(1000 + n, r + 3) for n, r in enumerate(ROWS)]
        )
        db.execute("OPTIMIZE t")
        search = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 5"
    assert made() == before + 1
    assert "index" in str(db.execute(f"EXPLAIN {search}", [ROWS[7]]).fetchall())
    assert db.execute(search, [ROWS[7]]).fetchall()[0][0] == 7


def test_lists_are_searched_on_the_device(db: tarsdb.Connection, present: Device) -> None:
    def named() -> float:
        return METRICS.snapshot().get("index.device_lists", 0)

    db.execute("CREATE INDEX a ON t USING ivf (emb) WITH (lists = 8)")
    db.execute("SET probes = 3")
    for change in (
        "SELECT 1",
        "DELETE FROM t WHERE id < 10",
        "UPDATE t SET emb = emb WHERE id = 40",
    ):
        db.execute(change)
        db.execute("SET device = 'cpu'")
        expected, before = batch(db), named()
        db.execute("SET device = 'gpu'")
        assert batch(db) == expected
        assert named() == before + 40
    search = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 5"
    plan = str(db.execute(f"EXPLAIN {search}", [ROWS[7]]).fetchall())
    assert "lists, probes 3" in plan and "exact searches and lists by device NumPy" in plan
    before = named()
    db.execute(search, [ROWS[7]])  # one query
    db.execute(search.replace("ORDER", "WHERE id > 200 ORDER"), [ROWS[:40]])
    assert named() == before
