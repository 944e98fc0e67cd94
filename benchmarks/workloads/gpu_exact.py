"""Exact kNN of batches on a CUDA device beside the processor, faiss-gpu and cuVS, in wall time.

Without a device it says so and ends. Shares of the device's own speed are of what a large product
and a large copy reach on it in the same run. Writes ``results/gpu_exact.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import harness, on_device
from benchmarks.adapters.tarsdb_flat import TarsdbFlat
from benchmarks.on_device import device_or_none
from benchmarks.workloads.exact_knn import K, data
from tarsdb.columns import VectorBlock
from tarsdb.index.flat import FlatIndex
from tarsdb.kernels.gpu.device import Device
from tarsdb.types import parse_type

BATCHES = (128, 1000, 10_000)
PACKAGES = ("numpy", "numba", "numba-cuda", "cupy-cuda12x", "faiss-gpu-cu12", "cuvs-cu12")
OPERATORS = {"l2": "<->", "ip": "<#>"}


class _Ours:
    """Exact search through a device."""

    def __init__(self, device: Device, base: np.ndarray, metric: str) -> None:
        blocks = [VectorBlock(np.arange(len(base)), base)]
        self._index = FlatIndex(blocks, parse_type(f"VECTOR({base.shape[1]})"))
        self._device, self._op = device, OPERATORS[metric]

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return row numbers (q, k)."""
        return self._index.search_on(self._device, queries, k, self._op)[0]


class _Faiss:
    """faiss on the device."""

    def __init__(self, device: Device, base: np.ndarray, metric: str) -> None:
        import faiss

        if not hasattr(faiss, "StandardGpuResources"):
            raise ImportError("faiss is built without GPU support")
        self._resources = faiss.StandardGpuResources()
        kind = faiss.GpuIndexFlatL2 if metric == "l2" else faiss.GpuIndexFlatIP
        self._index = kind(self._resources, base.shape[1])
        self._index.add(base)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return row numbers (q, k)."""
        return np.asarray(self._index.search(queries, k)[1])


class _Cuvs:
    """cuVS's brute force."""

    def __init__(self, device: Device, base: np.ndarray, metric: str) -> None:
        from cuvs.neighbors import brute_force

        self._xp, self._module = device.xp, brute_force
        kind = "sqeuclidean" if metric == "l2" else "inner_product"
        self._index = brute_force.build(device.xp.asarray(base), metric=kind)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return row numbers (q, k)."""
        found = self._module.search(self._index, self._xp.asarray(queries), k)[1]
        return np.asarray(self._xp.asnumpy(self._xp.asarray(found)))


def run(repeats: int = 7) -> dict[str, Any] | None:
    """Measure, print, and store the result; returns the record, None without a device."""
    device = device_or_none()
    if device is None:
        return None
    base, queries, source = data()
    queries = np.resize(queries, (BATCHES[-1], base.shape[1]))
    speed = on_device.speed(device)
    record = harness.environment(PACKAGES)
    record |= {"device": {"name": device.name, **speed}, "figures": {}}
    record["data"] = {"source": source, "rows": len(base), "dim": base.shape[1], "k": K}
    for metric in OPERATORS:
        contenders = _contenders(device, base, metric)
        right = contenders["tarsdb, processor"].search(queries[:128], K)
        for batch in BATCHES:
            figure = _figure(contenders, queries[:batch], repeats)
            figure["shares"] = _shares(figure["seconds"]["tarsdb"]["median"], batch, base, speed)
            figure["answers_equal"] = bool(
                (contenders["tarsdb"].search(queries[:128], K) == right).all()
            )
            record["figures"][f"{metric}_batch{batch}"] = figure
            print(harness.table(f"{metric}, {batch} queries, ms", figure["seconds"]))
            print("  queries/s", figure["queries_per_s"], "ratios", figure["ratios"])
            print("  shares", figure["shares"], "answers equal:", figure["answers_equal"])
    harness.write("gpu_exact", record)
    return record


def _contenders(device: Device, base: np.ndarray, metric: str) -> dict[str, Any]:
    found: dict[str, Any] = {"tarsdb, processor": TarsdbFlat(base, metric)}
    for name, adapter in {"tarsdb": _Ours, "faiss-gpu": _Faiss, "cuVS": _Cuvs}.items():
        try:
            found[name] = adapter(device, base, metric)
        except (ImportError, importlib.metadata.PackageNotFoundError) as reason:
            print(f"without {name} ({metric}): {reason}")
    return found


def _figure(contenders: dict[str, Any], queries: np.ndarray, repeats: int) -> dict[str, Any]:
    def once(contender: Any) -> Callable[[], Any]:
        return lambda: contender.search(queries, K)

    seconds = harness.measure(
        {name: once(contender) for name, contender in contenders.items()},
        repeats=repeats, clock=time.perf_counter,
    )  # fmt: skip
    per_second = {name: len(queries) / each["median"] for name, each in seconds.items()}
    return {
        "seconds": seconds, "queries_per_s": per_second, "ratios": harness.ratios(seconds, "tarsdb")
    }  # fmt: skip


def _shares(
    seconds: float, batch: int, base: np.ndarray, speed: dict[str, float]
) -> dict[str, float]:
    """Return the shares of arithmetic and memory traffic that a search must have reached."""
    work = 2 * batch * base.size
    keys = 4 * batch * len(base)  # written, scaled, read again
    return {
        "arithmetic": work / seconds / speed["flop_per_s"],
        "memory": (base.nbytes + 4 * keys) / seconds / speed["bytes_per_s"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    run(parser.parse_args().repeats)
