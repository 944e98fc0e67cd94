"""The benchmark of packed weights: its children on a tiny decoder, and its bars of a record."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from benchmarks import processes
from benchmarks.inference_claims import INFERENCE
from benchmarks.workloads import packed_weights as workload
from tarsdb.engine.inference import packed_weights
from tarsdb.metrics import METRICS
from tarsdb.storage import packed
from tests.unit.benchmarks.test_gpu_models import TINY

BARS = [claim for claim in INFERENCE if claim.workload == "packed_weights"]


@pytest.mark.skipif(not packed.CAN_OVERLAY, reason="nothing is mapped here")
def test_children_measure_what_they_say(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "SHAPES", {"110M": TINY})
    monkeypatch.setattr(packed_weights, "SMALLEST_BYTES", 0)
    made = workload.make(tmp_path, "110M", "int8")
    assert made["file_bytes_added"] > 0
    before = METRICS.snapshot().get("packed_weights.hits", 0)
    for setting, hits in (("off", 0), ("on", 1)):
        found = workload.sample(tmp_path, setting, "int8")
        assert found["first_token_s"] > 0 and found["cpu_ms_a_token"] > 0
        assert METRICS.snapshot().get("packed_weights.hits", 0) - before == hits


def test_bars_compare_who_maps_with_who_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"off": (8.0, 200, 4.0), "on": (0.5, 20, 4.4)}

    def call(_: str, __: str, mode: str, *___: object) -> dict[str, Any]:
        if mode == "make":
            return {"file_bytes_added": 5}
        keys = ("first_token_s", "private_bytes", "cpu_ms_a_token")
        return dict(zip(keys, answers[mode], strict=True))

    monkeypatch.setattr(processes, "call", call)
    record = workload.run("110M", "int8", 2)
    assert [claim.figure(record) for claim in BARS] == pytest.approx([16, 0.1, 1.1])
    assert record["file_bytes_added"] == 5
