"""What a graph on disk would read, beside inverted lists with the same memory.

Counted, not timed: what a query reads of vectors at recall@10 of 0.95. Lists read the vectors of
their candidates, all at once. A graph whose nodes lie on disk, vector and edges in one place
(DiskANN: Subramanya et al., NeurIPS 2019), reads each node it passes, a beam of four at a time,
one beam after the other, and steers by codes in memory. Codes are product codes of as many bytes
as the lists' own, and for a bound that no codes reach, the vectors themselves. Nothing is cached.
Writes ``results/disk_graph.LEVEL.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from benchmarks import exact, inputs  # noqa: E402
from benchmarks.adapters import lists  # noqa: E402
from benchmarks.workloads.ivf import RECALL, K  # noqa: E402
from tarsdb.index.hnsw import Graph, GraphOptions, build_graph  # noqa: E402
from tarsdb.index.quantization.product import ProductQuantizer  # noqa: E402
from tarsdb.kernels import graph as graph_kernels  # noqa: E402
from tarsdb.kernels import reference  # noqa: E402

PAGE = 4096
BEAM = 4
WIDTHS = (10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300, 400, 600)
"""Lengths of a graph's list that are tried."""
PARTS = (64, 192)
"""Bytes of product codes: about those of sign bits, and of these with two bits more an element."""
_Distances = Callable[[np.ndarray], np.ndarray]
"""From nodes to what the codes in memory say of their distances."""


def pass_through(
    graph: Graph, vectors: np.ndarray, query: np.ndarray, steer: _Distances, width: int
) -> tuple[np.ndarray, int, int]:
    """Return the k nearest of the nodes a search reads, how many these are, and in how many turns.

    ``vectors`` are those of the nodes.
    """
    nodes = np.unique(graph.entries).astype(np.int64)
    keys, seen = steer(nodes), set(nodes.tolist())
    is_read = np.zeros(len(nodes), dtype=bool)
    read: list[int] = []
    turns = 0
    while True:
        order = np.argsort(keys, kind="stable")[:width]
        nodes, keys, is_read = nodes[order], keys[order], is_read[order]
        beam = np.flatnonzero(~is_read)[:BEAM]
        if not len(beam):
            break
        is_read[beam] = True
        read += nodes[beam].tolist()
        turns += 1
        around = graph.edges[nodes[beam]].ravel()
        new = [node for node in dict.fromkeys(around[around >= 0].tolist()) if node not in seen]
        seen.update(new)
        found = np.array(new, np.int64)
        nodes, keys = np.concatenate((nodes, found)), np.concatenate((keys, steer(found)))
        is_read = np.concatenate((is_read, np.zeros(len(found), dtype=bool)))
    true = np.square(vectors[read] - query).sum(axis=1)
    return np.array(read)[np.argsort(true, kind="stable")[:K]], len(read), turns


def of_graph(
    graph: Graph, data: inputs.Vectors, truth: np.ndarray, steering: Callable[[Any], _Distances]
) -> dict[str, Any]:
    """Return what the shortest list that reaches the recall reads."""
    vectors = data.base[graph.rowids]
    for width in WIDTHS:
        found, read, turns = zip(
            *(pass_through(graph, vectors, q, steering(q), width) for q in data.queries),
            strict=True,
        )
        recall = exact.recall([graph.rowids[each].tolist() for each in found], truth)
        if recall >= RECALL:
            break
    pages = -(-(vectors.shape[1] * 4 + 4 * graph.edges.shape[1]) // PAGE)
    return {
        "list": width, "recall": recall, "nodes": float(np.mean(read)),
        "pages": float(np.mean(read)) * pages, "turns": float(np.mean(turns)),
    }  # fmt: skip


def of_lists(data: inputs.Vectors, truth: np.ndarray, codes: str) -> dict[str, Any]:
    """Return what lists with the fewest probes that reach the recall read of vectors."""
    made = lists.TarsdbLists(data.base, round(4 * len(data.base) ** 0.5), codes)
    for (probes,) in made.settings[0]:
        made.use((probes,))
        recall = exact.recall([made.search(q, K).tolist() for q in data.queries], truth)
        if recall >= RECALL:
            break
    rows, row_bytes = made.candidates(K), data.base.shape[1] * 4
    return {
        "probes": probes, "recall": recall, "rows": rows, "turns": 1,
        "pages": rows * (1 + (row_bytes - 1) / PAGE),  # where rows begin anywhere
    }  # fmt: skip


def main() -> None:
    """Count and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    given = parser.parse_args()
    data = inputs.vectors(given.rows)
    data = inputs.Vectors(data.base, data.queries[: given.queries], data.source)
    truth = exact.nearest(data.base, data.queries, K)
    figures: dict[str, Any] = {}
    for codes in ("bits", "bits+2"):
        figures[f"lists {codes}"] = of_lists(data, truth, codes)
        print(f"  lists {codes}: {figures[f'lists {codes}']}", flush=True)
    graph_kernels.wait()
    graph = build_graph(data.base, np.arange(len(data.base)), "<->", GraphOptions())
    vectors = data.base[graph.rowids]
    figures["graph, steered by vectors"] = of_graph(
        graph, data, truth, lambda q: lambda nodes: np.square(vectors[nodes] - q).sum(axis=1)
    )
    print(f"  graph: {figures['graph, steered by vectors']}", flush=True)
    for parts in PARTS:
        coder = ProductQuantizer.train(data.base, reference.L2, parts=parts)
        coded = coder.encode(vectors)

        def steering(q: np.ndarray, coder: Any = coder, coded: Any = coded) -> _Distances:
            tables = coder.prepare(q)
            return lambda nodes: np.asarray(coder.distances(tables, coded[nodes]))

        name = f"graph, codes of {parts} bytes"
        figures[name] = of_graph(graph, data, truth, steering)
        print(f"  {name}: {figures[name]}", flush=True)
    record = {
        "data": {"rows": len(data.base), "dim": data.base.shape[1], "k": K, "source": data.source},
        "figures": figures,
    }
    harness.write("disk_graph", {**record, **harness.environment(("numpy", "numba"))})


if __name__ == "__main__":
    main()
