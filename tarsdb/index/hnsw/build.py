"""Building a graph: nodes go in by batches, each searching the graph of the batches before.

Deterministic: the same vectors and options give the same graph, whatever the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from tarsdb.errors import NotSupportedError
from tarsdb.index.course import UNWATCHED, Course, State
from tarsdb.index.hnsw.codes import AT_ONCE, Space, padded_width
from tarsdb.index.hnsw.graph import Graph, sketch_bytes
from tarsdb.index.hnsw.options import GraphOptions
from tarsdb.index.navigation import as_numbers
from tarsdb.kernels import graph as kernels
from tarsdb.kernels.graph import LIST_ROOM, GraphKernels
from tarsdb.kernels.native import address

ENTRIES = 64
FIRST, SHARE = 1024, 0.05
"""A batch has as many nodes as the graph, up to FIRST or a SHARE of it."""
_ROUNDS, _NEAR = 4, 16
"""Times nodes without an edge are looked for, and neighbours among which one is given it."""
_STEP = 512
"""Nodes between two looks at whether to stop."""


def estimated_bytes(
    rows: int, width: int, stored: int, op: str, options: GraphOptions
) -> tuple[int, int]:
    """Return memory held at the peak of a build and bytes of its graph, from shapes alone.

    Parameters
    ----------
    rows, width : int
        Shape of the vectors as numbers.
    stored : int
        Bytes of a vector as it is stored.
    op : str
    options : GraphOptions

    Returns
    -------
    memory : int
        The larger of two moments: vectors are coded (they lie there in the order of the rows and
        of insertion), and nodes are put in order (the graph lies there twice).
    disk : int
        What :meth:`Graph.to_arrays` holds.
    """
    bits = _most_bits(options)
    code = padded_width(width + (op == "<#>"), bits) * bits // 8
    node = code + 8 + 4 * options.degree  # code, constants, edges
    vectors = rows * stored
    temporary = min(rows, AT_ONCE) * width * 3 * 4  # float32 rows, scaled ones, rounded ones
    coding = 2 * vectors + rows * code + temporary
    ordering = vectors + 2 * rows * node
    return max(coding, ordering) + 3 * 8 * rows, rows * (node + 8)


def searched_bytes(rows: int, width: int, op: str, options: GraphOptions) -> int:
    """Return bytes a process that searches holds of a graph: itself, and the sketches beside it."""
    sketches = rows * sketch_bytes(padded_width(width + (op == "<#>"), _most_bits(options)))
    return estimated_bytes(rows, width, 0, op, options)[1] + sketches


def _most_bits(options: GraphOptions) -> int:
    return 4 if options.quantization == "int4" else 8


def build_graph(
    vectors: np.ndarray,
    rowids: np.ndarray,
    op: str,
    options: GraphOptions | None = None,
    *,
    threads: int = 1,
    course: Course = UNWATCHED,
) -> Graph:
    """Build a graph over vectors.

    Parameters
    ----------
    vectors : (n, width), n >= 1
        As :func:`~tarsdb.index.navigation.as_numbers` takes them.
    rowids : int64 (n,)
    op : str
        The operator it will answer: ``<->``, ``<#>`` or ``<=>``.
    options : GraphOptions, optional
    threads : int
    course : Course
        Its state is the edges so far; one that does not fit is passed over.

    Returns
    -------
    Graph

    Raises
    ------
    NotSupportedError
        There is no compiler on this machine.

    Notes
    -----
    Insertion as in Malkov & Yashunin 2018 (Algorithm 1, without layers), pruning as in
    Subramanya et al. 2019 (RobustPrune), batches as in Manohar et al. 2024 (ParlayANN).
    """
    found = kernels.wait()
    if found is None:
        raise NotSupportedError(
            "graphs are built by compiled kernels, and Numba is not usable here"
        )
    options = options or GraphOptions()
    graph, shuffled = without_edges(vectors, rowids, op, options)
    nodes, edges = len(graph), graph.edges
    work = Work(found, graph, options, threads)
    done = _taken_up(course.resume(), edges)
    while done < nodes:
        stop = min(nodes, done + max(min(done, FIRST), int(done * SHARE)))
        for at in range(done, stop, _STEP * threads):
            work.insert(done, at, min(stop, at + _STEP * threads))
            course.progress(at, nodes)
        work.link(done, stop)
        done = stop
        course.offer(lambda: {"edges": edges[:stop]})  # noqa: B023  # called at once
    course.progress(nodes, nodes)
    return finished(found, graph, lambda node: as_numbers(vectors[shuffled[node]]))


def without_edges(
    vectors: np.ndarray, rowids: np.ndarray, op: str, options: GraphOptions
) -> tuple[Graph, np.ndarray]:
    """Return a graph whose nodes have no edges yet, and the row of each node, int64 (n,)."""
    nodes = len(vectors)
    shuffled = np.random.default_rng(options.seed).permutation(nodes)
    space = Space.of(vectors, op)
    bits = {"int8": 8, "int4": 4}.get(options.quantization) or space.bits_for(vectors)
    codes, constants = space.coded(vectors[shuffled], bits)
    edges = np.full((nodes, options.degree), -1, dtype=np.int32)
    entries = np.arange(min(ENTRIES, nodes), dtype=np.int32)
    return Graph(rowids[shuffled], codes, constants, edges, entries, space), shuffled


def finished(found: GraphKernels, graph: Graph, vector: Callable[[int], np.ndarray]) -> Graph:
    """Return a graph in which everything can be reached, its nodes in breadth-first order.

    ``vector`` returns a node's vector as numbers.
    """
    return _relabelled(graph, _connected(found, graph, vector))


def _taken_up(state: State | None, edges: np.ndarray) -> int:
    """Put the edges of an earlier build in place; return how many nodes have theirs."""
    known = (state or {}).get("edges")
    if known is None or known.dtype != edges.dtype or known.ndim != 2:
        return 1
    done = len(known)
    fits = 1 < done <= len(edges) and known.shape[1] == edges.shape[1]
    if not fits or known.min() < -1 or known.max() >= done:  # a wrong node would be a wild read
        return 1
    edges[:done] = known
    return done


def _connected(
    found: GraphKernels, graph: Graph, vector: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Lead an edge to what no search could reach; return the nodes in breadth-first order."""
    edges, places = graph.edges, np.empty(len(graph), dtype=np.int32)
    _ring(edges, graph.entries)
    given = set[int]()  # nodes whose last edge leads to such a node: it is not taken again
    for _ in range(_ROUNDS):
        lost = np.empty(len(graph), dtype=np.int32)
        count = found.order(edges, graph.entries, places, np.zeros(len(graph), np.uint8), lost)
        before = int(graph.entries[0])
        for node in lost[:count].tolist():
            near = graph.search(vector(node), _NEAR, 4 * _NEAR)
            assert near is not None
            free = near[edges[near, -1] < 0]
            others = free if len(free) else [each for each in near if int(each) not in given]
            by = int(others[0]) if len(others) else before  # from a full one, its last edge goes
            edges[by, int((edges[by, :-1] >= 0).sum())] = node
            if edges[by, -1] == node:
                given.add(by)
            before = node
        if not count:
            break
    return places


def _ring(edges: np.ndarray, entries: np.ndarray) -> None:
    """Lead an edge from each entry to the next: a search starts from a few of them only."""
    for node, following in zip(entries, np.roll(entries, -1), strict=True):
        others = edges[node][(edges[node] >= 0) & (edges[node] != following)]
        if node != following:  # in front, as the last edge may be given to another node
            edges[node, : len(others) + 1] = [following, *others][: edges.shape[1]]


def _relabelled(graph: Graph, places: np.ndarray) -> Graph:
    """Return the graph with its nodes in another order."""
    numbers = np.empty(len(places) + 1, dtype=np.int32)
    numbers[places] = np.arange(len(places), dtype=np.int32)
    numbers[-1] = -1  # where no edge is
    return Graph(
        graph.rowids[places].astype(np.int64), graph.codes[places], graph.constants[places],
        numbers[graph.edges[places]], numbers[graph.entries], graph.space,
    )  # fmt: skip


class Work:
    """A graph in the making, whose edges grow, and how batches are spread over threads."""

    def __init__(
        self, found: GraphKernels, graph: Graph, options: GraphOptions, threads: int
    ) -> None:
        self.kernels, self.graph, self.options, self.threads = found, graph, options, threads
        marks = len(graph) // 8 + 8
        self.visited = [np.empty(marks, np.uint8) for _ in range(threads)]
        room = options.ef_construction + LIST_ROOM
        self.beams = [np.empty(room, np.int64) for _ in range(threads)]

    def insert(self, done: int, start: int, stop: int) -> None:
        """Give nodes start..stop their edges into the nodes below ``done``."""
        alpha, graph = np.float32(self.options.alpha), self.graph
        table = address(graph.table)

        def run(number: int, low: int, high: int) -> None:
            self.kernels.insert(
                table, graph.edges, done, low, high, self.options.ef_construction, alpha,
                self.beams[number], self.visited[number],
            )  # fmt: skip

        self._spread(run, start, stop)

    def link(self, start: int, stop: int) -> None:
        """Add the reverse of the edges of nodes start..stop."""
        edges = self.graph.edges
        sources, slots = np.nonzero(edges[start:stop] >= 0)
        destinations = edges[start:stop][sources, slots]
        order = np.argsort(destinations, kind="stable")
        self.add(destinations[order], (sources[order] + start).astype(np.int32))

    def add(self, destinations: np.ndarray, sources: np.ndarray) -> None:
        """Add edges destination -> source, pruning where a node has too many.

        int32 (p,), sorted by destination; none leads to itself.
        """
        if not len(destinations):
            return
        edges, table = self.graph.edges, address(self.graph.table)
        alpha = np.float32(self.options.alpha)
        bounds = np.flatnonzero(np.diff(destinations, prepend=-1))  # first pair of a destination
        cuts = [*bounds[:: max(1, -(-len(bounds) // self.threads))].tolist(), len(destinations)]
        most = int(np.diff(np.append(bounds, len(destinations))).max(initial=0)) + edges.shape[1]

        def run(number: int, low: int, high: int) -> None:
            del number
            memory = np.empty(most + LIST_ROOM, np.int64)
            self.kernels.link(table, edges, destinations, sources, low, high, alpha, memory)

        _together([(run, n, cuts[n], cuts[n + 1]) for n in range(len(cuts) - 1)])

    def _spread(self, run: Callable[[int, int, int], None], start: int, stop: int) -> None:
        cuts = np.linspace(start, stop, self.threads + 1).astype(int).tolist()
        _together([(run, n, cuts[n], cuts[n + 1]) for n in range(self.threads)])


def _together(jobs: list[tuple[Callable[[int, int, int], None], int, int, int]]) -> None:
    others = [threading.Thread(target=run, args=args) for run, *args in jobs[1:]]
    for other in others:
        other.start()
    for run, *args in jobs[:1]:
        run(*args)
    for other in others:
        other.join()
