"""The benchmark of models on a device: what it says without one, and its figures over NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import harness, on_device
from benchmarks.inference_claims import INFERENCE
from benchmarks.workloads import decode, gpu_models
from tarsdb.errors import DeviceError
from tarsdb.kernels.gpu import device as devices
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.select import partition

TINY = {**decode.SHAPES["110M"], "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 1100,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip


def test_without_a_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "_found", DeviceError("device 'gpu': none here"))
    assert gpu_models.run() is None
    assert capsys.readouterr().out == "no device, nothing measured: device 'gpu': none here\n"


def test_figures_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("NumPy", np, DeviceArrays(1 << 30), partition(np))
    monkeypatch.setattr(devices, "_found", device)
    small = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
             "vocab_size": 1100, "intermediate_size": 64}  # fmt: skip
    monkeypatch.setattr(gpu_models, "MINILM", {**gpu_models.MINILM, **small})
    monkeypatch.setattr(gpu_models, "SHAPES", {"0.5B": TINY})
    monkeypatch.setattr(gpu_models, "_has_torch", lambda: False)
    written: dict[str, Any] = {}
    monkeypatch.setattr(harness, "write", written.__setitem__)
    record = gpu_models.run(20, ("0.5B",), 1, lambda each: on_device.speed(each, 64, 1 << 16))
    assert record is not None and written == {"gpu_models": record}
    assert record["embed"]["tokens"] == int(gpu_models.lengths(20).sum())
    assert set(record["0.5B"]["b1"]["share_of_bandwidth"]) == set(gpu_models.MODES)
    bars = [claim for claim in INFERENCE if claim.workload == "gpu_models"]
    alone = [claim for claim in bars if not claim.peer]
    assert len(alone) == 3 and all(claim.figure(record) > 0 for claim in alone)
    for place in (record["embed"], record["0.5B"]["b1"]):  # as if PyTorch were half as fast
        speeds = place["tokens_per_second"]
        speeds |= {
            f"torch {gpu_models.MODES[m]}": speeds[f"tarsdb {m}"] / 2 for m in ("none", "bf16")
        }
    assert all(claim.figure(record) == pytest.approx(2) for claim in bars if claim.peer)
