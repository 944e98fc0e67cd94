"""Quantised rows beside faiss: recall of ranking by codes alone, bytes, coding and scan times.

All codes of L2, one thread, trained on the same rows. A search gives the ten nearest rows by code
of one query over all rows; queries go through all contenders in turn, medians are reported. No row
is ranked again by its exact distance. ``error`` is the mean squared error over the variance.
Writes ``results/quantization.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from benchmarks import inputs  # noqa: E402
from tarsdb.index import quantization  # noqa: E402
from tarsdb.index.quantization.base import nearest  # noqa: E402
from tarsdb.kernels import dispatch, reference  # noqa: E402

PACKAGES = ("numpy", "numba", "faiss-cpu")
K = 10
PQ = quantization.ProductQuantizer
OURS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "rabitq 1 bit": (quantization.RaBitQ.train, {}),
    "rabitq 4 bits": (quantization.RaBitQ.train, {"bits": 4}),
    "float16": (quantization.Float16.train, {}),
    "int8": (quantization.Int8.train, {}),
    "int4": (quantization.Int4.train, {}),
    "pq 96x4": (PQ.train, {"parts": 96, "bits": 4}),
    "opq 96x4": (PQ.train, {"parts": 96, "bits": 4, "rotate": True}),
    "pq 48x8": (PQ.train, {"parts": 48}),
}
FAISS = {
    "rabitq 1 bit": "RaBitQ", "float16": "SQfp16", "int8": "SQ8", "int4": "SQ4",
    "pq 96x4": "PQ96x4fs", "opq 96x4": "OPQ96,PQ96x4fs", "pq 48x8": "PQ48",
}  # fmt: skip


class Ours:
    """A quantiser and all rows' codes, packed where there is a scan for them."""

    def __init__(self, name: str, sample: np.ndarray, base: np.ndarray) -> None:
        train, options = OURS[name]
        start = time.process_time()
        self.quantizer = train(sample, reference.L2, **options)
        self.train_seconds = time.process_time() - start
        start = time.process_time()
        self.codes = self.quantizer.encode(base)
        self.encode_seconds = time.process_time() - start
        self.bytes = self.quantizer.code_size
        rest = base - self.quantizer.decode(self.codes)
        self.error = float(np.square(rest).sum() / np.square(base - base.mean(axis=0)).sum())
        is_bits = isinstance(self.quantizer, quantization.RaBitQ) and self.quantizer.bits == 1
        self._packed = is_bits or (isinstance(self.quantizer, PQ) and self.quantizer.count == 16)
        if self._packed:
            self._tiles = self.quantizer.pack(self.codes)

    def search(self, query: np.ndarray) -> np.ndarray:
        """Return positions of the ten nearest by code."""
        prepared = self.quantizer.prepare(query)
        if not self._packed:
            return nearest(self.quantizer.distances(prepared, self.codes), K)
        keys = self.quantizer.scan(prepared, self._tiles)
        keys = keys[0][0] if isinstance(keys, tuple) else keys
        return nearest(keys[: len(self.codes)], K)


class Faiss:
    """An index of faiss's factory."""

    error = float("nan")

    def __init__(self, factory: str, sample: np.ndarray, base: np.ndarray) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self._index = faiss.index_factory(base.shape[1], factory)
        if factory == "RaBitQ":
            self._index.qb = 4  # bits of a query's element, as ours
        start = time.process_time()
        self._index.train(sample)
        self.train_seconds = time.process_time() - start
        start = time.process_time()
        self._index.add(base)
        self.encode_seconds = time.process_time() - start
        inner = faiss.downcast_index(getattr(self._index, "index", self._index))
        self.bytes = int(inner.code_size)

    def search(self, query: np.ndarray) -> np.ndarray:
        """Return positions of the ten nearest by code."""
        return np.asarray(self._index.search(query[None], K)[1][0])


def run(rows: int, sample_rows: int, queries: int, names: list[str]) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    data = inputs.vectors(rows)
    sample, asked = data.base[:sample_rows], data.queries[:queries]
    dispatch.warmup()
    contenders: dict[str, Any] = {}
    for name in names:
        contenders[f"tarsdb {name}"] = Ours(name, sample, data.base)
        if name in FAISS:
            try:
                contenders[f"faiss {name}"] = Faiss(FAISS[name], sample, data.base)
            except ImportError as reason:
                print(f"without faiss: {reason}")
    hits, seconds = dict.fromkeys(contenders, 0), {name: [] for name in contenders}
    squares = np.einsum("ij,ij->i", data.base, data.base)
    for query in asked:
        truth = nearest(squares - 2 * (data.base @ query), K)
        for name, contender in contenders.items():
            start = time.perf_counter()
            found = contender.search(query)
            seconds[name].append(time.perf_counter() - start)
            hits[name] += len(np.intersect1d(found, truth))
    figures = {
        name: {
            "recall": hits[name] / (K * len(asked)), "bytes": c.bytes, "error": c.error,
            "train_seconds": c.train_seconds, "encode_seconds": c.encode_seconds,
            "search_milliseconds": statistics.median(seconds[name]) * 1e3,
        }
        for name, c in contenders.items()
    }  # fmt: skip
    return {
        "what": "ten nearest by code alone, one query, one thread", "rows": rows,
        "sample": sample_rows, "queries": queries, "data": data.source, "figures": figures,
        "environment": harness.environment(PACKAGES),
    }  # fmt: skip


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=inputs.LIMIT)
    parser.add_argument("--sample", type=int, default=20_000, help="rows to train on")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("names", nargs="*", help=", ".join(OURS))
    options = parser.parse_args()
    names = options.names or list(OURS)
    record = run(options.rows, options.sample, options.queries, names)
    print(f"{'':22} recall bytes  error  train s  encode s  search ms")
    for name, f in record["figures"].items():
        print(f"{name:22} {f['recall']:6.3f} {f['bytes']:5d} {f['error']:6.4f} "
              f"{f['train_seconds']:8.2f} {f['encode_seconds']:9.2f} "
              f"{f['search_milliseconds']:10.3f}")  # fmt: skip
    if not options.no_write:
        print(harness.write("quantization", record))


if __name__ == "__main__":
    main()
