"""A search of a graph that asks a function of another library, beside one that knows the answers.

The function is one of C's made by ctypes, with the arguments of wasmtime's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from tarsdb.index.hnsw import Graph, GraphOptions, asking, build_graph
from tarsdb.index.hnsw.asking import UNKNOWN, Argument, Asked
from tarsdb.kernels import graph as kernels
from tarsdb.kernels.native import address

ROWS, DIM = 3000, 16
POINTER = ctypes.c_void_p
Prototype = ctypes.CFUNCTYPE(POINTER, POINTER, POINTER, POINTER, ctypes.c_size_t, POINTER)


@dataclass
class Filter:
    """A function over arguments of some types, and what it was called with."""

    passes: Callable[..., np.ndarray]
    dtypes: list[type]
    error: int = 0
    trap: int = 0
    seen: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows, self.answers = np.zeros(1, np.uint32), np.zeros(asking.AT_ONCE, np.int32)
        self.arguments = [np.zeros(asking.AT_ONCE, dtype) for dtype in self.dtypes]
        self.words, self.left = np.arange(3, dtype=np.int64), np.zeros(1, np.int64)
        self._function = Prototype(self._call)
        target = ctypes.cast(self._function, POINTER).value
        assert target is not None
        places = (address(self.words) + 8 * number for number in range(3))
        self.place = (target, *places, 7, address(self.left))

    def _call(self, *given: int) -> int:
        assert (*given[:3], *given[3:]) == self.place[1:]
        count = int(self.rows[0])
        values = tuple(each[:count].copy() for each in self.arguments)
        self.seen.append(values)
        self.answers[:count] = self.passes(*values)
        self.left[0] = self.trap
        return self.error


@pytest.fixture(scope="module")
def data() -> tuple[Graph, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((40, DIM)).astype(np.float32)
    rows = centres[rng.integers(0, 40, ROWS)] + 0.4 * rng.standard_normal((ROWS, DIM))
    queries = centres[rng.integers(0, 40, 20)] + 0.4 * rng.standard_normal((20, DIM))
    assert kernels.wait() is not None
    graph = build_graph(rows.astype(np.float32), np.arange(ROWS), "<->", GraphOptions())
    return graph, queries.astype(np.float32), rng.permutation(ROWS)


def test_the_words_are_the_kernels() -> None:
    from tarsdb.kernels.cpu import asking as kernel

    names = [(kernel.ERROR, asking._ERROR), (kernel.LEFT, asking._LEFT)]
    names += [(kernel.CALLS, asking._CALLS), (kernel.PASSED, asking._PASSED)]
    names += [(kernel.PLACES, asking._PLACES), (kernel.UNKNOWN, UNKNOWN)]
    assert all(there == here for there, here in names)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.int64, np.float64])
def test_it_finds_what_it_finds_where_the_answers_are_known(
    data: tuple[Graph, np.ndarray, np.ndarray], share: float, dtype: type
) -> None:
    graph, queries, positions = data
    rng = np.random.default_rng(3)
    by_position = (rng.integers(0, 100, ROWS) % 128).astype(dtype)
    valid = rng.random(ROWS) < 0.9
    live = (rng.random(ROWS) < 0.95).astype(np.uint8)
    limit = dtype(round(100 * share))
    function = Filter(lambda value, most: (value < most) * 5, [dtype, dtype])
    known = (valid & (by_position < limit))[positions].astype(np.uint8) & live
    for query in queries:
        function.seen.clear()
        given = [Argument(by_position, valid), Argument(np.array([limit]), is_constant=True)]
        asked = Asked(function, given, ROWS)
        unknown = asked.of(positions, UNKNOWN * live)
        found = graph.search(query, 12, 20, unknown, ROWS, positions)
        wanted = graph.search(query, 12, 20, known, ROWS, positions)
        assert found is not None
        np.testing.assert_array_equal(found, wanted)
        told = unknown.allowed != UNKNOWN
        np.testing.assert_array_equal(unknown.allowed[told], known[told])
        assert asked.rows == sum(len(values) for values, _ in function.seen)
        assert asked.passed == np.count_nonzero(unknown.allowed == 1)
        assert asked.calls == len(function.seen) <= asked.rows
        assert all((most == limit).all() for _, most in function.seen)
        if share >= 0.5:  # only what it came to was asked about
            assert asked.rows < ROWS / 4


def test_all_of_some_positions(data: tuple[Graph, np.ndarray, np.ndarray]) -> None:
    values = np.arange(10 * ROWS)
    function = Filter(lambda value: value % 3 == 0, [np.int64])
    asked = Asked(function, [Argument(values)], 10 * ROWS)
    positions = np.random.default_rng(1).permutation(10 * ROWS)[: 2 * asking.AT_ONCE + 7]
    found = asked.passing(positions)
    np.testing.assert_array_equal(found, positions[positions % 3 == 0])
    assert (asked.rows, asked.calls) == (len(positions), 3)
    assert Asked(function, [Argument(values)], 0).passing(positions[:0]).tolist() == []  # type: ignore[union-attr]


def test_a_step_comes_to_as_many_nodes_as_the_largest_m_lets_it(
    data: tuple[Graph, np.ndarray, np.ndarray],
) -> None:
    graph, queries, positions = data
    most, rng = GraphOptions(m=256).degree, np.random.default_rng(2)
    edges = np.stack([rng.choice(ROWS, most, replace=False) for _ in range(ROWS)])
    wide = Graph(
        graph.rowids, graph.codes, graph.constants, edges.astype(np.int32), graph.entries,
        graph.space,
    )  # fmt: skip
    function = Filter(lambda value, constant: constant == 7, [np.int64, np.int64])
    given = [Argument(np.arange(ROWS)), Argument(np.array([7]), is_constant=True)]
    asked = Asked(function, given, ROWS)
    found = wide.search(queries[0], 12, 20, asked.of(positions, unknown()), ROWS)
    assert 1024 < max(len(values) for values, _ in function.seen) <= asking.AT_ONCE
    assert all((constants == 7).all() for _, constants in function.seen)
    everything = np.ones(ROWS, np.uint8)
    np.testing.assert_array_equal(found, wide.search(queries[0], 12, 20, everything, ROWS))
    assert kernels.TOGETHER * most <= asking.AT_ONCE


@pytest.mark.parametrize("what", ["error", "trap", "most"])
def test_what_ends_it(data: tuple[Graph, np.ndarray, np.ndarray], what: str) -> None:
    graph, queries, positions = data
    function = Filter(lambda value: value >= 0, [np.int64])
    given, most = [Argument(np.arange(ROWS))], ROWS
    asked = Asked(function, given, most)
    assert graph.search(queries[0], 5, 20, asked.of(positions, unknown()), ROWS) is not None
    calls = len(function.seen)
    if what == "most":
        most = asked.rows - 1
    else:
        setattr(function, what, 4711)
    function.seen.clear()
    asked = Asked(function, given, most)
    assert graph.search(queries[0], 5, 20, asked.of(positions, unknown()), ROWS) is None
    assert asked.error == (4711 if what == "error" else 0)
    assert len(function.seen) == (calls - 1 if what == "most" else 1)  # nothing is called after it
    assert asked.rows <= most
    function.left[0] = 0


def unknown() -> np.ndarray:
    return np.full(ROWS, UNKNOWN, np.uint8)
