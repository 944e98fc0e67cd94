"""Building a graph by a device: it finds the neighbours of every node, the processor prunes them.

Each node gets its nearest rows as candidates, as many as a list of the processor's build holds, and
some of the nearest among the first nodes only, which lie far apart: edges to these lead across. The
house's pruning (``kernels/cpu/graph.py``, ``link``) chooses among them, adds the reverse edges, and
the result is a graph like any other.

The nearest are exact where all rows are compared with all. Beyond :data:`WHOLE` rows they are exact
among groups: rows with the same nearest pivot, each row in :data:`OVERLAP` of them (as Subramanya
et al. 2019 partition what does not fit into memory); one group at a time lies on the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tarsdb.errors import DeviceError
from tarsdb.index.course import Course
from tarsdb.index.hnsw.build import Work, finished, without_edges
from tarsdb.index.hnsw.codes import Space
from tarsdb.index.hnsw.graph import Graph
from tarsdb.index.hnsw.options import GraphOptions
from tarsdb.index.navigation import as_numbers
from tarsdb.index.resources import Resources
from tarsdb.kernels import graph as kernels
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.nearest import DeviceRows, bytes_of, gathered
from tarsdb.kernels.gpu.neighbours import nearest_rows
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass

MIN_ROWS = 10_000
"""Rows from which a device is asked: not measured yet."""
WHOLE, GROUP, OVERLAP = 1 << 20, 1 << 17, 2
MOST = 512
"""Candidates of a node, at most."""
COARSE, FEW = (8, 64), 16
"""Shares of the nodes whose nearest are candidates too, and how many of each."""
_COARSE_ROWS = 1 << 15
_AT_ONCE = 1 << 13
"""Nodes whose candidates are found, then pruned, at a time."""
_PAIRS = 1 << 18
"""Edges looked at together."""
_ENDS = 1 << 16
"""Nodes that are given reverse edges together: bounds memory."""
_STREAM = 0x67726F75  # apart from what the order of nodes draws from the plain seed


def build_graph(
    vectors: np.ndarray, rowids: np.ndarray, op: str, options: GraphOptions,
    resources: Resources, course: Course,
) -> Graph | None:  # fmt: skip
    """Build a graph over vectors; parameters as of :func:`~tarsdb.index.hnsw.build.build_graph`.

    Returns
    -------
    Graph or None
        None where the rows are too few, not all finite, or the device failed.

    Notes
    -----
    First neighbours, then pruning and reverse edges as in Ootomo et al. 2024 (CAGRA), whose rule of
    pruning is another.
    """
    device, found = resources.device, kernels.wait()
    if device is None or found is None or len(vectors) < MIN_ROWS:
        return None
    graph, shuffled = without_edges(vectors, rowids, op, options)
    rows = _Rows(graph.space, vectors, shuffled)
    if not np.isfinite(graph.constants).all():
        return None
    work = Work(found, graph, options, resources.threads)
    nodes = len(rows)
    try:
        passes = list(_passes(device, rows, options))
        told, total = 0, sum(len(each.nodes) for each in passes)
        for each in passes:
            for part, near in each.candidates(device, rows):
                work.add(*_pairs(graph.edges, part, near))
                told += len(part)
                course.progress(min(nodes - 1, told * nodes // total), nodes)
    except DeviceError:  # out of memory, mostly
        METRICS.add("index.device_failures")
        return None
    for low in range(0, nodes, _ENDS):
        work.add(*_missing(graph.edges, low, low + _ENDS))
    METRICS.add("index.device_graphs")
    course.progress(nodes, nodes)
    return finished(found, graph, lambda node: as_numbers(vectors[shuffled[node]]))


@dataclass(frozen=True)
class _Rows:
    """Nodes' rows in the graph's space, float32, made when they are asked for."""

    space: Space
    vectors: np.ndarray
    shuffled: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, nodes: np.ndarray) -> np.ndarray:
        return self.space.moved(self.vectors[self.shuffled[nodes]])


@dataclass(frozen=True)
class _Pass:
    """Nodes, and the rows among which ``wanted`` neighbours of each are looked for; int64."""

    nodes: np.ndarray
    among: np.ndarray
    wanted: int

    def candidates(self, device: Device, rows: _Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield nodes, part by part, and the nodes near each (p, w), -1 where there are fewer."""
        there = _brought(device, rows, self.among)
        names = np.append(self.among, -1)
        for at in range(0, len(self.nodes), _AT_ONCE):
            part = self.nodes[at : at + _AT_ONCE]
            with device.working(lambda: f"neighbours among {len(self.among)} rows"):
                places = nearest_rows(device, there, rows[part], self.wanted)
            yield part, names[places]


def _brought(device: Device, rows: _Rows, among: np.ndarray) -> DeviceRows:
    """Bring rows to the device; DeviceError, naming the sizes, where they do not fit."""
    shape = (len(among), len(rows.space.mean))
    needed, budget = bytes_of(*shape), device.arrays.budget
    if needed > budget:
        raise DeviceError(f"{shape[0]} rows take {needed} bytes, device {device.name} has {budget}")
    parts = (rows[among[at : at + _AT_ONCE]] for at in range(0, shape[0], _AT_ONCE))
    with device.working(lambda: f"{shape[0]} rows of {needed} bytes"):
        return gathered(device, shape, parts)


def _passes(device: Device, rows: _Rows, options: GraphOptions) -> Iterator[_Pass]:
    """Yield what to look for: far neighbours, then near ones."""
    everyone = np.arange(len(rows))
    for share in COARSE:
        among = everyone[: min(len(rows) // share, _COARSE_ROWS)]
        if len(among) > FEW:
            yield _Pass(everyone, among, FEW)
    wanted = min(options.ef_construction, MOST)
    if len(rows) <= WHOLE:
        yield _Pass(everyone, everyone, wanted)
        return
    for group in _groups(device, rows, options.seed):
        yield _Pass(group, group, wanted)


def _groups(device: Device, rows: _Rows, seed: int) -> Iterator[np.ndarray]:
    """Yield nodes that have a pivot among their nearest, ascending; large groups in pieces."""
    count = max(2, -(-len(rows) * OVERLAP // GROUP))
    rng = np.random.default_rng([seed, _STREAM])
    pivots = np.sort(rng.choice(len(rows), count, replace=False))
    own = np.concatenate([
        near
        for _, near in _Pass(np.arange(len(rows)), pivots, OVERLAP).candidates(device, rows)
    ])  # fmt: skip
    for pivot in pivots.tolist():
        members = np.flatnonzero((own == pivot).any(axis=1))
        for piece in np.array_split(members, max(1, -(-len(members) // (2 * GROUP)))):
            if len(piece) > 1:
                yield piece


def _pairs(edges: np.ndarray, nodes: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take the edges of nodes out; return them and edges to what is near, each once.

    ``nodes`` ascend. Returns int32 (p,) each, sorted by node.
    """
    ends = np.sort(np.concatenate([edges[nodes], near], axis=1), axis=1)
    edges[nodes] = -1
    kept = (ends >= 0) & (ends != nodes[:, None])
    kept[:, 1:] &= ends[:, 1:] != ends[:, :-1]
    owners = np.repeat(nodes, kept.sum(axis=1))
    return owners.astype(np.int32), ends[kept].astype(np.int32)


def _missing(edges: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Return edges of nodes low..high that lead back where none does, sorted by node."""
    sources, slots = np.nonzero((edges >= low) & (edges < high))
    ends = edges[sources, slots]
    absent = np.concatenate([
        (edges[ends[at : at + _PAIRS]] != sources[at : at + _PAIRS, None]).all(axis=1)
        for at in range(0, max(len(ends), 1), _PAIRS)
    ])  # fmt: skip
    ends, sources = ends[absent], sources[absent]
    order = np.argsort(ends, kind="stable")
    return ends[order], sources[order].astype(np.int32)
