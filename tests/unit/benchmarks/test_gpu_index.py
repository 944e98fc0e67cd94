"""The benchmark of indexes on a device: what it says without one, and its figures over NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import harness, inputs
from benchmarks.device_claims import DEVICE
from benchmarks.workloads import gpu_index
from tarsdb.errors import DeviceError
from tarsdb.index.hnsw import on_device as graphs
from tarsdb.kernels.gpu import device as devices
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.select import partition


def test_without_a_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "_found", DeviceError("device 'gpu': none here"))
    assert gpu_index.run() is None
    assert capsys.readouterr().out == "no device, nothing measured: device 'gpu': none here\n"


def test_figures_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("NumPy", np, DeviceArrays(1 << 30), partition(np))
    monkeypatch.setattr(devices, "_found", device)
    rng = np.random.default_rng(1)
    data = inputs.Vectors(*(rng.standard_normal((n, 8)).astype("f4") for n in (800, 60)), "drawn")
    monkeypatch.setattr(inputs, "vectors", lambda rows: data)
    monkeypatch.setattr(graphs, "MIN_ROWS", 1)
    monkeypatch.setattr(gpu_index, "QUERIES", 60)
    monkeypatch.setattr(gpu_index, "BATCHES", (100,))
    written: dict[str, Any] = {}
    monkeypatch.setattr(harness, "write", written.__setitem__)
    record = gpu_index.run(800, 1, lambda each: {})
    assert record is not None and written == {"gpu_index": record}
    batch = record["lists"]["batches"]["100"]
    assert batch["answers_equal"] and min(record["graph"]["recall"].values()) > 0.95
    record["lists"]["batches"]["10000"] = batch
    figures = [claim.figure(record) for claim in DEVICE]
    assert figures[0] > 0 and abs(figures[1]) < 0.05 and figures[2] > 0
    assert not DEVICE[1].passes(0.02)
