"""Indexes and a CUDA device: building graphs and lists, searching lists by batches; wall time.

Without a device it says so and ends. A graph whose neighbours the device found stands beside the
processor's, all its cores at work, with the recall of both at one list size, and beside cuVS's
CAGRA where that is installed. Batches are searched in the same lists by the device and by one
thread. Writes ``results/gpu_index.LEVEL.json``:
``PYTHONPATH=. python -m benchmarks.workloads.gpu_index --rows 1000000``
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import harness, inputs
from benchmarks.on_device import device_or_none, speed, synchronize
from tarsdb.columns import VectorBlock
from tarsdb.errors import DeviceError
from tarsdb.index.course import UNWATCHED
from tarsdb.index.flat import FlatIndex
from tarsdb.index.hnsw import Graph, GraphOptions, build_graph
from tarsdb.index.hnsw import on_device as graphs
from tarsdb.index.ivf import Ivf, IvfOptions, build_ivf
from tarsdb.index.ivf import on_device as lists
from tarsdb.index.resources import Resources
from tarsdb.kernels import dispatch
from tarsdb.kernels.gpu.device import Device
from tarsdb.types import parse_type

PACKAGES = ("numpy", "numba", "numba-cuda", "cupy-cuda12x", "cuvs-cu12")
K, EF, PROBES, QUERIES = 10, 64, 64, 200
BATCHES = (128, 1000, 10_000)


def run(
    rows: int = 100_000, repeats: int = 5, measured: Callable[[Device], dict[str, float]] = speed
) -> dict[str, Any] | None:
    """Measure, print, and store the result; returns the record, None without a device."""
    device = device_or_none()
    if device is None:
        return None
    dispatch.warmup()
    data = inputs.vectors(rows)
    record = harness.environment(PACKAGES)
    record |= {"device": {"name": device.name, **measured(device)}}
    record["data"] = {"source": data.source, "rows": rows, "dim": data.base.shape[1], "k": K}
    record["graph"] = _graph(device, data)
    record["lists"] = _lists(device, data, repeats)
    harness.write("gpu_index", record)
    return record


def _graph(device: Device, data: inputs.Vectors) -> dict[str, Any]:
    base, rowids, options = data.base, np.arange(len(data.base)), GraphOptions()
    cores = os.cpu_count() or 1

    def there() -> Graph:
        resources = Resources(cores, device)
        graph = graphs.build_graph(base, rowids, "<->", options, resources, UNWATCHED)
        if graph is None:
            raise DeviceError("the device left the build to the processor")
        return graph

    there()  # compiles, and brings nothing that is kept
    seconds, recalls = {}, {}
    ways = {
        "device": there,
        "processor": lambda: build_graph(base, rowids, "<->", options, threads=cores),
    }
    truth = _truth(data)
    for name, build in ways.items():
        start = time.perf_counter()
        graph = build()
        seconds[name] = time.perf_counter() - start
        recalls[name] = _recall(graph, data, truth)
    if importlib.util.find_spec("cuvs"):
        seconds["cuVS CAGRA"] = _cagra(device, base)
    print("graph: " + ", ".join(f"{name} {taken:.2f} s" for name, taken in seconds.items()))
    print("  recall " + ", ".join(f"{name} {recall:.4f}" for name, recall in recalls.items()))
    return {"seconds": seconds, "recall": recalls, "ef": EF, "cores": cores}


def _cagra(device: Device, base: np.ndarray) -> float:
    from cuvs.neighbors import cagra

    there = device.xp.asarray(base)
    cagra.build(cagra.IndexParams(), there)
    synchronize(device)
    start = time.perf_counter()
    cagra.build(cagra.IndexParams(), there)
    synchronize(device)
    return time.perf_counter() - start


def _truth(data: inputs.Vectors) -> np.ndarray:
    flat = FlatIndex(
        [VectorBlock(np.arange(len(data.base)), data.base)],
        parse_type(f"VECTOR({data.base.shape[1]})"),
    )
    return flat.search(data.queries[:QUERIES], K, "<->")[0]


def _recall(graph: Graph, data: inputs.Vectors, truth: np.ndarray) -> float:
    """Return the share of the nearest rows found, compared by full vectors."""
    hits = 0
    for query, right in zip(data.queries, truth, strict=False):
        near = graph.search(query, 2 * K, EF)
        assert near is not None
        rows = graph.rowids[near]
        order = np.argsort(np.square(data.base[rows] - query).sum(axis=1))[:K]
        hits += len(np.intersect1d(rows[order], right))
    return hits / truth.size


def _lists(device: Device, data: inputs.Vectors, repeats: int) -> dict[str, Any]:
    base, rowids, cores = data.base, np.arange(len(data.base)), os.cpu_count() or 1

    def build(resources: Resources) -> Ivf:
        return build_ivf(base, rowids, "<->", IvfOptions(), resources=resources)

    build(Resources(cores, device))
    seconds = harness.measure(
        {"device": lambda: build(Resources(cores, device)),
         "processor": lambda: build(Resources(cores))},
        repeats=1, clock=time.perf_counter,
    )  # fmt: skip
    ivf = build(Resources(cores, device))
    found: dict[str, Any] = {"build": seconds, "probes": PROBES, "batches": {}}
    wanted = ivf.candidates(K)
    for batch in BATCHES:
        queries = np.resize(data.queries, (batch, base.shape[1]))
        one = [ivf.search(query, wanted, PROBES) for query in queries[:100]]
        named = lists.search(device, ivf, queries, wanted, PROBES)
        if named is None:
            raise DeviceError("the device left the search to the processor")
        taken = harness.measure(
            {"device": lambda q=queries: lists.search(device, ivf, q, wanted, PROBES),
             "one thread": lambda q=queries: [ivf.search(x, wanted, PROBES) for x in q]},
            repeats=repeats, clock=time.perf_counter,
        )  # fmt: skip
        same = [a is None or np.array_equal(a, b) for a, b in zip(named, one, strict=False)]
        found["batches"][str(batch)] = {
            "seconds": taken, "ratios": harness.ratios(taken, "device"),
            "answers_equal": bool(np.all(same)),
        }  # fmt: skip
        print(harness.table(f"lists, {batch} queries, ms", taken), "answers equal:", all(same))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    run(arguments.rows, arguments.repeats)
